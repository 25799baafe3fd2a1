"""Judges' replies: valid ones, damaged ones, and an independent reading of what they say.

Every reply comes from a seed, so that a failure can be repeated. `spoilt` draws one of the kinds in KINDS. `faults` is
the oracle: it shares no code with aif/judging/parse.py, and looks for each parsed rating in the reply's text.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from random import Random
from typing import Any, Literal, get_args

from aif.core.resources import shipped
from aif.core.types import Rating
from aif.judging.rubric import NOT_APPLICABLE, Aspect, ReplyForm, Rubric, load

RUBRICS = {name: load(shipped("prompts", "rubrics", name)) for name in ("unified", "ultrafeedback", "mt-bench")}
REQUESTS = [(rubric, request) for rubric in RUBRICS.values() for request in rubric.sheet.requests]
FORMS: tuple[ReplyForm, ...] = get_args(ReplyForm)
KEYS = ("k1", "k2", "k3", "k4")
MARK = "0123456789ab"  # of a fence

Must = Literal["read", "not read", "as meant", "either"]  # as meant: if it is parsed at all


@dataclass(frozen=True, slots=True)
class Field:
    """What a judge says about one completion in one aspect; `bare` writes the rating as JSON without quotes."""

    number: str
    aspect: str
    rating: str
    rationale: str
    types: tuple[int, ...] | None  # None: the aspect has none
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of a rubric about `n` completions, and the form of its reply."""

    rubric: Rubric
    request: str
    n: int
    form: ReplyForm

    @property
    def aspects(self) -> Mapping[str, Aspect]:
        return {name: self.rubric.sheet.aspects[name] for name in self.rubric.sheet.requests[self.request].aspects}

    @property
    def keys(self) -> tuple[str, ...]:
        return KEYS[: self.n]


@dataclass(frozen=True, slots=True)
class Case:
    """A reply, the request it answers, whether it must be parsed, and the ratings it means, if any."""

    kind: str
    must: Must
    asked: Asked
    reply: str
    meant: tuple[Rating, ...] | None


# --- valid replies ---------------------------------------------------------------------------------------------------

_WORDS = [
    "says",
    "4/5",
    "Rating:",
    "5",
    "Completion 2",
    "Ünïcode",
    "日本",
    "\U0001f600",
    '"quoted"',
    "a\\b",
    "{",
    "N/A",
]


def ask(rng: Random) -> Asked:
    """Return a random request of a shipped rubric: about one completion where its mode is `single`."""
    rubric, request = rng.choice(REQUESTS)
    n = rng.randint(1, 4) if rubric.sheet.requests[request].mode == "listwise" else 1
    return Asked(rubric, request, n, rng.choice(FORMS))


def fields(rng: Random, asked: Asked) -> list[Field]:
    """Return random fields with every rating on its scale."""
    found = []
    for number in range(1, asked.n + 1):
        for name, aspect in asked.aspects.items():
            rationale = " ".join(["It", *rng.choices(_WORDS, k=rng.randint(0, 6))])
            types = tuple(sorted(rng.sample(sorted(aspect.types), rng.randint(0, len(aspect.types)))))
            word = rng.choice(aspect.ratings)
            found.append(Field(str(number), name, word, rationale, types if aspect.types else None))
    return found


def meant(asked: Asked, said: Sequence[Field]) -> tuple[Rating, ...]:
    """Return the ratings that valid fields mean."""
    found = []
    for one in said:
        key, types = asked.keys[int(one.number) - 1], one.types or ()
        if one.rating == NOT_APPLICABLE:
            found.append(Rating(key, one.aspect, "not_applicable", None, one.rationale.strip(), types))
        else:
            found.append(Rating(key, one.aspect, "rated", float(one.rating), one.rationale.strip(), types))
    return tuple(found)


def written(asked: Asked, said: Sequence[Field]) -> str:
    """Write fields as a reply, in the given order; fields of one number in a row form one block."""
    blocks = [(number, list(of)) for number, of in groupby(said, lambda one: one.number)]
    several = len(asked.aspects) > 1
    if asked.form == "schema":
        return "{" + ", ".join(f"{_quoted(number)}: {_object(of, several)}" for number, of in blocks) + "}"
    return "\n".join("\n".join([f"Completion {number}", *_lines(of, several)]) for number, of in blocks)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _object(block: Sequence[Field], several: bool) -> str:
    leaves = []
    for one in block:
        types = f'"types": {list(one.types)}, ' if one.types is not None else ""
        rating = one.rating if one.bare else _quoted(one.rating)
        leaves.append(f'{{{types}"rationale": {_quoted(one.rationale)}, "rating": {rating}}}')
    if not several:
        return leaves[0]
    return "{" + ", ".join(f'"{one.aspect}": {leaf}' for one, leaf in zip(block, leaves, strict=True)) + "}"


def _lines(block: Sequence[Field], several: bool) -> list[str]:
    found = []
    for one in block:
        label = f" ({one.aspect})" if several else ""
        found.append(f"Rationale{label}: {one.rationale}")
        if one.types is not None:
            found.append(f"Types{label}: {', '.join(map(str, one.types)) or 'none'}")
        found.append(f"Rating{label}: {one.rating}")
    return found


# --- damaged replies -------------------------------------------------------------------------------------------------

# Writes fields as a damaged reply. If that still means something, `said` is changed to what it means.
Spoil = Callable[[Random, Asked, list[Field]], str]


def _rated(word: Callable[[Random, Aspect], str], bare: bool = False) -> Spoil:
    """Return a damage that replaces one rating by another word."""

    def spoil(rng: Random, asked: Asked, said: list[Field]) -> str:
        at = rng.randrange(len(said))
        said[at] = replace(said[at], rating=word(rng, asked.aspects[said[at].aspect]), bare=bare)
        return written(asked, said)

    return spoil


def _one_of(*words: str) -> Callable[[Random, Aspect], str]:
    return lambda rng, _: rng.choice(words)


def _unasked_na(rng: Random, asked: Asked, said: list[Field]) -> str:
    """Put N/A where the aspect doesn't allow it; where all allow it, a similar word."""
    without = [at for at, one in enumerate(said) if NOT_APPLICABLE not in asked.aspects[one.aspect].ratings]
    at = rng.choice(without or range(len(said)))
    said[at] = replace(said[at], rating=rng.choice(["N/A", "n/a", "NA"]) if without else "not applicable")
    return written(asked, said)


def _missing(rng: Random, asked: Asked, said: list[Field]) -> str:
    gone = str(rng.randint(1, asked.n))
    return written(asked, [one for one in said if one.number != gone])


def _extra(rng: Random, asked: Asked, said: list[Field]) -> str:
    number = rng.choice([str(asked.n + 1), "0", "17"])
    more = [replace(one, number=number) for one in said if one.number == "1"]
    return written(asked, [*more, *said] if rng.random() < 0.5 else [*said, *more])


def _number_twice(rng: Random, asked: Asked, said: list[Field]) -> str:
    number = str(rng.randint(1, asked.n))
    low = {name: str(aspect.scale[0]) for name, aspect in asked.aspects.items()}
    between = [] if asked.n == 1 else [one for one in said if one.number != number]
    once = [one for one in said if one.number == number]
    again = [replace(one, rating=low[one.aspect]) for one in once]
    if between:
        return written(asked, [*once, *between, *again])
    joint = ", " if asked.form == "schema" else "\n"
    first, second = written(asked, once), written(asked, again)
    return f"{first[:-1]}{joint}{second[1:]}" if asked.form == "schema" else f"{first}{joint}{second}"


def _field_twice(rng: Random, asked: Asked, said: list[Field]) -> str:
    reply = written(asked, said)
    if asked.form == "schema":
        return reply.replace(
            '"rating": ', rng.choice(['"rating": "1", "rating": ', '"r\\u0061ting": "1", "rating": ']), 1
        )
    label = f"Rating ({said[0].aspect})" if len(asked.aspects) > 1 else "Rating"
    return reply.replace(f"\n{label}:", f"\n{rng.choice([label, label.upper(), f'**{label}**'])}: 1\n{label}:", 1)


def _second_verdict(rng: Random, asked: Asked, said: list[Field]) -> str:
    reply = written(asked, said)
    if asked.form == "schema":
        name = rng.choice(["final_rating", "Rating", "score", "overall score", "RATING"])
        return re.sub(r'"rating": ("[^"]*")', rf'"rating": \1, "{name}": "1"', reply, count=1)
    words = rng.choice(["Final rating: 1", "**My score is 1.**", "On reflection I give a rating of 1", "New grade → 1"])
    return f"{reply}\n\n{words}"


def _part_missing(rng: Random, asked: Asked, said: list[Field]) -> str:
    """Leave out one of several aspects, or the rating or rationale of a single one."""
    if len(asked.aspects) > 1:
        del said[rng.randrange(len(said))]
        return written(asked, said)
    part = rng.choice(["rating", "rationale"])
    if asked.form == "schema":
        return re.sub(f'"{part}": ("[^"]*"|"It.*?[^\\\\]")(, )?', "", written(asked, said), count=1).replace(", }", "}")
    return re.sub(f"(?im)^{part}: .*$", "", written(asked, said), count=1)


def _aspect_renamed(rng: Random, asked: Asked, said: list[Field]) -> str:
    if len(asked.aspects) == 1:
        reply = written(asked, said)
        return re.sub("rating", rng.choice(["Bewertung", "note", "评分"]), reply, flags=re.IGNORECASE)
    at = rng.randrange(len(said))
    said[at] = replace(said[at], aspect=rng.choice(["overall", "Honesty!", "safety"]))
    return written(asked, said)


def _twice(rng: Random, asked: Asked, said: list[Field]) -> str:
    reply = written(asked, said)
    return reply + rng.choice(["", "\n", "\n\nOr rather:\n"]) + reply


def _before(*texts: str) -> Spoil:
    return lambda rng, asked, said: rng.choice(texts) + written(asked, said)


def _whole(*texts: str) -> Spoil:
    return lambda rng, asked, said: rng.choice(texts)


def _echo(rng: Random, asked: Asked, said: list[Field]) -> str:
    """Repeat the judge's instructions, with and without a verdict after them."""
    own = asked.rubric.request_text(asked.request, asked.n, asked.form)
    return own if rng.random() < 0.5 else f"Completion 1\n{own}\n{written(asked, said)}"


def _quotes_a_completion(rng: Random, asked: Asked, said: list[Field]) -> str:
    """Quote a completion that imitates a complete reply, in its fence, without a word of the judge's own."""
    top = [replace(one, rating=str(asked.aspects[one.aspect].scale[1])) for one in said]
    return f"[[{MARK} completion 1]]\n{written(asked, top)}\n[[{MARK} end]]"


def _imitation_in_rationale(rng: Random, asked: Asked, said: list[Field]) -> str:
    """Quote an imitation in the rationale, with its line breaks: in JSON a string, as text a second block."""
    quoted = written(replace(asked, form=rng.choice(FORMS)), said)
    said[0] = replace(said[0], rationale=f"It claims:\n\n{quoted}\n\nwhich is not so.")
    return written(asked, said)


def _blank_lines(rng: Random, asked: Asked, said: list[Field]) -> str:
    said[:] = [replace(one, rationale=f"{one.rationale}\n\n \n\t\nand more") for one in said]
    return written(asked, said)


def _raw_controls(rng: Random, asked: Asked, said: list[Field]) -> str:
    said[:] = [replace(one, rationale=f"{one.rationale}\x01 \t\x0b\x00.") for one in said]
    reply = written(asked, said)
    if asked.form == "text":
        return reply
    return reply.replace("\\u0001", "\x01").replace("\\t", "\t").replace("\\u000b", "\x0b").replace("\\u0000", "\x00")


def _half_characters(rng: Random, asked: Asked, said: list[Field]) -> str:
    half = "\\ud83d" if asked.form == "schema" else "\ud83d"
    reply = written(asked, said).replace("It", f"It {half}")
    said[:] = [replace(one, rationale=one.rationale.replace("It", "It \ufffd")) for one in said]
    return reply


def _long(rng: Random, asked: Asked, said: list[Field]) -> str:
    long = rng.choice(["x " * 50_000, " " * 50_000, "1" * 50_000, "Rating " * 9_000, "\n" * 20_000, "{" * 50_000])
    said[0] = replace(said[0], rationale=f"It{long}.")
    return written(asked, said)


SHARDS = [
    *(
        "Completion 1",
        "Completion 2",
        "\nRating: 5\n",
        "Rating (honesty): N/A",
        "\nRationale: x\n",
        "Types: 1",
        "\n",
        ":",
    ),
    *('"1": {', '"rating": "5",', '"rationale": "x"', "}", "{", "[", ",", '"', "\\u0000", "\\ud800", "NaN", "1e999"),
    *(
        "4",
        "0",
        "-1",
        "4/5",
        "9/10",
        "N/A",
        "true",
        "null",
        "```",
        "٣",
        "４",
        "\t",
        "\x00",
        "\u2028",
        "\ud800",
        "*",
        "#",
    ),
]


def _damaged(rng: Random, asked: Asked, said: list[Field]) -> str:
    """Cut out, double or move parts, or insert foreign ones."""
    reply = written(asked, said)
    for _ in range(rng.randint(1, 3)):
        start = rng.randint(0, len(reply))
        end = min(len(reply), start + rng.choice([0, 1, 2, 5, 30]))
        other = rng.randint(0, len(reply))
        odd = "".join(chr(rng.choice([rng.randrange(128), rng.randrange(0x110000)])) for _ in range(rng.randint(1, 3)))
        shard = rng.choice([rng.choice(SHARDS), odd, "", reply[start:end] * 2, reply[other : other + 60]])
        reply = reply[:start] + shard + reply[end:]
    return reply


def _of_shards(rng: Random, asked: Asked, said: list[Field]) -> str:
    return rng.choice(["", "\n"]).join(rng.choices(SHARDS, k=rng.randint(0, 30)))


def _beyond(rng: Random, aspect: Aspect) -> str:
    low, high = aspect.scale
    return rng.choice([str(high + 1), str(low - 1), f"-{high}", "99", "1" * 400, f"+{high}", f"0{high}"])


def _of_another_scale(rng: Random, aspect: Aspect) -> str:
    high = aspect.scale[1]
    return rng.choice(["9/100", f"{high}/{high + 1}", f"{high + 1}/{high}", "9/10" if high != 10 else "4/5", "4/5/5"])


_NESTED = '{"1": ' * 10_000

KINDS: Mapping[str, tuple[Must, Spoil]] = {
    "off the scale": ("not read", _rated(_beyond)),
    "of another scale": ("not read", _rated(_of_another_scale)),
    "a fraction": ("not read", _rated(_one_of("4.5", "4.0", "4,5", "4½", "4-5", "4 or 5", "3..4"))),
    "out of": ("not read", _rated(_one_of("4 out of 5", "4 of 5", "4 (good)", "4, maybe 5", "4 5"))),
    "in words": ("not read", _rated(_one_of("four", "vier", "四", "IV", "good", "", "<1-5>", "?"))),
    "other digits": ("not read", _rated(_one_of("４", "٤", "④", "4\u200b", "4\ufeff", "1\x1c0", "\x004"))),
    "no number": ("not read", _rated(_one_of("NaN", "Infinity", "1e400", "1e0", "true", "null"), True)),
    "N/A unasked": ("not read", _unasked_na),
    "completion missing": ("not read", _missing),
    "completion too many": ("not read", _extra),
    "part missing": ("not read", _part_missing),
    "number twice": ("not read", _number_twice),
    "field twice": ("not read", _field_twice),
    "second verdict": ("not read", _second_verdict),
    "reply twice": ("not read", _twice),
    "aspect renamed": ("not read", _aspect_renamed),
    "echo of the request": ("not read", _echo),
    "echo of a completion": ("not read", _quotes_a_completion),
    "byte order mark": ("not read", _before("\ufeff", "\x00")),
    "nested": ("not read", _whole(_NESTED, "[" * 10_000, "{" * 100_000, _NESTED + "}" * 10_000)),
    "nothing": ("not read", _whole("", " " * 250_000, "\n" * 50_000, "1" * 100_000, "\u200b" * 1000, "\x00")),
    "other words": (
        "not read",
        _whole("<html><body>Sign in</body></html>", "I can't rate this.", "Die erste: 4 von 5.", '{"error": 1}'),
    ),
    "imitation quoted": ("as meant", _imitation_in_rationale),
    "blank lines": ("read", _blank_lines),
    "raw controls": ("read", _raw_controls),
    "half characters": ("read", _half_characters),
    "long": ("read", _long),
    "damaged": ("either", _damaged),
    "shards": ("either", _of_shards),
    "in form": ("read", lambda rng, asked, said: written(asked, said)),
}  # fmt: skip
_SHARE = {
    "damaged": 12,
    "in form": 2,
    "long": 0.1,
    "nested": 0.1,
    "nothing": 0.1,
}  # how often, relative to the other kinds


def spoilt(seed: int, kind: str | None = None) -> Case:
    """Return the case of a seed, of any kind or of the given one."""
    rng = Random(seed)
    names = list(KINDS)
    kind = kind or rng.choices(names, [_SHARE.get(name, 1) for name in names])[0]
    must, spoil = KINDS[kind]
    asked = ask(rng)
    said = fields(rng, asked)
    reply = spoil(rng, asked, said)
    return Case(kind, must, asked, reply, meant(asked, said) if must in ("read", "as meant") else None)


# --- the oracle ------------------------------------------------------------------------------------------------------


def faults(case: Case, ratings: Sequence[Rating] | None) -> list[str]:
    """Return what is wrong with the ratings parsed from a case (None: not parsed); empty if the reply says them."""
    if ratings is None:
        return ["was not read"] if case.must == "read" else []
    asked = case.asked
    if case.must == "not read":
        return ["was read"]
    if [(r.completion, r.aspect) for r in ratings] != [(key, name) for key in asked.keys for name in asked.aspects]:
        return ["is not about each completion in each aspect, in order"]
    wrong = [
        f"{r.completion} {r.aspect}: {word_of(r)} is not what it says"
        for r in ratings
        if not _stands(asked, case.reply, r)
    ]
    if case.meant is not None and tuple(ratings) != case.meant:
        wrong.append("is not what was meant")
    return wrong


def word_of(rating: Rating) -> str:
    """Return the word that a rating must have been parsed from."""
    return NOT_APPLICABLE if rating.score is None else str(int(rating.score))


def _stands(asked: Asked, reply: str, rating: Rating) -> bool:
    """Return whether the reply states this rating once, for this completion and aspect, by a word of its scale."""
    aspect, number = asked.aspects[rating.aspect], asked.keys.index(rating.completion) + 1
    on_scale = word_of(rating) in aspect.ratings and (rating.score is None) == (rating.state == "not_applicable")
    told = _told_json if asked.form == "schema" else _told_text
    said = told(reply, number, rating.aspect if len(asked.aspects) > 1 else None)
    if not on_scale or said is None or not set(rating.types) <= set(aspect.types):
        return False
    bare = re.sub(r"\s", "", said[0]).upper().removesuffix(f"/{aspect.scale[1]}")
    return bare.replace("/", "") == word_of(rating).replace("/", "") and all(
        line.strip() in said[1] for line in rating.rationale.split("\n")
    )


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its pairs, repeated names too."""

    def only(self, name: str) -> Any:
        found = [value for key, value in self if key == name]
        return found[0] if len(found) == 1 else None


def _told_json(reply: str, number: int, aspect: str | None) -> tuple[str, str] | None:
    """Return the rating's word and rationale at their place in the JSON, if each is there exactly once."""
    body = reply[reply.find("{") : reply.rfind("}") + 1]
    place: Any = json.loads(body, strict=False, object_pairs_hook=_Pairs)
    for name in (str(number), aspect) if aspect else (str(number),):
        place = place.only(name) if isinstance(place, _Pairs) else None
    if not isinstance(place, _Pairs):
        return None
    word, why = place.only("rating"), place.only("rationale")
    if isinstance(word, bool | float) or not isinstance(word, str | int) or not isinstance(why, str):
        return None
    return str(word), re.sub("[\ud800-\udfff]", "\ufffd", why)


_LINES = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


def _told_text(reply: str, number: int, aspect: str | None) -> tuple[str, str] | None:
    """Return the word after the only line that begins with `Rating` (and the aspect) under a number's heading."""
    words, block, current = [], [], None
    label = f"rating({aspect.replace('_', '')})" if aspect else "rating"
    for line in _LINES.split(reply):
        parts = line.translate(dict.fromkeys(map(ord, "#*:."), " ")).lower().split()
        if len(parts) == 2 and parts[0] == "completion" and parts[1].isascii() and parts[1].isdigit():
            current = int(parts[1])
        elif current == number:
            block.append(line)
            head, colon, tail = line.partition(":")
            bare = "".join(head.lower().split()).replace("*", "").replace("_", "").lstrip("#-")
            if colon and bare.replace("-", "") == label:
                words.append(tail.strip().strip("*`[]. \t"))
    if len(words) != 1:
        return None
    return words[0], re.sub("[\ud800-\udfff]", "\ufffd", "\n".join(block))
