"""Ids and seeded choices: pinned, since a change of theirs would ask for everything again."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.core.types import Message, as_dicts, as_messages, digest, fraction, is_blank, prompt_id


def test_the_id_of_a_single_user_turn_is_the_hash_of_its_text() -> None:
    text = "Why is the sky blue? ☀"
    assert prompt_id([Message("user", text)]) == hashlib.sha256(text.encode()).hexdigest()


def test_the_id_of_other_prompts_is_the_hash_of_all_messages() -> None:
    user = Message("user", "Why?")
    conversations = [
        [user],
        [Message("system", "Why?")],
        [Message("system", "Be brief."), user],
        [Message("system", "Be brief"), user],
        [user, Message("assistant", "Because."), user],
        [user, user],
    ]
    assert len({prompt_id(turns) for turns in conversations}) == len(conversations)
    assert prompt_id([Message("system", "Be brief."), user]) == (
        hashlib.sha256(b'[{"content":"Be brief.","role":"system"},{"content":"Why?","role":"user"}]').hexdigest()
    )


def test_a_digest_is_that_of_canonical_json() -> None:
    value = {"b": [1, 2.5, None], "a": "ü"}
    assert digest(value) == hashlib.sha256('{"a":"ü","b":[1,2.5,null]}'.encode()).hexdigest()
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(["a", "b"]) != digest(["b", "a"])


def test_fractions_are_pinned() -> None:
    assert fraction(42, "p", "m", 0, "rank") == 0.7673524045393493
    assert fraction("42", "p", "m", "0", "rank") == fraction(42, "p", "m", 0, "rank")


@given(st.lists(st.text(st.characters(codec="utf-8")) | st.integers(), max_size=4))
def test_a_fraction_is_at_least_0_and_less_than_1(parts: list[str | int]) -> None:
    assert 0 <= fraction(*parts) < 1


def test_fractions_are_spread_evenly() -> None:
    """10,000 draws over 10 bins; 30 is the standard deviation of a bin."""
    bins = [0] * 10
    for n in range(10_000):
        bins[int(fraction("spread", n) * 10)] += 1
    assert max(abs(size - 1000) for size in bins) < 120


@pytest.mark.parametrize("turns", [(), (Message("user", "a"),), (Message("system", "s"), Message("user", ""))])
def test_messages_to_dicts_and_back(turns: tuple[Message, ...]) -> None:
    assert as_messages(as_dicts(turns)) == turns


@pytest.mark.parametrize(
    ("text", "blank"),
    [
        ("", True),
        (" \n\t\u00a0\u3000", True),
        ("\u200b", True),  # zero-width space: no white space to str.strip
        ("\ufeff\u2060\u200d\u00ad", True),
        ("\u202e \u200f\u2066", True),  # direction marks
        ("\x00\x01\x7f\x85", True),
        ("\u3164\u2800\u115f", True),  # fillers
        ("\U000e0041\U000e0042", True),  # tags
        (" " * 250_000, True),
        (" " * 1000 + ".", False),
        ("\u200b4\u200b", False),
        ("\ufffd", False),
        ("\U0001f600", False),
        ("\u0301", False),
        ("\ue000", False),  # of private use: a font may have it
        ("\U0001fae9", False),  # newer than the Unicode of Python 3.11
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_invisible_text_is_blank(text: str, blank: bool) -> None:
    assert is_blank(text) == blank
