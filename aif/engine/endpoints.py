"""The models and judges of a pipeline as what they are during a run: clients with their limits, price and state."""

import asyncio
import math
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property

from aif.config.pipeline import Pipeline, options
from aif.config.sections import Judge, Model
from aif.core.types import Stage, Usage
from aif.judging.request import most_input
from aif.providers.base import CallError, ChatModel, Kind, Options, Reply, Request
from aif.providers.concurrency import MANY, Caller, Gate, Others, Pass
from aif.providers.rate_limits import Cost, Pace
from aif.providers.retry import Course, Policy, Verdict


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
    policy: Policy = field(default_factory=Policy)
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


@asynccontextmanager
async def opened(
    pipeline: Pipeline, environ: Mapping[str, str] = os.environ, policy: Policy | None = None
) -> AsyncIterator[list[Endpoint]]:
    """Every model and judge of a pipeline, connected to lazily; the simulator is started where one is declared. Those
    with `launch` have no server yet (see fleet.py)."""
    async with AsyncExitStack() as stack:
        simulator = await _simulator(pipeline, stack)
        endpoints: list[Endpoint] = []
        declared: list[tuple[Stage, Model | Judge]] = [
            *(("completion", model) for model in pipeline.models.values()),
            *(("judgement", judge) for judge in pipeline.judges.values()),
        ]
        for stage, one in declared:
            client = _client(one, stage, simulator, options(one, environ))
            stack.push_async_callback(client.aclose)
            endpoints.append(_endpoint(one, stage, client, policy or Policy()))
        yield endpoints


def _endpoint(one: Model | Judge, stage: Stage, client: ChatModel, policy: Policy) -> Endpoint:
    endpoint = Endpoint(
        one.name,
        stage,
        one.identity,
        client,
        one.concurrency,
        one.cost,
        _bound(one),
        Pace(one.requests_per_minute, one.tokens_per_minute),
        bool(one.bound(1, 1)),
        policy,
        asyncio.get_running_loop().time,
    )
    if one.launch:
        endpoint.up.clear()
    return endpoint


def _bound(one: Model | Judge) -> Callable[[Request], float | None]:
    """What a request costs at most. Without a price that is the same of all, and none is measured."""
    if one.price is None:
        flat = one.bound(0, 0)
        return lambda request: flat
    return lambda request: one.bound(most_input(request), request.max_tokens)


def _client(one: Model | Judge, stage: Stage, simulator: str | None, options: Options) -> ChatModel:
    urls = one.base_url or ((simulator,) if one.provider == "simulator" and simulator else ())
    provider = one.provider
    if provider == "simulator":  # each API has its rehearsal: the pool's as vLLM serves it, the judges' as OpenAI does
        provider = "vllm" if stage == "completion" else "openai"
    if provider == "vllm":
        from aif.providers.vllm import VllmChat

        limit = 0 if one.launch else one.concurrency  # how many servers there will be is not known yet
        return VllmChat(urls, one.served_name, options, timeout_s=one.timeout_s, limit=limit)
    model, url = one.served_name, urls[0] if urls else None
    if provider == "anthropic":
        from aif.providers.anthropic import AnthropicChat

        return AnthropicChat(model, options, base_url=url, timeout_s=one.timeout_s, limit=one.concurrency)
    from aif.providers.openai import OpenAIChat

    return OpenAIChat(model, options, base_url=url, timeout_s=one.timeout_s, limit=one.concurrency)


async def _simulator(pipeline: Pipeline, stack: AsyncExitStack) -> str | None:
    models = {m.served_name: m.quality for m in pipeline.models.values() if m.provider == "simulator"}
    judges = {j.served_name: j.noise for j in pipeline.judges.values() if j.provider == "simulator"}
    if not models and not judges:
        return None
    from aif.simulator import Cast, Simulator

    simulator = await stack.enter_async_context(Simulator(Cast(models, judges, pipeline.seed)))
    return simulator.base_url
