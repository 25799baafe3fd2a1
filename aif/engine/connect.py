"""The models and judges that a pipeline declares, connected."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from aif.config.pipeline import Pipeline, options
from aif.config.sections import Judge, Model
from aif.core.environment import ENVIRON
from aif.core.types import Stage
from aif.judging.request import most_input
from aif.providers.base import ChatModel, Options, Request
from aif.providers.endpoint import Endpoint
from aif.providers.rate_limits import Pace
from aif.providers.retry import RetryPolicy


@asynccontextmanager
async def open_endpoints(
    pipeline: Pipeline, environ: Mapping[str, str] = ENVIRON, policy: RetryPolicy | None = None
) -> AsyncIterator[list[Endpoint]]:
    """Every model and judge of a pipeline, connected to lazily; the simulator is started where one is declared. Those
    with `launch` have no server yet (see servers/fleet.py)."""
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
            endpoints.append(_endpoint(one, stage, client, policy or RetryPolicy()))
        yield endpoints


def _endpoint(one: Model | Judge, stage: Stage, client: ChatModel, policy: RetryPolicy) -> Endpoint:
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
