"""aif/chat/retry.py, with a sleep that only counts."""

import asyncio

import pytest

from aif.chat.base import PROVIDER, REASKED, TRANSIENT, CallError, Kind
from aif.chat.retry import Attempt, Blame, Policy, Verdict, persist


class Rehearsal:
    """One item whose calls fail as listed and then succeed; remembers everything in the order it happened."""

    def __init__(
        self,
        *failures: CallError | Kind,
        policy: Policy | None = None,
        jitter: float = 1.0,
        stop_at: int = 10**9,
        blame: Blame = "item",
    ) -> None:
        self.failures = [CallError(f, "failed") if isinstance(f, Kind) else f for f in failures]
        self.policy = policy or Policy()
        self.jitter = jitter
        self.stop_at = stop_at
        self.blame = blame
        self.waits: list[float] = []
        self.events: list[str] = []

    async def call(self, n: int) -> str:
        self.events.append(f"call {n}")
        if n <= len(self.failures):
            raise self.failures[n - 1]
        return "answer"

    async def report(self, attempt: Attempt[str]) -> None:
        self.events.append(f"{attempt.verdict} {attempt.n}")

    async def sleep(self, seconds: float) -> bool:
        self.events.append("sleep")
        self.waits.append(seconds)
        return len(self.waits) < self.stop_at

    async def run(self) -> Attempt[str]:
        return await persist(self.call, self.policy, self.report, self.sleep, lambda: self.jitter, lambda: self.blame)


async def test_an_answer_at_once() -> None:
    item = Rehearsal()

    assert await item.run() == Attempt(n=1, verdict="answered", result="answer", error=None)
    assert item.events == ["call 1", "answered 1"]


async def test_every_attempt_is_reported_before_the_wait() -> None:
    item = Rehearsal(Kind.SERVER_ERROR, Kind.EMPTY)
    last = await item.run()

    assert item.events == [
        "call 1", "again 1", "sleep",
        "call 2", "again 2", "sleep",
        "call 3", "answered 3",
    ]  # fmt: skip
    assert (last.n, last.result) == (3, "answer")


@pytest.mark.parametrize(
    ("kinds", "calls", "verdict"),
    [({Kind.TIMEOUT, Kind.CONNECTION}, 6, "later"), (REASKED, 3, "failed"), (PROVIDER, 1, "refused")]
    + [({kind}, 1, "failed") for kind in (Kind.CONTEXT_OVERFLOW, Kind.BLOCKED, Kind.BAD_REQUEST)]
    + [({Kind.SERVER_ERROR, Kind.BAD_REPLY}, 6, "failed")],
)
async def test_verdicts(kinds: frozenset[Kind], calls: int, verdict: Verdict) -> None:
    for kind in kinds:
        item = Rehearsal(*[kind] * 99)
        last = await item.run()

        assert (last.n, last.verdict) == (calls, verdict)
        assert last.error is item.failures[calls - 1]
        assert item.events.count(f"{verdict} {calls}") == 1


async def test_every_kind_has_a_verdict() -> None:
    for kind in Kind:
        assert (await Rehearsal(*[kind] * 99).run()).verdict in ("later", "failed", "refused")


async def test_each_sort_of_failure_has_its_own_count() -> None:
    item = Rehearsal(*[Kind.TIMEOUT] * 5, Kind.UNREADABLE, Kind.EMPTY)
    last = await item.run()

    assert (last.n, last.verdict) == (8, "answered")


async def test_what_is_the_endpoint_s_doing_counts_for_nothing_and_waits_at_its_gate() -> None:
    kinds = sorted(TRANSIENT) * 20
    item = Rehearsal(*kinds, blame="endpoint")
    last = await item.run()

    assert (last.n, last.verdict) == (len(kinds) + 1, "answered")
    assert set(item.waits) == {0}


async def test_the_same_answer_again_and_again_is_the_item_s_failure_and_others_may_pass() -> None:
    def failures(*words: str) -> list[CallError]:
        return [CallError(Kind.SERVER_ERROR, word) for word in words]

    same = failures(*[f"HTTP 500: no rule for token {n} (req-{n:x}f{n})" for n in range(11, 17)])
    mixed = failures("a", "b", "a", "b", "c", "d")

    assert (await Rehearsal(*same).run()).verdict == "failed"
    assert (await Rehearsal(*mixed).run()).verdict == "later"
    assert (await Rehearsal(*same, blame="unknown").run()).verdict == "later", "nobody else was answered"
    timeouts = [CallError(Kind.TIMEOUT, "no whole answer")] * 3
    assert (await Rehearsal(*timeouts, *same[:2], *timeouts).run()).verdict == "later"
    assert (await Rehearsal(*timeouts, *same[:3]).run()).verdict == "failed"


async def test_a_request_refused_before_anything_was_answered_waits_for_another_run() -> None:
    assert (await Rehearsal(Kind.BAD_REQUEST, blame="unknown").run()).verdict == "later"


async def test_waits_double_up_to_the_longest() -> None:
    item = Rehearsal(*[Kind.TIMEOUT] * 9, policy=Policy(attempts=10))
    await item.run()

    assert item.waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_half_of_a_wait_is_by_chance() -> None:
    item = Rehearsal(*[Kind.SERVER_ERROR] * 3, jitter=0.0)
    await item.run()

    assert item.waits == [0.5, 1, 2]


async def test_what_another_sample_may_mend_is_asked_at_once() -> None:
    item = Rehearsal(Kind.TIMEOUT, Kind.TRUNCATED, Kind.UNREADABLE)
    await item.run()

    assert item.waits == [1, 0, 0]


@pytest.mark.parametrize(("asked", "waited"), [(7.5, 7.5), (60.0, 60.0), (86400.0, 60.0), (0.25, 1.0), (0.0, 1.0)])
async def test_a_server_s_wish_is_obeyed_up_to_the_longest_wait(asked: float, waited: float) -> None:
    item = Rehearsal(CallError(Kind.SERVER_ERROR, "busy", retry_after=asked))
    await item.run()

    assert item.waits == [waited]


async def test_a_run_that_stops_leaves_the_item_for_later() -> None:
    item = Rehearsal(*[Kind.EMPTY] * 2, Kind.TIMEOUT, stop_at=2)
    last = await item.run()

    assert (last.n, last.verdict) == (2, "later")
    assert last.error is item.failures[1]
    assert item.events == ["call 1", "again 1", "sleep", "call 2", "again 2", "sleep"]


async def test_the_policy_s_numbers() -> None:
    policy = Policy(attempts=4, reasks=1, first_wait_s=0.1, longest_wait_s=0.15)

    assert (await Rehearsal(*[Kind.EMPTY] * 9, policy=policy).run()).n == 1
    item = Rehearsal(*[Kind.TIMEOUT] * 9, policy=policy)
    assert (await item.run()).n == 4
    assert item.waits == [0.1, 0.15, 0.15]


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), ValueError("a bug"), KeyboardInterrupt()])
async def test_what_is_no_call_error_passes_through(raised: BaseException) -> None:
    async def call(n: int) -> str:
        raise raised

    item = Rehearsal()
    with pytest.raises(type(raised)):
        await persist(call, item.policy, item.report, item.sleep)

    assert item.events == []


async def test_an_error_of_the_report_ends_the_item() -> None:
    async def report(_: Attempt[str]) -> None:
        raise OSError("disk full")

    item = Rehearsal(Kind.TIMEOUT)
    with pytest.raises(OSError, match="disk full"):
        await persist(item.call, item.policy, report, item.sleep)

    assert item.events == ["call 1"]
