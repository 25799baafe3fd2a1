"""Models and judges during a run: when one takes no further call, and what a request is made into when made again."""

import pytest

from aif.asking import once_more
from aif.chat.base import CallError, Kind, Request
from aif.endpoints import BAD_REQUESTS, SILENT_CALLS, SILENT_S, Endpoint
from aif.records import Message
from tests.test_progress import endpoint

BAD = CallError(Kind.BAD_REQUEST, "temperature is not supported")


def noted(one: Endpoint, *errors: CallError | None) -> list[bool]:
    return [one.note(error, now=0.0) for error in errors]


def test_requests_refused_from_the_start_say_nothing_of_their_items_and_stop_the_endpoint() -> None:
    one = endpoint("judge", "judgement")

    assert noted(one, *[BAD] * BAD_REQUESTS) == [True] * BAD_REQUESTS
    assert one.refused == "the first 5 requests were all refused: temperature is not supported"
    assert one.halt.is_set()


def test_once_anything_was_answered_a_refused_request_is_its_item_s_failure() -> None:
    one = endpoint("judge", "judgement")

    assert noted(one, BAD, None, *[BAD] * 9) == [True, False, *[False] * 9]
    assert one.refused is None


def test_what_was_answered_in_former_runs_counts() -> None:
    one = endpoint("judge", "judgement")
    one.answered = 7

    assert noted(one, *[BAD] * 9) == [False] * 9


GONE = CallError(Kind.CONNECTION, "nobody there")


def after(one: Endpoint, seconds: float, *errors: CallError | None) -> str | None:
    """Why it is refused when so many calls ended, spread evenly over so many seconds."""
    for n, error in enumerate(errors):
        one.note(error, now=1000.0 + seconds * n / max(1, len(errors) - 1))
    return one.refused


def test_where_nobody_ever_answers_is_not_asked_for_ever() -> None:
    assert after(endpoint("m", "completion"), SILENT_S, *[GONE] * SILENT_CALLS) == (
        "nothing came back from 20 calls in 60 s; the last: connection: nobody there"
    )


@pytest.mark.parametrize(
    ("seconds", "errors"),
    [
        (SILENT_S - 1, [GONE] * 500),  # a server may be about to come up
        (9 * SILENT_S, [GONE] * (SILENT_CALLS - 1)),
        (SILENT_S, [None, *[GONE] * 500]),  # an outage in the middle is waited for
        (SILENT_S, [CallError(Kind.EMPTY, "said nothing"), *[GONE] * 500]),
        (SILENT_S, [CallError(Kind.RATE_LIMITED, "slow down"), *[GONE] * 500]),
    ],
)
def test_a_server_that_may_be_there_is_waited_for(seconds: float, errors: list[CallError | None]) -> None:
    assert after(endpoint("m", "completion"), seconds, *errors) is None


def test_a_request_is_changed_only_by_what_another_sample_can_mend() -> None:
    """Also where a 429 came in between: a reply known to be of no use is not asked for again."""
    request = Request((Message("user", "hi"),), 100, seed=7)
    cut, unread = CallError(Kind.TRUNCATED, "cut"), CallError(Kind.UNREADABLE, "what?")
    made = [
        once_more(request, reasks, failure)
        for reasks, failure in ((0, None), (1, cut), (2, cut), (3, cut), (1, unread))
    ]

    assert [(one.seed, one.max_tokens) for one in made] == [(7, 100), (8, 200), (9, 400), (10, 400), (8, 100)]
