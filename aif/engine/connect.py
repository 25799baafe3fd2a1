"""Connect to the models and judges that a pipeline declares."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from aif.config.pipeline import Pipeline, request_options
from aif.config.sections import Judge, Model
from aif.core.environment import ENVIRON
from aif.core.types import Stage
from aif.judging.request import max_input_tokens
from aif.providers.base import ChatModel, Options, Request
from aif.providers.endpoint import Endpoint
from aif.providers.rate_limits import RateLimiter
from aif.providers.retry import RetryPolicy


@asynccontextmanager
async def open_endpoints(
    pipeline: Pipeline, environ: Mapping[str, str] = ENVIRON, policy: RetryPolicy | None = None
) -> AsyncIterator[list[Endpoint]]:
    """Yield one list, with an endpoint for every model and judge of a pipeline. Starts the simulator if it is used.

    `environ` holds the API keys. `policy` says when failed calls are retried; None: the default policy. Clients connect
    at their first call. A model with `launch` has no server yet: servers/fleet.py starts it. At the end of the `async
    with` block all clients are closed.
    """
    async with AsyncExitStack() as stack:
        simulator = await _simulator(pipeline, stack)
        endpoints: list[Endpoint] = []
        declared: list[tuple[Stage, Model | Judge]] = [
            *(("completion", model) for model in pipeline.models.values()),
            *(("judgement", judge) for judge in pipeline.judges.values()),
        ]
        for stage, model in declared:
            client = _client(model, stage, simulator, request_options(model, environ))
            stack.push_async_callback(client.aclose)
            endpoints.append(_endpoint(model, stage, client, policy or RetryPolicy()))
        yield endpoints


def _endpoint(model: Model | Judge, stage: Stage, client: ChatModel, policy: RetryPolicy) -> Endpoint:
    endpoint = Endpoint(
        model.name,
        stage,
        model.identity,
        client,
        model.concurrency,
        model.cost,
        _bound(model),
        RateLimiter(model.requests_per_minute, model.tokens_per_minute),
        bool(model.max_cost(1, 1)),
        policy,
        asyncio.get_running_loop().time,
    )
    if model.launch:
        endpoint.up.clear()
    return endpoint


def _bound(model: Model | Judge) -> Callable[[Request], float | None]:
    """Return a function from a request to the most that it can cost in USD; None: unknown. Without a `price` in the
    pipeline file, the function returns 0 if calls are free, else None."""
    if model.price is None:
        flat = model.max_cost(0, 0)
        return lambda request: flat
    return lambda request: model.max_cost(max_input_tokens(request), request.max_tokens)


def _client(model: Model | Judge, stage: Stage, simulator: str | None, options: Options) -> ChatModel:
    urls = model.base_url or ((simulator,) if model.provider == "simulator" and simulator else ())
    provider = model.provider
    if provider == "simulator":  # exercises both APIs: models as vLLM serves them, judges as OpenAI does
        provider = "vllm" if stage == "completion" else "openai"
    if provider == "vllm":
        from aif.providers.vllm import VllmChat

        limit = 0 if model.launch else model.concurrency  # with `launch` the number of servers is not known yet
        return VllmChat(urls, model.served_name, options, timeout_s=model.timeout_s, limit=limit)
    name, url = model.served_name, urls[0] if urls else None
    if provider == "anthropic":
        from aif.providers.anthropic import AnthropicChat

        return AnthropicChat(name, options, base_url=url, timeout_s=model.timeout_s, limit=model.concurrency)
    from aif.providers.openai import OpenAIChat

    return OpenAIChat(name, options, base_url=url, timeout_s=model.timeout_s, limit=model.concurrency)


async def _simulator(pipeline: Pipeline, stack: AsyncExitStack) -> str | None:
    models = {m.served_name: m.quality for m in pipeline.models.values() if m.provider == "simulator"}
    judges = {j.served_name: j.noise for j in pipeline.judges.values() if j.provider == "simulator"}
    if not models and not judges:
        return None
    from aif.simulator import SimulatedModels, Simulator

    simulator = await stack.enter_async_context(Simulator(SimulatedModels(models, judges, pipeline.seed)))
    return simulator.base_url
