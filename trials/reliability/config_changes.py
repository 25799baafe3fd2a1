"""Changes of keys in the pipeline file, the rubric and the principles, and the calls that each change causes.

The run that is changed: four prompts; models `a` (one completion a prompt) and `b` (two); judges `strict` and `lax`,
each with one request about all completions of a prompt (`together`) and one about each completion (`alone`).
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Patch = Mapping[str, Any]  # by dotted key; OUT removes the key
OUT = object()

N = 4  # prompts
A, B = N, 2 * N  # slots
TOGETHER, ALONE = N, 3 * N  # calls of each judge


def _judges(n: int) -> dict[str, int]:
    return {"strict": n, "lax": n}


NOTHING: dict[str, int] = {}
JUDGES = _judges(TOGETHER + ALONE)
STRICT = {"strict": TOGETHER + ALONE}
ALL = {"a": A, "b": B, **JUDGES}
ONLY_A = {"a": A, **_judges(TOGETHER + N)}


@dataclass(frozen=True)
class Change:
    """A change of a key, and the number of calls it causes, by model and judge.

    `named` is the key, or several that cause no calls: the first in full, then the last parts of the others. `given` is
    changed before, and the run finished with it. `rubric` and `principles` are changes in these files.
    """

    named: str
    to: Patch = field(default_factory=dict)
    asks: Mapping[str, int] = field(default_factory=dict)
    given: Patch = field(default_factory=dict)
    rubric: Patch = field(default_factory=dict)
    principles: Patch = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        first, *others = self.named.split()
        return [first, *(f"{first.rpartition('.')[0]}.{other}" for other in others)]


def _each(where: str, values: Patch) -> dict[str, Any]:
    return {f"{where}.{key}": value for key, value in values.items()}


_PRICE: Patch = {"input": 1.0, "output": 2.0, "cached_input": 0.5, "cache_write": 1.5}
_OPENAI: Patch = {"models.a.provider": "openai"}
_SIMULATED: Patch = {
    **{f"models.{name}": {"provider": "simulator", "samples": n, "quality": 0.5} for name, n in (("a", 1), ("b", 2))},
    **{f"judges.{name}": {"provider": "simulator", "noise": 0.1} for name in ("strict", "lax")},
}
_PROVIDED: Patch = {
    "models": {}, "completions": {"per_prompt": 2}, "prompts.0.file": "carried.jsonl",
    "prompts.0.completions": {"field": "answers", "text": "text", "model": "model"},
}  # fmt: skip
_SCORED: Patch = {**_PROVIDED, "judges": {}, "prompts.0.material": {}, "prompts.0.completions.score": "score"}
_HUB: Patch = {"prompts.0.file": OUT, "prompts.0.hub": "hub", "prompts.0.config": "one"}
_KTO: Patch = {"export.kto": {"rule": "scores", "desirable": 4.0, "undesirable": 2.0}}

_RUN = (
    Change("name", {"name": "another"}),
    Change("store", {"store": "elsewhere/feedback.duckdb"}, ALL),  # a new store starts empty
    Change("confirm_usd", {"confirm_usd": 9.0}),
    Change("budget_usd", {"budget_usd": 900.0, "judges.strict.price": _PRICE, "judges.lax.price": _PRICE}),
    Change("seed", {"seed": 8}, ALL),
)

_PROMPTS = (
    Change("prompts.file", {"prompts.0.file": "copy.jsonl"}),
    Change("prompts.file", {"prompts.0.file": "others.jsonl"}, ALL),
    Change("prompts.hub", _HUB),
    Change("prompts.config", {"prompts.0.config": "two"}, ALL, given=_HUB),
    Change("prompts.split", {"prompts.0.split": "test"}, ALL, given=_HUB),
    Change("prompts.revision", {"prompts.0.revision": "v2"}, given=_HUB),  # a local folder has no revisions
    Change("prompts.field", {"prompts.0.field": "other"}, ALL),
    Change("prompts.source", {"prompts.0.source": "letters"}),  # its principles are the same
    Change("prompts.source", {"prompts.0.source": "books"}, ALL),
    Change("prompts.source_field", {"prompts.0.source_field": "from"}, ALL),
    Change("prompts.limit", {"prompts.0.limit": N - 1}),
    Change("prompts.max_chars", {"prompts.0.max_chars": 100}),
    Change("prompts.material", {"prompts.0.material": {"reference": "better"}}, JUDGES),
    Change("prompts.material", {"prompts.0.material": {}}, JUDGES),
    Change("prompts.completions.field", {"prompts.0.completions.field": "drafts"}, _judges(N + 2 * N), given=_PROVIDED),
    Change("prompts.completions.text", {"prompts.0.completions.text": "short"}, _judges(N + 2 * N), given=_PROVIDED),
    Change("prompts.completions.model", {"prompts.0.completions.model": "who"}, _judges(N + 2 * N), given=_PROVIDED),
    Change("prompts.completions.score", {"prompts.0.completions.score": "other_score"}, given=_SCORED),
)

_COMPLETIONS = (
    Change("principles", {"principles": OUT}, ALL),
    Change("principles", principles={"pools.plain.0": "Be brief and plain."}, asks=ALL),
    Change(
        "principles", principles={"pools.ornate.0": "Write as in a book of old."}
    ),  # no prompt of this run draws from it
    Change("completions.per_prompt", {"completions.per_prompt": 2}, _judges(TOGETHER)),
    Change("completions.min_completions", {"completions.min_completions": 3}),
    Change("completions.temperature", {"completions.temperature": 0.7}, ALL),
    Change("completions.top_p", {"completions.top_p": 0.7}, ALL),
    Change("completions.max_tokens", {"completions.max_tokens": 65}, ALL),
)

_LAUNCH: Patch = {
    "gpus": 2, "replicas": 2, "max_model_len": 512, "python": "python3", "args": ["--dtype", "half"], "env": {"X": "1"},
    "ready_s": 9.0,
}  # fmt: skip
_CALLED: Patch = {
    "api_key_env": "AIF_TRIAL_KEY", "concurrency": 3, "requests_per_minute": 60000, "tokens_per_minute": 9000000,
    "terms": "apache-2.0", "timeout_s": 9.0, "service_tier": "flex", "extra_headers": {"X-Who": "me"},
    "extra_query": {"who": "me"}, "omit": ["seed"], "dialect": "openai", "max_model_len": 4096,
    "reasoning_tags": "none",
}  # fmt: skip


def _endpoint(part: str, name: str, provider: str, asks: Mapping[str, int]) -> list[Change]:
    """Return changes of the keys that models and judges share, for one of them.

    `provider` is another provider than it has. `asks` are the calls caused by changes that affect replies; a change of
    address, pace or price causes none.
    """
    at, model = f"{part}.{name}", f"org/{name}"
    launched: Patch = {f"{at}.provider": "vllm", f"{at}.base_url": OUT, f"{at}.launch": {"model": model}}
    priced: Patch = {f"{at}.price": _PRICE}
    dearer: Patch = {f"{at}.price": dict.fromkeys(_PRICE, 3.0)}
    tiered: Patch = {f"{at}.service_tier": "flex", f"{at}.price.tiers": {"flex": _PRICE}}
    return [
        Change(f"{part}.provider", {f"{at}.provider": provider}),
        Change(f"{part}.model", {f"{at}.model": f"{model}-2"}, asks),
        Change(f"{part}.revision", {f"{at}.revision": "v2"}, asks),
        Change(f"{part}.base_url", {f"{at}.base_url": "{other}"}),
        Change(f"{part}.launch", launched),
        # `model` decides the identity
        Change(f"{part}.launch.model", {f"{at}.launch.model": f"{model}-awq"}, given=launched),
        Change(f"{part}.launch.model", {f"{at}.model": OUT, f"{at}.launch.model": f"{model}-3"}, asks, given=launched),
        Change(f"{part}.launch.{' '.join(_LAUNCH)}", _each(f"{at}.launch", _LAUNCH), given=launched),
        Change(f"{part}.{' '.join(_CALLED)}", _each(at, _CALLED)),
        Change(f"{part}.price", priced),
        Change(f"{part}.price.{' '.join(_PRICE)}", dearer, given=priced),
        Change(f"{part}.price.tiers.{' '.join(_PRICE)}", tiered, given=priced),
        Change(f"{part}.extra_body", {f"{at}.extra_body": {"top_k": 40}}, asks),
        Change(f"{part}.temperature", {f"{at}.temperature": 0.6}, asks),
        Change(f"{part}.top_p", {f"{at}.top_p": 0.6}, asks),
    ]


_MODELS = (
    *_endpoint("models", "a", "openai", ONLY_A),
    Change("models.reasoning_effort", {"models.a.reasoning_effort": "low"}, ONLY_A, given=_OPENAI),
    Change("models.system", {"models.a.system": "fold_into_user"}, ONLY_A),
    Change("models.samples", {"models.a.samples": 2, "models.b.samples": 1}, ONLY_A),
    Change("models.max_tokens", {"models.a.max_tokens": 66}, ONLY_A),
    Change("models.quality", {"models.a.quality": 0.6}, ONLY_A, given=_SIMULATED),
)

_RATED = (
    *_endpoint("judges", "strict", "vllm", STRICT),
    Change("judges.reasoning_effort", {"judges.strict.reasoning_effort": "low"}, STRICT),
    Change("judges.reply", {"judges.strict.reply": "text"}, STRICT),
    Change("judges.max_tokens", {"judges.strict.max_tokens": 2000}, STRICT),
    Change("judges.on_overflow", {"judges.strict.on_overflow": "single"}),  # all fit
    Change("judges.weight", {"judges.strict.weight": 2.0}),
    Change("judges.noise", {"judges.strict.noise": 0.2}, STRICT, given=_SIMULATED),
)

_RUBRIC = (
    Change("rubric", {"rubric": "rubric-copy"}),
    Change("rubric.name", rubric={"rubric.yaml:name": "another"}),
    Change("rubric.description", rubric={"rubric.yaml:description": "Another."}),
    Change("rubric.role", rubric={"role.md": "You are another judge."}, asks=JUDGES),
    Change("rubric.aspects.title", rubric={"rubric.yaml:aspects.style.title": "Taste"}, asks=_judges(ALONE)),
    Change("rubric.aspects.question", rubric={"rubric.yaml:aspects.style.question": "Why?"}, asks=_judges(ALONE)),
    Change("rubric.aspects.guidance", rubric={"rubric.yaml:aspects.overall.guidance": "Look."}, asks=_judges(TOGETHER)),
    Change("rubric.aspects.levels", rubric={"rubric.yaml:aspects.style.levels": {"1": "No."}}, asks=_judges(ALONE)),
    Change("rubric.aspects.scale", rubric={"rubric.yaml:aspects.style.scale": [1, 9]}, asks=_judges(ALONE)),
    Change(
        "rubric.aspects.not_applicable",
        rubric={"rubric.yaml:aspects.style.not_applicable": "Of a list."},
        asks=_judges(ALONE),
    ),
    Change("rubric.aspects.types", rubric={"rubric.yaml:aspects.style.types": {"1": "Odd."}}, asks=_judges(ALONE)),
    Change("rubric.aspects.weight", rubric={"rubric.yaml:aspects.style.weight": 2.0}),
    Change(
        "rubric.aspects.rationale_chars", rubric={"rubric.yaml:aspects.style.rationale_chars": 100}, asks=_judges(ALONE)
    ),
    Change("rubric.requests.mode", rubric={"rubric.yaml:requests.alone.mode": "listwise"}, asks=_judges(N)),
    Change("rubric.requests.template", rubric={"alone.md": "Say {{ reply }}"}, asks=_judges(ALONE)),
    Change(
        "rubric.requests.aspects",
        rubric={"rubric.yaml:requests.together.aspects": ["honest", "overall"]},
        asks=_judges(TOGETHER),
    ),
    Change("rubric.material.title", rubric={"rubric.yaml:material.reference.title": "Known"}, asks=JUDGES),
    Change("rubric.material.note", rubric={"rubric.yaml:material.reference.note": "Good."}, asks=JUDGES),
)

_PAIRED = (
    Change(
        "pairs.policy score min_margin missing max_pairs_per_prompt max_length_ratio max_per_model",
        _each(
            "pairs",
            {
                "policy": "all",
                "score": "overall",
                "min_margin": 1.0,
                "missing": "drop",
                "max_pairs_per_prompt": 2,
                "max_length_ratio": 2.0,
                "max_per_model": 2,
            },
        ),
    ),
    Change("pairs.policy model", {"pairs": {"policy": "on_policy", "model": "a"}}),
    Change(
        "export.formats test_size license completeness incomplete kto.rule kto.desirable kto.undesirable",
        {**_each("export", {"formats": ["sft"], "test_size": 0.5, "license": "mit"}), **_KTO}
        | _each("export", {"completeness": 0.5, "incomplete": "refuse"}),
    ),
)

CHANGES = (*_RUN, *_PROMPTS, *_COMPLETIONS, *_MODELS, *_RATED, *_RUBRIC, *_PAIRED)
CHANGED = frozenset(key for change in CHANGES for key in change.keys)


# --- the run that is changed ------------------------------------------------------------------------------------------


def base(url: str) -> dict[str, Any]:
    """Return the pipeline as parsed YAML, with models and judges at `url`."""
    return {
        "name": "identity",
        "seed": 7,
        "store": "store/feedback.duckdb",
        "prompts": [{"file": "prompts.jsonl", "source": "web", "material": {"reference": "answer"}}],
        "principles": "principles.yaml",
        "completions": {"per_prompt": 3, "max_tokens": 64},
        "models": {
            "a": {"provider": "vllm", "base_url": url, "model": "org/a"},
            "b": {"provider": "vllm", "base_url": url, "model": "org/b", "samples": 2},
        },
        "judges": {name: {"provider": "openai", "base_url": url, "model": f"org/{name}"} for name in ("strict", "lax")},
        "rubric": "rubric",
    }


_PRINCIPLES = {
    "pools": {"plain": ["Be plain."], "ornate": ["Be ornate."], "sung": ["Sing."]},
    "sources": {"books": {"ornate": 1.0}, "songs": {"sung": 1.0}},
    "default": {"plain": 1.0},
}
_SHEET = {
    "name": "two requests",
    "role": "role.md",
    "aspects": {
        "overall": {"title": "Overall", "question": "How good is it?"},
        "honest": {"title": "Honesty", "question": "Is it honest?"},
        "style": {"title": "Style", "question": "How is it written?"},
    },
    "requests": {
        "together": {"mode": "listwise", "template": "together.md", "aspects": ["overall", "honest"]},
        "alone": {"mode": "single", "template": "alone.md", "aspects": ["style"]},
    },
    "material": {"reference": {"title": "Reference answer", "note": "It is known to be good."}},
}
_OWN_TEXT = "Rate {{ n }} by\n{% for one in aspects.values() %}{{ one }}{% endfor %}\n{{ reply }}"
_TEMPLATES = {"role.md": "You are a judge.", "together.md": _OWN_TEXT, "alone.md": _OWN_TEXT}


def write(folder: Path) -> None:
    """Write the run's files: prompts, rubric, principles, and the files that changes refer to."""
    rows = [_row(n) for n in range(N)]
    for name, file_rows in (("prompts", rows), ("copy", rows), ("others", map(_row, range(20, 20 + N)))):
        _jsonl(folder / f"{name}.jsonl", file_rows)
    _jsonl(folder / "carried.jsonl", map(_row_with_completions, range(N)))
    (folder / "hub").mkdir()
    _jsonl(folder / "hub" / "one.jsonl", rows)
    for n, name in enumerate(("one-test", "two")):
        _jsonl(folder / "hub" / f"{name}.jsonl", map(_row, range(10 * n + 30, 10 * n + 30 + N)))
    configs = [
        {"config_name": "one", "data_files": [_split("train", "one"), _split("test", "one-test")]},
        {"config_name": "two", "data_files": [_split("train", "two")]},
    ]
    (folder / "hub" / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    write_principles(folder / "principles.yaml", {})
    for name in ("rubric", "rubric-copy"):
        write_rubric(folder / name, {})


def _row(n: int) -> dict[str, Any]:
    long = "Take your time. " * 20 if n % 10 == 0 else ""
    return {
        "prompt": f"{long}What follows from {n}?", "other": f"What comes before {n}?", "from": "songs",
        "answer": f"{n + 1} does.", "better": f"It is {n + 1}.",
    }  # fmt: skip


def _row_with_completions(n: int) -> dict[str, Any]:
    def answers(kind: str) -> list[dict[str, Any]]:
        return [
            {
                "text": f"{kind} {model} says {n}.", "short": f"{kind} {model}: {n}", "model": model,
                "who": f"the {model}", "score": score, "other_score": score + 1,
            }
            for score, model in enumerate(("ann", "ben"))
        ]  # fmt: skip

    return _row(n) | {"answers": answers("answer"), "drafts": answers("draft")}


def _split(name: str, file: str) -> dict[str, str]:
    return {"split": name, "path": f"{file}.jsonl"}


def _jsonl(path: Path, rows: Any) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_principles(path: Path, patch: Patch) -> None:
    path.write_text(yaml.safe_dump(patched(_PRINCIPLES, patch)))


def write_rubric(folder: Path, patch: Patch) -> None:
    """Write the rubric with the patched files; a key `rubric.yaml:KEY` changes a key of that file."""
    folder.mkdir()
    files: dict[str, str] = {**_TEMPLATES, **{name: text for name, text in patch.items() if ":" not in name}}
    sheet = {key.partition(":")[2]: value for key, value in patch.items() if ":" in key}
    for name, text in {**files, "rubric.yaml": yaml.safe_dump(patched(_SHEET, sheet), sort_keys=False)}.items():
        (folder / name).write_text(text)


def patched(data: Mapping[str, Any], patch: Patch) -> dict[str, Any]:
    """Return a copy of `data` with the values at dotted keys set or removed."""
    copied: dict[str, Any] = copy.deepcopy(dict(data))
    for key, value in patch.items():
        *way, last = key.split(".")
        at: Any = copied
        for name in way:
            at = at[int(name)] if isinstance(at, list) else at.setdefault(name, {})
        if isinstance(at, list):
            at[int(last)] = value
        elif value is OUT:
            del at[last]
        else:
            at[last] = copy.deepcopy(value)
    return copied


def keys_without_change(keys: Sequence[str]) -> list[str]:
    """Return the keys that no change covers, except keys that only contain others."""
    return [key for key in keys if key not in CHANGED and not any(other.startswith(f"{key}.") for other in keys)]


def changes_of_unknown_keys(keys: Sequence[str]) -> list[str]:
    """Return the keys that changes cover but the pipeline and rubric don't have."""
    return sorted(CHANGED - set(keys))
