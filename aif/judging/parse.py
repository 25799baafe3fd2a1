"""A judge's reply -> ratings, or the reason why not. Pure, and fed with hostile text.

A reply is read whole or not at all: every completion by its number exactly once, every aspect, every rating one of the
words the aspect's scale has. Nothing is guessed, rounded, clipped or filled in.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aif.core.strict_json import json_type, make_decoder, replace_surrogates
from aif.core.types import Rating
from aif.judging.rubric import NOT_APPLICABLE, Aspect, Form, Rubric


class Unparseable(Exception):
    """Why a reply gives no ratings, in words a person can act on."""


def read(rubric: Rubric, request: str, completions: Sequence[str], text: str, form: Form) -> tuple[Rating, ...]:
    """The ratings in a reply about `completions` (keys, in the order shown), by completion and aspect.

    Raises Unparseable.
    """
    names = rubric.sheet.requests[request].aspects
    aspects = {name: rubric.sheet.aspects[name] for name in names}
    read_form = _read_json if form == "schema" else _read_text
    fields = read_form(text, len(completions), tuple(aspects))
    ratings = []
    for number, key in enumerate(completions, 1):
        for name, aspect in aspects.items():
            try:
                ratings.append(_rating(key, name, aspect, fields[number, name]))
            except Unparseable as why:
                raise Unparseable(f"completion {number}, {name}: {why}") from None
    return tuple(ratings)


_OUT_OF = re.compile(r"(\d{1,4})\s*/\s*(\d{1,4})\Z", re.ASCII)

# A judge that thinks again beside what it was asked for ("Final rating: 3", {"overall_score": 3}) has said two things.
_VERDICT = re.compile("rating|score|grade", re.IGNORECASE)
_ASKED = {"rating", "rationale", "types"}

# (number, aspect) -> what the reply says: rating, rationale, types
Fields = Mapping[tuple[int, str], Mapping[str, Any]]


def _rating(completion: str, name: str, aspect: Aspect, said: Mapping[str, Any]) -> Rating:
    word, rationale = said.get("rating"), said.get("rationale")
    if type(word) is not str or word not in aspect.ratings:
        word = _word(word, aspect)
    if not isinstance(rationale, str):
        raise Unparseable("no rationale")
    rationale = replace_surrogates(rationale.strip())
    types = _types(said.get("types"), aspect) if aspect.types else ()
    if word == NOT_APPLICABLE:
        return Rating(completion, name, "not_applicable", None, rationale, types)
    return Rating(completion, name, "rated", float(word), rationale, types)


def _word(said: Any, aspect: Aspect) -> str:
    """The word of the aspect's ratings that is meant by another: 4, " 4 ", "n/a"; "4/5" on a scale to 5, where "9/10"
    stays refused."""
    if isinstance(said, int) and not isinstance(said, bool):
        said = str(said)
    if not isinstance(said, str):
        raise Unparseable("no rating")
    word = said.strip()
    if word.upper() in {"N/A", "NA"}:
        word = NOT_APPLICABLE
    if word not in aspect.ratings and (share := _OUT_OF.match(word)) and int(share[2]) == aspect.scale[1]:
        word = share[1]
    if word not in aspect.ratings:
        raise Unparseable(f"rating {word[:40]!r} is none of {', '.join(aspect.ratings)}")
    return word


def _types(said: Any, aspect: Aspect) -> tuple[int, ...]:
    if said is None:
        raise Unparseable("no types")
    if not isinstance(said, list) or any(type(number) is not int for number in said):
        raise Unparseable("types is no list of numbers")
    if unknown := [number for number in said if number not in aspect.types]:
        raise Unparseable(f"there is no type {str(unknown[0])[:20]}")
    return tuple(sorted(set(said)))


# --- by schema -------------------------------------------------------------------------------------------------------

_CODE_FENCE = re.compile(r"\A```(?:json)?[ \t\r]*\n(.*)\n[ \t]*```\Z", re.DOTALL)


def _twice(key: str) -> Unparseable:
    return Unparseable(f"{key[:40]!r} stands twice in one object")


def _no_constant(word: str) -> Any:
    raise Unparseable(f"{word} is no rating")


_read_once = make_decoder(_twice, _no_constant)


def _read_json(text: str, n: int, aspects: tuple[str, ...]) -> Fields:
    body = text.strip()
    if fence := _CODE_FENCE.match(body):
        body = fence[1]
    try:
        data = _read_once(body)
    except RecursionError:
        raise Unparseable("nested too deep") from None
    except ValueError as error:  # JSONDecodeError, and integers of more digits than Python reads
        raise Unparseable(f"not JSON: {str(error)[:200]}") from error
    numbered = _numbered(data, n)
    fields: dict[tuple[int, str], Mapping[str, Any]] = {}
    for number, said in numbered.items():
        by_aspect = {aspects[0]: said} if len(aspects) == 1 else said
        if unasked := sorted(set(by_aspect) - set(aspects)):
            raise Unparseable(f"completion {number}: {unasked[0][:40]!r} was not asked")
        for name in aspects:
            one = by_aspect.get(name)
            if not isinstance(one, dict):
                raise Unparseable(f"completion {number}: no {name}")
            if seconds := [key for key in one if key not in _ASKED and _VERDICT.search(key)]:
                raise Unparseable(f"completion {number}, {name}: {seconds[0][:40]!r} stands beside the rating")
            fields[number, name] = one
    return fields


def _numbered(data: Any, n: int) -> dict[int, dict[str, Any]]:
    if not isinstance(data, dict):
        raise Unparseable(f"expected an object with the completions' numbers as keys, got {json_type(data)}")
    expected = {str(i) for i in range(1, n + 1)}
    if missing := sorted(expected - set(data), key=int):
        raise Unparseable(f"completion {missing[0]} is missing")
    if extra := sorted(set(data) - expected):
        raise Unparseable(f"{extra[0][:40]!r} is no number of a completion")
    for number, said in data.items():
        if not isinstance(said, dict):
            raise Unparseable(f"completion {number}: expected an object")
    return {int(number): said for number, said in data.items()}


# --- as text ---------------------------------------------------------------------------------------------------------

# Emphasis and heading marks around a label are how chat models write; \Z-anchored so that prose never counts as one.
# Possessive, since a line of blanks takes time by its square or worse otherwise (20,000 of them took 0.3 s).
_HEADING = re.compile(r"[#*\s]*completion\s+#?(\d{1,4})[\s:.*]*\Z", re.IGNORECASE | re.ASCII)
_LABEL = re.compile(
    r"[-#*\s]*+(rationale|types?|rating)\s*+(?:\(([\w -]{1,80})\))?+[\s*]*+:[\s*]*+(.*)\Z",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)


# As `_VERDICT`, in prose: "my final score is 3". What a rationale says of ratings is its own affair.
_SAID_AGAIN = re.compile(
    r"\b(?:rating|score|grade)s?\b[^\w\n]*+(?:(?:is|of|to|as|now|remains)\b[^\w\n]*+)?(?:\d|n/?a\b)",
    re.IGNORECASE | re.ASCII,
)
# A fence of rubric.render on a line of its own: what follows is a text that was judged, and may imitate a reply.
_FENCE = re.compile(r"\s*\[\[[0-9a-f]{12} [a-z0-9_ ]{1,60}\]\]\s*\Z", re.ASCII)

# Not str.splitlines: of a vertical tab or a file separator within "1\x1c0" no one could say that it ends the rating.
_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


def _read_text(text: str, n: int, aspects: tuple[str, ...]) -> Fields:
    """Blocks headed `Completion N`, in them lines `Label: …` or `Label (aspect): …`. A rationale may run over lines."""
    fields: dict[tuple[int, str], dict[str, list[str]]] = {}  # a field's lines
    number: int | None = None
    running: list[str] | None = None
    for line in _LINE_END.split(text):
        if not line.strip():
            if running:
                running.append(line)
        elif _FENCE.match(line):
            raise Unparseable("it repeats the texts that are judged, fences and all")
        elif heading := _HEADING.match(line):
            number, running = int(heading[1]), None
            if not 1 <= number <= n:
                raise Unparseable(f"there is no completion {number}")
            if (number, aspects[0]) in fields:
                raise Unparseable(f"completion {number} stands twice")
            fields.update({(number, name): {} for name in aspects})
        elif label := _LABEL.match(line):
            if number is None:
                raise Unparseable(f"{label[1]!r} stands before the first `Completion <number>`")
            name = _aspect(label[2], aspects, number)
            word = "types" if label[1].lower().startswith("type") else label[1].lower()
            said = fields[number, name]
            if word in said:
                raise Unparseable(f"completion {number}, {name}: {word} stands twice")
            said[word] = [label[3]]
            running = said[word] if word == "rationale" else None
        elif running:
            running.append(line)
        elif number is not None and _SAID_AGAIN.search(line):
            raise Unparseable(f"completion {number}: {line.strip()[:40]!r} stands beside the rating")
    if missing := [i for i in range(1, n + 1) if (i, aspects[0]) not in fields]:
        raise Unparseable(f"completion {missing[0]} is missing")
    return {place: _plain(said, f"completion {place[0]}, {place[1]}") for place, said in fields.items()}


def _aspect(name: str | None, aspects: tuple[str, ...], number: int) -> str:
    if name is None:
        if len(aspects) == 1:
            return aspects[0]
        raise Unparseable(f"completion {number}: a label without its aspect")
    asked = name.strip().lower().replace(" ", "_").replace("-", "_")
    if asked not in aspects:
        raise Unparseable(f"completion {number}: {name[:40]!r} was not asked")
    return asked


def _plain(said: Mapping[str, Sequence[str]], where: str) -> dict[str, Any]:
    """Text fields as the JSON form has them: a list of numbers, a rating's bare word."""
    plain: dict[str, Any] = {word: "\n".join(lines).strip() for word, lines in said.items()}
    if (types := plain.get("types")) is not None:
        words = [word.strip() for word in types.strip(" []*.").split(",")]
        if len(words) == 1 and words[0].lower() in {"none", ""}:
            plain["types"] = []
        elif all(re.fullmatch(r"\d{1,4}", word, re.ASCII) for word in words):
            plain["types"] = [int(word) for word in words]
        else:
            raise Unparseable(f"{where}: types {types[:40]!r} is no list of numbers")
    if (rating := plain.get("rating")) is not None:
        plain["rating"] = rating.removesuffix(".").strip(" *`[]").removesuffix(".")
    return plain
