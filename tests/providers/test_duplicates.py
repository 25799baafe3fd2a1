"""aif/providers/duplicates.py, with values alone."""

import json
from typing import Any

import pytest

from aif.providers.base import CallError, Kind
from aif.providers.duplicates import REMEMBERED, DuplicateDetector, Misdelivered


def took(given: DuplicateDetector, asked: str, id: str, seed: int = 0, said: str = "") -> Kind | None:
    """What becomes of a reply to messages asked with a seed."""
    body: dict[str, Any] = {"id": id, "choices": [said or id]}
    messages = json.dumps([asked]).encode()
    try:
        given.check(messages + bytes([seed]), messages, body, json.dumps(body).encode())
    except CallError as error:
        return error.kind
    return None


@pytest.fixture
def given() -> DuplicateDetector:
    """One that has seen two ids, so that they tell something."""
    fresh = DuplicateDetector()
    assert [took(fresh, "before", "id-0"), took(fresh, "before", "id-00")] == [None, None]
    return fresh


def test_a_reply_to_another_request_is_taken_for_one_that_came_twice(given: DuplicateDetector) -> None:
    assert took(given, "a", "id-1") is None
    body = {"id": "id-1", "choices": ["id-1"]}
    with pytest.raises(Misdelivered):
        given.check(b"b", b"b", body, json.dumps(body).encode())


def test_the_same_request_that_gets_it_again_meets_a_cache(given: DuplicateDetector) -> None:
    """Over new connections nothing comes twice; asked once more it has another seed."""
    assert took(given, "a", "id-1", seed=1) is None
    assert took(given, "a", "id-1", seed=2) is Kind.CONNECTION
    assert [took(given, "a", "id-1", seed=n) for n in (2, 3, 4)] == [Kind.CACHED] * 3
    assert took(given, "b", "id-2", seed=1) is None
    assert took(given, "b", "id-2", seed=2) is Kind.CACHED, "it is known by now that replies are kept"
    assert took(given, "a", "id-1", seed=1) is None, "its own"


def test_a_cache_that_takes_other_words_for_the_same(given: DuplicateDetector) -> None:
    assert took(given, "a", "id-1") is None
    assert [took(given, "A", "id-1") for _ in range(3)] == [Kind.CONNECTION, Kind.CACHED, Kind.CACHED]
    assert took(given, "b", "id-1") is Kind.CACHED, "a connection gives it a second time, and a cache a third"


def test_a_cache_that_gives_everybody_the_same(given: DuplicateDetector) -> None:
    assert took(given, "a", "id-1") is None
    assert took(given, "b", "id-2") is None
    assert [took(given, word, "id-2") for word in "cdef"] == [Kind.CONNECTION, Kind.CACHED, Kind.CACHED, Kind.CACHED]


def test_errors_may_be_all_alike(given: DuplicateDetector) -> None:
    for asked in (b"a", b"b"):
        given.check(asked, asked, {"id": "error", "choices": None, "error": "busy"}, b"the same")


def test_no_more_is_remembered_than_may_be_in_flight(given: DuplicateDetector) -> None:
    assert took(given, "a", "id-1") is None
    for n in range(REMEMBERED + 1):
        assert took(given, f"other {n}", f"other-{n}") is None
        assert took(given, f"again {n}", f"other-{n}") is Kind.CONNECTION
    assert took(given, "b", "id-1") is None
    assert max(len(given._delivered), len(given._suspect)) == REMEMBERED
