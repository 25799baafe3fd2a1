"""Promise 19: whose fault a failure is, in random worlds in which that is known."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aif.core.types import Message
from aif.engine.work_queue import QueueItem, WorkQueue, run_workers
from aif.providers.base import PROVIDER, SHAPE, TRANSIENT, CallError, Kind, Reply, Request
from aif.providers.concurrency import ITEMS, Others
from aif.providers.endpoint import Endpoint, Halted
from aif.providers.rate_limits import Pace
from aif.providers.retry import RetryPolicy, Verdict
from chaos import Figures, clock

NUMBER = 19
PROMISE = (
    "Whose fault a failure is, is told by what others get: an item that can never be answered fails alone, an endpoint "
    "that is ill is waited for, one that refuses stops with its items pending."
)
WORLDS, SHORT = 2000, 150
SHORTER, LONG = 10, 99  # characters of what is asked
POLICY = RetryPolicy()


@dataclass(frozen=True, slots=True)
class Said:
    """What a server says, and how long it takes to."""

    kind: Kind
    words: str
    told: bool = False
    busy: bool = False
    retry_after: float | None = None
    takes_s: float = 0.05

    @property
    def error(self) -> CallError:
        return CallError(self.kind, self.words, told=self.told, busy=self.busy, retry_after=self.retry_after)


PASSING = [
    Said(Kind.SERVER_ERROR, "HTTP 500: boom"),
    Said(Kind.SERVER_ERROR, "HTTP 503: loading model", busy=True),
    Said(Kind.SERVER_ERROR, "HTTP 503: try later", retry_after=5.0),
    Said(Kind.TIMEOUT, "No whole answer within 30 s.", takes_s=30.0),
    Said(Kind.CONNECTION, "connection refused"),
    Said(Kind.BAD_REPLY, "The answer is not JSON: <html>"),
    Said(Kind.RATE_LIMITED, "HTTP 429: slow down"),
    Said(Kind.RATE_LIMITED, "HTTP 429: slow down", retry_after=1.0),
    Said(Kind.RATE_LIMITED, "HTTP 429: slow down", retry_after=20.0),
]
REFUSALS = [
    Said(Kind.UNAUTHORIZED, "HTTP 401: bad key", told=True),
    Said(Kind.QUOTA_EXHAUSTED, "HTTP 429: insufficient_quota", told=True),
    Said(Kind.UNAUTHORIZED, "HTTP 403: Request blocked"),
    Said(Kind.UNKNOWN_MODEL, "HTTP 404: page not found"),
    Said(Kind.WRONG_URL, "HTTP 308", told=True),
]
OVERFLOW = Said(Kind.CONTEXT_OVERFLOW, "HTTP 400: too long", told=True)
SHAPES = [
    Said(Kind.BAD_REQUEST, "HTTP 400: roles must alternate", told=True),
    Said(Kind.BAD_REQUEST, "HTTP 400: no"),
    OVERFLOW,
]
UNUSABLE = [Said(Kind.EMPTY, "The completion is empty.", takes_s=0.5), Said(Kind.UNREADABLE, "no JSON", takes_s=0.5)]
SLIP = Said(Kind.EMPTY, "The completion is empty; it finished by stop.")
NAMED = [one for one in REFUSALS if one.told]  # what no single item can be at fault for
ITS_OWN = [one for one in (*PASSING, *REFUSALS, *SHAPES, *UNUSABLE) if not one.busy and one not in NAMED]
LIMITS = [one for one in PASSING if one.kind is Kind.RATE_LIMITED]


@dataclass(frozen=True, slots=True)
class World:
    """What there is to ask, and how the server fares.

    `doomed` are items that can never be answered. From `since` to `until` (s) the server says `ill` to everybody, or,
    where `serves` is given, 429 to whoever comes while so many calls are in flight.
    """

    seed: int
    items: int
    places: int
    takes_s: float
    doomed: Mapping[int, Said] = field(default_factory=dict)
    ill: Said | None = None
    since: float = 0.0
    until: float = 0.0
    serves: int = 0
    slips: float = 0.0  # the share of replies that come at once and empty, and that another sample mends
    trickle_s: float = 0.0  # an item comes up to be asked each so many seconds; 0: all are there from the start

    def says(self, item: int, n: int, now: float, in_flight: int) -> Said | None:
        if self.since <= now < self.until and self.ill and (not self.serves or in_flight > self.serves):
            return self.ill
        slipped = n % 2 and random.Random(f"{self.seed} {item} {n}").random() < self.slips
        return self.doomed.get(item, SLIP if slipped else None)

    @property
    def endless(self) -> bool:
        return self.until == float("inf")


def drawn(seed: int) -> World:
    """A random world."""
    draw = random.Random(seed)
    items = draw.choice([1, 2, 3, 5, 8, 20, 60, 120, 200])
    places = draw.choice([1, 2, 4, 8, 16])
    takes_s = draw.choice([0.2, 1.0, 3.0])
    world: dict[str, Any] = {"seed": seed, "items": items, "places": places, "takes_s": takes_s}
    if draw.random() < 0.15:
        world["trickle_s"] = draw.choice([0.1, 2.0])
    if draw.random() < 0.6:
        world["doomed"] = _doomed(draw, items, "trickle_s" in world)
    work_s = max(items * takes_s / places, world.get("trickle_s", 0.0) * items)
    if draw.random() < 0.15:
        world["slips"] = draw.choice([0.05, 0.2])
    since = draw.choice([0.0, work_s * draw.random(), work_s * 0.95])
    fate = draw.choice(["well", "well", "ill", "ill", "dies", "refuses", "refuses", "limits", "is of no use"])
    if fate == "ill":
        world |= {"ill": draw.choice(PASSING), "since": since, "until": since + draw.choice([2.0, 20.0, 300.0, 1500.0])}
    elif fate == "dies":
        world |= {"ill": draw.choice(PASSING), "since": since, "until": float("inf")}
    elif fate == "refuses":
        ill = draw.choice(REFUSALS + SHAPES)
        world |= {"ill": ill, "since": since, "until": float("inf")}
    elif fate == "is of no use":
        world |= {"ill": draw.choice(UNUSABLE), "since": 0.0, "until": float("inf")}
    elif fate == "limits":
        limited = draw.choice([one for one in PASSING if one.kind is Kind.RATE_LIMITED])
        world |= {
            "ill": limited,
            "since": since,
            "until": since + draw.choice([60.0, 600.0]),
            "serves": draw.choice([1, 3]),
        }
    return World(**world)


def _doomed(draw: random.Random, items: int, trickle: bool) -> dict[int, Said]:
    """Some of the items: scattered, or together at the top, in the middle or at the end. At most a tenth, and a
    twentieth of those that look like a refusal of all: of more, three in a row would be no wonder."""
    one = draw.choice(ITS_OWN)
    passes = one in PASSING + UNUSABLE
    count = max(1, int(items * draw.choice([0.02, 0.05, 0.1 if passes else 0.05])))
    first = draw.choice([0, items // 2, items - count])
    places = draw.sample(range(items), count) if trickle or draw.random() < 0.5 else range(first, first + count)
    return {place: one if draw.random() < 0.8 or not passes else draw.choice(UNUSABLE) for place in places}


@dataclass(frozen=True, slots=True)
class Call:
    item: int
    began: float
    ended: float
    said: Said | None
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Course:
    """How a world went: its calls in the order they ended, how each item ended, why the endpoint was given up."""

    calls: list[Call]
    ends: dict[int, Verdict]
    refused: str | None
    took_s: float
    decided: frozenset[str]  # the rows of the table that did


class Server:
    def __init__(self, world: World) -> None:
        self.world = world
        self.in_flight = 0
        self.came: dict[int, Said | None] = {}
        self.asked: Counter[int] = Counter()

    async def ask(self, request: Request) -> Reply:
        item = int(request.messages[0].content)
        self.in_flight += 1
        self.asked[item] += 1
        now, n = asyncio.get_running_loop().time() - 1000.0, self.asked[item]
        try:
            said = self.came[item] = self.world.says(item, n, now, self.in_flight)
            await asyncio.sleep(said.takes_s if said else self.world.takes_s)
        finally:
            self.in_flight -= 1
        if said:
            raise said.error
        return Reply("yes", "stop", None)

    async def aclose(self) -> None:
        pass


async def gone(world: World) -> Course:
    """Asks for all that there is in a world, by the rule."""
    random.seed(world.seed)  # which of the items to come is taken from elsewhere
    loop, server, draw = asyncio.get_running_loop(), Server(world), random.Random(world.seed)
    free, pace = lambda *usage: 0.0, Pace(None, None)
    one = Endpoint("m", "completion", "m", server, world.places, free, free, pace, clock=loop.time, jitter=draw.random)
    calls: list[Call] = []
    ends: dict[int, Verdict] = {}
    decided: set[str] = set()
    to_come = list(range(world.items))

    def made(n: int) -> QueueItem[int]:
        return QueueItem(lambda: n)

    async def elsewhere() -> QueueItem[int] | None:
        if world.trickle_s or not to_come:
            return None
        return made(to_come.pop(draw.randrange(len(to_come))))

    async def page() -> None:
        while to_come and not one.halt.is_set():
            some, to_come[: 16 if not world.trickle_s else 1] = to_come[: 16 if not world.trickle_s else 1], []
            line.add(map(made, some))
            await line.wait_for_room()
            if world.trickle_s:
                await asyncio.sleep(world.trickle_s)

    async def ask(item: QueueItem[int]) -> Verdict | None:
        began, n = loop.time() - 1000.0, item.job
        error: CallError | None = None
        try:
            said = str(n).rjust(LONG if world.doomed.get(n) is OVERFLOW else SHORTER)
            async with one.turn(Request((Message("user", said),), 10), item.caller) as turn:
                item.course.n += 1
                began = loop.time() - 1000.0
                await turn.ask()
        except Halted:
            return None
        except CallError as failure:
            error, others = failure, one.others(failure)
            verdict = one.verdict(error, item.caller, item.course)
            decided.add(_row(error, item.caller.blame, verdict, others))
        else:
            verdict = "answered"
        ends[n] = verdict
        calls.append(Call(n, began, loop.time() - 1000.0, server.came[n] if error else None, verdict))
        return verdict

    line = WorkQueue(one, elsewhere)
    await run_workers(one, line, page, ask)
    took_s = max((call.ended for call in calls), default=0.0)
    return Course(calls, ends, one.refused, took_s, frozenset(decided))


def _row(error: CallError, blame: str, verdict: Verdict, others: Others) -> str:
    """The row of the rule's table that gave a verdict."""
    if blame == "item" and verdict == "failed":
        return "the item's"
    if blame == "endpoint":
        kinds = {"passing": TRANSIENT, "refusal": PROVIDER, "shape": SHAPE}
        return "the endpoint's, " + next((name for name, some in kinds.items() if error.kind in some), "unusable")
    return "not known" if others.few and verdict == "later" else ""


# --- what is right, by what is known of the world ---------------------------------------------------------------------


def wrong(world: World, course: Course) -> list[str]:
    """What of a course is not right in its world."""
    found = [f"item {item}: {why}" for item in range(world.items) for why in _item(world, course, item)]
    return found + _endpoint(world, course)


def _item(world: World, course: Course, item: int) -> list[str]:
    calls = [call for call in course.calls if call.item == item]
    end, doomed = course.ends.get(item), world.doomed.get(item)
    own = [call for call in calls if doomed and call.said is doomed and doomed is not world.ill]
    found = []
    pending = _unheard(world, course) or (end == "later" and _few(world, course))
    if doomed is None and end != "answered" and not world.endless and not pending:
        found.append(f"sound, and ends as {end} ({course.refused})")
    if doomed is None and end == "failed" and not _its_words(world, course):
        found.append("sound, and failed for good")
    if doomed and end == "answered":
        found.append("never answered, and ends as answered")
    if (
        doomed
        and not world.endless
        and end != "failed"
        and not _unheard(world, course)
        and _told_apart(course, calls, own)
    ):
        found.append(f"doomed, others were answered since, and ends as {end} ({course.refused})")
    if sum(call.verdict == "answered" for call in calls) > 1:
        found.append("answered twice")
    if len(own) > _most(doomed) and not _unheard(world, course) and not (doomed and _limits(world, doomed)):
        found.append(f"asked {len(own)} times in vain")
    return found


def _told_apart(course: Course, calls: list[Call], own: list[Call]) -> bool:
    """Whether another item was sent and answered after this had failed, and its attempts were not used up by what ailed
    everybody."""
    if not own or (len(own) < POLICY.same and len(own) < len(calls)):
        return False
    return any(call.said is None and own[0].ended < call.began and call.ended < own[-1].began for call in course.calls)


def _most(said: Said | None) -> int:
    if said is None:
        return 0
    return POLICY.reasks if said.kind in (Kind.EMPTY, Kind.UNREADABLE) else 2 * POLICY.attempts


def _limits(world: World, doomed: Said) -> bool:
    """Whether a 429 for one item can't be told from those that others get meanwhile."""
    alike = sum(said.kind is Kind.RATE_LIMITED for said in world.doomed.values())
    return doomed.kind is Kind.RATE_LIMITED and (world.ill is not None or alike > 0.05 * world.items)


def _its_words(world: World, course: Course) -> bool:
    """Whether what the server says, and nobody can tell from others, is of this very item."""
    few = course.refused is None and (world.ill in SHAPES or world.items < ITEMS)
    return few and world.ill in SHAPES + UNUSABLE and (world.ill.told or world.ill in UNUSABLE)


def _few(world: World, course: Course) -> bool:
    """Whether it was ill for longer than the last two items are asked."""
    before = sum(call.said is None and call.began < world.since for call in course.calls)
    return world.until - world.since > POLICY.silent_s and world.items - before - len(world.doomed) < ITEMS


def _unheard(world: World, course: Course) -> bool:
    """Whether nothing was ever heard of the server, for longer than such a one is waited for, or there is nothing that
    it could answer."""
    never = not any(call.said is None or call.said.kind in (Kind.EMPTY, Kind.UNREADABLE) for call in course.calls)
    said = [call.said for call in course.calls if call.said]
    left = [item in world.doomed for item in range(world.items) if course.ends.get(item) != "answered"]
    if 2 * sum(left) > len(left) or not left:  # then three that fail alike are no wonder
        return bool(course.refused) or never
    silent = never and not any(one.busy or one.retry_after is not None for one in said)
    return (silent and world.until > POLICY.silent_s) or (never and len(world.doomed) == world.items)


def _endpoint(world: World, course: Course) -> list[str]:
    ill, found = world.ill, []
    during = [
        call for call in course.calls
        if ill and call.said is ill and world.since <= call.began < world.until and call.item not in world.doomed
    ]  # fmt: skip
    if not world.endless and course.refused and not _unheard(world, course):
        found.append(f"given up: {course.refused}")
    minutes = (min(world.until, course.took_s) - world.since) / 60.0
    each = (
        1.5 if not ill or ill.retry_after is None else 8.0
    )  # calls a minute: a short Retry-After is taken at its word
    if ill and not world.serves and ill in PASSING and len(during) > world.places + ITEMS + 12 + each * minutes:
        found.append(f"{len(during)} calls in {minutes:.1f} minutes of an outage")
    if (
        world.serves
        and not _unheard(world, course)
        and len(during) > 4 * world.places + 1.2 * world.items + 12 + 3 * minutes
    ):
        found.append(f"{len(during)} calls above what is served")
    if ill in UNUSABLE and len(during) > max(world.places, ITEMS) + (
        2 * POLICY.reasks if world.trickle_s or world.items < ITEMS else 2
    ):
        found.append(f"{len(during)} replies of no use")
    if world.endless and ill in REFUSALS + SHAPES:
        left = world.items - sum(call.said is None and call.began < world.since for call in course.calls)
        most = max(world.places, ITEMS)
        if ill not in NAMED:  # those in line when it came into doubt go one by one, before one from elsewhere
            most += 3 + (world.places if world.since else 0)
        if left < 2 * world.places + ITEMS + len(world.doomed) or world.trickle_s:  # too few at a time, or at all
            most += 2 * POLICY.attempts
        if len(during) > most and left >= ITEMS:
            found.append(f"{len(during)} calls to an endpoint that refuses")
        if left >= ITEMS + len(world.doomed) and not course.refused and during:
            found.append("not given up, and it refuses")
    patience_s = _patience(world, course) if world.endless and ill in PASSING else 0.0
    if patience_s and course.took_s - world.since > patience_s:
        found.append(f"given up after {course.took_s - world.since:,.0f} s")
    if not ill and _alone(world):
        last = max((call.ended for call in course.calls if call.said is None), default=0.0)
        if last > (world.items / world.places + 2) * world.takes_s + 0.3:
            found.append(f"the last sound item was answered after {last:.1f} s")
    if not world.endless and course.took_s > _longest(world) and not _unheard(world, course):
        found.append(f"took {course.took_s:,.0f} s, of {_longest(world):,.0f}")
    return found


def _alone(world: World) -> bool:
    """Whether its doomed items are so few, and fail so fast, that they can hold up nobody."""
    quick = all(one in PASSING and one not in LIMITS and one.takes_s < 1 for one in world.doomed.values())
    return quick and len(world.doomed) < ITEMS and not world.trickle_s and not world.slips


def _patience(world: World, course: Course) -> float:
    heard = any(call.said is None or call.said.busy or call.said.retry_after is not None for call in course.calls)
    heard |= any(call.said.kind in (Kind.EMPTY, Kind.UNREADABLE) for call in course.calls if call.said)
    answered = [call for call in course.calls if call.said is None]
    few = answered and world.items - len(answered) < ITEMS and world.ill and not world.ill.busy
    slack_s = 200.0 + POLICY.attempts * (world.ill.takes_s if world.ill else 0.0)
    return (POLICY.outage_s if heard and not few else POLICY.silent_s) + slack_s


def _longest(world: World) -> float:
    work_s = max(3.0 * world.items * world.takes_s / world.places, 1.5 * world.trickle_s * world.items)
    if world.serves:
        work_s += 2.0 * world.items * world.takes_s / world.serves
    doomed_s = sum(POLICY.attempts * (said.takes_s + 10.0) for said in world.doomed.values()) + 400.0
    return work_s + 1.5 * (world.until - world.since) + doomed_s + 200.0


# --- the trial --------------------------------------------------------------------------------------------------------


def trial(folder: Path, full: bool) -> Figures:
    decided: Counter[str] = Counter()
    failures: list[str] = []
    calls = 0
    for seed in range(WORLDS if full else SHORT):
        world = drawn(seed)
        course = clock.leap(gone(world))
        decided.update(row for row in course.decided if row)
        calls += len(course.calls)
        failures += [f"world {seed}: {why}" for why in wrong(world, course)[:3]]
    return {"worlds": WORLDS if full else SHORT, "calls": calls, "decided": dict(decided), "wrong": failures}


def broken(figures: Figures) -> list[str]:
    rows = ("the item's", "the endpoint's, passing", "the endpoint's, refusal", "the endpoint's, shape", "not known")
    least = 20 if figures["worlds"] == WORLDS else 1
    return [*figures["wrong"][:9]] + [
        f"{row}: decided {n} worlds" for row in rows if (n := figures["decided"].get(row, 0)) < least
    ]


def told(figures: Figures) -> str:
    decided = ", ".join(f"{row} {n:,}" for row, n in sorted(figures["decided"].items()))
    return (
        f"{figures['worlds']:,} worlds, {figures['calls']:,} calls; worlds by what decided in them: {decided}; "
        f"{len(figures['wrong'])} ends or counts that were not right"
    )
