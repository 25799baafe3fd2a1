"""aif/providers/concurrency.py, with times that are given."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.core.types import Usage
from aif.providers.base import CallError, Kind, Reply
from aif.providers.concurrency import (
    ENOUGH_ITEMS,
    ENOUGH_UNUSABLE,
    MAX_HINTED_BACKOFF_S,
    ConcurrencyLimiter,
    ItemHistory,
    OtherItems,
    Permit,
)
from aif.providers.retry import RetryPolicy

GONE = CallError(Kind.CONNECTION, "nobody there")
BROKEN = CallError(Kind.SERVER_ERROR, "HTTP 500: boom")


def limited(after: float | None = None) -> CallError:
    return CallError(Kind.RATE_LIMITED, "HTTP 429: slow down", retry_after=after)


class Ground:
    """A gate and the calls that went through it. Each item is its own unless it is named."""

    def __init__(self, most: int = 16, jitter: float = 1.0) -> None:
        self.limiter = ConcurrencyLimiter(most, RetryPolicy(), lambda: jitter)
        self.now = 0.0
        self.out: list[Permit] = []

    def fill(self) -> int:
        """Sends what may go at once; how many calls that are."""
        n = 0
        while self.limiter.wait(self.now) == 0:
            self.go()
            n += 1
        return n

    def go(self, caller: ItemHistory | None = None) -> Permit:
        assert self.limiter.wait(self.now) == 0
        self.out.append(self.limiter.enter(caller or ItemHistory()))
        return self.out[-1]

    def end(
        self, error: CallError | None = None, one: Permit | None = None, others: OtherItems | None = None
    ) -> ItemHistory:
        """The oldest call, or this, ends so."""
        one = one or self.out[0]
        self.out.remove(one)
        self.limiter.record_result(one, error, self.now, others or OtherItems())
        self.limiter.leave(one)
        return one.item

    def end_all(self, error: CallError | None = None) -> None:
        while self.out:
            self.end(error)

    def rest(self) -> float:
        """Waits for the gate to let a call go; how long."""
        waited = self.limiter.wait(self.now)
        assert waited < math.inf
        self.now += waited
        return waited

    def probe(self, error: CallError | None = None) -> float:
        """Waits, sends the probe, and ends it; how long the wait was."""
        waited = self.rest()
        assert self.fill() == 1
        self.end(error, self.out[-1])
        return waited


def test_as_many_calls_as_are_declared_go_at_once() -> None:
    ground = Ground(16)

    assert ground.fill() == 16
    ground.end()
    assert ground.fill() == 1


def test_a_429_shuts_the_gate_for_as_long_as_it_says_and_then_one_call_goes() -> None:
    ground = Ground()
    ground.fill()
    assert ground.end(limited(7.0)).blame == "endpoint"
    assert ground.limiter.waiting_text(ground.now) == "rate limited, retries in 7 s"
    assert ground.rest() == 7
    assert ground.fill() == 1, "the probe"
    assert ground.limiter.wait(ground.now) == math.inf
    assert ground.limiter.waiting_text(ground.now) == "rate limited, retries now"


def test_what_was_sent_before_the_429_shrinks_nothing_more_and_opens_nothing() -> None:
    ground = Ground(16)
    ground.fill()
    ground.end(limited(5.0))
    for _ in range(10):
        assert ground.end(limited(5.0)).blame == "endpoint"
    ground.end()  # one was let through
    ground.end(limited(30.0))  # and one waits longer
    ground.end_all()
    assert ground.probe() == 30
    reached = [ground.limiter.window]
    while len(reached) < 8:
        ground.fill()
        ground.end_all()
        reached.append(ground.limiter.window)

    assert reached[:4] == [3, 6, 12, 14], "a quarter of four fifths of 16, then twice as many a round, then slowly"
    assert max(reached) == 16, "never above what is declared"


@pytest.mark.parametrize(
    ("asked", "first", "tenth"),
    [(1.0, 1, MAX_HINTED_BACKOFF_S), (0.0, 1, 60), (None, 1, 60), (121.0, 60, 60), (86_400.0, 60, 60), (20.0, 20, 20)],
)
def test_rests_in_a_row_grow_up_to_a_minute_with_a_call_each(asked: float | None, first: float, tenth: float) -> None:
    ground = Ground()
    ground.fill()
    ground.end_all(limited(asked))
    rests = [ground.probe(limited(asked)) for _ in range(10)]

    assert (rests[0], rests[-1]) == (first, tenth)
    ground.probe()
    assert ground.fill() == 3


def test_a_server_that_takes_four_calls_at_a_time_is_found_out() -> None:
    """It refuses the fifth. Soon nearly nothing is refused."""
    ground = Ground(64)
    refused = sent = 0
    for _ in range(60):
        n = ground.fill()
        sent, refused = sent + n, refused + max(0, n - 4)
        for place in range(n):
            ground.end(limited() if place >= 4 else None)
        ground.now += 1
        ground.rest()

    assert refused < 64 + 40
    assert 1 <= ground.limiter.window <= 6


def test_server_errors_pause_growth_and_take_nothing() -> None:
    ground = Ground(16)
    ground.fill()
    ground.end_all(limited())
    ground.probe()
    grown = []
    for error in (None, BROKEN, None, None):
        ground.fill()
        ground.end(error)
        ground.end_all()
        grown.append(ground.limiter.window)

    assert grown == [6, 6, 11, 13], "one failure holds up a round"


def test_failures_of_several_items_in_a_row_are_the_endpoint_s_and_one_item_s_own_are_not() -> None:
    ground = Ground()
    one = ItemHistory()
    for _ in range(20):  # the same item, whose endpoint answers nobody: it is asked as often as its attempts allow
        ground.end(BROKEN, ground.go(one))
        assert one.blame == "unknown"
    blames = [ground.end(BROKEN, ground.go()).blame for _ in range(ENOUGH_ITEMS - 1)]

    assert blames == ["unknown"] * (ENOUGH_ITEMS - 1)
    assert ground.limiter.waiting_text(ground.now) == "not answering (server_error), retries in 1 s"
    assert ground.probe(BROKEN) == 1
    assert ground.rest() == 2


def test_an_answer_between_is_no_outage() -> None:
    ground = Ground()
    for _ in range(50):
        for _ in range(ENOUGH_ITEMS - 1):
            ground.end(GONE, ground.go())
        ground.end(None, ground.go())

    assert ground.limiter.waiting_text(ground.now) is None
    assert ground.fill() == 16


def test_items_that_fail_while_others_are_answered_are_no_outage_however_many() -> None:
    """At the end of a run nothing else may be left."""
    ground = Ground(16)
    hopeless = [ItemHistory() for _ in range(12)]
    for one in hopeless:
        ground.end(BROKEN, ground.go(one))
        ground.end(None, ground.go())
    for _ in range(5):
        for one in hopeless:
            ground.end(BROKEN, ground.go(one))
            assert one.blame == "item"

    assert ground.limiter.waiting_text(ground.now) is None


def test_an_answer_to_what_was_sent_before_an_outage_ends_it() -> None:
    ground = Ground(16)
    ground.fill()
    for _ in range(ENOUGH_ITEMS):
        ground.end(GONE)
    assert ground.end(GONE).blame == "unknown", "sent before, and failed after"
    assert ground.limiter.waiting_text(ground.now) is not None
    ground.end(None)
    assert ground.limiter.waiting_text(ground.now) is None


@pytest.mark.parametrize("most", [1, 2, 16])
def test_three_different_items_tell_an_outage_however_many_go_at_a_time(most: int) -> None:
    ground = Ground(most)
    for _ in range(3):
        assert ground.limiter.waiting_text(ground.now) is None
        assert ground.end(GONE, ground.go()).blame == "unknown"
    assert ground.limiter.waiting_text(ground.now) is not None


def test_where_there_are_fewer_items_all_of_them_tell() -> None:
    ground = Ground()
    only = ItemHistory()
    assert ground.end(GONE, ground.go(only), OtherItems(enough=1)).blame == "unknown"
    ground.rest()
    assert ground.end(GONE, ground.go(only), OtherItems(enough=1)).blame == "endpoint", "waited for, and not counted"


def test_what_a_server_says_of_itself_is_believed_at_once() -> None:
    loading = CallError(Kind.SERVER_ERROR, "HTTP 503: loading model", busy=True)
    ground = Ground()
    last = ItemHistory()
    ground.end(loading, ground.go(last), OtherItems(too_few=True))
    ground.rest()
    assert ground.end(loading, ground.go(last), OtherItems(too_few=True)).blame == "endpoint"
    assert 1800 <= lasting(ground, GONE) <= 1870, "and heard"


def test_an_item_that_hangs_for_ever_is_charged_for_it_whatever_happens_meanwhile() -> None:
    """Its call takes longer than the endpoint goes without a 429, or without an outage."""
    for trouble in (limited(1.0), GONE):
        ground = Ground(16)
        hanging = ItemHistory()
        blames = []
        for _ in range(9):
            for _ in range(50):
                ground.end(None, ground.go())
            one = ground.go(hanging)
            for _ in range(ENOUGH_ITEMS):
                if ground.limiter.wait(ground.now) == 0:
                    ground.end(trouble, ground.go())
            ground.probe()
            ground.end(CallError(Kind.TIMEOUT, "no whole answer"), one)
            blames.append(hanging.blame)

        assert blames[2:] == ["item"] * 7


def test_a_probe_that_fails_otherwise_than_by_a_429_is_charged_and_opens_the_gate() -> None:
    ground = Ground(16)
    ground.fill()
    ground.end_all(limited())
    ground.rest()
    assert ground.end(BROKEN, ground.go()).blame == "unknown"
    assert ground.fill() == 3
    ground.end_all(limited())
    assert ground.rest() == 2, "nothing was answered yet"


def test_what_an_outage_did_to_items_counts_for_nothing() -> None:
    ground = Ground(16)
    items = [ItemHistory() for _ in range(ENOUGH_ITEMS + 4)]
    blames = [ground.end(GONE, ground.go(item)).blame for item in items[:ENOUGH_ITEMS]]
    for item in items[ENOUGH_ITEMS:]:
        ground.rest()
        blames.append(ground.end(GONE, ground.go(item)).blame)
    assert blames == ["unknown"] * ENOUGH_ITEMS + ["endpoint"] * 4


def test_an_item_that_fails_again_once_another_was_sent_and_answered_is_at_fault() -> None:
    ground = Ground(16)
    one, sent_before = ItemHistory(), ground.go()
    assert ground.end(BROKEN, ground.go(one)).blame == "unknown"
    ground.end(None, sent_before)
    assert ground.end(BROKEN, ground.go(one)).blame == "unknown", "an endpoint may go on with what it had begun"
    ground.end(None, ground.go())
    assert ground.end(BROKEN, ground.go(one)).blame == "item"


# --- 429s of one item -------------------------------------------------------------------------------------------------


def test_an_item_that_gets_429s_while_others_are_answered_holds_up_nobody_a_second_time() -> None:
    ground = Ground(16)
    large = ItemHistory()
    assert ground.end(limited(10.0), ground.go(large)).blame == "endpoint"
    ground.probe(None)
    for _ in range(5):
        ground.end(None, ground.go())
        assert ground.end(limited(10.0), ground.go(large)).blame == "item"
        assert ground.limiter.waiting_text(ground.now) is None
    other = ItemHistory()
    assert ground.end(limited(10.0), ground.go(other)).blame == "unknown"
    assert ground.limiter.waiting_text(ground.now) is None, "429s have been the items' own"


def test_items_that_a_limit_refuses_again_and_again_are_not_at_fault() -> None:
    """A limit that lets one call of a burst through."""
    ground = Ground(16)
    waiting = [ItemHistory() for _ in range(40)]
    for _ in range(15):
        burst = [ground.go(waiting[n]) for n in range(len(waiting)) if ground.limiter.wait(ground.now) == 0]
        for one in burst[1:]:
            assert ground.end(limited(), one).blame == "endpoint"
        waiting.remove(ground.end(None, burst[0]))
        ground.rest()


def test_of_the_last_items_nobody_knows_and_none_waits_for_long() -> None:
    ground = Ground(16)
    ground.end(None, ground.go())
    last = ItemHistory()
    for _ in range(3):
        ground.rest()
        assert ground.end(limited(1.0), ground.go(last), OtherItems(too_few=True)).blame == "unknown"


# --- refusals, and shapes ---------------------------------------------------------------------------------------------

NO_KEY = CallError(Kind.UNAUTHORIZED, "HTTP 401: no such key", explicit=True)
PAGE = CallError(Kind.UNAUTHORIZED, "HTTP 403: Request blocked")
TURNS = CallError(Kind.BAD_REQUEST, "HTTP 400: roles must alternate", explicit=True)


@pytest.mark.parametrize("most", [1, 2, 3, 16])
def test_a_refusal_that_names_itself_ends_an_endpoint_within_what_is_in_flight(most: int) -> None:
    ground = Ground(most)
    ground.end(None, ground.go())
    calls = 0
    while not ground.limiter.given_up:
        calls += ground.fill()
        ground.end(NO_KEY)
    assert (calls, ground.limiter.given_up) == (max(3, most), "HTTP 401: no such key")


@pytest.mark.parametrize("error", [PAGE, TURNS])
def test_a_page_or_a_shape_ends_an_endpoint_only_with_an_item_from_elsewhere(error: CallError) -> None:
    ground = Ground(4)
    for _ in range(9):
        assert ground.end(error, ground.go()).blame == "unknown"
    assert ground.limiter.fault_unclear
    assert ground.end(error, ground.go(ItemHistory(sampled=True))).blame == "endpoint"
    assert ground.limiter.given_up is not None
    assert ground.limiter.given_up.endswith(error.message)


def test_an_item_from_elsewhere_that_is_answered_shows_whose_fault_it_is() -> None:
    ground = Ground(4)
    blocked = [ItemHistory() for _ in range(4)]
    for one in blocked:
        ground.end(PAGE, ground.go(one))
    assert ground.limiter.waiting_text(ground.now) == "failing (unauthorized), retries now"
    ground.end(None, ground.go(ItemHistory(sampled=True)))
    assert ground.limiter.waiting_text(ground.now) is None
    assert [ground.end(PAGE, ground.go(one)).blame for one in blocked] == ["item"] * 4
    for one in (ItemHistory(), ItemHistory(), ItemHistory(sampled=True)):
        assert ground.end(PAGE, ground.go(one)).blame == "unknown", "what was wrong once takes more to be believed"


def test_where_nothing_else_can_be_asked_the_items_there_are_tell() -> None:
    ground = Ground()
    assert ground.end(PAGE, ground.go(), OtherItems(enough=1, more_coming=False)).blame == "endpoint"


def test_while_it_is_in_doubt_calls_go_one_at_a_time_and_after_those_in_flight() -> None:
    ground = Ground(4)
    ground.fill()
    ground.end(NO_KEY, ground.out[-1])
    assert ground.limiter.wait(ground.now) == math.inf
    ground.end_all(None)
    assert ground.fill() == 1, "what was sent before says nothing"
    ground.end(None)
    assert ground.fill() == 4


def test_what_is_in_flight_may_tell_that_a_refusal_was_the_item_s() -> None:
    """A firewall answers in no time, and a model takes long."""
    ground = Ground(8)
    refused = [ground.go() for _ in range(3)]
    ground.fill()
    for one in refused:
        ground.end(NO_KEY, one)
    assert ground.limiter.given_up is None
    ground.end(None, ground.out[-1])
    assert ground.limiter.waiting_text(ground.now) is None
    assert ground.end(NO_KEY, ground.go(refused[0].item)).blame == "item"


def test_a_request_longer_than_all_that_were_answered_is_too_long_by_its_own_words() -> None:
    long = CallError(Kind.CONTEXT_OVERFLOW, "HTTP 400: 5021 of 4096 tokens", explicit=True)
    ground = Ground()
    assert ground.end(long, ground.go(ItemHistory(size=900))).blame == "unknown", "nothing was answered yet"
    ground.end(None, ground.go(ItemHistory(size=500)))
    for _ in range(9):
        assert ground.end(long, ground.go(ItemHistory(size=900))).blame == "item"
    assert ground.end(long, ground.go(ItemHistory(size=400))).blame == "unknown", "the endpoint takes less than before"


def test_what_is_asked_in_parts_where_it_is_too_long_says_nothing_of_others() -> None:
    long = CallError(Kind.CONTEXT_OVERFLOW, "HTTP 400: 5021 of 4096 tokens", explicit=True)
    ground = Ground()
    for _ in range(9):
        assert ground.end(long, ground.go(ItemHistory(size=900, may_split=True))).blame == "item"
    assert ground.limiter.given_up is None
    assert ground.end(NO_KEY, ground.go(ItemHistory(may_split=True))).blame != "item", "another refusal does"


# --- replies of no use ------------------------------------------------------------------------------------------------

EMPTY = CallError(Kind.EMPTY, "nothing")


def test_an_endpoint_whose_every_reply_is_of_no_use_is_given_up() -> None:
    ground = Ground()
    blames = [
        ground.end(EMPTY, ground.go(one)).blame for one in (ItemHistory(), ItemHistory(sampled=True), ItemHistory())
    ]
    assert blames == ["unknown", "unknown", "endpoint"]
    assert (
        ground.limiter.given_up == "none of its replies to 3 items in a row could be used; last error: empty: nothing"
    )


def test_the_shortest_replies_come_first_and_tell_nothing_while_others_are_in_flight() -> None:
    ground = Ground()
    ground.fill()
    empty = [ground.end(EMPTY, others=OtherItems(more_coming=False)) for _ in range(ENOUGH_ITEMS)]
    assert ground.limiter.given_up is None
    assert [one.blame for one in empty] == ["unknown"] * ENOUGH_ITEMS
    assert ground.limiter.wait(ground.now) == math.inf, "nothing more is paid for until one of them is of use"
    ground.end(None)
    assert ground.limiter.wait(ground.now) == 0
    assert ground.end(EMPTY, ground.go(empty[0])).blame == "item"
    ground.end_all(EMPTY)
    assert ground.limiter.given_up is None


def test_where_those_in_flight_are_of_no_use_either_it_is_given_up() -> None:
    ground = Ground()
    ground.fill()
    ground.out[5].item.sampled = True
    ground.end_all(EMPTY)
    assert ground.limiter.given_up is not None


def test_a_reply_that_the_server_gave_up_is_no_reply_of_no_use_and_rests_nobody_alone() -> None:
    ground = Ground()
    ground.fill()
    gave_up = CallError(Kind.BAD_REPLY, "finished by abort", reply=Reply("a", None, Usage(1, 1)), explicit=True)
    assert ground.end(gave_up).blame == "unknown"
    assert ground.limiter.waiting_text(ground.now) is None
    for _ in range(ENOUGH_ITEMS):
        ground.end(gave_up)
    assert ground.limiter.given_up is None
    assert ground.limiter.waiting_text(ground.now) is not None, "it is waited for"


def test_a_timeout_does_not_clear_a_doubt() -> None:
    ground = Ground()
    for error in (EMPTY, EMPTY, EMPTY, CallError(Kind.TIMEOUT, "30 s")):
        ground.end(error, ground.go())
    assert ground.end(EMPTY, ground.go(ItemHistory(sampled=True))).blame == "endpoint"


def test_one_that_was_ever_of_use_goes_on() -> None:
    ground = Ground()
    ground.end(None, ground.go())
    used_before = Ground()
    used_before.limiter = ConcurrencyLimiter(16, RetryPolicy(), lambda: 1.0, usable=True)
    for one in (ground, used_before):
        assert [one.end(EMPTY, one.go()).blame for _ in range(9)] == ["item"] * 9
        assert one.limiter.given_up is None


def test_one_that_was_of_use_is_given_up_after_many_replies_of_none() -> None:
    ground = Ground()
    ground.end(None, ground.go())
    calls = 0
    while not ground.limiter.given_up:
        ground.end(EMPTY, ground.go())
        calls += 1
    assert calls == ENOUGH_UNUSABLE
    red_team = Ground()
    for _ in range(ENOUGH_UNUSABLE - 1):
        red_team.end(CallError(Kind.BLOCKED, "no"), red_team.go())
    assert red_team.limiter.given_up is None, "a filter may take out most of a set"


def lasting(ground: Ground, error: CallError) -> float:
    """Seconds of nothing but this until the gate is given up."""
    ground.fill()
    began = ground.now
    ground.end_all(error)
    while not ground.limiter.given_up:
        ground.probe(error)
    return ground.now - began


def test_an_address_never_heard_is_given_up_after_a_minute() -> None:
    ground = Ground()
    assert 60 <= lasting(ground, GONE) <= 120
    assert ground.limiter.given_up == "no call was answered for 63 s; last error: connection: nobody there"


@pytest.mark.parametrize("error", [GONE, BROKEN, limited(1.0), limited(86_400.0), limited()])
def test_one_that_was_heard_is_waited_for_half_an_hour(error: CallError) -> None:
    ground = Ground()
    ground.fill()
    ground.end(None)
    assert 1800 <= lasting(ground, error) <= 1860


def test_a_429_that_says_when_to_come_back_is_an_answer_of_a_kind() -> None:
    for said, patient in ((limited(2.0), True), (limited(), False)):
        ground = Ground()
        ground.fill()
        ground.end(said)
        assert (lasting(ground, GONE) >= 1800) == patient


def test_a_minute_of_answers_now_and_then_is_never_given_up() -> None:
    ground = Ground()
    for _ in range(200):
        ground.fill()
        ground.end_all(limited(60.0))
        ground.probe(limited(60.0))
        ground.probe(None)

    assert ground.limiter.given_up is None


def test_a_probe_that_was_never_sent_lets_another_go() -> None:
    ground = Ground()
    ground.fill()
    ground.end_all(limited())
    ground.rest()
    ground.limiter.leave(ground.go())
    assert ground.limiter.wait(ground.now) == 0


def test_a_server_that_comes_up_anew_has_no_past() -> None:
    ground = Ground()
    ground.fill()
    for _ in range(9):
        ground.end(GONE)
    ground.now += 3600
    ground.limiter.reset()
    assert ground.limiter.waiting_text(ground.now) is None
    assert ground.end(GONE).blame == "unknown", "sent to the former one"
    assert ground.limiter.given_up is None


kinds = st.none() | st.sampled_from(sorted(Kind))


@given(st.integers(1, 40), st.lists(st.tuples(kinds, st.integers(0, 50), st.floats(0, 90)), max_size=200))
def test_whatever_happens_calls_stay_within_bounds_and_one_may_go_in_the_end(
    most: int, course: list[tuple[Kind | None, int, float]]
) -> None:
    ground = Ground(most)
    for kind, which, later in course:
        ground.fill()
        assert 1 <= len(ground.out) == ground.limiter.in_flight <= most
        one = ground.out[which % len(ground.out)]
        ground.end(CallError(kind, "said", retry_after=later) if kind else None, one)
        ground.now += later
        if not ground.out:
            ground.rest()
    ground.end_all()
    ground.rest()
    assert ground.fill() >= 1


def test_time_in_which_nothing_was_asked_counts_for_no_outage() -> None:
    """A judge that has no work for an hour is not given up by the first trouble after it."""
    ground = Ground()
    ground.go()
    ground.end()
    ground.go()
    ground.end(BROKEN)
    ground.now += 3600.0
    ground.fill()
    ground.end_all(GONE)
    assert ground.limiter.given_up is None

    while ground.limiter.given_up is None:
        ground.probe(GONE)
    assert 3600.0 + RetryPolicy().outage_s <= ground.now <= 3600.0 + RetryPolicy().outage_s + 120.0
