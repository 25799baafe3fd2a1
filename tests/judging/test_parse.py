"""The reader against hostile replies: all ratings exactly as said, or Unreadable, and never anything else."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aif.core.types import Rating
from aif.judging.parse import Unparseable, parse_reply
from aif.judging.rubric import ReplyForm, Rubric
from tests.support.replies import (
    FORMS,
    KINDS,
    REQUESTS,
    RUBRICS,
    SHARDS,
    Asked,
    Case,
    Field,
    faults,
    spoilt,
    written,
)

UNIFIED, ULTRAFEEDBACK = RUBRICS["unified"], RUBRICS["ultrafeedback"]
ASPECTS = UNIFIED.sheet.requests["ratings"].aspects
TWO = ("a", "b")

Place = tuple[str, str]  # completion, aspect


def schema(text: str, request: str = "instruction_following", completions: Sequence[str] = TWO) -> dict[Place, Rating]:
    return places(parse_reply(ULTRAFEEDBACK, request, completions, text, "schema"))


def plain(text: str, request: str = "instruction_following", completions: Sequence[str] = TWO) -> dict[Place, Rating]:
    return places(parse_reply(ULTRAFEEDBACK, request, completions, text, "text"))


def places(ratings: Sequence[Rating]) -> dict[Place, Rating]:
    return {(rating.completion, rating.aspect): rating for rating in ratings}


def scores(ratings: Mapping[Place, Rating]) -> list[float | None]:
    return [rating.score for rating in ratings.values()]


def leaf(rating: Any = "4", rationale: Any = "Why.", **more: Any) -> dict[str, Any]:
    return {"rationale": rationale, "rating": rating, **more}


def both(**changes: Any) -> str:
    """A reply about two completions, the first changed."""
    return json.dumps({"1": leaf(**changes), "2": leaf("2")})


def lines(first: str, second: str = "Rationale: Why.\nRating: 2") -> str:
    """A reply as text about two completions."""
    return f"Completion 1\n{first}\nCompletion 2\n{second}"


# --- what reads ------------------------------------------------------------------------------------------------------


def test_a_rating_is_what_the_judge_said_of_a_completion_in_an_aspect() -> None:
    reply = json.dumps(
        {
            "2": {"types": [3, 1], "rationale": " Two. ", "rating": "1"},
            "1": {"types": [], "rationale": "One.", "rating": "5"},
        }
    )
    assert parse_reply(ULTRAFEEDBACK, "truthfulness", TWO, reply, "schema") == (
        Rating("a", "truthfulness", "rated", 5.0, "One.", ()),
        Rating("b", "truthfulness", "rated", 1.0, "Two.", (1, 3)),
    )


def test_not_applicable_is_a_state_without_a_score() -> None:
    for word in ("N/A", "n/a", "NA", " N/A "):
        rating = schema(both(rating=word), "honesty")["a", "honesty"]
        assert (rating.state, rating.score, rating.rationale) == ("not_applicable", None, "Why.")
    assert scores(plain(lines("Rationale: Why.\nRating: N/A"), "honesty")) == [None, 2]


@pytest.mark.parametrize(
    "reply",
    [
        both(),
        both(rating=4),
        both(rating=" 4 "),
        both(rating="4/5"),
        both(rating="4 / 5"),
        both(confidence=0.9),
        both(types=[99]),  # this aspect has no types
        f"\n```json\n{both()}\n```\n",
        f"```\r\n{both()}\r\n```",
        f"   {both()}\n",
        both().replace("Why.", "Tab\there,\x01 and\na line"),  # raw control characters
        both().replace("Why.", "```json\\n```"),
        both(rationale=""),
        both(rationale='Rating: 5\n{"1": {"rating": "5"}}'),
    ],
)
def test_replies_by_schema_that_read(reply: str) -> None:
    assert scores(schema(reply)) == [4, 2]


@pytest.mark.parametrize(
    "first",
    [
        "Rationale: Why.\nRating: 4",
        "Rating: 4\nRationale: Why.",
        "rationale: Why.\nRATING: 4/5",
        "**Rationale:** Why.\n**Rating:** 4",
        "- **Rationale**: Why.\n- **Rating**: **4**.",
        "### Rationale: Why.\n\n### Rating: `4`\n",
        "Rationale (instruction following): Why.\nRating (Instruction_Following): 4",
        "Rationale:\n\nWhy.\n\nThere is more to it.\n\nRating: [4]",
        "Rationale: Why.\tAnd\x00 so.\nRating:\xa04",
        "Rationale: The text says that Rating: 5 is due, and Completion 2 is worse.\nRating: 4",
        "Rationale: Why.\nRating: 4\nThis was the first.",
        "Rationale: Why.\nRating: 4\nRatings go from 1 to 5; completion 1 has the higher one.",
        "Rationale: The mark [[0123456789ab end]] stands in it, and a final rating: 5.\nRating: 4",
    ],
)
def test_replies_as_text_that_read(first: str) -> None:
    assert scores(plain(lines(first))) == [4, 2]
    assert scores(plain(lines(first).replace("\n", "\r\n"))) == [4, 2]


@pytest.mark.parametrize(
    "heading",
    ["Completion 1", "completion 1:", "## Completion 1", "**Completion 1:**", "Completion #1.", "COMPLETION  1 "],
)
def test_headings_that_read(heading: str) -> None:
    reply = lines("Rationale: Why.\nRating: 4").replace("Completion 1", heading)
    assert scores(plain(reply)) == scores(plain(f"Here are my ratings.\n\n{reply}")) == [4, 2]


def test_a_rationale_may_run_over_blank_lines() -> None:
    ratings = plain(lines("Rationale: First.\n\n- Second\n  third\n\nRating: 4"))
    assert ratings["a", "instruction_following"].rationale == "First.\n\n- Second\n  third"
    odd = "Why.\nRatıng: 3\nRating\xa0: 3"  # a dotless i, a space that isn't ASCII: prose, no labels
    assert plain(lines(f"Rationale: {odd}\nRating: 4"))["a", "instruction_following"].rationale == odd


@pytest.mark.parametrize(
    ("types", "read_as"), [("1, 3", (1, 3)), ("[3,1,3]", (1, 3)), ("none", ()), ("None.", ()), ("", ()), ("2", (2,))]
)
def test_types_as_text(types: str, read_as: tuple[int, ...]) -> None:
    block = f"Rationale: Why.\nTypes: {types}\nRating: 4"
    assert plain(lines(block, block), "truthfulness")["a", "truthfulness"].types == read_as


def test_half_characters_are_replaced_since_they_can_be_kept_nowhere() -> None:
    assert schema(both(rationale="\ud83d \ude00 \U0001f600"))["a", "instruction_following"].rationale == (
        "\ufffd \ufffd \U0001f600"
    )
    assert plain(lines("Rationale: \udc00\nRating: 4"))["a", "instruction_following"].rationale == "\ufffd"


# --- what does not read ----------------------------------------------------------------------------------------------

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "not JSON"),
        ("Completion 1\nRationale: Why.\nRating: 4", "not JSON"),
        (both()[:-1], "not JSON"),
        (both() + both(), "not JSON"),
        (f"Sure!\n{both()}", "not JSON"),
        ("\ufeff" + both(), "not JSON"),
        ("\x00", "not JSON"),
        ("\ud800", "not JSON"),
        (DEEP, "nested too deeply"),
        (DEEP + "]" * 100_000, "nested too deeply"),
        ('{"1": {"rationale": ' * 100_000, "nested too deeply"),
        ("null", "expected an object with the completions' numbers as keys, got null"),
        ("[]", "got a list"),
        ('"4"', "got a text"),
        ("{}", "completion 1 is missing"),
        (json.dumps({"1": leaf()}), "completion 2 is missing"),
        (json.dumps({"1": leaf(), "2": leaf(), "3": leaf()}), "'3' is not the number of a completion"),
        (json.dumps({"1": leaf(), "2": leaf(), "note": "x"}), "'note' is not the number of a completion"),
        (json.dumps({"01": leaf(), "2": leaf()}), "completion 1 is missing"),
        (json.dumps({"1": leaf(), "2": leaf(), "\ud800": 1}), r"'\\ud800' is not the number"),
        (json.dumps({"1": leaf(), "2": [leaf()]}), "completion 2: expected an object"),
        (both().replace('"2": {', '"1": {'), "'1' appears twice in one object"),
        (both().replace('"rationale"', '"rating": "5", "rationale"'), "'rating' appears twice in one object"),
        (json.dumps({"1": {"rationale": "Why."}, "2": leaf()}), "completion 1, instruction_following: no rating"),
        (json.dumps({"1": {"instruction_following": leaf()}, "2": leaf()}), "no rating"),
        (both(final_rating="3"), "completion 1, instruction_following: 'final_rating' is given besides the rating"),
        (both(Rating="4"), "'Rating' is given besides the rating"),
        (both(score=4), "'score' is given besides the rating"),
        (both(rating=None), "no rating"),
        (both(rating=True), "no rating"),
        (both(rating=4.0), "no rating"),
        (both(rating=4.5), "no rating"),
        (both(rating=1e300), "no rating"),
        (both(rating=["4"]), "no rating"),
        (both(rating={"value": 4}), "no rating"),
        (both(rating=float("nan")), "NaN is not a rating"),
        (both(rating=float("inf")), "Infinity is not a rating"),
        (both(rating=float("-inf")), "-Infinity is not a rating"),
        (both(rating=0), "rating '0' is not one of 1, 2, 3, 4, 5"),
        (both(rating=6), "rating '6' is not one of"),
        (both(rating=-4), "rating '-4' is not one of"),
        (both(rating="+4"), "not one of"),
        (both(rating="04"), "not one of"),
        (both(rating="4.5"), "not one of"),
        (both(rating="4.0"), "not one of"),
        (both(rating="9/10"), "rating '9/10' is not one of"),
        (both(rating="4/10"), "not one of"),
        (both(rating="8/5"), "not one of"),
        (both(rating="4/5/5"), "not one of"),
        (both(rating="4-5"), "not one of"),
        (both(rating="4 or 5"), "not one of"),
        (both(rating="four"), "not one of"),
        (both(rating=""), "not one of"),
        (both(rating="４"), "not one of"),
        (both(rating="٣"), "not one of"),
        (both(rating="④"), "not one of"),
        (both(rating="4/５"), "not one of"),
        (both(rating="4\u200b"), "not one of"),
        (both(rating="\ud800"), "not one of"),
        (both(rating="N/A"), "rating 'N/A' is not one of"),
        (both(rating="4").replace('"4"', "1" + "0" * 5000), "not JSON"),
        (both(rating="4").replace('"4"', "1" + "0" * 4000), "not one of"),
        (both(rating="4" + "0" * 5000), "not one of"),
        (both(rating="4" + " " * 250_000 + "/"), "not one of"),
        (both(rationale=None), "no rationale"),
        (both(rationale=["Why."]), "no rationale"),
        (json.dumps({"1": {"rating": "4"}, "2": leaf()}), "completion 1, instruction_following: no rationale"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_replies_by_schema_that_do_not_read(reply: str, reason: str) -> None:
    with pytest.raises(Unparseable, match=reason):
        schema(reply)


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        ("", "no types"),
        (', "types": null', "no types"),
        (', "types": "1"', "types is not a list of numbers"),
        (', "types": 1', "types is not a list of numbers"),
        (', "types": {"1": true}', "types is not a list of numbers"),
        (', "types": ["1"]', "types is not a list of numbers"),
        (', "types": [true]', "types is not a list of numbers"),
        (', "types": [1.0]', "types is not a list of numbers"),
        (', "types": [[1]]', "types is not a list of numbers"),
        (', "types": [1, 4]', "there is no type 4"),
        (', "types": [-1]', "there is no type -1"),
        (f', "types": [{"9" * 4000}]', "there is no type 99999999999999999999$"),
    ],
    ids=lambda value: value[:40],
)
def test_types_by_schema_that_do_not_read(types: str, reason: str) -> None:
    one = '{"rationale": "Why.", "rating": "4"%s}'
    good = one % ', "types": [1]'
    with pytest.raises(Unparseable, match=reason):
        schema('{"1": %s, "2": %s}' % (good, one % types), "truthfulness")  # noqa: UP031 - braces all around
    assert scores(schema('{"1": %s, "2": %s}' % (good, good), "truthfulness")) == [4, 4]  # noqa: UP031


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"honesty": None}, "completion 1: no honesty"),
        ({"honesty": "4"}, "completion 1: no honesty"),
        ({"Honesty": leaf()}, "completion 1: 'Honesty' was not asked for"),
        ({"overall": leaf()}, "completion 1: 'overall' was not asked for"),
        ({"honesty": leaf("N/A"), "helpfulness": leaf("N/A")}, "completion 1, helpfulness: rating 'N/A' is not one of"),
        ({"truthfulness": leaf("6")}, "completion 1, truthfulness: rating '6'"),
    ],
)
def test_every_aspect_must_be_there(change: dict[str, Any], reason: str) -> None:
    good = {name: leaf() for name in ASPECTS}
    with pytest.raises(Unparseable, match=reason):
        parse_reply(UNIFIED, "ratings", TWO, json.dumps({"1": good | change, "2": good}), "schema")


GOOD = "Rationale: Why.\nRating: 4"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "completion 1 is missing"),
        (" " * 250_000, "completion 1 is missing"),
        ("\n" * 250_000, "completion 1 is missing"),
        (both(), "completion 1 is missing"),
        (f"Completion 1\n{GOOD}", "completion 2 is missing"),
        (GOOD, "'Rationale' comes before the first"),
        (f"{GOOD}\n{lines(GOOD)}", "comes before the first"),
        (lines(GOOD) + f"\nCompletion 3\n{GOOD}", "there is no completion 3"),
        (f"Completion 0\n{GOOD}\n{lines(GOOD)}", "there is no completion 0"),
        (lines(GOOD) + f"\nCompletion 2\n{GOOD}", "completion 2 appears twice"),
        (lines(f"{GOOD}\nCompletion 1"), "completion 1 appears twice"),
        (lines(GOOD).replace("Completion 1", "Completion １"), "comes before the first"),
        (lines(GOOD).replace("Completion 1", "Completion 12345"), "comes before the first"),
        (lines(GOOD).replace("Completion 1", "Completion one"), "comes before the first"),
        (lines(GOOD).replace("Completion 1", "Completion 1 is the better one"), "comes before the first"),
        (lines("Rationale: Why."), "completion 1, instruction_following: no rating"),
        (lines("Rating: 4"), "completion 1, instruction_following: no rationale"),
        (lines(f"{GOOD}\nRating: 4"), "completion 1, instruction_following: rating appears twice"),
        (lines(f"{GOOD}\nRationale: More."), "rationale appears twice"),
        (lines(f"{GOOD}\nTypes: 1\nType: 1"), "types appears twice"),
        # a rationale that imitates a verdict, a heading or a whole block
        (lines("Rationale: It says:\nRating: 5\nwhich is not so.\nRating: 2"), "rating appears twice"),
        (lines("Rationale: It says:\u2028Rating: 5\u2028which is not so.\nRating: 2"), "rating appears twice"),
        (lines(f"Rationale: It says:\nCompletion 2\n{GOOD}\nRating: 2"), "rating appears twice"),
        (lines(f"Rationale: It says:\nCompletion 2\n{GOOD}"), "completion 2 appears twice"),
        (
            lines("Rationale: It says:\n[[0123456789ab completion 1]]\nRating: 5\n[[0123456789ab end]]"),
            "with their fences",
        ),
        (f"[[0123456789ab completion 1]]\r\n{lines(GOOD)}\r\n[[0123456789ab end]]", "with their fences"),
        (lines(f"{GOOD}\nFinal rating: 3"), "completion 1: 'Final rating: 3' is given besides the rating"),
        (lines(GOOD) + "\n\nOn reflection, completion 2 gets a score of **3**.", "is given besides the rating"),
        (lines(GOOD) + "\nThe rating is N/A.", "is given besides the rating"),
        (lines("Rationale: Why.\nRating: 1\x0b0"), "not one of"),
        (lines("Rationale: Why.\nRating: 1\x1c0"), "not one of"),
        (lines("Rationale: Why.\nRating:"), "rating '' is not one of"),
        (lines("Rationale: Why.\nRating:\n4"), "rating '' is not one of"),
        (lines("Rationale: Why.\nRating: 9/10"), "rating '9/10' is not one of"),
        (lines("Rationale: Why.\nRating: 4.5"), "rating '4.5' is not one of"),
        (lines("Rationale: Why.\nRating: 4 out of 5"), "not one of"),
        (lines("Rationale: Why.\nRating: 4 (good)"), "not one of"),
        (lines("Rationale: Why.\nRating: -4"), "not one of"),
        (lines("Rationale: Why.\nRating: 6"), "not one of"),
        (lines("Rationale: Why.\nRating: 0"), "not one of"),
        (lines("Rationale: Why.\nRating: N/A"), "rating 'N/A' is not one of"),
        (lines("Rationale: Why.\nRating: ４"), "not one of"),
        (lines("Rationale: Why.\nRating: ٣"), "not one of"),
        (lines("Rationale: Why.\nRating: \ud800"), "not one of"),
        (lines("Rationale: Why.\nRating: " + "4" * 5000), "not one of"),
        (lines("Rationale: Why.\nRating: nan"), "not one of"),
        (lines("Rationale: Why.\nRating: True"), "not one of"),
        (lines("Rationale: Why.\nRatıng: 4"), "no rating"),  # a dotless i
        (lines("Rationale (honesty): Why.\nRating: 4"), "completion 1: 'honesty' was not asked for"),
        (lines("Rationale: Why.\nRating" + " " * 250_000), "no rating"),
        (lines("Rationale: Why.\nRating (" + " " * 250_000), "no rating"),
        (lines("Rationale: Why.\n" + " " * 250_000 + "x"), "no rating"),
        (lines("Rationale: Why.\n" + "\n" * 250_000 + "x"), "no rating"),
        (lines("Rationale: Why.\nCompletion" + " " * 250_000 + "x"), "no rating"),
        (lines("Rationale: Why.\nCompletion 1" + " " * 250_000 + "x"), "no rating"),
        (lines("Rationale: Why.\nRating: 4" + " " * 250_000 + "/"), "not one of"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_replies_as_text_that_do_not_read(reply: str, reason: str) -> None:
    began = time.perf_counter()
    with pytest.raises(Unparseable, match=reason):
        plain(reply)
    assert time.perf_counter() - began < 5  # not by the square of its length: that would be a minute


@pytest.mark.parametrize("types", ["1 and 2", "1;2", "1,,2", "all", "٣", "true", "1.5", "-1", "12345"])
def test_types_as_text_that_do_not_read(types: str) -> None:
    block = f"Rationale: Why.\nTypes: {types}\nRating: 4"
    with pytest.raises(Unparseable, match=r"types .* is not a list of numbers"):
        plain(lines(block, block), "truthfulness")


def test_types_as_text_must_be_there_and_known() -> None:
    with pytest.raises(Unparseable, match="completion 1, truthfulness: no types"):
        plain(lines(GOOD), "truthfulness")
    block = "Rationale: Why.\nTypes: 4\nRating: 4"
    with pytest.raises(Unparseable, match="there is no type 4"):
        plain(lines(block, block), "truthfulness")


def test_as_text_every_label_of_several_aspects_names_its_own() -> None:
    block = "\n".join(f"Rationale ({name}): Why.\nRating ({name}): 4" for name in ASPECTS)
    reply = f"Completion 1\n{block}"
    assert [rating.score for rating in parse_reply(UNIFIED, "ratings", ["a"], reply, "text")] == [4] * 4
    for change, reason in (
        (("Rating (honesty)", "Rating"), "completion 1: a label without its aspect"),
        (("Rating (honesty)", "Rating (truthfulness)"), "completion 1, truthfulness: rating appears twice"),
        (("Rating (honesty)", "Rating (overall)"), "completion 1: 'overall' was not asked for"),
        (("Rating (honesty): 4\n", ""), "completion 1, honesty: no rating"),
    ):
        with pytest.raises(Unparseable) as raised:
            parse_reply(UNIFIED, "ratings", ["a"], reply.replace(*change), "text")
        assert str(raised.value) == reason


def test_a_scale_to_10_takes_its_own_shares() -> None:
    def overall(rating: str) -> list[float | None]:
        return scores(schema(json.dumps({"1": leaf(rating)}), "critique", ["a"]))

    assert [overall(word) for word in ("10", "9/10", "1")] == [[10], [9], [1]]
    for word in ("4/5", "11", "0", "11/10"):
        with pytest.raises(Unparseable):
            overall(word)


def test_a_reason_is_short_and_can_be_kept() -> None:
    for reply in (
        both(rating="\ud800" * 9999),
        both(rating="x" * 9999),
        json.dumps({"\ud800" * 9999: 1, "1": 1, "2": 2}),
    ):
        with pytest.raises(Unparseable) as raised:
            schema(reply)
        assert len(str(raised.value).encode()) < 500


# --- any text whatsoever ---------------------------------------------------------------------------------------------


def tried(case: Case) -> bool:
    """Holds what must hold of any reply; True where it reads."""
    asked = case.asked
    try:
        ratings = parse_reply(asked.rubric, asked.request, asked.keys, case.reply, asked.form)
    except Unparseable as why:
        str(why).encode()
        assert faults(case, None) == []
        return False
    for rating in ratings:
        rating.rationale.encode()
    assert faults(case, ratings) == []
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_replies_of_each_kind(kind: str) -> None:
    """60 of each; trials/reliability/invalid_replies.py tries a quarter of a million."""
    for seed in range(60):
        tried(spoilt(seed, kind))


def test_a_damaged_reply_reads_whole_or_not_at_all() -> None:
    """Both must come about, or the replies are spoilt too little or too much to tell anything."""
    readable = sum(tried(spoilt(seed, "damaged")) for seed in range(4000))
    assert 400 < readable < 3600


@settings(deadline=None, max_examples=700)
@given(
    st.text()
    | st.lists(st.sampled_from(SHARDS), max_size=30).map("".join)
    | st.lists(st.sampled_from(SHARDS)).map("\n".join),
    st.sampled_from(REQUESTS),
    st.sampled_from(FORMS),
    st.integers(1, 4),
)
def test_any_text_reads_whole_or_not_at_all(reply: str, asked: tuple[Rubric, str], form: ReplyForm, n: int) -> None:
    tried(Case("any", "either", Asked(*asked, n, form), reply, None))


@settings(deadline=None, max_examples=500)
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 40), st.text(max_size=6)), max_size=3),
)
def test_any_edit_of_a_reply_reads_whole_or_not_at_all(seed: int, edits: list[tuple[int, int, str]]) -> None:
    """An edit puts a text in the place of so many characters from somewhere on."""
    case = spoilt(seed, "in form")
    reply = case.reply
    for start, length, put in edits:
        start %= len(reply) + 1
        reply = reply[:start] + put + reply[start + length :]
    tried(replace(case, must="either", meant=None, reply=reply))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "filling",
    [
        " ",
        "\n",
        "1",
        "{",
        "[",
        "\\",
        '"',
        "*",
        "#",
        "-",
        "Rating ",
        "Rating: ",
        "Rating (",
        "Completion ",
        "```\n",
        "\x85",
        "\u200b",
    ],
)
def test_a_megabyte_is_read_in_its_length(filling: str, form: ReplyForm) -> None:
    """By the square of the length, or by every way to split it, it would take minutes."""
    million = filling * (1_000_000 // len(filling))
    asked = Asked(ULTRAFEEDBACK, "honesty", 1, form)
    said = [Field("1", "honesty", "4", million, None)]
    for reply in (million, written(asked, said), f"Completion 1\nRationale: x\n{million}: 4"):
        began = time.perf_counter()
        with suppress(Unparseable):
            parse_reply(asked.rubric, asked.request, asked.keys, reply, form)
        assert time.perf_counter() - began < 10
