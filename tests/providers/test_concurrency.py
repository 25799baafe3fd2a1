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


class Simulation:
    """A limiter and the calls made through it. Each call is for a new item unless one is given."""

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

    def wait(self) -> float:
        """Waits until a call may be sent; returns how long that took."""
        waited = self.limiter.wait(self.now)
        assert waited < math.inf
        self.now += waited
        return waited

    def probe(self, error: CallError | None = None) -> float:
        """Waits, sends the probe, and ends it; how long the wait was."""
        waited = self.wait()
        assert self.fill() == 1
        self.end(error, self.out[-1])
        return waited


def test_as_many_calls_as_are_declared_go_at_once() -> None:
    simulation = Simulation(16)

    assert simulation.fill() == 16
    simulation.end()
    assert simulation.fill() == 1


def test_a_429_pauses_the_endpoint_for_as_long_as_it_says_and_then_one_call_goes() -> None:
    simulation = Simulation()
    simulation.fill()
    assert simulation.end(limited(7.0)).blame == "endpoint"
    assert simulation.limiter.waiting_text(simulation.now) == "rate limited, retries in 7 s"
    assert simulation.wait() == 7
    assert simulation.fill() == 1, "the probe"
    assert simulation.limiter.wait(simulation.now) == math.inf
    assert simulation.limiter.waiting_text(simulation.now) == "rate limited, retries now"


def test_what_was_sent_before_the_429_shrinks_nothing_more_and_opens_nothing() -> None:
    simulation = Simulation(16)
    simulation.fill()
    simulation.end(limited(5.0))
    for _ in range(10):
        assert simulation.end(limited(5.0)).blame == "endpoint"
    simulation.end()  # one was let through
    simulation.end(limited(30.0))  # and one waits longer
    simulation.end_all()
    assert simulation.probe() == 30
    reached = [simulation.limiter.window]
    while len(reached) < 8:
        simulation.fill()
        simulation.end_all()
        reached.append(simulation.limiter.window)

    assert reached[:4] == [3, 6, 12, 14], "a quarter of four fifths of 16, then twice as many a round, then slowly"
    assert max(reached) == 16, "never above what is declared"


@pytest.mark.parametrize(
    ("asked", "first", "tenth"),
    [(1.0, 1, MAX_HINTED_BACKOFF_S), (0.0, 1, 60), (None, 1, 60), (121.0, 60, 60), (86_400.0, 60, 60), (20.0, 20, 20)],
)
def test_rests_in_a_row_grow_up_to_a_minute_with_a_call_each(asked: float | None, first: float, tenth: float) -> None:
    simulation = Simulation()
    simulation.fill()
    simulation.end_all(limited(asked))
    waits = [simulation.probe(limited(asked)) for _ in range(10)]

    assert (waits[0], waits[-1]) == (first, tenth)
    simulation.probe()
    assert simulation.fill() == 3


def test_a_server_that_takes_four_calls_at_a_time_is_found_out() -> None:
    """It refuses the fifth. Soon nearly nothing is refused."""
    simulation = Simulation(64)
    refused = sent = 0
    for _ in range(60):
        n = simulation.fill()
        sent, refused = sent + n, refused + max(0, n - 4)
        for place in range(n):
            simulation.end(limited() if place >= 4 else None)
        simulation.now += 1
        simulation.wait()

    assert refused < 64 + 40
    assert 1 <= simulation.limiter.window <= 6


def test_server_errors_pause_growth_and_take_nothing() -> None:
    simulation = Simulation(16)
    simulation.fill()
    simulation.end_all(limited())
    simulation.probe()
    grown = []
    for error in (None, BROKEN, None, None):
        simulation.fill()
        simulation.end(error)
        simulation.end_all()
        grown.append(simulation.limiter.window)

    assert grown == [6, 6, 11, 13], "one failure holds up a round"


def test_failures_of_several_items_in_a_row_are_the_endpoint_s_and_one_item_s_own_are_not() -> None:
    simulation = Simulation()
    one = ItemHistory()
    for _ in range(20):  # the same item, whose endpoint answers nobody: it is asked as often as its attempts allow
        simulation.end(BROKEN, simulation.go(one))
        assert one.blame == "unknown"
    blames = [simulation.end(BROKEN, simulation.go()).blame for _ in range(ENOUGH_ITEMS - 1)]

    assert blames == ["unknown"] * (ENOUGH_ITEMS - 1)
    assert simulation.limiter.waiting_text(simulation.now) == "not answering (server_error), retries in 1 s"
    assert simulation.probe(BROKEN) == 1
    assert simulation.wait() == 2


def test_an_answer_between_is_no_outage() -> None:
    simulation = Simulation()
    for _ in range(50):
        for _ in range(ENOUGH_ITEMS - 1):
            simulation.end(GONE, simulation.go())
        simulation.end(None, simulation.go())

    assert simulation.limiter.waiting_text(simulation.now) is None
    assert simulation.fill() == 16


def test_items_that_fail_while_others_are_answered_are_no_outage_however_many() -> None:
    """At the end of a run nothing else may be left."""
    simulation = Simulation(16)
    hopeless = [ItemHistory() for _ in range(12)]
    for one in hopeless:
        simulation.end(BROKEN, simulation.go(one))
        simulation.end(None, simulation.go())
    for _ in range(5):
        for one in hopeless:
            simulation.end(BROKEN, simulation.go(one))
            assert one.blame == "item"

    assert simulation.limiter.waiting_text(simulation.now) is None


def test_an_answer_to_what_was_sent_before_an_outage_ends_it() -> None:
    simulation = Simulation(16)
    simulation.fill()
    for _ in range(ENOUGH_ITEMS):
        simulation.end(GONE)
    assert simulation.end(GONE).blame == "unknown", "sent before, and failed after"
    assert simulation.limiter.waiting_text(simulation.now) is not None
    simulation.end(None)
    assert simulation.limiter.waiting_text(simulation.now) is None


@pytest.mark.parametrize("most", [1, 2, 16])
def test_three_different_items_tell_an_outage_however_many_go_at_a_time(most: int) -> None:
    simulation = Simulation(most)
    for _ in range(3):
        assert simulation.limiter.waiting_text(simulation.now) is None
        assert simulation.end(GONE, simulation.go()).blame == "unknown"
    assert simulation.limiter.waiting_text(simulation.now) is not None


def test_where_there_are_fewer_items_all_of_them_tell() -> None:
    simulation = Simulation()
    only = ItemHistory()
    assert simulation.end(GONE, simulation.go(only), OtherItems(enough=1)).blame == "unknown"
    simulation.wait()
    assert simulation.end(GONE, simulation.go(only), OtherItems(enough=1)).blame == "endpoint", (
        "waited for, and not counted"
    )


def test_what_a_server_says_of_itself_is_believed_at_once() -> None:
    loading = CallError(Kind.SERVER_ERROR, "HTTP 503: loading model", busy=True)
    simulation = Simulation()
    last = ItemHistory()
    simulation.end(loading, simulation.go(last), OtherItems(too_few=True))
    simulation.wait()
    assert simulation.end(loading, simulation.go(last), OtherItems(too_few=True)).blame == "endpoint"
    assert 1800 <= lasting(simulation, GONE) <= 1870, "and heard"


def test_an_item_that_hangs_for_ever_is_charged_for_it_whatever_happens_meanwhile() -> None:
    """Its call takes longer than the endpoint goes without a 429, or without an outage."""
    for trouble in (limited(1.0), GONE):
        simulation = Simulation(16)
        hanging = ItemHistory()
        blames = []
        for _ in range(9):
            for _ in range(50):
                simulation.end(None, simulation.go())
            one = simulation.go(hanging)
            for _ in range(ENOUGH_ITEMS):
                if simulation.limiter.wait(simulation.now) == 0:
                    simulation.end(trouble, simulation.go())
            simulation.probe()
            simulation.end(CallError(Kind.TIMEOUT, "no whole answer"), one)
            blames.append(hanging.blame)

        assert blames[2:] == ["item"] * 7


def test_a_probe_that_fails_otherwise_than_by_a_429_is_charged_and_ends_the_pause() -> None:
    simulation = Simulation(16)
    simulation.fill()
    simulation.end_all(limited())
    simulation.wait()
    assert simulation.end(BROKEN, simulation.go()).blame == "unknown"
    assert simulation.fill() == 3
    simulation.end_all(limited())
    assert simulation.wait() == 2, "nothing was answered yet"


def test_what_an_outage_did_to_items_counts_for_nothing() -> None:
    simulation = Simulation(16)
    items = [ItemHistory() for _ in range(ENOUGH_ITEMS + 4)]
    blames = [simulation.end(GONE, simulation.go(item)).blame for item in items[:ENOUGH_ITEMS]]
    for item in items[ENOUGH_ITEMS:]:
        simulation.wait()
        blames.append(simulation.end(GONE, simulation.go(item)).blame)
    assert blames == ["unknown"] * ENOUGH_ITEMS + ["endpoint"] * 4


def test_an_item_that_fails_again_once_another_was_sent_and_answered_is_at_fault() -> None:
    simulation = Simulation(16)
    one, sent_before = ItemHistory(), simulation.go()
    assert simulation.end(BROKEN, simulation.go(one)).blame == "unknown"
    simulation.end(None, sent_before)
    assert simulation.end(BROKEN, simulation.go(one)).blame == "unknown", "an endpoint may go on with what it had begun"
    simulation.end(None, simulation.go())
    assert simulation.end(BROKEN, simulation.go(one)).blame == "item"


# --- 429s of one item -------------------------------------------------------------------------------------------------


def test_an_item_that_gets_429s_while_others_are_answered_holds_up_nobody_a_second_time() -> None:
    simulation = Simulation(16)
    large = ItemHistory()
    assert simulation.end(limited(10.0), simulation.go(large)).blame == "endpoint"
    simulation.probe(None)
    for _ in range(5):
        simulation.end(None, simulation.go())
        assert simulation.end(limited(10.0), simulation.go(large)).blame == "item"
        assert simulation.limiter.waiting_text(simulation.now) is None
    other = ItemHistory()
    assert simulation.end(limited(10.0), simulation.go(other)).blame == "unknown"
    assert simulation.limiter.waiting_text(simulation.now) is None, "429s have been the items' own"


def test_items_that_a_limit_refuses_again_and_again_are_not_at_fault() -> None:
    """A limit that lets one call of a burst through."""
    simulation = Simulation(16)
    waiting = [ItemHistory() for _ in range(40)]
    for _ in range(15):
        burst = [simulation.go(waiting[n]) for n in range(len(waiting)) if simulation.limiter.wait(simulation.now) == 0]
        for one in burst[1:]:
            assert simulation.end(limited(), one).blame == "endpoint"
        waiting.remove(simulation.end(None, burst[0]))
        simulation.wait()


def test_of_the_last_items_nobody_knows_and_none_waits_for_long() -> None:
    simulation = Simulation(16)
    simulation.end(None, simulation.go())
    last = ItemHistory()
    for _ in range(3):
        simulation.wait()
        assert simulation.end(limited(1.0), simulation.go(last), OtherItems(too_few=True)).blame == "unknown"


# --- refusals, and shapes ---------------------------------------------------------------------------------------------

NO_KEY = CallError(Kind.UNAUTHORIZED, "HTTP 401: no such key", explicit=True)
PAGE = CallError(Kind.UNAUTHORIZED, "HTTP 403: Request blocked")
TURNS = CallError(Kind.BAD_REQUEST, "HTTP 400: roles must alternate", explicit=True)


@pytest.mark.parametrize("most", [1, 2, 3, 16])
def test_a_refusal_that_names_itself_ends_an_endpoint_within_what_is_in_flight(most: int) -> None:
    simulation = Simulation(most)
    simulation.end(None, simulation.go())
    calls = 0
    while not simulation.limiter.given_up:
        calls += simulation.fill()
        simulation.end(NO_KEY)
    assert (calls, simulation.limiter.given_up) == (max(3, most), "HTTP 401: no such key")


@pytest.mark.parametrize("error", [PAGE, TURNS])
def test_a_page_or_a_shape_ends_an_endpoint_only_with_an_item_from_elsewhere(error: CallError) -> None:
    simulation = Simulation(4)
    for _ in range(9):
        assert simulation.end(error, simulation.go()).blame == "unknown"
    assert simulation.limiter.fault_unclear
    assert simulation.end(error, simulation.go(ItemHistory(sampled=True))).blame == "endpoint"
    assert simulation.limiter.given_up is not None
    assert simulation.limiter.given_up.endswith(error.message)


def test_an_item_from_elsewhere_that_is_answered_shows_whose_fault_it_is() -> None:
    simulation = Simulation(4)
    blocked = [ItemHistory() for _ in range(4)]
    for one in blocked:
        simulation.end(PAGE, simulation.go(one))
    assert simulation.limiter.waiting_text(simulation.now) == "failing (unauthorized), retries now"
    simulation.end(None, simulation.go(ItemHistory(sampled=True)))
    assert simulation.limiter.waiting_text(simulation.now) is None
    assert [simulation.end(PAGE, simulation.go(one)).blame for one in blocked] == ["item"] * 4
    for one in (ItemHistory(), ItemHistory(), ItemHistory(sampled=True)):
        assert simulation.end(PAGE, simulation.go(one)).blame == "unknown", (
            "what was wrong once takes more to be believed"
        )


def test_where_nothing_else_can_be_asked_the_items_there_are_tell() -> None:
    simulation = Simulation()
    assert simulation.end(PAGE, simulation.go(), OtherItems(enough=1, more_coming=False)).blame == "endpoint"


def test_while_it_is_unclear_calls_go_one_at_a_time_and_after_those_in_flight() -> None:
    simulation = Simulation(4)
    simulation.fill()
    simulation.end(NO_KEY, simulation.out[-1])
    assert simulation.limiter.wait(simulation.now) == math.inf
    simulation.end_all(None)
    assert simulation.fill() == 1, "what was sent before says nothing"
    simulation.end(None)
    assert simulation.fill() == 4


def test_what_is_in_flight_may_tell_that_a_refusal_was_the_item_s() -> None:
    """A firewall answers in no time, and a model takes long."""
    simulation = Simulation(8)
    refused = [simulation.go() for _ in range(3)]
    simulation.fill()
    for one in refused:
        simulation.end(NO_KEY, one)
    assert simulation.limiter.given_up is None
    simulation.end(None, simulation.out[-1])
    assert simulation.limiter.waiting_text(simulation.now) is None
    assert simulation.end(NO_KEY, simulation.go(refused[0].item)).blame == "item"


def test_a_request_longer_than_all_that_were_answered_is_too_long_by_its_own_words() -> None:
    long = CallError(Kind.CONTEXT_OVERFLOW, "HTTP 400: 5021 of 4096 tokens", explicit=True)
    simulation = Simulation()
    assert simulation.end(long, simulation.go(ItemHistory(size=900))).blame == "unknown", "nothing was answered yet"
    simulation.end(None, simulation.go(ItemHistory(size=500)))
    for _ in range(9):
        assert simulation.end(long, simulation.go(ItemHistory(size=900))).blame == "item"
    assert simulation.end(long, simulation.go(ItemHistory(size=400))).blame == "unknown", (
        "the endpoint takes less than before"
    )


def test_what_is_asked_in_parts_where_it_is_too_long_says_nothing_of_others() -> None:
    long = CallError(Kind.CONTEXT_OVERFLOW, "HTTP 400: 5021 of 4096 tokens", explicit=True)
    simulation = Simulation()
    for _ in range(9):
        assert simulation.end(long, simulation.go(ItemHistory(size=900, may_split=True))).blame == "item"
    assert simulation.limiter.given_up is None
    assert simulation.end(NO_KEY, simulation.go(ItemHistory(may_split=True))).blame != "item", "another refusal does"


# --- replies of no use ------------------------------------------------------------------------------------------------

EMPTY = CallError(Kind.EMPTY, "nothing")


def test_an_endpoint_whose_every_reply_is_of_no_use_is_given_up() -> None:
    simulation = Simulation()
    blames = [
        simulation.end(EMPTY, simulation.go(one)).blame
        for one in (ItemHistory(), ItemHistory(sampled=True), ItemHistory())
    ]
    assert blames == ["unknown", "unknown", "endpoint"]
    assert (
        simulation.limiter.given_up
        == "none of its replies to 3 items in a row could be used; last error: empty: nothing"
    )


def test_the_shortest_replies_come_first_and_tell_nothing_while_others_are_in_flight() -> None:
    simulation = Simulation()
    simulation.fill()
    empty = [simulation.end(EMPTY, others=OtherItems(more_coming=False)) for _ in range(ENOUGH_ITEMS)]
    assert simulation.limiter.given_up is None
    assert [one.blame for one in empty] == ["unknown"] * ENOUGH_ITEMS
    assert simulation.limiter.wait(simulation.now) == math.inf, "nothing more is paid for until one of them is of use"
    simulation.end(None)
    assert simulation.limiter.wait(simulation.now) == 0
    assert simulation.end(EMPTY, simulation.go(empty[0])).blame == "item"
    simulation.end_all(EMPTY)
    assert simulation.limiter.given_up is None


def test_where_those_in_flight_are_of_no_use_either_it_is_given_up() -> None:
    simulation = Simulation()
    simulation.fill()
    simulation.out[5].item.sampled = True
    simulation.end_all(EMPTY)
    assert simulation.limiter.given_up is not None


def test_a_reply_that_the_server_gave_up_is_no_reply_of_no_use_and_rests_nobody_alone() -> None:
    simulation = Simulation()
    simulation.fill()
    gave_up = CallError(Kind.BAD_REPLY, "finished by abort", reply=Reply("a", None, Usage(1, 1)), explicit=True)
    assert simulation.end(gave_up).blame == "unknown"
    assert simulation.limiter.waiting_text(simulation.now) is None
    for _ in range(ENOUGH_ITEMS):
        simulation.end(gave_up)
    assert simulation.limiter.given_up is None
    assert simulation.limiter.waiting_text(simulation.now) is not None, "it is waited for"


def test_a_timeout_does_not_clear_a_suspicion() -> None:
    simulation = Simulation()
    for error in (EMPTY, EMPTY, EMPTY, CallError(Kind.TIMEOUT, "30 s")):
        simulation.end(error, simulation.go())
    assert simulation.end(EMPTY, simulation.go(ItemHistory(sampled=True))).blame == "endpoint"


def test_one_that_was_ever_of_use_goes_on() -> None:
    simulation = Simulation()
    simulation.end(None, simulation.go())
    used_before = Simulation()
    used_before.limiter = ConcurrencyLimiter(16, RetryPolicy(), lambda: 1.0, usable=True)
    for one in (simulation, used_before):
        assert [one.end(EMPTY, one.go()).blame for _ in range(9)] == ["item"] * 9
        assert one.limiter.given_up is None


def test_one_that_was_of_use_is_given_up_after_many_replies_of_none() -> None:
    simulation = Simulation()
    simulation.end(None, simulation.go())
    calls = 0
    while not simulation.limiter.given_up:
        simulation.end(EMPTY, simulation.go())
        calls += 1
    assert calls == ENOUGH_UNUSABLE
    red_team = Simulation()
    for _ in range(ENOUGH_UNUSABLE - 1):
        red_team.end(CallError(Kind.BLOCKED, "no"), red_team.go())
    assert red_team.limiter.given_up is None, "a filter may take out most of a set"


def lasting(simulation: Simulation, error: CallError) -> float:
    """Seconds of only this error until the endpoint is given up."""
    simulation.fill()
    began = simulation.now
    simulation.end_all(error)
    while not simulation.limiter.given_up:
        simulation.probe(error)
    return simulation.now - began


def test_an_address_never_heard_is_given_up_after_a_minute() -> None:
    simulation = Simulation()
    assert 60 <= lasting(simulation, GONE) <= 120
    assert simulation.limiter.given_up == "no call was answered for 63 s; last error: connection: nobody there"


@pytest.mark.parametrize("error", [GONE, BROKEN, limited(1.0), limited(86_400.0), limited()])
def test_one_that_was_heard_is_waited_for_half_an_hour(error: CallError) -> None:
    simulation = Simulation()
    simulation.fill()
    simulation.end(None)
    assert 1800 <= lasting(simulation, error) <= 1860


def test_a_429_that_says_when_to_come_back_is_an_answer_of_a_kind() -> None:
    for said, patient in ((limited(2.0), True), (limited(), False)):
        simulation = Simulation()
        simulation.fill()
        simulation.end(said)
        assert (lasting(simulation, GONE) >= 1800) == patient


def test_a_minute_of_answers_now_and_then_is_never_given_up() -> None:
    simulation = Simulation()
    for _ in range(200):
        simulation.fill()
        simulation.end_all(limited(60.0))
        simulation.probe(limited(60.0))
        simulation.probe(None)

    assert simulation.limiter.given_up is None


def test_a_probe_that_was_never_sent_lets_another_go() -> None:
    simulation = Simulation()
    simulation.fill()
    simulation.end_all(limited())
    simulation.wait()
    simulation.limiter.leave(simulation.go())
    assert simulation.limiter.wait(simulation.now) == 0


def test_a_server_that_comes_up_anew_has_no_past() -> None:
    simulation = Simulation()
    simulation.fill()
    for _ in range(9):
        simulation.end(GONE)
    simulation.now += 3600
    simulation.limiter.reset()
    assert simulation.limiter.waiting_text(simulation.now) is None
    assert simulation.end(GONE).blame == "unknown", "sent to the former one"
    assert simulation.limiter.given_up is None


kinds = st.none() | st.sampled_from(sorted(Kind))


@given(st.integers(1, 40), st.lists(st.tuples(kinds, st.integers(0, 50), st.floats(0, 90)), max_size=200))
def test_whatever_happens_calls_stay_within_bounds_and_one_may_go_in_the_end(
    most: int, course: list[tuple[Kind | None, int, float]]
) -> None:
    simulation = Simulation(most)
    for kind, which, later in course:
        simulation.fill()
        assert 1 <= len(simulation.out) == simulation.limiter.in_flight <= most
        one = simulation.out[which % len(simulation.out)]
        simulation.end(CallError(kind, "said", retry_after=later) if kind else None, one)
        simulation.now += later
        if not simulation.out:
            simulation.wait()
    simulation.end_all()
    simulation.wait()
    assert simulation.fill() >= 1


def test_time_in_which_nothing_was_asked_counts_for_no_outage() -> None:
    """A judge that has no work for an hour is not given up by the first trouble after it."""
    simulation = Simulation()
    simulation.go()
    simulation.end()
    simulation.go()
    simulation.end(BROKEN)
    simulation.now += 3600.0
    simulation.fill()
    simulation.end_all(GONE)
    assert simulation.limiter.given_up is None

    while simulation.limiter.given_up is None:
        simulation.probe(GONE)
    assert 3600.0 + RetryPolicy().outage_s <= simulation.now <= 3600.0 + RetryPolicy().outage_s + 120.0
