"""A model or judge during a run: its client with limits, price and state."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property

from aif.core.types import Stage, Usage
from aif.providers.base import CallError, ChatModel, Kind, Reply, Request
from aif.providers.concurrency import MANY, Caller, Gate, Others, Pass
from aif.providers.rate_limits import Cost, Pace
from aif.providers.retry import Course, RetryPolicy, Verdict


class Halted(Exception):
    """The endpoint takes no further call; the item stays pending."""


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class Endpoint:
    """A model or judge that is called. `refused` says why it takes no more calls; `halt` is set then, or on a stop.

    A launched one is not `up` until a server of its own answers, and while none does; `wanted` says that a call waits
    for it or has been made, `done` that none will come any more, `doing` what its servers do instead of answering.
    `cost` and `bound` are in USD: of what was used, by the tier that served it, and at most of a request (None without
    a price, 0 of one's own); `paid` calls count against a budget. `others` says who else could be asked, where that is
    known.
    """

    name: str
    stage: Stage
    identity: str
    client: ChatModel
    concurrency: int
    cost: Callable[[Usage | None, str | None], float | None]
    bound: Callable[[Request], float | None]
    pace: Pace
    paid: bool = False
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    halt: asyncio.Event = field(default_factory=asyncio.Event)
    up: asyncio.Event = field(default_factory=_set)
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    doing: str | None = None
    refused: str | None = None
    refusal: Kind | None = None  # the failure that ended it
    back_s: float = 0.0  # by the clock: before that, what is left pending need not be asked again
    answered: int = 0  # ever, as the store knows
    others: Callable[[CallError], Others] = lambda error: MANY
    uncovered: int = 0  # calls in a row that the budget did not cover

    def __post_init__(self) -> None:
        self._line = asyncio.Lock()  # who waits for a turn, in the order they came
        self._stirred = asyncio.Event()  # the first of them looks again

    @cached_property
    def gate(self) -> Gate:
        """Made at the first call: until then, servers that are launched may add to `concurrency`."""
        return Gate(self.concurrency, self.policy, self.jitter, usable=self.answered > 0)

    @property
    def in_flight(self) -> int:
        return self.gate.in_flight

    def instead(self) -> str | None:
        """What the endpoint, or its servers, do instead of answering. One that is halted waits for nothing."""
        return self.doing or (None if self.halt.is_set() else self.gate.instead(self.clock()))

    @asynccontextmanager
    async def turn(self, request: Request, caller: Caller) -> AsyncIterator["Turn"]:
        """A place for one call, as soon as a server is up, the gate has one and the limits allow it; then for as long
        as the call takes. How it ended is taken in, and whose doing that was told to the caller. Raises Halted."""
        cost = self.pace.cost(request.chars, request.max_tokens)
        turn = Turn(self.client, request)
        caller.size = request.chars
        place = await self._admitted(caller, cost)
        try:
            yield turn
        except CallError as error:
            if turn.reply is not None:  # it came, and can't be used
                self._learn(turn.reply, cost)
            self.gate.ended(place, error, self.clock(), self.others(error))
            self._failed(error)
            raise
        else:
            if turn.reply is not None:
                self.gate.ended(place, None, self.clock())
                self.answered += 1
                self._learn(turn.reply, cost)
        finally:
            self.gate.leave(place)
            self._stirred.set()

    async def _admitted(self, caller: Caller, cost: Cost) -> Pass:
        async with self._line:
            while await self.ready():
                self._stirred.clear()
                now = self.clock()
                wait_s = max(self.gate.wait(now), self.pace.wait(cost, now))
                if not wait_s:
                    self.pace.take(cost, now)
                    return self.gate.enter(caller)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s if wait_s < math.inf else None):
                        await self._stirred.wait()
        raise Halted

    def verdict(self, error: CallError, caller: Caller, course: Course) -> Verdict:
        """What becomes of an item whose call failed so, once its turn is over."""
        now = self.clock()
        few = self.others(error).few
        verdict = course.verdict(error, caller.blame, self.policy, now, self.jitter(), few)
        if verdict == "later" and error.retry_after:
            self.back_s = max(self.back_s, now + error.retry_after)
        return verdict

    def _learn(self, reply: Reply, cost: Cost) -> None:
        self.pace.learn(reply.quotas)
        if reply.usage is not None:
            self.pace.counted(cost, reply.usage.input, self.clock())

    def _failed(self, error: CallError) -> None:
        """Stops asking what will not answer."""
        self.pace.learn(error.quotas)
        if error.kind is Kind.RATE_LIMITED:
            self.pace.limited(self.clock())
        if self.gate.given_up:
            self.refusal = self.refusal or error.kind
            self.refuse(self.gate.given_up)

    def refuse(self, why: str) -> None:
        self.refused = self.refused or why
        self.stop()

    def stop(self) -> None:
        """No further call is made, and nobody waits for a server."""
        self.halt.set()
        self.up.set()
        self._stirred.set()

    async def ready(self) -> bool:
        """Waits for a server that is up; False where no further call is to be made."""
        self.wanted.set()
        if not self.up.is_set() and not self.halt.is_set():
            await self.up.wait()
            self.gate.renew()
        return not self.halt.is_set()

    async def sleep(self, seconds: float) -> bool:
        """Waits; False as soon as the endpoint is halted."""
        try:
            async with asyncio.timeout(seconds):
                await self.halt.wait()
        except TimeoutError:
            return True
        return False


@dataclass(slots=True)
class Turn:
    """The place of one call."""

    client: ChatModel
    request: Request
    reply: Reply | None = None

    async def ask(self) -> Reply:
        """Makes the call. Raises CallError."""
        self.reply = await self.client.ask(self.request)
        return self.reply
