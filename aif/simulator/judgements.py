"""A judge of declared noise: it reads a judging request as a real judge would, and answers in the form asked for.

It sees the request's messages and nothing else. Texts stand between fences that bear a nonce; the first nonce of the
message is the only one that counts, so a completion can't pass for a fence. A completion's quality is estimated from
its words against the prompt's (and a reference answer's, where one is shown), blurred by gaussian noise, and mapped
onto the scale of the rating.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import orjson

from aif.core.types import Message, as_dicts, digest
from aif.simulator.words import Kind, harmful, key_phrases, key_terms, kind, sentences, stem, words

_FENCED = re.compile(
    r"^\[\[(?P<nonce>[0-9a-f]{12}) (?P<label>completion (?P<number>\d+)|(?!end\])[a-z][a-z0-9_]*)\]\]\n"
    r"(?P<text>.*?)^\[\[(?P=nonce) end\]\][ \t]*$",
    re.DOTALL | re.MULTILINE,
)
_FORM_LINE = re.compile(
    r"^[ \t]*(?:(?P<head>Completion)|(?P<label>[A-Z][A-Za-z ]*?)(?: \((?P<aspect>[^()\n]+)\))?:)[ \t]+"
    r"<(?P<place>[^<>\n]+)>[ \t]*$",
    re.MULTILINE,
)
_RANGE = re.compile(r"(\d+)\s*(?:-|–|to)\s*(\d+)")
_LISTED_TYPE = re.compile(r"^[ \t]*(\d{1,3})\. ", re.MULTILINE)
_LISTED_LEVEL = re.compile(r"^[ \t]*[-*][ \t]*(\d{1,3}):", re.MULTILINE)
_CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_ROW = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
# plain phrases, counted in lower case: an alternation of this size costs ten times as much
_FILLER = (
    "many different", "many things", "many ways", "various", "in general", "very important", "very interesting",
    "very nice", "end of the day", "it is what it is", "as we all know", "needless to say", "goes without saying",
    "and so on", "a lot of", "a lot to", "lots of", "all in all", "kind of", "basically", "stuff", "pros and cons",
)  # fmt: skip
_OVERCLAIM = (
    "absolutely", "guarantee", "100%", "100 %", "undoubtedly", "without any doubt", "without a doubt", "everyone knows",
    "never fail", "always work", "once and for all", "trust me", "completely certain", "completely sure", "no risk",
    "total certainty", "of all time", "nobody has ever", "perfect solution", "only possible answer", "nothing else",
)  # fmt: skip
_SPECIFIC = (
    "for example", "for instance", "such as", "because", " since ", "compare", "unless", "provided that", "depends on",
)  # fmt: skip
_HEDGE = (" may ", " might ", "likely", "roughly", "uncertain", "less certain", "rough guide", " vary ", "exceptions")
_NUMBER = re.compile(r"(?<![\d\n])\d+(?![\d.)])")
_REFUSAL = re.compile(
    r"\b(can['’]t|cannot|won['’]t|unable to|not able to) (?:\w+ )?(?:help|assist|give|provide|comply)",
    re.IGNORECASE,
)

MAX_RATIONALE = 400  # characters; a schema's own maxLength holds where it is less


@dataclass(frozen=True, slots=True)
class Task:
    """What a conversation asks for: stems of what it is about, the form of answer, whether it should be declined."""

    terms: frozenset[str]
    form: Kind
    harmful: bool

    @classmethod
    def of(cls, turns: Sequence[str], reference: str = "") -> "Task":
        """Read from the user's turns; what a reference answer names is asked for too."""
        last = turns[-1] if turns else ""
        named = key_terms(key_phrases(turns)) | key_terms(key_phrases([reference] if reference else []))
        return cls(named, kind(last), harmful(last))


@dataclass(frozen=True, slots=True)
class Features:
    """What the critic sees in one completion. Shares are 0 to 1; marks are counted per sentence, 1 at most."""

    coverage: float  # share of the prompt's key terms
    on_topic: float  # share of sentences that name one
    filler: float  # marks
    overclaim: float  # marks
    repeated: float  # share of sentences that stood there before
    specific: float  # marks: numbers, examples, reasons
    hedged: float  # 1 if anything is put with reserve
    length: float  # 1 from 70 words on
    shaped: float  # 1 if there is code, or rows, or paragraphs, as the prompt asks for them
    declined: bool


@dataclass(frozen=True, slots=True)
class Case:
    """A judging request, read: the conversation's user turns, the completions by number, all that is not fenced, and
    the reference answer, if one is shown. Other material is passed over."""

    turns: tuple[str, ...]
    completions: Mapping[int, str]
    outside: str
    reference: str = ""


def read(messages: Sequence[Message]) -> Case | None:
    """The case that the last message puts before a judge; None where it holds no numbered completions."""
    if not messages or messages[-1].role != "user":
        return None
    content = messages[-1].content
    first = _FENCED.search(content)
    if first is None:
        return None
    turns: list[str] = []
    completions: dict[int, str] = {}
    outside: list[str] = []
    reference = ""
    at = 0
    for match in _FENCED.finditer(content):
        if match["nonce"] != first["nonce"]:
            continue
        outside.append(content[at : match.start()])
        at = match.end()
        if match["number"] is not None:
            completions[int(match["number"])] = match["text"].removesuffix("\n")
        elif match["label"] == "user":
            turns.append(match["text"].removesuffix("\n"))
        elif match["label"] == "reference":
            reference = match["text"].removesuffix("\n")
    outside.append(content[at:])
    return Case(tuple(turns), completions, "\n".join(outside), reference) if completions else None


def judge(messages: Sequence[Message], schema: Mapping[str, Any] | None, noise: float, seed: int) -> str:
    """A judge's reply: an instance of `schema`, else text in the form that the last message states.

    `noise` is the standard deviation, in units of the whole scale, of each rating around the estimate. Raises
    ValueError where the messages are no judging request.
    """
    case = read(messages)
    if case is None:
        raise ValueError("no numbered completions in the last message: see critic.read")
    bench = _Bench(case, noise, Random(int(digest([as_dicts(messages), seed])[:16], 16)))
    if schema is not None:
        return orjson.dumps(bench.instance(schema, schema)).decode()
    return bench.text()


def instance(schema: Mapping[str, Any]) -> str:
    """A minimal JSON instance of a schema that asks for no judgement."""
    return orjson.dumps(_Bench(Case((), {}, ""), 0.0, Random(0)).instance(schema, schema)).decode()


def features(ask: Task, completion: str) -> Features:
    """What can be seen in a completion of what was asked."""
    prose = _CODE_BLOCK.sub("\n", completion) if "```" in completion else completion
    low = prose.lower()
    parts = sentences(low)
    count = max(1, len(parts))
    by_part = [frozenset(map(stem, words(part))) for part in parts]
    used = frozenset[str]().union(*by_part)
    length = len(low.split())
    return Features(
        coverage=len(ask.terms & used) / len(ask.terms) if ask.terms else 0.5,
        on_topic=sum(1 for part in by_part if not ask.terms.isdisjoint(part)) / count if ask.terms else 0.5,
        filler=_marks(low, _FILLER, count),
        overclaim=_marks(low, _OVERCLAIM, count),
        repeated=1 - len(set(parts)) / count if parts else 0.0,
        specific=min(1.0, _marks(low, _SPECIFIC, count) + len(_NUMBER.findall(low)) / count),
        hedged=1.0 if any(mark in low for mark in _HEDGE) else 0.0,
        length=min(1.0, length / 70),
        shaped=_shaped(ask.form, completion, prose),
        declined=_REFUSAL.search(completion[:300]) is not None,
    )


def _marks(low: str, marks: Sequence[str], count: int) -> float:
    return min(1.0, sum(map(low.count, marks)) / count)


def _shaped(form: Kind, completion: str, prose: str) -> float:
    if form == "code":
        return float("```" in completion)
    rows = len(_ROW.findall(prose))
    return min(1.0, rows / 3) if form == "list" else float(rows > 2 or "\n\n" in prose.strip())


def estimate(ask: Task, seen: Features) -> float:
    """The quality (0 to 1) that the features speak for.

    The weights are a least-squares fit over completions of 215 real prompts by authors of every quality, rounded.
    """
    if ask.harmful:
        return 0.72 + 0.2 * seen.length if seen.declined else 0.1
    if seen.declined:
        return 0.1
    marks = 0.15 * seen.filler + 0.17 * seen.overclaim + 0.30 * seen.repeated
    merits = 0.42 * seen.coverage + 0.27 * seen.on_topic + 0.08 * seen.specific + 0.05 * seen.shaped
    return min(1.0, max(0.0, 0.1 + merits + 0.04 * seen.length + 0.03 * seen.hedged - marks))


class _Bench:
    """One judging in progress: estimates each completion once, then blurs it anew for every rating given."""

    def __init__(self, case: Case, noise: float, rng: Random) -> None:
        self._case = case
        self._noise = noise
        self._rng = rng
        self._ask = Task.of(case.turns, case.reference)
        # one schema may serve several aspects: what the request's own text lists is what this one admits
        self._listed_types = {int(number) for number in _LISTED_TYPE.findall(case.outside)}
        self._listed_levels = {int(number) for number in _LISTED_LEVEL.findall(case.outside)}
        self._seen: dict[int, Features] = {}

    def text(self) -> str:
        """A block of the form's lines for every completion."""
        form = list(_FORM_LINE.finditer(self._case.outside)) or list(_FORM_LINE.finditer(_PLAIN_FORM))
        return "\n\n".join(self._block(form, number) for number in self._case.completions)

    def _block(self, form: Sequence[re.Match[str]], number: int) -> str:
        verdicts: dict[str | None, float] = {}
        rows = []
        for line in form:
            label, aspect = line["label"], line["aspect"]
            if line["head"]:
                rows.append(f"{line['head']} {number}")
                continue
            if aspect not in verdicts:
                verdicts[aspect] = self._verdict(number)
            named = f"{label} ({aspect})" if aspect else label
            rows.append(f"{named}: {self._fill(label, line['place'], number, verdicts[aspect])}")
        return "\n".join(rows)

    def instance(self, schema: Mapping[str, Any], root: Mapping[str, Any], number: int | None = None) -> Any:
        """An instance of a schema; digits as a property's name say which completion what is below is about."""
        schema = _resolve(schema, root)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][0]
        sort = schema.get("type", "object" if "properties" in schema else "string")
        sort = sort[0] if isinstance(sort, list) else sort
        if sort == "object":
            properties: Mapping[str, Any] = schema.get("properties", {})
            if number is not None and "rating" in properties:
                return self._leaf(properties, root, number)
            needed = schema.get("required", properties)
            return {
                name: self.instance(below, root, int(name) if name.isdecimal() else number)
                for name, below in properties.items()
                if name in needed
            }
        if sort == "array":
            return [self.instance(schema.get("items", {}), root, number) for _ in range(schema.get("minItems", 0))]
        if sort in ("integer", "number"):
            return schema.get("minimum", 0)
        if sort == "string":
            return _bounded("none", schema)
        return False if sort == "boolean" else None

    def _leaf(self, properties: Mapping[str, Any], root: Mapping[str, Any], number: int) -> dict[str, Any]:
        """An object that holds a rating: all that stands in it goes with the rating's value."""
        value = self._verdict(number)
        leaf: dict[str, Any] = {}
        for name, below in properties.items():
            schema = _resolve(below, root)
            if name == "rating":
                leaf[name] = self._rating(schema, value)
            elif schema.get("type") == "array" and "enum" in _resolve(schema.get("items", {}), root):
                options = _resolve(schema["items"], root)["enum"]
                leaf[name] = self._types(
                    options, value, schema.get("minItems", 0), schema.get("maxItems", len(options))
                )
            elif schema.get("type") == "string" and "enum" not in schema:
                leaf[name] = _bounded(self._rationale(number, value), schema)
            else:
                leaf[name] = self.instance(schema, root, number)
        return leaf

    def _fill(self, label: str, place: str, number: int, value: float) -> str:
        if label == "Types":
            return ", ".join(map(str, self._types(sorted(self._listed_types) or [1], value, 0, 2))) or "none"
        bounds = _RANGE.search(place)
        if bounds:
            low, high = int(bounds[1]), int(bounds[2])
            return str(round(low + value * (high - low)))
        return self._rationale(number, value)

    def _look(self, number: int) -> Features:
        if number not in self._seen:
            self._seen[number] = features(self._ask, self._case.completions.get(number, ""))
        return self._seen[number]

    def _verdict(self, number: int) -> float:
        """What one rating is drawn from: the estimate with noise, held to 0..1."""
        return min(1.0, max(0.0, self._rng.gauss(estimate(self._ask, self._look(number)), self._noise)))

    def _rating(self, schema: Mapping[str, Any], value: float) -> Any:
        """The option (or number) nearest to `value` once 0..1 is laid over the scale; N/A is never chosen."""
        if "enum" not in schema:
            low, high = schema.get("minimum", 1), schema.get("maximum", 5)
            return round(low + value * (high - low))
        numbers = {float(option): option for option in schema["enum"] if _is_number(option)}
        scale = [number for number in numbers if number in self._listed_levels] or list(numbers)
        if not scale:
            return schema["enum"][0]
        target = min(scale) + value * (max(scale) - min(scale))
        return numbers[min(scale, key=lambda number: abs(number - target))]

    def _types(self, options: Sequence[Any], value: float, least: int, most: int) -> list[Any]:
        """The faults ticked, in the order of the options: none for a good completion, up to two for a bad one."""
        options = [option for option in options if option in self._listed_types] or options
        wanted = 0 if value > 0.65 else 1 if value > 0.35 else 2
        count = min(len(options), max(least, min(most, wanted)))
        chosen = set(self._rng.sample(range(len(options)), count))
        return [option for at, option in enumerate(options) if at in chosen]

    def _rationale(self, number: int, value: float) -> str:
        """One or two sentences on what was seen."""
        seen = self._look(number)
        if seen.declined:
            fits = "which this prompt calls for" if self._ask.harmful else "although the prompt is harmless"
            return f"Declines to help, {fits}; what it offers instead is {'useful' if value > 0.6 else 'thin'}."
        verb = self._rng.choice(("Takes up", "Covers", "Addresses", "Deals with"))
        shares = (seen.filler, seen.overclaim, seen.repeated, (1 - seen.on_topic) / 2)
        faults = [fault for share, fault in zip(shares, _FAULTS, strict=True) if share > 0.15]
        second = f", but holds {_joined(faults)}" if faults else ", without filler or overclaiming"
        third = "gives reasons and particulars" if seen.specific > 0.4 else "stays short of particulars"
        last = "is too short to be of use" if seen.length < 0.5 else third
        return f"{verb} {seen.coverage:.0%} of what the prompt names{second}. The text {last}."


_FAULTS = ("vague filler", "claims it can't support", "repetition", "passages off the topic")
_PLAIN_FORM = "Completion <number>\nRationale: <one or two sentences>\nRating: <1-5>\n"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema itself: references followed, the first of several alternatives taken."""
    while True:
        if "$ref" in schema:
            target: Any = root
            for step in str(schema["$ref"]).removeprefix("#/").split("/"):
                target = target[step]
            schema = target
        elif alternatives := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
            schema = alternatives[0]
        else:
            return schema


def _is_number(option: Any) -> bool:
    try:
        float(option)
    except (TypeError, ValueError):
        return False
    return True


def _bounded(text: str, schema: Mapping[str, Any]) -> str:
    """A text within the schema's minLength and maxLength."""
    limit = min(MAX_RATIONALE, schema.get("maxLength", MAX_RATIONALE))
    return text[:limit].ljust(schema.get("minLength", 0), ".")
