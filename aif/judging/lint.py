"""Check a rubric folder for errors, and for legal but unwise choices; each finding names its place and its fix.

Reading the folder is the only I/O here. Tokens are estimated at four characters each, as providers do.
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
from aif.judging.rubric import Aspect, Rubric, RubricRequest, describe_problem, read_files

COMPLETIONS = 4  # per prompt, the default in a pipeline
MAX_TRIED = 8  # templates are rendered for 2 to 8 completions
MIN_RATIONALE_CHARS = 80  # about twelve words
DEFAULT_MAX_TOKENS: int = Judge.model_fields["max_tokens"].default

_PARSER = SandboxedEnvironment()
_MODELS = re.compile(
    r"\b(chatgpt|gpt-?\d[\w.-]*|claude|gemini|gemma|llama|mistral|mixtral|qwen|deepseek|grok|openai|anthropic)\b",
    re.IGNORECASE,
)


class Finding(NamedTuple):
    """A problem in a rubric folder.

    error: True if the problem makes the rubric unusable; False for a warning.
    text: what is wrong, where, and how to fix it.
    """

    error: bool
    text: str


@dataclass(frozen=True, slots=True)
class RequestSize:
    """The size, in tokens, of one of a rubric's requests for a prompt with four completions. Prompt and completions
    themselves are not counted.

    request: the request's name in rubric.yaml.
    mode: `listwise` if a call shows all completions, `single` if it shows one.
    calls: the number of calls per prompt: 1 if `listwise`, 4 if `single`.
    role: tokens of the judge's system message, sent in every call.
    request_text: tokens of the request's own text, sent in every call.
    schema: tokens of the reply schema, sent in every call.
    max_reply: tokens of the longest possible reply.
    """

    request: str
    mode: str
    calls: int
    role: int
    request_text: int
    schema: int
    max_reply: int

    @property
    def fixed(self) -> int:
        """Tokens that every call of this request sends besides the prompt and the completions."""
        return self.role + self.request_text + self.schema


def lint(folder: Path) -> tuple[list[Finding], Rubric | None]:
    """Return the problems of a rubric folder, and the rubric. If there are errors, these are the only problems
    returned, and the rubric is None; otherwise the problems are warnings."""
    try:
        files = read_files(folder)
        rubric = Rubric.from_files(files, str(folder))
    except BadInput as error:
        errors = str(error).splitlines()
        if folder.is_dir():
            errors += [line for line in _syntax_errors(folder) if line not in errors]
        return [Finding(True, line) for line in errors], None
    if failed := list(rubric.render_errors(range(2, MAX_TRIED + 1))):
        return [Finding(True, f"{line}; `n` is 2 to per_prompt") for line in failed], None
    checked = _CheckedRubric(
        rubric, located_yaml.parse_yaml(files["rubric.yaml"], lambda line: f"{folder}/rubric.yaml:{line}")
    )
    return [Finding(False, line) for rule in _RULES for line in rule(checked)], rubric


def request_sizes(rubric: Rubric) -> list[RequestSize]:
    """Return the size of each request of a rubric, in the order of rubric.yaml."""
    return [_size(rubric, name, ask) for name, ask in rubric.sheet.requests.items()]


def _size(rubric: Rubric, name: str, ask: RubricRequest) -> RequestSize:
    n = _shown(ask)
    return RequestSize(
        name,
        ask.mode,
        COMPLETIONS // n,
        _tokens(len(rubric.role)),
        _tokens(len(rubric.request_text(name, n, "schema"))),
        _tokens(len(json.dumps(rubric.schema(name, n), separators=(",", ":")))),
        longest_reply(rubric, name, n),
    )


def longest_reply(rubric: Rubric, request: str, n: int) -> int:
    """Return the estimated tokens of the longest reply to the request named `request` about `n` completions: each of
    its rationales has the greatest length allowed."""
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


def _syntax_errors(folder: Path) -> Iterator[str]:
    """Yield the syntax errors in a folder's templates. The templates are parsed but not rendered, so rubric.yaml may be
    invalid."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in {".md", ".j2"} or path.name == "README.md":
            continue
        try:
            _PARSER.parse(path.read_text(encoding="utf-8-sig"))
        except TemplateSyntaxError as error:
            yield f"{path}:{error.lineno}: can't be rendered: TemplateSyntaxError: {error.message}"
        except UnicodeDecodeError:
            continue  # already reported


# --- legal but unwise ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _CheckedRubric:
    """A rubric without errors, and its parsed rubric.yaml, which has the line numbers for warnings."""

    rubric: Rubric
    document: located_yaml.YamlDocument

    def at(self, *keys: str | int, problem: str) -> str:
        return describe_problem(self.document, Problem(keys, problem))

    def in_file(self, name: str, problem: str) -> str:
        return f"{self.rubric.where}/{name}: {problem}"

    def requests(self) -> Iterator[tuple[str, RubricRequest]]:
        yield from self.rubric.sheet.requests.items()

    def request_text(self, request: str, reply: str = "") -> str:
        return self.rubric.request_text_with(request, _shown(self.rubric.sheet.requests[request]), reply)

    def templates(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the variables that each template may use, by the template's file name."""
        asks = {ask.template: ("aspects", "n", "reply") for _, ask in self.requests()}
        return {self.rubric.sheet.role: (), **asks}


def _missing_reply_instruction(checked: _CheckedRubric) -> Iterator[str]:
    for name, ask in checked.requests():
        if checked.request_text(name, "one way") == checked.request_text(name, "another"):
            yield checked.in_file(
                ask.template,
                f"never prints {{{{ reply }}}}, so the judge isn't shown how to reply to request {name}; end with it",
            )


def _never_shown(checked: _CheckedRubric) -> Iterator[str]:
    """Yield a warning for each aspect that the text of its request doesn't mention. For every other aspect, yield a
    warning for each part (guidance, levels, types) that the text lacks. The judge would never see what it lacks."""
    for request, ask in checked.requests():
        text = _plain(checked.request_text(request))
        for name in ask.aspects:
            aspect = checked.rubric.sheet.aspects[name]
            if not any(
                _plain(word) in text for word in (name, name.replace("_", " "), aspect.title, aspect.question) if word
            ):
                yield checked.in_file(
                    ask.template,
                    f"asks for {name} without mentioning it; print its question, such as "
                    "{% for name, aspect in aspects.items() %}{{ aspect.question }}{% endfor %}",
                )
                continue
            levels, types = aspect.levels.values(), aspect.types.values()
            for part, texts in (("guidance", [aspect.guidance]), ("levels", levels), ("types", types)):
                if not all(_plain(part_text) in text for part_text in texts):
                    fix = f"print aspect.{part} in {ask.template}, or remove it"
                    yield checked.at("aspects", name, part, problem=f"the judge never sees it; {fix}")


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _missing_levels(checked: _CheckedRubric) -> Iterator[str]:
    for name, aspect in checked.rubric.sheet.aspects.items():
        low, high = aspect.scale
        missing = [str(n) for n in range(low, high + 1) if n not in aspect.levels]
        if aspect.levels and missing:
            which = f"{', '.join(missing)} of the scale {'has' if len(missing) == 1 else 'have'} no description"
            yield checked.at("aspects", name, "levels", problem=f"{which}, so judges prefer the others; describe each")


def _no_weights(checked: _CheckedRubric) -> Iterator[str]:
    scores = checked.rubric.scores()
    if "mean" not in scores:
        then = "only `pairs.score: overall` can be used" if scores else "no pairs can be made"
        yield checked.at("aspects", problem=f"no aspect has a weight, so {then}; give one a weight above 0")


def _scales_differ(checked: _CheckedRubric) -> Iterator[str]:
    if checked.rubric.ranges_differ:
        weighted = [(name, aspect.scale) for name, aspect in checked.rubric.sheet.aspects.items() if aspect.weight > 0]
        scales = ", ".join(f"{name} {low}–{high}" for name, (low, high) in weighted)
        yield checked.at(
            "aspects",
            problem=f"scales differ ({scales}), so in the mean each rating counts as a fraction of its scale, "
            "(rating − lowest) / (highest − lowest); scores, min_margin and the bounds of kto are then from 0 to 1. "
            "Give all aspects one scale to have points",
        )


def _rationales(checked: _CheckedRubric) -> Iterator[str]:
    for name, aspect in checked.rubric.sheet.aspects.items():
        if aspect.rationale_chars < MIN_RATIONALE_CHARS:
            yield checked.at(
                "aspects", name, "rationale_chars",
                problem=f"{aspect.rationale_chars} characters are too few for a reason, which leads to the rating; "
                f"allow {MIN_RATIONALE_CHARS} or more",
            )  # fmt: skip
    for request, ask in checked.requests():
        reply = longest_reply(checked.rubric, request, _shown(ask))
        if reply > DEFAULT_MAX_TOKENS:
            yield checked.at(
                "requests", request,
                problem=f"a reply about {_shown(ask)} completions may take {reply:,} tokens, but a judge's max_tokens "
                f"is {DEFAULT_MAX_TOKENS:,} by default; lower rationale_chars, or split the request",
            )  # fmt: skip


def _not_applicable_alone(checked: _CheckedRubric) -> Iterator[str]:
    for request, ask in checked.requests():
        for name in ask.aspects if ask.mode == "single" else ():
            if checked.rubric.sheet.aspects[name].not_applicable:
                yield checked.at(
                    "aspects", name, "not_applicable",
                    problem=f"request {request} shows one completion at a time, so N/A may be given for one and "
                    "not for another, and the aspect is then left out for all; use mode listwise, or no N/A",
                )  # fmt: skip


def _schemas_differ(checked: _CheckedRubric) -> Iterator[str]:
    for mode in ("listwise", "single"):
        by_schema: dict[str, str] = {}
        for request, ask in checked.requests():
            if ask.mode == mode:
                by_schema.setdefault(json.dumps(checked.rubric.schema(request, _shown(ask))), request)
        if len(by_schema) > 1:
            yield checked.at(
                "requests",
                problem=f"{' and '.join(by_schema.values())} send different schemas, which providers put before the "
                "messages, so their caches can't share the prompt; give each one aspect, or use one request for all",
            )


def _model_names(checked: _CheckedRubric) -> Iterator[str]:
    texts = {checked.rubric.sheet.role: checked.rubric.role}
    texts |= {ask.template: checked.request_text(request) for request, ask in checked.requests()}
    for file, text in texts.items():
        if match := _MODELS.search(text):
            yield checked.in_file(
                file, f"mentions {match[0]}, and judges favour what sounds like a model they read about; remove it"
            )


def _unknown_variables(checked: _CheckedRubric) -> Iterator[str]:
    for file, variables in checked.templates().items():
        names = meta.find_undeclared_variables(_PARSER.parse(checked.rubric.files[file]))
        for name in sorted(names - set(variables)):
            known = f"a template's variables are {', '.join(variables)}" if variables else "it has no variables"
            hint = "; that is put before a template's text automatically" if name in _put_before(checked) else ""
            yield checked.in_file(file, f"has {{{{ {name} }}}} in a branch, but {known}{hint}; remove it")


def _put_before(checked: _CheckedRubric) -> set[str]:
    return {"prompt", "messages", "conversation", "completions", "material", *checked.rubric.sheet.material}


def _unused_files(checked: _CheckedRubric) -> Iterator[str]:
    used, files = {"rubric.yaml", "README.md"}, checked.rubric.files
    waiting: list[str | None] = [*checked.templates()]
    while waiting:
        name = waiting.pop()
        if name is None:
            return  # the name is computed when the template is rendered
        if name in files and name not in used:
            used.add(name)
            waiting += meta.find_referenced_templates(_PARSER.parse(files[name]))
    for name in sorted(set(files) - used):
        yield checked.in_file(name, "no request uses it; remove it, or name it in rubric.yaml")


def _missing_notes(checked: _CheckedRubric) -> Iterator[str]:
    for slot, material in checked.rubric.sheet.material.items():
        if not material.note.strip():
            yield checked.at(
                "material", slot, problem="has no note, so the judge has to guess how to use it; write one"
            )


_RULES: tuple[Callable[[_CheckedRubric], Iterator[str]], ...] = (
    _missing_reply_instruction,
    _never_shown,
    _missing_levels,
    _no_weights,
    _scales_differ,
    _rationales,
    _not_applicable_alone,
    _schemas_differ,
    _model_names,
    _unknown_variables,
    _unused_files,
    _missing_notes,
)
