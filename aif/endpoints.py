"""The models and judges of a pipeline as what they are during a run: clients with their limits, price and state."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from aif.chat.base import TRANSIENT, CallError, ChatModel, Kind
from aif.chat.limits import Pace
from aif.config import Pipeline, api_key
from aif.entries import Judge, Model
from aif.records import Stage, Usage

# A setting the provider does not take is refused with every request: this many are enough to tell, before any answer.
BAD_REQUESTS = 5
# From an address where nobody answers, 64,000 prompts would be 7 hours of calls tried six times each. So many that
# brought nothing over so many seconds, and none that brought anything in this run, are enough to tell.
SILENT_CALLS, SILENT_S = 20, 60.0
_SILENT = TRANSIENT - {Kind.RATE_LIMITED}


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class Endpoint:
    """A model or judge that is called. `refused` says why it takes no more calls; `halt` is set then, or on a stop.

    A launched one is not `up` until a server of its own answers, and while none does; `wanted` says that a call waits
    for it or has been made, `done` that none will come any more, `doing` what its servers do instead of answering.
    `cost` and `bound` are the entry's: USD of what was used, and at most of so many tokens.
    """

    name: str
    stage: Stage
    identity: str
    client: ChatModel
    concurrency: int
    cost: Callable[[Usage | None], float | None]
    bound: Callable[[int, int], float | None]
    pace: Pace
    halt: asyncio.Event = field(default_factory=asyncio.Event)
    up: asyncio.Event = field(default_factory=_set)
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    doing: str | None = None
    refused: str | None = None
    answered: int = 0  # ever, as the store knows
    bad_requests: int = 0
    heard: bool = False  # in this run, whatever the server said
    silent: int = 0
    silent_since: float = 0.0
    in_flight: int = 0
    uncovered: int = 0  # calls in a row that the budget did not cover

    @property
    def paid(self) -> bool:
        """Whether its calls count against a budget."""
        return bool(self.bound(1, 1))

    def note(self, error: CallError | None, now: float) -> bool:
        """Takes in how a call ended, at a time in seconds of any clock. True where a refused request says nothing of
        its item yet: as long as nothing at all was ever answered, it may be a setting that is refused."""
        self._listen(error, now)
        if error is None:
            self.answered += 1
        if error is None or error.kind != Kind.BAD_REQUEST or self.answered:
            return False
        self.bad_requests += 1
        if self.bad_requests >= BAD_REQUESTS:
            self.refuse(f"the first {self.bad_requests} requests were all refused: {error.message}")
        return True

    def _listen(self, error: CallError | None, now: float) -> None:
        """Stops asking where nobody is."""
        if error is None or error.kind not in _SILENT:
            self.heard = True
        if self.heard or error is None:
            return
        self.silent += 1
        self.silent_since = self.silent_since if self.silent > 1 else now
        if self.silent >= SILENT_CALLS and now - self.silent_since >= SILENT_S:
            took = f"{self.silent} calls in {now - self.silent_since:.0f} s"
            self.refuse(f"nothing came back from {took}; the last: {error.kind}: {error.message}")

    def refuse(self, why: str) -> None:
        self.refused = self.refused or why
        self.stop()

    def stop(self) -> None:
        """No further call is made, and nobody waits for a server."""
        self.halt.set()
        self.up.set()

    async def ready(self) -> bool:
        """Waits for a server that is up; False where no further call is to be made."""
        self.wanted.set()
        if not self.halt.is_set():
            await self.up.wait()
        return not self.halt.is_set()

    async def sleep(self, seconds: float) -> bool:
        """Waits; False as soon as the endpoint is halted."""
        try:
            async with asyncio.timeout(seconds):
                await self.halt.wait()
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def opened(pipeline: Pipeline, environ: Mapping[str, str] = os.environ) -> AsyncIterator[list[Endpoint]]:
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
            client = _client(one, stage, simulator, api_key(one, environ))
            stack.push_async_callback(client.aclose)
            endpoints.append(_endpoint(one, stage, client))
        yield endpoints


def _endpoint(one: Model | Judge, stage: Stage, client: ChatModel) -> Endpoint:
    async def sleep(seconds: float) -> bool:
        return await endpoint.sleep(seconds)

    pace = Pace(one.requests_per_minute, one.tokens_per_minute, clock=asyncio.get_running_loop().time, sleep=sleep)
    endpoint = Endpoint(one.name, stage, one.identity, client, one.concurrency, one.cost, one.bound, pace)
    if one.launch:
        endpoint.up.clear()
    return endpoint


def _client(one: Model | Judge, stage: Stage, simulator: str | None, key: str | None) -> ChatModel:
    urls = one.base_url or ((simulator,) if one.provider == "simulator" and simulator else ())
    provider = one.provider
    if provider == "simulator":  # each API has its rehearsal: the pool's as vLLM serves it, the judges' as OpenAI does
        provider = "vllm" if stage == "completion" else "openai"
    if provider == "vllm":
        from aif.chat.vllm import VllmChat

        limit = 0 if one.launch else one.concurrency  # how many servers there will be is not known yet
        return VllmChat(urls, one.served_name, api_key=key, timeout_s=one.timeout_s, limit=limit)
    model, url, key = one.served_name, urls[0] if urls else None, key or "none"
    if provider == "anthropic":
        from aif.chat.anthropic import AnthropicChat

        return AnthropicChat(model, base_url=url, api_key=key, timeout_s=one.timeout_s, limit=one.concurrency)
    from aif.chat.openai import OpenAIChat

    return OpenAIChat(model, base_url=url, api_key=key, timeout_s=one.timeout_s, limit=one.concurrency)


async def _simulator(pipeline: Pipeline, stack: AsyncExitStack) -> str | None:
    models = {m.served_name: m.quality for m in pipeline.models.values() if m.provider == "simulator"}
    judges = {j.served_name: j.noise for j in pipeline.judges.values() if j.provider == "simulator"}
    if not models and not judges:
        return None
    from aif.simulator import Cast, Simulator

    simulator = await stack.enter_async_context(Simulator(Cast(models, judges, pipeline.seed)))
    return simulator.base_url
