"""Parse a judge's reply into ratings, or say why it can't be parsed. Pure, and safe for hostile text.

A reply is parsed completely or not at all. It must contain every completion number exactly once and, for each, a rating
of every aspect. A rating is a whole number on the aspect's scale ("4" becomes 4.0, but "4.5" is refused), or N/A where
the aspect allows it. Nothing is guessed, rounded, clipped or filled in.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aif.core.strict_json import json_type, make_decoder, replace_surrogates
from aif.core.types import Rating
from aif.judging.rubric import NOT_APPLICABLE, Aspect, ReplyForm, Rubric


class Unparseable(Exception):
    """A judge's reply can't be parsed into ratings; the message says why."""


def parse_reply(
    rubric: Rubric, request: str, completions: Sequence[str], text: str, form: ReplyForm
) -> tuple[Rating, ...]:
    """Return the ratings in a judge's reply: for each completion, in the order shown to the judge, a rating of each
    aspect. Raises Unparseable.

    request: the name of one of the rubric's requests.
    completions: the completions' keys in the order shown.
    text: the judge's reply.
    form: the form of reply that the judge was asked for.
    """
    names = rubric.sheet.requests[request].aspects
    aspects = {name: rubric.sheet.aspects[name] for name in names}
    parse_form = _parse_json if form == "schema" else _parse_text
    fields = parse_form(text, len(completions), tuple(aspects))
    ratings = []
    for number, key in enumerate(completions, 1):
        for name, aspect in aspects.items():
            try:
                ratings.append(_rating(key, name, aspect, fields[number, name]))
            except Unparseable as why:
                raise Unparseable(f"completion {number}, {name}: {why}") from None
    return tuple(ratings)


_OUT_OF = re.compile(r"(\d{1,4})\s*/\s*(\d{1,4})\Z", re.ASCII)

# A second verdict beside the requested rating ("Final rating: 3", {"overall_score": 3}) makes a reply ambiguous.
_VERDICT = re.compile("rating|score|grade", re.IGNORECASE)
_REQUESTED = {"rating", "rationale", "types"}

# (completion number, aspect) -> rating, rationale and types as the reply gives them
Fields = Mapping[tuple[int, str], Mapping[str, Any]]


def _rating(completion: str, name: str, aspect: Aspect, fields: Mapping[str, Any]) -> Rating:
    """Return the rating of one completion for one aspect, with the score as a number: "4" becomes 4.0. Raises
    Unparseable.

    completion: the completion's key.
    name: the aspect's name.
    fields: the reply's values for this completion and aspect: rating, rationale and perhaps types.
    """
    word, rationale = fields.get("rating"), fields.get("rationale")
    if type(word) is not str or word not in aspect.ratings:
        word = _normalize_rating(word, aspect)
    if not isinstance(rationale, str):
        raise Unparseable("no rationale")
    rationale = replace_surrogates(rationale.strip())
    types = _types(fields.get("types"), aspect) if aspect.types else ()
    if word == NOT_APPLICABLE:
        return Rating(completion, name, "not_applicable", None, rationale, types)
    return Rating(completion, name, "rated", float(word), rationale, types)


def _normalize_rating(rating: Any, aspect: Aspect) -> str:
    """Return a judge's rating in the spelling of `aspect.ratings`: "4" for the number 4, for " 4 ", and for "4/5" on a
    scale to 5; "N/A" for "n/a".

    Raises Unparseable for everything else, such as "4.5" (the scale has whole numbers only) or "9/10" on a scale to 5.
    """
    if isinstance(rating, int) and not isinstance(rating, bool):
        rating = str(rating)
    if not isinstance(rating, str):
        raise Unparseable("no rating")
    word = rating.strip()
    if word.upper() in {"N/A", "NA"}:
        word = NOT_APPLICABLE
    if word not in aspect.ratings and (share := _OUT_OF.match(word)) and int(share[2]) == aspect.scale[1]:
        word = share[1]
    if word not in aspect.ratings:
        raise Unparseable(f"rating {word[:40]!r} is not one of {', '.join(aspect.ratings)}")
    return word


def _types(numbers: Any, aspect: Aspect) -> tuple[int, ...]:
    if numbers is None:
        raise Unparseable("no types")
    if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
        raise Unparseable("types is not a list of numbers")
    if unknown := [number for number in numbers if number not in aspect.types]:
        raise Unparseable(f"there is no type {str(unknown[0])[:20]}")
    return tuple(sorted(set(numbers)))


# --- by schema -------------------------------------------------------------------------------------------------------

_CODE_FENCE = re.compile(r"\A```(?:json)?[ \t\r]*\n(.*)\n[ \t]*```\Z", re.DOTALL)


def _repeated_key(key: str) -> Unparseable:
    return Unparseable(f"{key[:40]!r} appears twice in one object")


def _refuse_constant(word: str) -> Any:
    raise Unparseable(f"{word} is not a rating")


_parse_unique = make_decoder(_repeated_key, _refuse_constant)


def _parse_json(text: str, n: int, aspects: tuple[str, ...]) -> Fields:
    body = text.strip()
    if fence := _CODE_FENCE.match(body):
        body = fence[1]
    try:
        data = _parse_unique(body)
    except RecursionError:
        raise Unparseable("nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, and integers with more digits than Python converts
        raise Unparseable(f"not JSON: {str(error)[:200]}") from error
    fields: dict[tuple[int, str], Mapping[str, Any]] = {}
    for number, judged in _by_number(data, n).items():
        by_aspect = {aspects[0]: judged} if len(aspects) == 1 else judged
        if unknown := sorted(set(by_aspect) - set(aspects)):
            raise Unparseable(f"completion {number}: {unknown[0][:40]!r} was not asked for")
        for name in aspects:
            values = by_aspect.get(name)
            if not isinstance(values, dict):
                raise Unparseable(f"completion {number}: no {name}")
            if extra := [key for key in values if key not in _REQUESTED and _VERDICT.search(key)]:
                raise Unparseable(f"completion {number}, {name}: {extra[0][:40]!r} is given besides the rating")
            fields[number, name] = values
    return fields


def _by_number(data: Any, n: int) -> dict[int, dict[str, Any]]:
    if not isinstance(data, dict):
        raise Unparseable(f"expected an object with the completions' numbers as keys, got {json_type(data)}")
    expected = {str(i) for i in range(1, n + 1)}
    if missing := sorted(expected - set(data), key=int):
        raise Unparseable(f"completion {missing[0]} is missing")
    if extra := sorted(set(data) - expected):
        raise Unparseable(f"{extra[0][:40]!r} is not the number of a completion")
    for number, judged in data.items():
        if not isinstance(judged, dict):
            raise Unparseable(f"completion {number}: expected an object")
    return {int(number): judged for number, judged in data.items()}


# --- as text ---------------------------------------------------------------------------------------------------------

# Chat models put emphasis and heading marks around labels. Anchored with \Z, so that prose is never taken for a label.
# Possessive, since a line of blanks would take quadratic time or worse (20,000 of them took 0.3 s).
_HEADING = re.compile(r"[#*\s]*completion\s+#?(\d{1,4})[\s:.*]*\Z", re.IGNORECASE | re.ASCII)
_LABEL = re.compile(
    r"[-#*\s]*+(rationale|types?|rating)\s*+(?:\(([\w -]{1,80})\))?+[\s*]*+:[\s*]*+(.*)\Z",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)


# Like `_VERDICT`, in prose: "my final score is 3". Within a rationale it is allowed.
_PROSE_VERDICT = re.compile(
    r"\b(?:rating|score|grade)s?\b[^\w\n]*+(?:(?:is|of|to|as|now|remains)\b[^\w\n]*+)?(?:\d|n/?a\b)",
    re.IGNORECASE | re.ASCII,
)
# A fence of rubric.render on its own line: the judged text that follows may imitate a reply.
_FENCE = re.compile(r"\s*\[\[[0-9a-f]{12} [a-z0-9_ ]{1,60}\]\]\s*\Z", re.ASCII)

# Not str.splitlines: it would end the rating "1\x1c0" at the file separator.
_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


def _parse_text(text: str, n: int, aspects: tuple[str, ...]) -> Fields:
    """Return a text reply's rating, rationale and types, by completion number and aspect. Raises Unparseable.

    For each of the `n` completions the text has a block that is headed `Completion N`. The block has lines such as
    `Rating: …` or, if there are several `aspects`, `Rating (honesty): …`. A rationale may span lines.
    """
    fields: dict[tuple[int, str], dict[str, list[str]]] = {}  # the lines of each field
    number: int | None = None
    running: list[str] | None = None
    for line in _LINE_END.split(text):
        if not line.strip():
            if running:
                running.append(line)
        elif _FENCE.match(line):
            raise Unparseable("it repeats the judged texts with their fences")
        elif heading := _HEADING.match(line):
            number, running = int(heading[1]), None
            if not 1 <= number <= n:
                raise Unparseable(f"there is no completion {number}")
            if (number, aspects[0]) in fields:
                raise Unparseable(f"completion {number} appears twice")
            fields.update({(number, name): {} for name in aspects})
        elif label := _LABEL.match(line):
            if number is None:
                raise Unparseable(f"{label[1]!r} comes before the first `Completion <number>`")
            name = _aspect(label[2], aspects, number)
            word = "types" if label[1].lower().startswith("type") else label[1].lower()
            judged = fields[number, name]
            if word in judged:
                raise Unparseable(f"completion {number}, {name}: {word} appears twice")
            judged[word] = [label[3]]
            running = judged[word] if word == "rationale" else None
        elif running:
            running.append(line)
        elif number is not None and _PROSE_VERDICT.search(line):
            raise Unparseable(f"completion {number}: {line.strip()[:40]!r} is given besides the rating")
    if missing := [i for i in range(1, n + 1) if (i, aspects[0]) not in fields]:
        raise Unparseable(f"completion {missing[0]} is missing")
    return {place: _json_values(lines, f"completion {place[0]}, {place[1]}") for place, lines in fields.items()}


def _aspect(name: str | None, aspects: tuple[str, ...], number: int) -> str:
    if name is None:
        if len(aspects) == 1:
            return aspects[0]
        raise Unparseable(f"completion {number}: a label without its aspect")
    aspect = name.strip().lower().replace(" ", "_").replace("-", "_")
    if aspect not in aspects:
        raise Unparseable(f"completion {number}: {name[:40]!r} was not asked for")
    return aspect


def _json_values(fields: Mapping[str, Sequence[str]], where: str) -> dict[str, Any]:
    """Return the fields of a text reply as a JSON reply would have them: `types` as a list of numbers, the others as
    text. `fields` maps each field's label to its lines of text; `where` is the place that errors name. Raises
    Unparseable."""
    values: dict[str, Any] = {word: "\n".join(lines).strip() for word, lines in fields.items()}
    if (types := values.get("types")) is not None:
        words = [word.strip() for word in types.strip(" []*.").split(",")]
        if len(words) == 1 and words[0].lower() in {"none", ""}:
            values["types"] = []
        elif all(re.fullmatch(r"\d{1,4}", word, re.ASCII) for word in words):
            values["types"] = [int(word) for word in words]
        else:
            raise Unparseable(f"{where}: types {types[:40]!r} is not a list of numbers")
    if (rating := values.get("rating")) is not None:
        values["rating"] = rating.removesuffix(".").strip(" *`[]").removesuffix(".")
    return values
