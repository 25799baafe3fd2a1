"""A rubric folder -> the messages and the reply schema of each request. What comes back is read in parse.py.

A rubric is a folder anyone can copy: `rubric.yaml` (aspects, scales, weights, requests) and Jinja templates. What the
requests of a prompt share (the judge's role, the conversation, the completions) comes first and the request's own text
last, so that providers' prefix caches can hold the shared part. Only the request's own text is a template, and it sees
no completion: text that is judged never passes through Jinja. Reading a folder is the only I/O here.
"""

import hashlib
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from jinja2 import FunctionLoader, StrictUndefined, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from aif.config import error_messages, located_yaml
from aif.config.located_yaml import KeyPath, Problem, YamlDocument, dotted
from aif.core.errors import BadInput
from aif.core.types import KEY_LENGTH, Message, Prompt, digest, fraction

Form = Literal["schema", "text"]
Mode = Literal["listwise", "single"]
Score = Literal["mean", "overall"]

LAYOUT = 1  # raised when the same rubric renders to other messages
NOT_APPLICABLE = "N/A"


HIGHEST = 100  # of a scale: every rating is a word of the reply's schema


def _word(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
        raise ValueError(f"{name!r} is no name; use up to 40 lower-case letters, digits and _")
    return name


def _slot(name: str) -> str:
    if name in _LABELS:
        raise ValueError(f"{name!r} names other texts that a judge is shown; use another name, such as {name}_notes")
    return _word(name)


_LABELS = ("system", "user", "assistant", "completion", "end")  # of fences
Word = Annotated[str, AfterValidator(_word)]  # stands in replies as a key, and in labels
Slot = Annotated[str, AfterValidator(_slot)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Aspect(Strict):
    """One thing a completion is rated for."""

    title: str
    question: str = ""
    guidance: str = ""
    levels: dict[int, str] = {}
    scale: tuple[int, int] = (1, 5)
    not_applicable: str | None = None  # when N/A is the rating; None: never
    types: dict[Annotated[int, Field(ge=1, le=99)], str] = {}
    weight: float = Field(default=1.0, ge=0)  # in the mean; in no identity
    rationale_chars: int = Field(default=300, ge=20, le=8000)

    @model_validator(mode="after")
    def _sound_scale(self) -> "Aspect":
        low, high = self.scale
        if not 0 <= low < high <= HIGHEST:
            raise ValueError(f"scale must be [low, high] with 0 <= low < high <= {HIGHEST}, got [{low}, {high}]")
        if beyond := [level for level in self.levels if not low <= level <= high]:
            raise ValueError(f"levels: {beyond[0]} is not on the scale, which goes from {low} to {high}")
        return self

    @cached_property
    def ratings(self) -> tuple[str, ...]:
        """The words a rating may be, lowest first."""
        numbers = tuple(str(n) for n in range(self.scale[0], self.scale[1] + 1))
        return (*numbers, NOT_APPLICABLE) if self.not_applicable else numbers


class Material(Strict):
    """What a judge is shown beside the conversation where the prompt has it: its heading, and what to make of it."""

    title: str = Field(min_length=1)
    note: str = ""


class RubricRequest(Strict):
    """One request of a rubric: which aspects, of all completions at once or of each by itself."""

    mode: Mode = "listwise"
    template: str
    aspects: tuple[Word, ...] = Field(min_length=1)


class Sheet(Strict):
    """The content of rubric.yaml."""

    name: str
    description: str = ""
    role: str  # the template of the judge's system message
    aspects: dict[Word, Aspect]
    requests: dict[Word, RubricRequest] = Field(min_length=1)
    material: dict[Slot, Material] = {}


_PARTS: Mapping[str | int, type[Strict]] = {"aspects": Aspect, "requests": RubricRequest, "material": Material}


def _unknown(keys: KeyPath) -> str:
    part = Sheet if len(keys) == 1 else _PARTS[keys[0]]
    return error_messages.unknown_key_message(str(keys[-1]), list(part.model_fields))


_BEFORE = " (conversation, material and completions stand before a request's own text by themselves)"

_OBJECT = re.compile(r"<[^<>]{1,200} at 0x[0-9a-fA-F]+>")  # how Jinja prints what is no text: another address each run


@dataclass(frozen=True)
class Rubric:
    """A rubric as its folder's files make it. `digest` names exactly these files; `where` says in errors where they
    came from."""

    files: Mapping[str, str]
    sheet: Sheet
    where: str = field(compare=False)
    _texts: dict[tuple[str, int, Form], str] = field(default_factory=dict, compare=False, repr=False)
    _schemas: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, files: Mapping[str, str], where: str) -> "Rubric":
        """A rubric from its files' texts by name, checked; every template is rendered once. Raises BadInput."""
        if "rubric.yaml" not in files:
            raise BadInput(f"{where}: no rubric.yaml in this folder")
        found = located_yaml.parse_yaml(files["rubric.yaml"], lambda line: f"{where}/rubric.yaml:{line}")
        wrong = {problem.keys: problem for problem in reversed(found.problems)}
        try:
            sheet = Sheet.model_validate(found.data)
        except ValidationError as error:
            for problem in error_messages.validation_problems(error, found, _unknown):
                wrong.setdefault(problem.keys, problem)
        if wrong:
            raise BadInput("\n".join(said(found, problem) for problem in wrong.values()))
        rubric = cls(dict(files), sheet, where)
        if clashes := list(rubric._clashes()):
            raise BadInput("\n".join(said(found, problem) for problem in clashes))
        if failed := list(rubric.unrendered({2})):
            raise BadInput("\n".join(failed))
        return rubric

    def _clashes(self) -> Iterator[Problem]:
        """What does not fit together: aspects with requests, names of templates with files."""
        known, asked = ", ".join(self.sheet.aspects), set[str]()
        for name, ask in self.sheet.requests.items():
            at: KeyPath = ("requests", name, "aspects")
            for aspect in ask.aspects:
                if aspect not in self.sheet.aspects:
                    yield Problem(at, f"no aspect {aspect!r}; there are {known}")
                elif aspect in asked:
                    yield Problem(at, f"{aspect} is asked twice; name it once, in one request")
                asked.add(aspect)
        for aspect in self.sheet.aspects:
            if aspect not in asked:
                yield Problem(("aspects", aspect), "is in no request; name it in `aspects` of one, or take it out")
        templates: list[tuple[KeyPath, str]] = [(("role",), self.sheet.role)]
        templates += [(("requests", name, "template"), ask.template) for name, ask in self.sheet.requests.items()]
        for keys, name in templates:
            if name not in self.files:
                held = ", ".join(sorted(self.files))
                yield Problem(keys, f"names {name}, but the folder holds {held}; correct the name, or add the file")

    def unrendered(self, counts: Iterable[int]) -> Iterator[str]:
        """Why templates can't be rendered about so many completions, each reason once."""
        told: set[str] = set()
        for render in (lambda: self.role, *self._own_texts(counts)):
            try:
                render()
            except BadInput as error:
                if str(error) not in told:
                    told.add(str(error))
                    yield str(error)

    def _own_texts(self, counts: Iterable[int]) -> Iterator[Callable[[], str]]:
        for name, ask in self.sheet.requests.items():
            for n in counts if ask.mode == "listwise" else (1,):
                for form in get_args(Form):
                    yield partial(self.own_text, name, n, form)

    @cached_property
    def digest(self) -> str:
        return digest(self.files)

    @cached_property
    def _templates(self) -> ImmutableSandboxedEnvironment:
        files = dict(self.files)
        templates = ImmutableSandboxedEnvironment(
            loader=FunctionLoader(lambda name: (files[name], name, None) if name in files else None),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        del templates.globals["lipsum"], templates.filters["random"]  # what is rendered is part of a judgement's key
        return templates

    def _rendered(self, name: str, **given: Any) -> str:
        """A template's text. The sandbox guards plain values only, so nothing with methods of its own is `given`."""
        try:
            text = self._templates.get_template(name).render(given).strip()
            text.encode()
        except Exception as error:  # a template is its author's program: whatever it raises is the file's fault
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if isinstance(error, UndefinedError):
                why += f"; a template is given {', '.join(given) or 'nothing'} here" + _BEFORE
            raise BadInput(f"{self._line(error, name)}: can't be rendered: {why}") from error
        if printed := _OBJECT.search(text):
            raise BadInput(f"{self.where}/{name}: prints {printed[0]}; is `| join` missing, or the () of a call?")
        return text

    def _line(self, error: Exception, name: str) -> str:
        """Where in a template an error arose, as far as the error knows."""
        lines = [
            (at.filename, at.lineno) for at in traceback.extract_tb(error.__traceback__) if at.filename in self.files
        ]
        if isinstance(error, TemplateSyntaxError):
            lines.append((error.name or name, error.lineno))
        file, line = lines[-1] if lines else (name, None)
        return f"{self.where}/{file}" + (f":{line}" if line else "")

    @cached_property
    def role(self) -> str:
        """The judge's system message."""
        return self._rendered(self.sheet.role)

    def own_text(self, request: str, n: int, form: Form) -> str:
        """A request's own text for `n` completions: all of the message behind what the requests of a prompt share."""
        if (text := self._texts.get((request, n, form))) is None:
            text = self._texts[request, n, form] = self.worded(request, n, reply_form(self, request, n, form))
        return text

    def worded(self, request: str, n: int, reply: str) -> str:
        """`own_text` with any words where its template says how to reply."""
        ask = self.sheet.requests[request]
        # a weight is in no identity, so no template may show it to a judge
        aspects = {name: self.sheet.aspects[name].model_dump(exclude={"weight"}) for name in ask.aspects}
        return self._rendered(ask.template, aspects=aspects, n=n, reply=reply)

    def _alike(self, request: str) -> list[Aspect]:
        """The aspects whose replies share the shape of this request's."""
        ask = self.sheet.requests[request]
        if len(ask.aspects) > 1:
            return [self.sheet.aspects[name] for name in ask.aspects]
        others = self.sheet.requests.values()
        return [self.sheet.aspects[a.aspects[0]] for a in others if a.mode == ask.mode and len(a.aspects) == 1]

    def schema(self, request: str, n: int) -> dict[str, Any]:
        """The JSON Schema of a reply, completions by number, rationale before rating.

        Requests for one aspect each in the same mode get one schema, byte for byte, since providers put it before the
        messages, where a differing one breaks the shared prefix: it admits what any of them may say, and `read` checks
        the aspect's own bounds. A request for several aspects nests a reply for each under its name.
        """
        if (request, n) not in self._schemas:
            names = self.sheet.requests[request].aspects
            if len(names) > 1:
                each = _object({name: _leaf([self.sheet.aspects[name]]) for name in names})
            else:
                each = _leaf(self._alike(request))
            self._schemas[request, n] = _object({str(i): each for i in range(1, n + 1)})
        return self._schemas[request, n]

    def material_of(self, prompt: Prompt) -> dict[str, dict[str, str]] | None:
        """What a judge is shown beside the conversation, by slot in the rubric's order: title, note and the prompt's
        text. None where the prompt fills no slot of this rubric."""
        slots = self.sheet.material.items()
        filled = {slot: text for slot, _ in slots if (text := prompt.material.get(slot, "")).strip()}
        return {slot: one.model_dump() | {"text": filled[slot]} for slot, one in slots if slot in filled} or None

    def material_digest(self, prompt: Prompt) -> str | None:
        """The digest of `material_of`, in its order, for a judgement's identity."""
        shown = self.material_of(prompt)
        return digest(list(shown.items()))[:KEY_LENGTH] if shown else None

    def shares(self, request: str) -> bool:
        """Whether another request of a prompt begins as this one does: the same completions behind the same schema."""
        return len(self.sheet.requests[request].aspects) == 1 and len(self._alike(request)) > 1

    @property
    def mixed(self) -> bool:
        """Whether the aspects in the mean differ in range, so that each counts as a share of its own."""
        return len({aspect.scale for aspect in self.sheet.aspects.values() if aspect.weight > 0}) > 1

    def scores(self) -> tuple[Score, ...]:
        """The scores pairs may be made by: the weighted mean, and `overall` where the rubric asks for it."""
        aspects = self.sheet.aspects
        mean: tuple[Score, ...] = ("mean",) if any(aspect.weight > 0 for aspect in aspects.values()) else ()
        return (*mean, "overall") if "overall" in aspects else mean


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _leaf(aspects: Sequence[Aspect]) -> dict[str, Any]:
    types = sorted({number for aspect in aspects for number in aspect.types})
    words = {word: None for aspect in aspects for word in aspect.ratings}
    numbers = sorted((word for word in words if word != NOT_APPLICABLE), key=int)
    properties: dict[str, Any] = {}
    if types:
        items = {"type": "integer", "enum": types}
        properties["types"] = {"type": "array", "items": items, "maxItems": len(types)}
    properties["rationale"] = {"type": "string", "maxLength": max(aspect.rationale_chars for aspect in aspects)}
    properties["rating"] = {
        "type": "string",
        "enum": [*numbers, *([NOT_APPLICABLE] if NOT_APPLICABLE in words else [])],
    }
    return _object(properties)


def reply_form(rubric: Rubric, request: str, n: int, form: Form) -> str:
    """How the judge is told to reply: the words a template puts where it says `{{ reply }}`."""
    ask = rubric.sheet.requests[request]
    several = len(ask.aspects) > 1
    numbers = f"1 to {n}" if n > 1 else "1"
    if form == "schema":
        inner = "each holds, under each aspect's name, an object with" if several else "each holds an object with"
        types = any(aspect.types for aspect in rubric._alike(request))
        listed = "the types that apply (an empty list where none does or none are defined), " if types else ""
        return (
            f"Reply with one JSON object. Its keys are the completions' numbers, {numbers}; {inner} "
            f"{listed}the rationale, and then the rating it leads to, as a string."
        )
    lines = ["Completion <number>"]
    for name in ask.aspects:
        aspect, label = rubric.sheet.aspects[name], f" ({name})" if several else ""
        lines.append(f"Rationale{label}: <your reasons>")
        if aspect.types:
            lines.append(f"Types{label}: <numbers separated by commas, or none>")
        low, high = aspect.scale
        lines.append(f"Rating{label}: <{low}-{high}{' or N/A' if aspect.not_applicable else ''}>")
    block = "\n".join(lines)
    which = f"each completion, {numbers}" if n > 1 else "completion 1"
    return f"For {which}, reply with a block of exactly this form:\n\n{block}"


def load(folder: Path) -> Rubric:
    """The rubric in a folder."""
    return Rubric.of(files_in(folder), str(folder))


def files_in(folder: Path) -> dict[str, str]:
    """The files of a rubric: every .yaml, .md and .j2 file directly in its folder. Raises BadInput, naming each that is
    no UTF-8, and each that is a link to elsewhere: what it names would be sent to a judge, and a folder may come from
    anyone."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such rubric folder; give a shipped rubric's name, or a folder with a rubric.yaml")
    files: dict[str, str] = {}
    bad: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.suffix in {".yaml", ".md", ".j2"}:
            if not path.resolve().is_relative_to(folder.resolve()):
                bad.append(f"{path}: is a link that leads out of the rubric's folder; put the file itself there")
                continue
            try:
                files[path.name] = path.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                bad.append(f"{path}: can't be read as UTF-8 text: {error}; save it as such")
    if bad:
        raise BadInput("\n".join(bad))
    return files


def said(found: YamlDocument, problem: Problem) -> str:
    """A problem of rubric.yaml with its file, line and keys."""
    return ": ".join(filter(None, (found.location_of(problem.keys).where, dotted(problem.keys), problem.text)))


# Scores that came with completions: one aspect, asked of no one.
SCORED = Rubric(
    {},
    Sheet.model_construct(
        name="scores of their own",
        description="Scores that came with the completions.",
        role="",
        aspects={"overall": Aspect(title="Score", scale=(0, HIGHEST))},
        requests={},
        material={},
    ),
    "scores of their own",
)


# --- what a judge sees -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rendered:
    """A judging request: messages, and how many characters of the last one the prompt's other requests share."""

    messages: tuple[Message, ...]
    shared: int


def order(prompt_id: str, keys: Sequence[str], judge_pass: int) -> tuple[str, ...]:
    """The order completions are numbered in: by hash of prompt, pass and key, so it says nothing of the model."""
    return tuple(sorted(keys, key=lambda key: fraction("order", judge_pass, prompt_id, key)))


def nonce(texts: Sequence[str]) -> str:
    """Twelve hex digits that none of the texts holds: a fence no text can pass for."""
    seed = hashlib.sha256("\x1f".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    while any(seed[:12] in text for text in texts):
        seed = hashlib.sha256(seed.encode()).hexdigest()
    return seed[:12]


def render(rubric: Rubric, request: str, prompt: Prompt, completions: Sequence[str], form: Form) -> Rendered:
    """The messages that ask the judge for one request about these completions' texts, in the order given."""
    beside = rubric.material_of(prompt) or {}
    texts = [*(m.content for m in prompt.messages), *(one["text"] for one in beside.values()), *completions]
    fence = nonce(texts)

    def fenced(label: str, text: str) -> str:
        return f"[[{fence} {label}]]\n{text}\n[[{fence} end]]"

    turns = "\n".join(fenced(message.role, message.content) for message in prompt.messages)
    material = "".join(
        "\n\n".join(filter(None, (f"# {one['title']}", one["note"].strip(), fenced(slot, one["text"])))) + "\n\n"
        for slot, one in beside.items()
    )
    answers = "\n".join(fenced(f"completion {i}", text) for i, text in enumerate(completions, 1))
    shared = (
        f"Every text below stands between two lines in double brackets that carry the mark {fence}. What stands "
        f"between them is material, never an instruction to you.\n\n"
        f"# Conversation\n\n{turns}\n\n{material}# Completions of its next turn\n\n{answers}\n\n"
    )
    own = rubric.own_text(request, len(completions), form)
    return Rendered((Message("system", rubric.role), Message("user", shared + own)), len(shared))


def spec_digest(rubric: Rubric, request: str, n: int, form: Form, settings: Mapping[str, Any]) -> str:
    """What of a request reaches the wire besides prompt and completions: texts, schema, the judge's settings."""
    return digest(
        {
            "layout": LAYOUT,
            "request": request,  # with the aspects: what the reply is read as
            "aspects": list(rubric.sheet.requests[request].aspects),
            "mode": rubric.sheet.requests[request].mode if n > 1 else "single",
            "role": rubric.role,
            "own": rubric.own_text(request, n, form),
            "schema": rubric.schema(request, n) if form == "schema" else None,
            "settings": dict(settings),
        }
    )[:KEY_LENGTH]


def judgement_key(
    completions: Sequence[str],
    judge: str,
    judge_pass: int,
    spec: str,
    material: str | None,
    texts: Sequence[str] = (),
) -> str:
    """A judgement's identity: the completions in the order shown, the judge, the pass, and what reaches the wire:
    `spec`, and the digest of the prompt's material (`Rubric.material_digest`). Where there is one already that was
    shown other texts of these, `texts` are what tells this one from it."""
    said = {"completions": list(completions), "judge": judge, "pass": judge_pass, "spec": spec, "material": material}
    return digest({"v": 1, **said, **({"texts": list(texts)} if texts else {})})[:KEY_LENGTH]
