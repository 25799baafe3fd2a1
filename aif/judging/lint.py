"""What is wrong in a rubric's folder, and what is legal but unwise: each with its place and the mend. Reading the
folder is the only I/O here.

Tokens are reckoned at four characters each, as providers do beforehand.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from aif.config import located_yaml
from aif.config.located_yaml import Problem
from aif.config.sections import Judge
from aif.core.errors import BadInput
from aif.judging.rubric import Aspect, Rubric, RubricRequest, files_in, said

COMPLETIONS = 4  # of a prompt, unless a pipeline says otherwise
MOST = 8  # templates are tried about so many completions
FEW_CHARS = 80  # a rationale of about twelve words
ROOM: int = Judge.model_fields["max_tokens"].default

_PARSER = SandboxedEnvironment()
_MODELS = re.compile(
    r"\b(chatgpt|gpt-?\d[\w.-]*|claude|gemini|gemma|llama|mistral|mixtral|qwen|deepseek|grok|openai|anthropic)\b",
    re.IGNORECASE,
)


class Finding(NamedTuple):
    """Something found in a folder. An error keeps the rubric from being used."""

    error: bool
    text: str


@dataclass(frozen=True, slots=True)
class Size:
    """Tokens of one request of a rubric about four completions: what is the same for every prompt, and the longest
    reply. `calls` are made for each prompt."""

    request: str
    mode: str
    calls: int
    role: int
    own: int
    schema: int
    reply: int

    @property
    def fixed(self) -> int:
        return self.role + self.own + self.schema


def lint(folder: Path) -> tuple[list[Finding], Rubric | None]:
    """All that is found in a folder, errors first, and the rubric where there is none of these."""
    try:
        files = files_in(folder)
        rubric = Rubric.of(files, str(folder))
    except BadInput as error:
        told = str(error).splitlines()
        if folder.is_dir():
            told += [line for line in _unparsed(folder) if line not in told]
        return [Finding(True, line) for line in told], None
    if failed := list(rubric.unrendered(range(2, MOST + 1))):
        return [Finding(True, f"{line}; `n` is 2 to per_prompt") for line in failed], None
    draft = _Draft(rubric, located_yaml.parse_yaml(files["rubric.yaml"], lambda line: f"{folder}/rubric.yaml:{line}"))
    return [Finding(False, line) for rule in _RULES for line in rule(draft)], rubric


def sizes(rubric: Rubric) -> list[Size]:
    """The size of each request of a rubric."""
    return [_size(rubric, name, ask) for name, ask in rubric.sheet.requests.items()]


def _size(rubric: Rubric, name: str, ask: RubricRequest) -> Size:
    n = _shown(ask)
    return Size(
        name,
        ask.mode,
        COMPLETIONS // n,
        _tokens(len(rubric.role)),
        _tokens(len(rubric.own_text(name, n, "schema"))),
        _tokens(len(json.dumps(rubric.schema(name, n), separators=(",", ":")))),
        longest_reply(rubric, name, n),
    )


def longest_reply(rubric: Rubric, request: str, n: int) -> int:
    """Tokens of a reply about `n` completions that uses every rationale up to its limit."""
    names = rubric.sheet.requests[request].aspects
    leaves = {name: _longest_leaf(rubric.sheet.aspects[name]) for name in names}
    each = leaves if len(names) > 1 else leaves[names[0]]
    return _tokens(len(json.dumps({str(i): each for i in range(1, n + 1)}, separators=(",", ":"))))


def _longest_leaf(aspect: Aspect) -> dict[str, Any]:
    types = {"types": [*aspect.types]} if aspect.types else {}
    return types | {"rationale": "x" * aspect.rationale_chars, "rating": max(aspect.ratings, key=len)}


def _tokens(chars: int) -> int:
    return -(-chars // 4)


def _shown(ask: RubricRequest) -> int:
    return COMPLETIONS if ask.mode == "listwise" else 1


def _unparsed(folder: Path) -> Iterator[str]:
    """Syntax errors of templates, for a folder whose rubric.yaml keeps them from being rendered."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in {".md", ".j2"} or path.name == "README.md":
            continue
        try:
            _PARSER.parse(path.read_text(encoding="utf-8-sig"))
        except TemplateSyntaxError as error:
            yield f"{path}:{error.lineno}: can't be rendered: TemplateSyntaxError: {error.message}"
        except UnicodeDecodeError:
            continue  # told already


# --- what is legal but unwise ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Draft:
    """A sound rubric, and where each of its keys stands."""

    rubric: Rubric
    text: located_yaml.YamlDocument

    def at(self, *keys: str | int, words: str) -> str:
        return said(self.text, Problem(keys, words))

    def file(self, name: str, words: str) -> str:
        return f"{self.rubric.where}/{name}: {words}"

    def requests(self) -> Iterator[tuple[str, RubricRequest]]:
        yield from self.rubric.sheet.requests.items()

    def worded(self, request: str, reply: str = "") -> str:
        return self.rubric.worded(request, _shown(self.rubric.sheet.requests[request]), reply)

    def templates(self) -> dict[str, tuple[str, ...]]:
        """The templates rubric.yaml names, with what each is given."""
        asks = {ask.template: ("aspects", "n", "reply") for _, ask in self.requests()}
        return {self.rubric.sheet.role: (), **asks}


def _reply_left_out(draft: _Draft) -> Iterator[str]:
    for name, ask in draft.requests():
        if draft.worded(name, "one way") == draft.worded(name, "another"):
            yield draft.file(
                ask.template,
                f"never prints {{{{ reply }}}}, so the judge of request {name} is not told how to reply; end with it",
            )


def _said_to_nobody(draft: _Draft) -> Iterator[str]:
    """Aspects that a request's text does not speak of, and texts of aspects that it leaves out."""
    for request, ask in draft.requests():
        text = _plain(draft.worded(request))
        for name in ask.aspects:
            aspect = draft.rubric.sheet.aspects[name]
            if not any(
                _plain(word) in text for word in (name, name.replace("_", " "), aspect.title, aspect.question) if word
            ):
                yield draft.file(
                    ask.template,
                    f"asks for {name} without a word on it; print its question, such as "
                    "{% for name, aspect in aspects.items() %}{{ aspect.question }}{% endfor %}",
                )
                continue
            levels, types = aspect.levels.values(), aspect.types.values()
            for part, texts in (("guidance", [aspect.guidance]), ("levels", levels), ("types", types)):
                if not all(_plain(one) in text for one in texts):
                    mend = f"print aspect.{part} in {ask.template}, or take it out"
                    yield draft.at("aspects", name, part, words=f"the judge never sees it; {mend}")


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _levels_missing(draft: _Draft) -> Iterator[str]:
    for name, aspect in draft.rubric.sheet.aspects.items():
        low, high = aspect.scale
        missing = [str(n) for n in range(low, high + 1) if n not in aspect.levels]
        if aspect.levels and missing:
            which = f"{', '.join(missing)} of the scale {'has' if len(missing) == 1 else 'have'} no words"
            yield draft.at("aspects", name, "levels", words=f"{which}, so judges settle on the others; describe each")


def _weightless(draft: _Draft) -> Iterator[str]:
    given = draft.rubric.scores()
    if "mean" not in given:
        then = "only `pairs.score: overall` can be used" if given else "no pairs can be made"
        yield draft.at("aspects", words=f"no aspect has a weight, so {then}; give one a weight above 0")


def _ranges_differ(draft: _Draft) -> Iterator[str]:
    if draft.rubric.mixed:
        aspects = [(name, one.scale) for name, one in draft.rubric.sheet.aspects.items() if one.weight > 0]
        ranges = ", ".join(f"{name} {low}–{high}" for name, (low, high) in aspects)
        yield draft.at(
            "aspects",
            words=f"ranges differ ({ranges}), so in the mean each counts as a share of its own, (rating − lowest) / "
            "(highest − lowest); scores, min_margin and the bounds of kto are then from 0 to 1. Give all one "
            "scale to have points",
        )


def _rationales(draft: _Draft) -> Iterator[str]:
    for name, aspect in draft.rubric.sheet.aspects.items():
        if aspect.rationale_chars < FEW_CHARS:
            yield draft.at(
                "aspects", name, "rationale_chars",
                words=f"{aspect.rationale_chars} characters hold no reason, and the rating follows from it; "
                f"allow {FEW_CHARS} or more",
            )  # fmt: skip
    for request, ask in draft.requests():
        reply = longest_reply(draft.rubric, request, _shown(ask))
        if reply > ROOM:
            yield draft.at(
                "requests", request,
                words=f"a reply about {_shown(ask)} completions may take {reply:,} tokens, and a judge's max_tokens is "
                f"{ROOM:,} unless the pipeline says more; lower rationale_chars, or ask in several requests",
            )  # fmt: skip


def _not_applicable_alone(draft: _Draft) -> Iterator[str]:
    for request, ask in draft.requests():
        for name in ask.aspects if ask.mode == "single" else ():
            if draft.rubric.sheet.aspects[name].not_applicable:
                yield draft.at(
                    "aspects", name, "not_applicable",
                    words=f"request {request} shows one completion at a time, so N/A may be said of one and not of "
                    "another, and the aspect is then left out for all; ask it listwise, or without N/A",
                )  # fmt: skip


def _schemas_differ(draft: _Draft) -> Iterator[str]:
    for mode in ("listwise", "single"):
        by_schema: dict[str, str] = {}
        for request, ask in draft.requests():
            if ask.mode == mode:
                by_schema.setdefault(json.dumps(draft.rubric.schema(request, _shown(ask))), request)
        if len(by_schema) > 1:
            yield draft.at(
                "requests",
                words=f"{' and '.join(by_schema.values())} send different schemas, which providers put before the "
                "messages, so their caches can't share the prompt; give all one aspect each, or ask all in one request",
            )


def _names_of_models(draft: _Draft) -> Iterator[str]:
    texts = {draft.rubric.sheet.role: draft.rubric.role}
    texts |= {ask.template: draft.worded(request) for request, ask in draft.requests()}
    for file, text in texts.items():
        if found := _MODELS.search(text):
            yield draft.file(
                file, f"speaks of {found[0]}, and judges favour what sounds like a name they are given; take it out"
            )


def _unknown_variables(draft: _Draft) -> Iterator[str]:
    for file, given in draft.templates().items():
        names = meta.find_undeclared_variables(_PARSER.parse(draft.rubric.files[file]))
        for name in sorted(names - set(given)):
            held = f"has {', '.join(given)}" if given else "is given nothing"
            hint = "; it stands before a request's own text by itself" if name in _shown_anyway(draft) else ""
            yield draft.file(file, f"has {{{{ {name} }}}} in a branch, but a template {held}{hint}; take it out")


def _shown_anyway(draft: _Draft) -> set[str]:
    return {"prompt", "messages", "conversation", "completions", "material", *draft.rubric.sheet.material}


def _unused_files(draft: _Draft) -> Iterator[str]:
    used, files = {"rubric.yaml", "README.md"}, draft.rubric.files
    waiting: list[str | None] = [*draft.templates()]
    while waiting:
        name = waiting.pop()
        if name is None:
            return  # a name that is made when it is rendered
        if name in files and name not in used:
            used.add(name)
            waiting += meta.find_referenced_templates(_PARSER.parse(files[name]))
    for name in sorted(set(files) - used):
        yield draft.file(name, "no request uses it; take it out, or name it in rubric.yaml")


def _notes_missing(draft: _Draft) -> Iterator[str]:
    for slot, one in draft.rubric.sheet.material.items():
        if not one.note.strip():
            yield draft.at(
                "material", slot, words="has no note, so the judge has to guess what to make of it; write one"
            )


_RULES: tuple[Callable[[_Draft], Iterator[str]], ...] = (
    _reply_left_out,
    _said_to_nobody,
    _levels_missing,
    _weightless,
    _ranges_differ,
    _rationales,
    _not_applicable_alone,
    _schemas_differ,
    _names_of_models,
    _unknown_variables,
    _unused_files,
    _notes_missing,
)
