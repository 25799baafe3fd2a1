"""What every client does alike, each against loopback servers that answer in its API."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from aif.chat.anthropic import AnthropicChat
from aif.chat.base import CallError, ChatModel, Kind, Request
from aif.chat.openai import OpenAIChat
from aif.chat.vllm import VllmChat
from tests.chat.loopback import (
    FAILURES,
    KEY,
    MESSAGE_FAILURES,
    Answer,
    Answering,
    Failure,
    completion,
    drip,
    hang,
    message,
    says,
    unused_url,
)


@dataclass(frozen=True)
class Client:
    """A client, and a reply in its API."""

    make: Callable[..., ChatModel]
    four: Answer


def _vllm(url: str, **settings: Any) -> ChatModel:
    return VllmChat([url], "tiny", **settings)


def _openai(url: str, **settings: Any) -> ChatModel:
    return OpenAIChat("tiny", base_url=f"{url}/v1", **settings)


def _anthropic(url: str, **settings: Any) -> ChatModel:
    return AnthropicChat("tiny", base_url=url, **settings)


CLIENTS = {
    "vllm": Client(_vllm, says(completion("Four."))),
    "openai": Client(_openai, says(completion("Four."))),
    "anthropic": Client(_anthropic, says(message("Four."))),
}

EVERY_FAILURE = {
    f"{name}: {failure}": (CLIENTS[name], found)
    for name, failures in (("vllm", FAILURES), ("openai", FAILURES), ("anthropic", MESSAGE_FAILURES))
    for failure, found in failures.items()
}


@pytest.fixture(params=CLIENTS.values(), ids=list(CLIENTS))
def client(request: pytest.FixtureRequest) -> Client:
    chosen: Client = request.param
    return chosen


def chat(client: Client, url: str, **more: Any) -> ChatModel:
    settings: dict[str, Any] = {"api_key": KEY, "timeout_s": 10.0, "limit": 8}
    return client.make(url, **settings | more)


@pytest.mark.parametrize(("client", "failure"), EVERY_FAILURE.values(), ids=list(EVERY_FAILURE))
async def test_failure(answering: Answering, request_: Request, client: Client, failure: Failure) -> None:
    server = await answering(failure.answer)
    asked = chat(client, server.url, timeout_s=0.2 if failure.kind is Kind.TIMEOUT else 10.0)
    with pytest.raises(CallError) as caught:
        await asked.ask(request_)
    await asked.aclose()

    failure.check(caught.value)
    assert not caught.value.unsent, "it may have been billed"
    assert len(server.bodies) == 1  # no client retries anything by itself


async def test_refused_connection(request_: Request, client: Client) -> None:
    url = unused_url()
    asked = chat(client, url)
    with pytest.raises(CallError) as caught:
        await asked.ask(request_)
    await asked.aclose()

    assert caught.value.kind is Kind.CONNECTION
    assert url.removeprefix("http://") in caught.value.message
    assert caught.value.unbilled, "nothing was sent"


async def test_cancellation_passes_through(answering: Answering, request_: Request, client: Client) -> None:
    server = await answering(hang)
    asked = chat(client, server.url, timeout_s=60.0)
    call = asyncio.create_task(asked.ask(request_))
    await server.asked.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asked.aclose()


async def test_a_call_that_timed_out_gives_its_place_back(
    answering: Answering, request_: Request, client: Client
) -> None:
    server = await answering(drip, client.four)
    asked = chat(client, server.url, limit=1, timeout_s=0.2)
    with pytest.raises(CallError):
        await asked.ask(request_)
    reply = await asked.ask(request_)
    await asked.aclose()

    assert reply.text == "Four."
