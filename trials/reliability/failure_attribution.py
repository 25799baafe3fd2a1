"""19. Which failures are an item's and which the endpoint's, in simulated worlds where the truth is known."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aif.core.types import Message
from aif.engine.work_queue import QueueItem, WorkQueue, run_workers
from aif.providers.base import ACCESS_ERRORS, REQUEST_ERRORS, TRANSIENT, CallError, Kind, Reply, Request
from aif.providers.concurrency import ENOUGH_ITEMS, OtherItems
from aif.providers.endpoint import Endpoint, Halted
from aif.providers.rate_limits import RateLimiter
from aif.providers.retry import RetryPolicy, Verdict
from trials.reliability import Figures, fast_clock

NUMBER = 19
PROMISE = (
    "Other items' replies decide who is at fault for a failure: an item that can never be answered fails alone, a "
    "failing endpoint is waited for, and one that refuses stops with its items pending."
)
WORLDS, SHORT = 2000, 150
SHORTER, LONG = 10, 99  # characters in a prompt
POLICY = RetryPolicy()


@dataclass(frozen=True, slots=True)
class FailingReply:
    """An error that a server returns, and after how long. `certain`: the server's own words name the error's kind."""

    kind: Kind
    words: str
    certain: bool = False
    busy: bool = False
    retry_after: float | None = None
    takes_s: float = 0.05

    @property
    def error(self) -> CallError:
        return CallError(self.kind, self.words, explicit=self.certain, busy=self.busy, retry_after=self.retry_after)


PASSING = [
    FailingReply(Kind.SERVER_ERROR, "HTTP 500: boom"),
    FailingReply(Kind.SERVER_ERROR, "HTTP 503: loading model", busy=True),
    FailingReply(Kind.SERVER_ERROR, "HTTP 503: try later", retry_after=5.0),
    FailingReply(Kind.TIMEOUT, "No whole answer within 30 s.", takes_s=30.0),
    FailingReply(Kind.CONNECTION, "connection refused"),
    FailingReply(Kind.BAD_REPLY, "The answer is not JSON: <html>"),
    FailingReply(Kind.RATE_LIMITED, "HTTP 429: slow down"),
    FailingReply(Kind.RATE_LIMITED, "HTTP 429: slow down", retry_after=1.0),
    FailingReply(Kind.RATE_LIMITED, "HTTP 429: slow down", retry_after=20.0),
]
REFUSALS = [
    FailingReply(Kind.UNAUTHORIZED, "HTTP 401: bad key", certain=True),
    FailingReply(Kind.QUOTA_EXHAUSTED, "HTTP 429: insufficient_quota", certain=True),
    FailingReply(Kind.UNAUTHORIZED, "HTTP 403: Request blocked"),
    FailingReply(Kind.UNKNOWN_MODEL, "HTTP 404: page not found"),
    FailingReply(Kind.WRONG_URL, "HTTP 308", certain=True),
]
OVERFLOW = FailingReply(Kind.CONTEXT_OVERFLOW, "HTTP 400: too long", certain=True)
SHAPES = [
    FailingReply(Kind.BAD_REQUEST, "HTTP 400: roles must alternate", certain=True),
    FailingReply(Kind.BAD_REQUEST, "HTTP 400: no"),
    OVERFLOW,
]
UNUSABLE = [
    FailingReply(Kind.EMPTY, "The completion is empty.", takes_s=0.5),
    FailingReply(Kind.UNREADABLE, "no JSON", takes_s=0.5),
]
EMPTY_ONCE = FailingReply(Kind.EMPTY, "The completion is empty; it finished by stop.")
CERTAIN_REFUSALS = [reply for reply in REFUSALS if reply.certain]  # no single item can be at fault for these
ITEM_FAILURES = [
    reply for reply in (*PASSING, *REFUSALS, *SHAPES, *UNUSABLE) if not reply.busy and reply not in CERTAIN_REFUSALS
]
LIMITS = [reply for reply in PASSING if reply.kind is Kind.RATE_LIMITED]


@dataclass(frozen=True, slots=True)
class World:
    """What there is to ask, and how the server behaves.

    `doomed` are items that can never be answered. From `since` to `until` (seconds) the server returns `failing` for
    every call; where `capacity` is given, only for calls beyond that many in flight.
    """

    seed: int
    items: int
    concurrency: int
    takes_s: float
    doomed: Mapping[int, FailingReply] = field(default_factory=dict)
    failing: FailingReply | None = None
    since: float = 0.0
    until: float = 0.0
    capacity: int = 0
    empty_share: float = 0.0  # share of replies that come empty; another attempt helps
    interval_s: float = 0.0  # seconds until the next item is ready to be asked; 0: all are ready from the start

    def reply_to(self, item: int, n: int, now: float, in_flight: int) -> FailingReply | None:
        if self.since <= now < self.until and self.failing and (not self.capacity or in_flight > self.capacity):
            return self.failing
        empty = n % 2 and random.Random(f"{self.seed} {item} {n}").random() < self.empty_share
        return self.doomed.get(item, EMPTY_ONCE if empty else None)

    @property
    def endless(self) -> bool:
        return self.until == float("inf")


def random_world(seed: int) -> World:
    """Return the random world of a seed."""
    draw = random.Random(seed)
    items = draw.choice([1, 2, 3, 5, 8, 20, 60, 120, 200])
    concurrency = draw.choice([1, 2, 4, 8, 16])
    takes_s = draw.choice([0.2, 1.0, 3.0])
    world: dict[str, Any] = {"seed": seed, "items": items, "concurrency": concurrency, "takes_s": takes_s}
    if draw.random() < 0.15:
        world["interval_s"] = draw.choice([0.1, 2.0])
    if draw.random() < 0.6:
        world["doomed"] = _doomed(draw, items, "interval_s" in world)
    work_s = max(items * takes_s / concurrency, world.get("interval_s", 0.0) * items)
    if draw.random() < 0.15:
        world["empty_share"] = draw.choice([0.05, 0.2])
    since = draw.choice([0.0, work_s * draw.random(), work_s * 0.95])
    fate = draw.choice(["well", "well", "fails", "fails", "dies", "refuses", "refuses", "limits", "is of no use"])
    if fate == "fails":
        world |= {
            "failing": draw.choice(PASSING),
            "since": since,
            "until": since + draw.choice([2.0, 20.0, 300.0, 1500.0]),
        }
    elif fate == "dies":
        world |= {"failing": draw.choice(PASSING), "since": since, "until": float("inf")}
    elif fate == "refuses":
        failing = draw.choice(REFUSALS + SHAPES)
        world |= {"failing": failing, "since": since, "until": float("inf")}
    elif fate == "is of no use":
        world |= {"failing": draw.choice(UNUSABLE), "since": 0.0, "until": float("inf")}
    elif fate == "limits":
        limited = draw.choice([reply for reply in PASSING if reply.kind is Kind.RATE_LIMITED])
        world |= {
            "failing": limited,
            "since": since,
            "until": since + draw.choice([60.0, 600.0]),
            "capacity": draw.choice([1, 3]),
        }
    return World(**world)


def _doomed(draw: random.Random, items: int, one_at_a_time: bool) -> dict[int, FailingReply]:
    """Choose items that can never be answered: scattered, or together at the top, in the middle or at the end.

    At most a tenth of the items, and a twentieth if they look like a refusal of everything: with more, three in a row
    would be no coincidence.
    """
    reply = draw.choice(ITEM_FAILURES)
    passes = reply in PASSING + UNUSABLE
    count = max(1, int(items * draw.choice([0.02, 0.05, 0.1 if passes else 0.05])))
    first = draw.choice([0, items // 2, items - count])
    places = draw.sample(range(items), count) if one_at_a_time or draw.random() < 0.5 else range(first, first + count)
    return {place: reply if draw.random() < 0.8 or not passes else draw.choice(UNUSABLE) for place in places}


@dataclass(frozen=True, slots=True)
class Call:
    item: int
    began: float
    ended: float
    failure: FailingReply | None
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a world ended: calls in the order of their end, each item's verdict, why the endpoint was given up."""

    calls: list[Call]
    ends: dict[int, Verdict]
    refused: str | None
    took_s: float
    decided: frozenset[str]  # the rows of the rule's table that gave the verdicts


class Server:
    def __init__(self, world: World) -> None:
        self.world = world
        self.in_flight = 0
        self.came: dict[int, FailingReply | None] = {}
        self.asked: Counter[int] = Counter()

    async def ask(self, request: Request) -> Reply:
        item = int(request.messages[0].content)
        self.in_flight += 1
        self.asked[item] += 1
        now, n = asyncio.get_running_loop().time() - 1000.0, self.asked[item]
        try:
            failure = self.came[item] = self.world.reply_to(item, n, now, self.in_flight)
            await asyncio.sleep(failure.takes_s if failure else self.world.takes_s)
        finally:
            self.in_flight -= 1
        if failure:
            raise failure.error
        return Reply("yes", "stop", None)

    async def aclose(self) -> None:
        pass


async def play(world: World) -> Outcome:
    """Ask for all items of a world with aif's queue and endpoint, by their rule; return what happened."""
    random.seed(world.seed)  # aif picks an item from further down the queue at random
    loop, server, draw = asyncio.get_running_loop(), Server(world), random.Random(world.seed)
    free, pace = lambda *usage: 0.0, RateLimiter(None, None)
    endpoint = Endpoint(
        "m", "completion", "m", server, world.concurrency, free, free, pace, clock=loop.time, jitter=draw.random
    )
    calls: list[Call] = []
    ends: dict[int, Verdict] = {}
    decided: set[str] = set()
    remaining = list(range(world.items))

    def queue_item(n: int) -> QueueItem[int]:
        return QueueItem(lambda: n)

    async def random_item() -> QueueItem[int] | None:
        if world.interval_s or not remaining:
            return None
        return queue_item(remaining.pop(draw.randrange(len(remaining))))

    async def page() -> None:
        while remaining and not endpoint.halt.is_set():
            batch, remaining[: 16 if not world.interval_s else 1] = remaining[: 16 if not world.interval_s else 1], []
            line.add(map(queue_item, batch))
            await line.wait_for_room()
            if world.interval_s:
                await asyncio.sleep(world.interval_s)

    async def ask(item: QueueItem[int]) -> Verdict | None:
        began, n = loop.time() - 1000.0, item.job
        error: CallError | None = None
        try:
            text = str(n).rjust(LONG if world.doomed.get(n) is OVERFLOW else SHORTER)
            async with endpoint.attempt(Request((Message("user", text),), 10), item.history) as attempt:
                item.retry_state.n += 1
                began = loop.time() - 1000.0
                await attempt.send()
        except Halted:
            return None
        except CallError as failure:
            error, others = failure, endpoint.others(failure)
            verdict = endpoint.verdict(error, item.history, item.retry_state)
            decided.add(_row(error, item.history.blame, verdict, others))
        else:
            verdict = "answered"
        ends[n] = verdict
        calls.append(Call(n, began, loop.time() - 1000.0, server.came[n] if error else None, verdict))
        return verdict

    line = WorkQueue(endpoint, random_item)
    await run_workers(endpoint, line, page, ask)
    took_s = max((call.ended for call in calls), default=0.0)
    return Outcome(calls, ends, endpoint.refused, took_s, frozenset(decided))


def _row(error: CallError, blame: str, verdict: Verdict, others: OtherItems) -> str:
    """Return the row of the rule's table that gave a verdict, by name; empty for a retry."""
    if blame == "item" and verdict == "failed":
        return "item"
    if blame == "endpoint":
        kinds = {"passing": TRANSIENT, "refusal": ACCESS_ERRORS, "shape": REQUEST_ERRORS}
        return "endpoint: " + next((name for name, group in kinds.items() if error.kind in group), "unusable")
    return "unknown" if others.too_few and verdict == "later" else ""


# --- checks of an outcome against the truth ---------------------------------------------------------------------------


def mistakes_in(world: World, outcome: Outcome) -> list[str]:
    """Return the errors in an outcome, given the truth about its world."""
    mistakes = [f"item {item}: {why}" for item in range(world.items) for why in _item_mistakes(world, outcome, item)]
    return mistakes + _endpoint_mistakes(world, outcome)


def _item_mistakes(world: World, outcome: Outcome, item: int) -> list[str]:
    calls = [call for call in outcome.calls if call.item == item]
    end, doomed = outcome.ends.get(item), world.doomed.get(item)
    own = [call for call in calls if doomed and call.failure is doomed and doomed is not world.failing]
    mistakes = []
    pending = _never_heard(world, outcome) or (end == "later" and _too_few_left(world, outcome))
    if doomed is None and end != "answered" and not world.endless and not pending:
        mistakes.append(f"can be answered, but ended as {end} ({outcome.refused})")
    if doomed is None and end == "failed" and not _blamed_by_its_words(world, outcome):
        mistakes.append("can be answered, but failed permanently")
    if doomed and end == "answered":
        mistakes.append("can't be answered, but ended as answered")
    if (
        doomed
        and not world.endless
        and end != "failed"
        and not _never_heard(world, outcome)
        and _can_be_told_apart(outcome, calls, own)
    ):
        mistakes.append(f"can't be answered, others were answered since, but ended as {end} ({outcome.refused})")
    if sum(call.verdict == "answered" for call in calls) > 1:
        mistakes.append("answered twice")
    if (
        len(own) > _most_attempts(doomed)
        and not _never_heard(world, outcome)
        and not (doomed and _confusable_rate_limit(world, doomed))
    ):
        mistakes.append(f"asked {len(own)} times without success")
    return mistakes


def _can_be_told_apart(outcome: Outcome, calls: list[Call], own: list[Call]) -> bool:
    """Return whether another item was sent and answered after this item had failed, so that the item must be at fault.

    Not if the item's attempts were used up by what failed for every item.
    """
    if not own or (len(own) < POLICY.same_failures and len(own) < len(calls)):
        return False
    return any(
        call.failure is None and own[0].ended < call.began and call.ended < own[-1].began for call in outcome.calls
    )


def _most_attempts(failure: FailingReply | None) -> int:
    if failure is None:
        return 0
    return POLICY.resamples if failure.kind in (Kind.EMPTY, Kind.UNREADABLE) else 2 * POLICY.attempts


def _confusable_rate_limit(world: World, doomed: FailingReply) -> bool:
    """Return whether a 429 for one item can't be told from the 429s that other items get."""
    alike = sum(failure.kind is Kind.RATE_LIMITED for failure in world.doomed.values())
    return doomed.kind is Kind.RATE_LIMITED and (world.failing is not None or alike > 0.05 * world.items)


def _blamed_by_its_words(world: World, outcome: Outcome) -> bool:
    """Return whether an item may fail by the server's words alone, since no other items can show otherwise."""
    few = outcome.refused is None and (world.failing in SHAPES or world.items < ENOUGH_ITEMS)
    return few and world.failing in SHAPES + UNUSABLE and (world.failing.certain or world.failing in UNUSABLE)


def _too_few_left(world: World, outcome: Outcome) -> bool:
    """Return whether the outage lasted longer than the last two items are retried."""
    before = sum(call.failure is None and call.began < world.since for call in outcome.calls)
    return world.until - world.since > POLICY.silent_s and world.items - before - len(world.doomed) < ENOUGH_ITEMS


def _never_heard(world: World, outcome: Outcome) -> bool:
    """Return whether the server was silent for longer than aif waits, or had nothing that it could answer."""
    never = not any(
        call.failure is None or call.failure.kind in (Kind.EMPTY, Kind.UNREADABLE) for call in outcome.calls
    )
    failures = [call.failure for call in outcome.calls if call.failure]
    left = [item in world.doomed for item in range(world.items) if outcome.ends.get(item) != "answered"]
    if 2 * sum(left) > len(left) or not left:  # then three failures alike are no coincidence
        return bool(outcome.refused) or never
    silent = never and not any(failure.busy or failure.retry_after is not None for failure in failures)
    return (silent and world.until > POLICY.silent_s) or (never and len(world.doomed) == world.items)


def _endpoint_mistakes(world: World, outcome: Outcome) -> list[str]:
    failing, mistakes = world.failing, []
    during = [
        call for call in outcome.calls
        if failing and call.failure is failing and call.item not in world.doomed
        and world.since <= call.began < world.until
    ]  # fmt: skip
    if not world.endless and outcome.refused and not _never_heard(world, outcome):
        mistakes.append(f"given up: {outcome.refused}")
    minutes = (min(world.until, outcome.took_s) - world.since) / 60.0
    each = (
        1.5 if not failing or failing.retry_after is None else 8.0
    )  # calls a minute: a short Retry-After is followed exactly
    if (
        failing
        and not world.capacity
        and failing in PASSING
        and len(during) > world.concurrency + ENOUGH_ITEMS + 12 + each * minutes
    ):
        mistakes.append(f"{len(during)} calls in {minutes:.1f} minutes of an outage")
    if (
        world.capacity
        and not _never_heard(world, outcome)
        and len(during) > 4 * world.concurrency + 1.2 * world.items + 12 + 3 * minutes
    ):
        mistakes.append(f"{len(during)} calls above its capacity")
    if failing in UNUSABLE and len(during) > max(world.concurrency, ENOUGH_ITEMS) + (
        2 * POLICY.resamples if world.interval_s or world.items < ENOUGH_ITEMS else 2
    ):
        mistakes.append(f"{len(during)} unusable replies")
    if world.endless and failing in REFUSALS + SHAPES:
        left = world.items - sum(call.failure is None and call.began < world.since for call in outcome.calls)
        most = max(world.concurrency, ENOUGH_ITEMS)
        if (
            failing not in CERTAIN_REFUSALS
        ):  # the items queued when the doubt arose are tried one by one, then one from further down
            most += 3 + (world.concurrency if world.since else 0)
        # too few at a time, or at all
        if (
            left < 2 * world.concurrency + ENOUGH_ITEMS + len(world.doomed) or world.interval_s
        ):  # too few items at a time, or in total
            most += 2 * POLICY.attempts
        if len(during) > most and left >= ENOUGH_ITEMS:
            mistakes.append(f"{len(during)} calls to an endpoint that refuses")
        if left >= ENOUGH_ITEMS + len(world.doomed) and not outcome.refused and during:
            mistakes.append("refuses, but is not given up")
    patience_s = _patience(world, outcome) if world.endless and failing in PASSING else 0.0
    if patience_s and outcome.took_s - world.since > patience_s:
        mistakes.append(f"given up after {outcome.took_s - world.since:,.0f} s")
    if not failing and _cannot_delay_others(world):
        last = max((call.ended for call in outcome.calls if call.failure is None), default=0.0)
        if last > (world.items / world.concurrency + 2) * world.takes_s + 0.3:
            mistakes.append(f"the last answerable item was answered after {last:.1f} s")
    if not world.endless and outcome.took_s > _longest(world) and not _never_heard(world, outcome):
        mistakes.append(f"took {outcome.took_s:,.0f} s, of {_longest(world):,.0f}")
    return mistakes


def _cannot_delay_others(world: World) -> bool:
    """Return whether the doomed items are so few and fail so fast that they can't delay others."""
    quick = all(
        failure in PASSING and failure not in LIMITS and failure.takes_s < 1 for failure in world.doomed.values()
    )
    return quick and len(world.doomed) < ENOUGH_ITEMS and not world.interval_s and not world.empty_share


def _patience(world: World, outcome: Outcome) -> float:
    answered_once = any(
        call.failure is None or call.failure.busy or call.failure.retry_after is not None for call in outcome.calls
    )
    answered_once |= any(call.failure.kind in (Kind.EMPTY, Kind.UNREADABLE) for call in outcome.calls if call.failure)
    answered = [call for call in outcome.calls if call.failure is None]
    few = answered and world.items - len(answered) < ENOUGH_ITEMS and world.failing and not world.failing.busy
    slack_s = 200.0 + POLICY.attempts * (world.failing.takes_s if world.failing else 0.0)
    return (POLICY.outage_s if answered_once and not few else POLICY.silent_s) + slack_s


def _longest(world: World) -> float:
    work_s = max(3.0 * world.items * world.takes_s / world.concurrency, 1.5 * world.interval_s * world.items)
    if world.capacity:
        work_s += 2.0 * world.items * world.takes_s / world.capacity
    doomed_s = sum(POLICY.attempts * (failure.takes_s + 10.0) for failure in world.doomed.values()) + 400.0
    return work_s + 1.5 * (world.until - world.since) + doomed_s + 200.0


# --- the trial --------------------------------------------------------------------------------------------------------


def trial(folder: Path, full: bool) -> Figures:
    decided: Counter[str] = Counter()
    failures: list[str] = []
    calls = 0
    for seed in range(WORLDS if full else SHORT):
        world = random_world(seed)
        outcome = fast_clock.leap(play(world))
        decided.update(row for row in outcome.decided if row)
        calls += len(outcome.calls)
        failures += [f"world {seed}: {why}" for why in mistakes_in(world, outcome)[:3]]
    return {"worlds": WORLDS if full else SHORT, "calls": calls, "decided": dict(decided), "wrong": failures}


def violations(figures: Figures) -> list[str]:
    rows = ("item", "endpoint: passing", "endpoint: refusal", "endpoint: shape", "unknown")
    least = 20 if figures["worlds"] == WORLDS else 1
    return [*figures["wrong"][:9]] + [
        f"{row}: gave verdicts in {n} worlds" for row in rows if (n := figures["decided"].get(row, 0)) < least
    ]


def summary(figures: Figures) -> str:
    decided = ", ".join(f"{row} {n:,}" for row, n in sorted(figures["decided"].items()))
    return (
        f"{figures['worlds']:,} worlds, {figures['calls']:,} calls; worlds by who was found at fault: {decided}; "
        f"{len(figures['wrong'])} wrong verdicts or counts"
    )
