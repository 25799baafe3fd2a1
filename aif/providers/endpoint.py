"""A model or judge during a run: its client, limits, price and state."""

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
from aif.providers.concurrency import MANY_OTHERS, ConcurrencyLimiter, ItemHistory, OtherItems, Permit
from aif.providers.rate_limits import RateLimiter, RequestCost
from aif.providers.retry import RetryPolicy, RetryState, Verdict


class Halted(Exception):
    """Raised if an endpoint makes no further calls in this run; the item that needed a call stays pending."""


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class Endpoint:
    """A model or judge that is called during a run.

    identity: the model's name and revision. If a launched model's files or settings differ from the first ones recorded
        under that name, a digest of them is appended.
    concurrency: the most calls in flight.
    cost: returns the cost of a call in USD from its usage and service tier. None if the price is unknown, 0 for the
        user's own servers without a price.
    max_cost: returns the most that a request can cost, in USD. None and 0 as for `cost`.
    paid: True if calls count against the budget.
    halt: set when no more calls are to be made, because the run stops or the endpoint is given up.
    up: set while a server is ready; always set if aif launches no server for the endpoint.
    wanted: set once a call needs a server.
    done: set when no more calls will come.
    server_status: why no launched server is ready, such as "starting"; None while one is ready.
    refused: the reason why the endpoint was given up, else None.
    others: given an error, returns how other items fared. That shows whether the item or the endpoint is at fault.
    """

    name: str
    stage: Stage
    identity: str
    client: ChatModel
    concurrency: int
    cost: Callable[[Usage | None, str | None], float | None]
    max_cost: Callable[[Request], float | None]
    rate_limiter: RateLimiter
    paid: bool = False
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    halt: asyncio.Event = field(default_factory=asyncio.Event)
    up: asyncio.Event = field(default_factory=_set)
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    server_status: str | None = None
    refused: str | None = None
    refusal: Kind | None = None  # the kind of failure that ended it
    retry_at: float = 0.0  # by `clock`: retrying pending items earlier is useless
    answered: int = 0  # calls answered in this run and, by the store, in earlier ones
    others: Callable[[CallError], OtherItems] = lambda error: MANY_OTHERS
    uncovered: int = 0  # consecutive calls that the budget did not cover

    def __post_init__(self) -> None:
        self._line = asyncio.Lock()  # calls waiting for a permit, in order of arrival
        self._changed = asyncio.Event()  # wakes the first of them

    @cached_property
    def limiter(self) -> ConcurrencyLimiter:
        """The concurrency limiter, created at the first call: launched servers may raise `concurrency` until then."""
        return ConcurrencyLimiter(self.concurrency, self.policy, self.jitter, usable=self.answered > 0)

    @property
    def in_flight(self) -> int:
        return self.limiter.in_flight

    def waiting_text(self) -> str | None:
        """Return what the endpoint waits for, as progress lines show it: its servers, or the end of a pause. None if it
        waits for neither."""
        return self.server_status or (None if self.halt.is_set() else self.limiter.waiting_text(self.clock()))

    @asynccontextmanager
    async def attempt(self, request: Request, item: ItemHistory) -> AsyncIterator["Attempt"]:
        """Wait until a server is up and the limits allow a call, then yield the `Attempt` that makes the call. An async
        context manager.

        The call is in flight until the block ends. The limits adapt to its result; after a CallError `item.blame` says
        who is at fault. Raises Halted if the endpoint makes no further calls.
        """
        cost = self.rate_limiter.cost(request.chars, request.max_tokens)
        attempt = Attempt(self.client, request)
        item.size = request.chars
        permit = await self._permitted(item, cost)
        try:
            yield attempt
        except CallError as error:
            if attempt.reply is not None:  # received, but unusable
                self._learn(attempt.reply, cost)
            self.limiter.record_result(permit, error, self.clock(), self.others(error))
            self._failed(error)
            raise
        else:
            if attempt.reply is not None:
                self.limiter.record_result(permit, None, self.clock())
                self.answered += 1
                self._learn(attempt.reply, cost)
        finally:
            self.limiter.leave(permit)
            self._changed.set()

    async def _permitted(self, item: ItemHistory, cost: RequestCost) -> Permit:
        async with self._line:
            while await self.ready():
                self._changed.clear()
                now = self.clock()
                wait_s = max(self.limiter.wait(now), self.rate_limiter.wait(cost, now))
                if not wait_s:
                    self.rate_limiter.take(cost, now)
                    return self.limiter.enter(item)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s if wait_s < math.inf else None):
                        await self._changed.wait()
        raise Halted

    def verdict(self, error: CallError, item: ItemHistory, state: RetryState) -> Verdict:
        """Return what happens to an item whose call failed with `error`. Call it after the item's `attempt` block.

        The verdict is "again" (retried in this run), "later" (pending until the next run), "failed" (permanently), or
        "refused" (pending; the endpoint gets no more calls in this run).
        """
        now = self.clock()
        too_few = self.others(error).too_few
        verdict = state.verdict(error, item.blame, self.policy, now, self.jitter(), too_few)
        if verdict == "later" and error.retry_after:
            self.retry_at = max(self.retry_at, now + error.retry_after)
        return verdict

    def _learn(self, reply: Reply, cost: RequestCost) -> None:
        self.rate_limiter.learn(reply.quotas)
        if reply.usage is not None:
            self.rate_limiter.record_prompt_tokens(cost, reply.usage.input, self.clock())

    def _failed(self, error: CallError) -> None:
        self.rate_limiter.learn(error.quotas)
        if error.kind is Kind.RATE_LIMITED:
            self.rate_limiter.record_limit_hit(self.clock())
        if self.limiter.given_up:
            self.refusal = self.refusal or error.kind
            self.refuse(self.limiter.given_up)

    def refuse(self, why: str) -> None:
        """Make no further calls to the endpoint in this run, for the reason `why`, which is shown to the user. Only the
        first reason is kept."""
        self.refused = self.refused or why
        self.stop()

    def stop(self) -> None:
        """Make no further calls, and wake everything that waits for a server or a permit."""
        self.halt.set()
        self.up.set()
        self._changed.set()

    async def ready(self) -> bool:
        """Wait until a server is up, and return True; return False if no further call is to be made."""
        self.wanted.set()
        if not self.up.is_set() and not self.halt.is_set():
            await self.up.wait()
            self.limiter.reset()
        return not self.halt.is_set()

    async def sleep(self, seconds: float) -> bool:
        """Sleep for these seconds and return True; return False as soon as the endpoint is halted."""
        try:
            async with asyncio.timeout(seconds):
                await self.halt.wait()
        except TimeoutError:
            return True
        return False


@dataclass(slots=True)
class Attempt:
    """One call to an endpoint, whose limits allow it now. `reply` is set when the reply arrives."""

    client: ChatModel
    request: Request
    reply: Reply | None = None

    async def send(self) -> Reply:
        """Send the request and return the reply. Raises CallError."""
        self.reply = await self.client.ask(self.request)
        return self.reply
