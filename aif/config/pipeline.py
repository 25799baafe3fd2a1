"""The pipeline file: YAML in, a frozen `Pipeline` out. Every key is checked; nothing in the file is ignored.

All that is wrong with a file is said at once, a line each: `file:line: key.path: what is wrong; what to do`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import yaml
from pydantic import Field, PrivateAttr, ValidationError, field_validator

from aif.config import error_messages, located_yaml
from aif.config.fields import (
    FromEnvironment,
    Name,
    NonEmpty,
    NotNegative,
    Positive,
    RunName,
    StorePath,
    is_auth_header,
    is_private_host,
)
from aif.config.located_yaml import KeyPath, Problem, dotted
from aif.config.sections import (
    AnyEndpoint,
    CompletionColumns,
    Completions,
    DeclaredEndpoint,
    Export,
    Judge,
    KtoLabels,
    Launch,
    Model,
    Pairs,
    Price,
    Rates,
    Section,
    Source,
    publishable_name,
)
from aif.core import resources
from aif.core.errors import BadInput
from aif.core.reasoning import Tags
from aif.core.types import Sampling
from aif.providers.base import Options


class Pipeline(Section):
    """A pipeline file, checked. Of the relative paths in it only `store` is resolved here, by `parse`; the others are
    looked for (`resources.find`, `beside`)."""

    name: RunName
    seed: int = 0
    store: StorePath = Field(default_factory=lambda given: Path("runs", given["name"], "feedback.duckdb"))
    prompts: Annotated[tuple[Source, ...], Field(strict=False, min_length=1)]
    principles: NonEmpty | None = None
    completions: Completions = Completions()
    models: dict[Name, Model] = Field(default_factory=dict)
    judges: dict[Name, Judge] = Field(default_factory=dict)
    rubric: NonEmpty = "unified"
    pairs: Pairs = Pairs()
    budget_usd: Positive | None = None
    confirm_usd: NotNegative = 1.0
    export: Export = Export()

    _path: Path = PrivateAttr(default=Path("pipeline.yaml"))
    _raw: str = PrivateAttr(default="")
    _given: Path | None = PrivateAttr(default=None)

    @property
    def declared_store(self) -> Path:
        """The store as the file names it, or as it is called by default."""
        return self._given or self.store

    @property
    def path(self) -> Path:
        """The file this pipeline was read from."""
        return self._path

    @property
    def folder(self) -> Path:
        """The folder of the pipeline file, where relative paths in it are looked for first."""
        return self._path.parent

    @property
    def yaml_text(self) -> str:
        """The file as YAML after --set, comments left out: for the record. It can't hold a key."""
        return self._raw

    @property
    def public_yaml(self) -> str:
        """`raw` as it may be published: without where things are (hosts, keys' variables, folders)."""
        told = yaml.safe_load(self._raw)
        told.pop("store", None)
        for one in (*told.get("models", {}).values(), *told.get("judges", {}).values()):
            for key in ("base_url", "api_key_env", "extra_headers", "extra_query"):
                one.pop(key, None)
            if launch := one.get("launch"):
                one["launch"] = {key: launch[key] for key in ("model", "gpus", "max_model_len") if key in launch}
            if one.get("model"):
                one["model"] = publishable_name(one["model"])
            if launch:
                one["launch"]["model"] = publishable_name(launch["model"], hub=True)
        for source in told["prompts"]:
            if source.get("file"):
                source["file"] = PurePosixPath(source["file"]).name
            if source.get("hub"):
                source["hub"] = publishable_name(source["hub"], hub=True)
        for key in ("rubric", "principles"):
            if isinstance(told.get(key), str):
                told[key] = PurePosixPath(told[key]).name
        return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)

    @property
    def has_scores(self) -> bool:
        """Whether the completions come with scores of their own, so that there is no judge."""
        return all(source.completions and source.completions.score for source in self.prompts)

    @property
    def reasoning_tags(self) -> dict[str, Tags]:
        """The marks around reasoning by who is read with them, `stage/name`, whichever of that name was served."""
        models = {f"completion/{one.declared_identity}": one.reasoning_tags for one in self.models.values()}
        return models | {f"judgement/{one.declared_identity}": one.reasoning_tags for one in self.judges.values()}

    def sampling(self, model: Model) -> Sampling:
        """The settings `model` is sampled with: its own where it has any, else those of `completions`."""
        given, usual = model.model_fields_set, self.completions
        free = model.takes_temperature
        return Sampling(
            max_tokens=model.max_tokens or usual.max_tokens,
            temperature=model.temperature if "temperature" in given else usual.temperature if free else None,
            top_p=model.top_p if "top_p" in given else usual.top_p if free else None,
            reasoning_effort=model.reasoning_effort,
            extra=model.extra_body_json,
        )

    @field_validator("models", "judges")
    @classmethod
    def _named(cls, entries: dict[str, AnyEndpoint]) -> dict[str, AnyEndpoint]:
        for name, entry in entries.items():
            entry._name = name
        return entries

    def conflicts(self) -> Iterator[Problem]:
        yield from self._nobody()
        if self.models and self.pairs.model and self.pairs.model not in self.models and not self._carries():
            names = ", ".join(self.models)
            yield Problem(("pairs", "model"), f"the pool has no model {self.pairs.model!r}; name one of it: {names}")
        yield from self._scores_in_part()
        yield from self._unpriced()
        yield from self._too_few()
        yield from self._same_twice()
        yield from self._told_apart_otherwise()

    def _carries(self) -> bool:
        return any(source.completions for source in self.prompts)

    def _nobody(self) -> Iterator[Problem]:
        """A pool is needed where rows carry no completions, judges where these have no scores."""
        if not self.models and not all(source.completions for source in self.prompts):
            yield Problem(
                ("models",),
                "missing; name at least one, or point the completions: of every source at those its rows carry",
            )
        if not self.judges and not self.has_scores:
            yield Problem(("judges",), "missing; name at least one")
        for key in ("models", "judges"):
            if getattr(self, key) and self.has_scores:
                yield Problem(
                    (key,),
                    "not needed: the rows' completions come with scores, and none is made or rated; take it out, or "
                    "the sources' completions.score",
                )

    def _scores_in_part(self) -> Iterator[Problem]:
        """Scores that come with some sources only would stand beside a judge's, on another scale."""
        for n, source in enumerate(self.prompts):
            if source.completions and source.completions.score and not self.has_scores:
                yield Problem(
                    ("prompts", n, "completions", "score"),
                    "not every source has scores, so a judge rates them all; take it out, or give each source one",
                )
        if self.export.kto.rule == "scores" and len(self.score_scales) > 1:
            yield Problem(
                ("export", "kto", "rule"),
                f"one bound for the scores of several sources ({', '.join(sorted(self.score_scales))}); take rule pairs, "
                "or give sources of one scale one `source`",
            )

    @property
    def score_scales(self) -> set[str]:
        """Whose scales scores are on; none where judges give them."""
        return {source.scale for source in self.prompts} if self.has_scores else set()

    def _unpriced(self) -> Iterator[Problem]:
        """What costs nobody knows how much can't be kept within a budget."""
        if self.budget_usd is None:
            return
        for kind, entries in (("models", self.models), ("judges", self.judges)):
            for name, one in entries.items():
                if one.unpriced:
                    if one.price is not None:
                        said = f"budget_usd needs to know what a call by {one.service_tier} costs; add price.tiers"
                        yield Problem(
                            (kind, name, "service_tier"), f"{said}: {{{one.service_tier}: {{input: …, output: …}}}}"
                        )
                        continue
                    whom = next((url for url in one.base_url if not is_private_host(url)), one.provider)
                    yield Problem(
                        (kind, name),
                        f"budget_usd needs to know what a call to {whom} costs; add price: {{input: …, output: …}}, in "
                        "USD per million tokens (0 where it is free), or take out budget_usd",
                    )

    def _too_few(self) -> Iterator[Problem]:
        wanted, had = self.completions.per_prompt, sum(model.samples for model in self.models.values())
        if self.models and had < wanted:
            each = ", ".join(f"{name} {model.samples}" for name, model in self.models.items())
            yield Problem(
                ("models",),
                f"completions.per_prompt is {wanted}, but the pool can give {had} ({each}); "
                "add models, raise their samples, or lower per_prompt",
            )

    def _told_apart_otherwise(self) -> Iterator[Problem]:
        """What is kept is kept by who said it: two entries of one model read it alike."""
        for kind, entries in (("models", self.models), ("judges", self.judges)):
            first: dict[str, Model | Judge] = {}
            for name, one in entries.items():
                other = first.setdefault(one.identity, one)
                if one.reasoning_tags != other.reasoning_tags:
                    yield Problem(
                        (kind, name, "reasoning_tags"), f"{kind}.{other.name} is the same model; give both the same"
                    )

    def _same_twice(self) -> Iterator[Problem]:
        seen: dict[tuple[str, str, object], str] = {}
        entries: list[tuple[str, Model | Judge, object]] = [
            # without principles the modes differ in prompts alone that bring a system turn of their own
            *(
                ("models", one, (self.sampling(one), one.system if self.principles else ""))
                for one in self.models.values()
            ),
            *(("judges", one, (one.sampling, one.reply)) for one in self.judges.values()),
        ]
        for kind, one, settings in entries:
            first = seen.setdefault((kind, one.identity, settings), one.name)
            if first == one.name:
                continue
            same = f"same model and settings as {kind}.{first}, so both would give the same"
            if isinstance(one, Model):
                samples = one.samples + self.models[first].samples
                yield Problem((kind, one.name), f"{same} completions; keep one, with samples: {samples}")
            else:
                yield Problem((kind, one.name), f"{same} ratings; keep one")


def load(path: Path, sets: Sequence[str] = ()) -> Pipeline:
    """The pipeline in a file, after `--set KEY=VALUE` arguments (see `yamltext.Text.put`).

    A relative path is looked for in the working directory, then among what aif ships. What is shipped and what is no
    file (a pipe) has its store under the working directory. Raises BadInput, saying all that is wrong.
    """
    file = resources.find_resource(str(path), None, "", "pipeline file")
    homeless = resources.is_shipped(str(path), file) or not file.is_file()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise BadInput(f"{path}: can't be read: {error.strerror}; give the path of a pipeline file") from error
    return parse(text, file, sets, Path.cwd() if homeless else None)


def parse(text: str, path: Path, sets: Sequence[str] = (), home: Path | None = None) -> Pipeline:
    """`load` for a text at hand; `path` is the file it stands for, `home` where its relative `store` begins."""
    called = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    found = located_yaml.parse_yaml(text, lambda line: f"{called}:{line}")
    for assignment in sets:
        found.assign(assignment)
    if found.data is None:
        raise BadInput(f"{called}:1: the file is empty; it needs name, prompts, models and judges")
    wrong = list(found.problems)
    misread = {problem.keys for problem in wrong}
    try:
        pipeline = Pipeline.model_validate(found.data)
    except ValidationError as error:
        wrong += [
            said for said in error_messages.validation_problems(error, found, _unknown) if said.keys not in misread
        ]
    if wrong:
        raise BadInput("\n".join(_line(found.location_of(problem.keys).where, problem) for problem in wrong))
    named = pipeline.store
    pipeline = pipeline.model_copy(update={"store": _placed(named, home or _home(path))})
    pipeline._given = named
    pipeline._path = path
    pipeline._raw = yaml.safe_dump(found.data, sort_keys=False, allow_unicode=True)
    return pipeline


def _home(file: Path) -> Path:
    """Where a file's relative `store` begins: its folder, or the one above where that is called `pipelines`. A link is
    the file it leads to, and a folder goes by its own name: whichever way a file is named, it has one store."""
    folder = file.resolve().parent
    return folder.parent if folder.name == "pipelines" else folder


def _placed(named: Path, home: Path) -> Path:
    """A store's path, as short as it can be told."""
    store, here = home / named, Path.cwd()
    return store.relative_to(here) if not named.is_absolute() and store.is_relative_to(here) else store


def _line(where: str, problem: Problem) -> str:
    return ": ".join(part for part in (where, dotted(problem.keys), problem.text) if part)


_PARTS: Mapping[str, type[Section]] = {
    "": Pipeline,
    "prompts.*": Source,
    "prompts.*.completions": CompletionColumns,
    "completions": Completions,
    "models.*": Model,
    "models.*.launch": Launch,
    "models.*.price": Price,
    "models.*.price.tiers.*": Rates,
    "judges.*": Judge,
    "judges.*.launch": Launch,
    "judges.*.price": Price,
    "judges.*.price.tiers.*": Rates,
    "pairs": Pairs,
    "export": Export,
    "export.kto": KtoLabels,
}


def _unknown(keys: KeyPath) -> str:
    named = keys[0] in ("prompts", "models", "judges")
    part = _PARTS[dotted(tuple("*" if named and n in (1, 4) else key for n, key in enumerate(keys[:-1])))]
    return error_messages.unknown_key_message(str(keys[-1]), list(part.model_fields))


def api_key(endpoint: DeclaredEndpoint, environ: Mapping[str, str]) -> str | None:
    """The key for an endpoint: from the variable its `api_key_env` names, or for a provider's own address from
    OPENAI_API_KEY or ANTHROPIC_API_KEY.

    None where no key is needed: a server at a `base_url` is sent none but the one named for it. Raises BadInput, naming
    the variable, where one is needed and missing or unusable.
    """
    variable = endpoint.api_key_env
    if variable is None:
        if endpoint.provider not in _KEYS or endpoint.base_url:
            return None
        variable = _KEYS[endpoint.provider]
    return _held(endpoint, variable, "API key", environ)


def request_options(endpoint: DeclaredEndpoint, environ: Mapping[str, str]) -> Options:
    """What goes with every request to an endpoint. Raises BadInput, naming the variable that is missing or unusable."""
    key = api_key(endpoint, environ)
    given = {
        name: _held(endpoint, said.variable, name, environ) if isinstance(said, FromEnvironment) else said
        for name, said in endpoint.extra_headers.items()
    }
    hidden = [given[name] for name, said in endpoint.extra_headers.items() if isinstance(said, FromEnvironment)]
    bearer = key or ("none" if endpoint.provider in _KEYS and not any(map(is_auth_header, given)) else None)
    ours = bearer and "authorization" not in map(str.lower, given)  # a header that is there twice is nobody's
    return Options(
        endpoint.api_dialect,
        frozenset(endpoint.omit),
        endpoint.service_tier,
        ({"Authorization": f"Bearer {bearer}"} if ours else {}) | given,
        endpoint.extra_query,
        tuple(filter(None, [key, *hidden])),
        endpoint.reasoning_tags,
    )


def _held(endpoint: DeclaredEndpoint, variable: str, what: str, environ: Mapping[str, str]) -> str:
    held = environ.get(variable, "").strip()
    if not held:
        raise BadInput(f"{endpoint.name}: no {what}; set the environment variable {variable} (export {variable}=...)")
    if not held.isascii() or not held.isprintable():
        raise BadInput(f"{endpoint.name}: the environment variable {variable} holds no {what}; set it again")
    return held


_KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
