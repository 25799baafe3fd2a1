"""Models and judges during a run: when one takes no further call, and what a request is made into when made again."""

from aif.asking import once_more
from aif.chat.base import CallError, Kind, Request
from aif.endpoints import BAD_REQUESTS, Endpoint
from aif.records import Message
from tests.test_progress import endpoint

BAD = CallError(Kind.BAD_REQUEST, "temperature is not supported")


def noted(one: Endpoint, *errors: CallError | None) -> list[bool]:
    return [one.note(error) for error in errors]


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


def test_a_request_is_changed_only_by_what_another_sample_can_mend() -> None:
    """Also where a 429 came in between: a reply known to be of no use is not asked for again."""
    request = Request((Message("user", "hi"),), 100, seed=7)
    cut, unread = CallError(Kind.TRUNCATED, "cut"), CallError(Kind.UNREADABLE, "what?")
    made = [
        once_more(request, reasks, failure)
        for reasks, failure in ((0, None), (1, cut), (2, cut), (3, cut), (1, unread))
    ]

    assert [(one.seed, one.max_tokens) for one in made] == [(7, 100), (8, 200), (9, 400), (10, 400), (8, 100)]
