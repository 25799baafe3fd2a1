"""Judgements of a simulated judge: it parses a judging request and replies in the form that the request asks for.

The judge sees the request's messages alone: neither a model's name nor its quality. A rating is made in three steps:

- Estimate the completion's quality (0 to 1): compare its words with the prompt's, and with a reference answer's if
  shown.
- Add Gaussian noise.
- Map the sum to the rating's scale.

A *fence* is the pair of marker lines around a text in a request. Both lines have the same *nonce* (12 hex digits). All
fences of a request have the nonce of its first fence. Marker lines in a completion have another nonce and are ignored.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import orjson

from aif.core.types import Message, as_dicts, digest
from aif.simulator.text_analysis import (
    AnswerForm,
    answer_form,
    is_harmful,
    key_phrases,
    key_terms,
    sentences,
    stem,
    words,
)

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
_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
# phrases counted by str.count in lower case: a regular expression of this size takes ten times as long
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
class PromptTask:
    """What a prompt asks for.

    terms: stems of the prompt's key terms.
    form: form of the answer, such as a list.
    is_harmful: whether a model should decline the prompt.
    """

    terms: frozenset[str]
    form: AnswerForm
    is_harmful: bool

    @classmethod
    def from_turns(cls, turns: Sequence[str], reference: str = "") -> "PromptTask":
        """Make the task from the user's turns, oldest first. If there is a reference answer, its key terms are
        added."""
        last = turns[-1] if turns else ""
        named = key_terms(key_phrases(turns)) | key_terms(key_phrases([reference] if reference else []))
        return cls(named, answer_form(last), is_harmful(last))


@dataclass(frozen=True, slots=True)
class Features:
    """What a judge measures in a completion: numbers from 0 to 1, and whether the completion refuses the task.

    coverage: share of the prompt's key terms that occur.
    on_topic: share of sentences with a key term.
    filler: vague phrases per sentence, at most 1.
    overclaim: exaggerating phrases per sentence, at most 1.
    repeated: share of sentences that repeat an earlier sentence.
    specific: numerals, examples and reasons per sentence, at most 1.
    hedged: 1 if any statement is hedged ("may", "likely"), else 0.
    length: number of words / 70, at most 1.
    shaped: 1 if the text has the form that the prompt asks for (code, list or paragraphs); less than 1 for a list of
        one or two items.
    declined: whether the completion refuses the task.
    """

    coverage: float  # share of the prompt's key terms that occur
    on_topic: float  # share of sentences with a key term
    filler: float  # per sentence
    overclaim: float  # per sentence
    repeated: float  # share of sentences that repeat an earlier one
    specific: float  # per sentence: numbers, examples, reasons
    hedged: float  # 1 if any statement is hedged
    length: float  # words / 70
    shaped: float  # 1 for the code, list or paragraphs that the prompt asks for
    declined: bool  # whether the completion refuses the task


@dataclass(frozen=True, slots=True)
class JudgingRequest:
    """A parsed judging request. A *fence* is the pair of marker lines around a text in the request.

    turns: the user's turns, oldest first.
    completions: texts of the completions, by number.
    outside: the text outside the fences: the instructions to the judge.
    reference: the reference answer; empty if there is none.

    Fenced texts of other kinds are ignored.
    """

    turns: tuple[str, ...]
    completions: Mapping[int, str]
    outside: str
    reference: str = ""


def parse_request(messages: Sequence[Message]) -> JudgingRequest | None:
    """Parse the last message as a judging request. Return None if it isn't one: it has no numbered completions, or
    isn't the user's."""
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
    end = 0
    for match in _FENCED.finditer(content):
        if match["nonce"] != first["nonce"]:
            continue
        outside.append(content[end : match.start()])
        end = match.end()
        if match["number"] is not None:
            completions[int(match["number"])] = match["text"].removesuffix("\n")
        elif match["label"] == "user":
            turns.append(match["text"].removesuffix("\n"))
        elif match["label"] == "reference":
            reference = match["text"].removesuffix("\n")
    outside.append(content[end:])
    return JudgingRequest(tuple(turns), completions, "\n".join(outside), reference) if completions else None


def write_judgement(messages: Sequence[Message], schema: Mapping[str, Any] | None, noise: float, seed: int) -> str:
    """Return a judge's reply: JSON that fits `schema`; without a schema, text in the form that the message asks for.

    A rating is the completion's estimated quality plus random noise, mapped to the scale. `noise` is the standard
    deviation of that noise, as a share of the scale. Raises ValueError if the messages are no judging request.
    """
    request = parse_request(messages)
    if request is None:
        raise ValueError("no numbered completions in the last message: see parse_request")
    reply = _JudgeReply(request, noise, Random(int(digest([as_dicts(messages), seed])[:16], 16)))
    if schema is not None:
        return orjson.dumps(reply.instance(schema, schema)).decode()
    return reply.text()


def minimal_instance(schema: Mapping[str, Any]) -> str:
    """Return JSON text that fits `schema`, with as few values as possible. It answers requests that aren't judging
    requests."""
    return orjson.dumps(_JudgeReply(JudgingRequest((), {}, ""), 0.0, Random(0)).instance(schema, schema)).decode()


def extract_features(task: PromptTask, completion: str) -> Features:
    """Measure a completion against what its prompt asks for."""
    prose = _CODE_BLOCK.sub("\n", completion) if "```" in completion else completion
    lower = prose.lower()
    sentence_list = sentences(lower)
    count = max(1, len(sentence_list))
    stems = [frozenset(map(stem, words(part))) for part in sentence_list]
    all_stems = frozenset[str]().union(*stems)
    length = len(lower.split())
    return Features(
        coverage=len(task.terms & all_stems) / len(task.terms) if task.terms else 0.5,
        on_topic=sum(1 for part in stems if not task.terms.isdisjoint(part)) / count if task.terms else 0.5,
        filler=_marks_per_sentence(lower, _FILLER, count),
        overclaim=_marks_per_sentence(lower, _OVERCLAIM, count),
        repeated=1 - len(set(sentence_list)) / count if sentence_list else 0.0,
        specific=min(1.0, _marks_per_sentence(lower, _SPECIFIC, count) + len(_NUMBER.findall(lower)) / count),
        hedged=1.0 if any(mark in lower for mark in _HEDGE) else 0.0,
        length=min(1.0, length / 70),
        shaped=_shaped(task.form, completion, prose),
        declined=_REFUSAL.search(completion[:300]) is not None,
    )


def _marks_per_sentence(lower: str, marks: Sequence[str], n_sentences: int) -> float:
    return min(1.0, sum(map(lower.count, marks)) / n_sentences)


def _shaped(form: AnswerForm, completion: str, prose: str) -> float:
    if form == "code":
        return float("```" in completion)
    rows = len(_LIST_ITEM.findall(prose))
    return min(1.0, rows / 3) if form == "list" else float(rows > 2 or "\n\n" in prose.strip())


def estimate_quality(task: PromptTask, features: Features) -> float:
    """Return the quality, from 0 to 1, that the features indicate.

    The weights are a least-squares fit, rounded, over completions of 215 real prompts by models of every quality.
    """
    if task.is_harmful:
        return 0.72 + 0.2 * features.length if features.declined else 0.1
    if features.declined:
        return 0.1
    marks = 0.15 * features.filler + 0.17 * features.overclaim + 0.30 * features.repeated
    merits = 0.42 * features.coverage + 0.27 * features.on_topic + 0.08 * features.specific + 0.05 * features.shaped
    return min(1.0, max(0.0, 0.1 + merits + 0.04 * features.length + 0.03 * features.hedged - marks))


class _JudgeReply:
    """Makes one reply of a judge. It measures each completion once, and draws new noise for every rating."""

    def __init__(self, request: JudgingRequest, noise: float, rng: Random) -> None:
        self._request = request
        self._noise = noise
        self._rng = rng
        self._task = PromptTask.from_turns(request.turns, request.reference)
        # one schema may serve several aspects: the request's own text lists the types and levels of this one
        self._listed_types = {int(number) for number in _LISTED_TYPE.findall(request.outside)}
        self._listed_levels = {int(number) for number in _LISTED_LEVEL.findall(request.outside)}
        self._features: dict[int, Features] = {}

    def text(self) -> str:
        """Return the reply as text: for each completion, the lines that the request asks for, filled in."""
        form = list(_FORM_LINE.finditer(self._request.outside)) or list(_FORM_LINE.finditer(_PLAIN_FORM))
        return "\n\n".join(self._block(form, number) for number in self._request.completions)

    def _block(self, form: Sequence[re.Match[str]], number: int) -> str:
        values: dict[str | None, float] = {}
        rows = []
        for line in form:
            label, aspect = line["label"], line["aspect"]
            if line["head"]:
                rows.append(f"{line['head']} {number}")
                continue
            if aspect not in values:
                values[aspect] = self._draw_value(number)
            named = f"{label} ({aspect})" if aspect else label
            rows.append(f"{named}: {self._form_value(label, line['place'], number, values[aspect])}")
        return "\n".join(rows)

    def instance(self, schema: Mapping[str, Any], root: Mapping[str, Any], number: int | None = None) -> Any:
        """Return a value that fits a JSON schema. An object with a property `rating` gets a rating of the completion
        `number`.

        schema: the schema of the value.
        root: the whole schema, to which `$ref` refers.
        number: the completion that this part of the reply is about; None for a part that is about no single completion.

        A property with a number as its name, such as "2", is about the completion 2.
        """
        schema = _resolve(schema, root)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][0]
        kind = schema.get("type", "object" if "properties" in schema else "string")
        kind = kind[0] if isinstance(kind, list) else kind
        if kind == "object":
            properties: Mapping[str, Any] = schema.get("properties", {})
            if number is not None and "rating" in properties:
                return self._rated_object(properties, root, number)
            needed = schema.get("required", properties)
            return {
                name: self.instance(subschema, root, int(name) if name.isdecimal() else number)
                for name, subschema in properties.items()
                if name in needed
            }
        if kind == "array":
            return [self.instance(schema.get("items", {}), root, number) for _ in range(schema.get("minItems", 0))]
        if kind in ("integer", "number"):
            return schema.get("minimum", 0)
        if kind == "string":
            return _bounded("none", schema)
        return False if kind == "boolean" else None

    def _rated_object(self, properties: Mapping[str, Any], root: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Return a value for each of an object's `properties`: a rating of the completion `number`, and a rationale and
        rubric types (numbered faults or merits) that fit the rating."""
        value = self._draw_value(number)
        rated: dict[str, Any] = {}
        for name, subschema in properties.items():
            schema = _resolve(subschema, root)
            if name == "rating":
                rated[name] = self._rating(schema, value)
            elif schema.get("type") == "array" and "enum" in _resolve(schema.get("items", {}), root):
                options = _resolve(schema["items"], root)["enum"]
                rated[name] = self._pick_types(
                    options, value, schema.get("minItems", 0), schema.get("maxItems", len(options))
                )
            elif schema.get("type") == "string" and "enum" not in schema:
                rated[name] = _bounded(self._rationale(number, value), schema)
            else:
                rated[name] = self.instance(schema, root, number)
        return rated

    def _form_value(self, label: str, placeholder: str, number: int, value: float) -> str:
        if label == "Types":
            return ", ".join(map(str, self._pick_types(sorted(self._listed_types) or [1], value, 0, 2))) or "none"
        bounds = _RANGE.search(placeholder)
        if bounds:
            low, high = int(bounds[1]), int(bounds[2])
            return str(round(low + value * (high - low)))
        return self._rationale(number, value)

    def _features_of(self, number: int) -> Features:
        if number not in self._features:
            self._features[number] = extract_features(self._task, self._request.completions.get(number, ""))
        return self._features[number]

    def _draw_value(self, number: int) -> float:
        """Return the estimated quality of the completion `number` plus random noise, clipped to 0..1."""
        return min(1.0, max(0.0, self._rng.gauss(estimate_quality(self._task, self._features_of(number)), self._noise)))

    def _rating(self, schema: Mapping[str, Any], value: float) -> Any:
        """Map the quality `value` (0 to 1) to the scale, and return the nearest number that the schema allows. N/A is
        returned only if the schema allows no number."""
        if "enum" not in schema:
            low, high = schema.get("minimum", 1), schema.get("maximum", 5)
            return round(low + value * (high - low))
        numbers = {float(option): option for option in schema["enum"] if _is_number(option)}
        scale = [number for number in numbers if number in self._listed_levels] or list(numbers)
        if not scale:
            return schema["enum"][0]
        target = min(scale) + value * (max(scale) - min(scale))
        return numbers[min(scale, key=lambda number: abs(number - target))]

    def _pick_types(self, options: Sequence[Any], value: float, least: int, most: int) -> list[Any]:
        """Return randomly chosen types of the rubric (numbered faults or merits), in the order of `options`.

        options: the types to choose from. If the request lists some of them, only those are used.
        value: the quality, 0 to 1. Low gives two types, average one, high none.
        least: minimum number of types to return.
        most: maximum number of types to return.
        """
        options = [option for option in options if option in self._listed_types] or options
        wanted = 0 if value > 0.65 else 1 if value > 0.35 else 2
        count = min(len(options), max(least, min(most, wanted)))
        chosen = set(self._rng.sample(range(len(options)), count))
        return [option for at, option in enumerate(options) if at in chosen]

    def _rationale(self, number: int, value: float) -> str:
        """Return one or two sentences that describe the completion's features."""
        features = self._features_of(number)
        if features.declined:
            fits = "which this prompt calls for" if self._task.is_harmful else "although the prompt is harmless"
            return f"Declines to help, {fits}; what it offers instead is {'useful' if value > 0.6 else 'thin'}."
        verb = self._rng.choice(("Takes up", "Covers", "Addresses", "Deals with"))
        shares = (features.filler, features.overclaim, features.repeated, (1 - features.on_topic) / 2)
        weaknesses = [weakness for share, weakness in zip(shares, _WEAKNESSES, strict=True) if share > 0.15]
        second = f", but holds {_joined(weaknesses)}" if weaknesses else ", without filler or overclaiming"
        third = "gives reasons and particulars" if features.specific > 0.4 else "stays short of particulars"
        last = "is too short to be of use" if features.length < 0.5 else third
        return f"{verb} {features.coverage:.0%} of what the prompt names{second}. The text {last}."


_WEAKNESSES = ("vague filler", "claims it can't support", "repetition", "passages off the topic")
_PLAIN_FORM = "Completion <number>\nRationale: <one or two sentences>\nRating: <1-5>\n"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a schema's `$ref` references into `root`, take the first schema of `anyOf`, `oneOf` or `allOf`, and return
    the result."""
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
    """Return the text cut to the schema's maxLength (at most MAX_RATIONALE), and padded with dots to its minLength."""
    limit = min(MAX_RATIONALE, schema.get("maxLength", MAX_RATIONALE))
    return text[:limit].ljust(schema.get("minLength", 0), ".")
