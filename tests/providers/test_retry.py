"""aif/providers/retry.py, with times that are given."""

import pytest

from aif.providers.base import ACCESS_ERRORS, REQUEST_ERRORS, RESAMPLED, TRANSIENT, CallError, Kind
from aif.providers.retry import Blame, RetryPolicy, RetryState, Verdict


class Rehearsal:
    """One item whose every call fails; each takes no time."""

    def __init__(self, policy: RetryPolicy | None = None, jitter: float = 1.0) -> None:
        self.policy, self.jitter, self.now = policy or RetryPolicy(), jitter, 1000.0
        self.course = RetryState()
        self.waits: list[float] = []

    def fail(self, error: CallError | Kind, blame: Blame = "item", few: bool = False) -> Verdict:
        error = CallError(error, "failed") if isinstance(error, Kind) else error
        verdict = self.course.verdict(error, blame, self.policy, self.now, self.jitter, few)
        if verdict == "again":
            self.waits.append(self.course.wait_s)
            self.now += self.course.wait_s
        return verdict

    def last(self, error: CallError | Kind, blame: Blame = "item", few: bool = False) -> tuple[int, Verdict]:
        """After how many failures it is not asked again, and the verdict."""
        for n in range(1, 100):
            if (verdict := self.fail(error, blame, few)) != "again":
                return n, verdict
        return 100, "again"


@pytest.mark.parametrize(
    ("kinds", "calls", "verdict"),
    [
        (TRANSIENT, 6, "failed"),
        (RESAMPLED | ACCESS_ERRORS - {Kind.QUOTA_EXHAUSTED} | REQUEST_ERRORS, 3, "failed"),
        ({Kind.BLOCKED}, 1, "failed"),
        ({Kind.QUOTA_EXHAUSTED}, 6, "later"),
    ],
)
def test_an_item_at_fault_fails_for_good(kinds: frozenset[Kind], calls: int, verdict: Verdict) -> None:
    for kind in kinds:
        assert Rehearsal().last(kind) == (calls, verdict), kind


def test_a_shape_that_the_server_names_is_asked_no_more_once_another_was_answered() -> None:
    long = CallError(Kind.CONTEXT_OVERFLOW, "5021 of 4096 tokens", explicit=True)
    assert Rehearsal().last(long) == (1, "failed")
    assert Rehearsal().last(long, "unknown", few=True) == (1, "failed"), "its own words are all there is to go by"
    assert Rehearsal().fail(long, "unknown") == "again"


def test_what_only_others_can_be_paid_or_let_through_now_stays_pending() -> None:
    """The last cents pay for small requests, and a nearly empty minute has room for them."""
    said = "HTTP 429: Rate limit reached on tokens per min (TPM): Limit 30000, Used 29000, Requested {}"
    assert Rehearsal().last(CallError(Kind.RATE_LIMITED, said.format(9000))) == (6, "later")
    assert Rehearsal().last(CallError(Kind.RATE_LIMITED, said.format(90000))) == (6, "failed")


def test_where_nobody_knows_it_stays_pending() -> None:
    for kind in TRANSIENT | ACCESS_ERRORS | REQUEST_ERRORS:
        assert Rehearsal().last(kind, "unknown") == (6, "later")
    for kind in RESAMPLED:
        assert Rehearsal().last(kind, "unknown") == (3, "later")


def test_what_is_the_endpoint_s_doing_counts_for_nothing_and_waits_at_its_gate() -> None:
    item = Rehearsal()
    for kind in sorted(TRANSIENT) * 20:
        assert item.fail(kind, "endpoint") == "again"
    assert set(item.waits) == {0}
    for kind in ACCESS_ERRORS | REQUEST_ERRORS | RESAMPLED:
        assert Rehearsal().fail(kind, "endpoint") == "refused"


def test_every_kind_has_an_end() -> None:
    for kind in Kind:
        for blame in ("item", "unknown"):
            assert Rehearsal().last(kind, blame)[0] <= 6


def test_six_answers_of_which_no_three_are_alike_may_pass() -> None:
    item = Rehearsal()
    said = [CallError(Kind.SERVER_ERROR, word) for word in ("a", "b", "a", "b", "c", "d")]
    assert [item.fail(one) for one in said] == ["again"] * 5 + ["later"]
    same = [CallError(Kind.SERVER_ERROR, f"HTTP 500: no rule for token {n} (req-{n:x}f{n})") for n in range(11, 17)]
    item = Rehearsal()
    assert [item.fail(one) for one in same][-1] == "failed", "digits apart"


def test_each_sort_of_failure_has_its_own_count() -> None:
    item = Rehearsal()
    kinds = [Kind.TIMEOUT] * 5 + [Kind.UNREADABLE, Kind.EMPTY]
    assert {item.fail(kind) for kind in kinds} == {"again"}
    assert (item.course.resampled, item.course.last_unusable and item.course.last_unusable.kind) == (2, Kind.EMPTY)


def test_waits_double_up_to_the_longest() -> None:
    item = Rehearsal(RetryPolicy(attempts=10))
    item.last(Kind.TIMEOUT)
    assert item.waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_half_of_a_wait_is_by_chance() -> None:
    item = Rehearsal(jitter=0.0)
    item.last(Kind.SERVER_ERROR)
    assert item.waits == [0.5, 1, 2, 4, 8]


def test_what_another_sample_may_mend_is_asked_at_once() -> None:
    item = Rehearsal()
    for kind in (Kind.TIMEOUT, Kind.TRUNCATED, Kind.UNREADABLE):
        item.fail(kind)
    assert item.waits == [1, 0, 0]


@pytest.mark.parametrize(("asked", "waited"), [(7.5, 7.5), (60.0, 60.0), (86400.0, 60.0), (0.25, 1.0), (0.0, 1.0)])
def test_a_server_s_wish_is_obeyed_up_to_the_longest_wait(asked: float, waited: float) -> None:
    item = Rehearsal()
    item.fail(CallError(Kind.SERVER_ERROR, "busy", retry_after=asked))
    assert item.waits == [waited]


def test_the_last_items_are_asked_for_a_minute_and_no_longer() -> None:
    slow = CallError(Kind.RATE_LIMITED, "slow down", retry_after=25.0)
    item = Rehearsal()
    assert item.last(slow, "unknown", few=True) == (3, "later")
    assert item.now - 1000 <= 60
    assert Rehearsal().last(CallError(Kind.RATE_LIMITED, "tomorrow", retry_after=3600.0), "unknown", few=True)[0] == 1
    assert Rehearsal().last(slow, "unknown") == (6, "later"), "where others are still to come, they may tell"


def test_the_policy_s_numbers() -> None:
    policy = RetryPolicy(attempts=4, resamples=1, first_wait_s=0.1, longest_wait_s=0.15)
    assert Rehearsal(policy).last(Kind.EMPTY) == (1, "failed")
    item = Rehearsal(policy)
    assert item.last(Kind.TIMEOUT) == (4, "failed")
    assert item.waits == [0.1, 0.15, 0.15]
