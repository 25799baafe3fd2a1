"""`extra_body` at a real server: what only vLLM knows arrives there, by either client."""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from aif.core.types import Message
from aif.providers.base import CallError, Kind, Request
from aif.providers.openai import OpenAIChat
from aif.providers.vllm import VllmChat
from tests.real.vllm_server import Server

QUESTION = (Message("system", "Be brief."), Message("user", "Why is the sky blue?"))
SEEDS = (7, 8)


def texts(server: Server, client: str, extra: Mapping[str, Any]) -> list[str]:
    """What is said at temperature 1, by each of two seeds."""

    async def both() -> list[str]:
        chat = (
            VllmChat([server.base_url], "tiny-a", timeout_s=120.0, limit=2)
            if client == "vllm"
            else OpenAIChat("tiny-a", base_url=server.base_url, timeout_s=120.0, limit=2)
        )
        said = orjson.dumps(extra).decode() if extra else ""
        try:
            asked = [Request(QUESTION, 24, temperature=1.0, seed=seed, extra=said) for seed in SEEDS]
            return [(await chat.ask(request)).text for request in asked]
        finally:
            await chat.aclose()

    return asyncio.run(both())


@pytest.mark.parametrize("client", ["vllm", "openai"])
def test_sampling_that_only_the_server_knows_arrives(vllm_server: Server, client: str) -> None:
    """Of one token to choose from, every seed takes the same."""
    plain = texts(vllm_server, client, {})
    greedy = texts(vllm_server, client, {"top_k": 1})

    assert plain[0] != plain[1]
    assert greedy[0] == greedy[1]
    assert texts(vllm_server, client, {"min_p": 1.0}) == greedy


def test_a_template_s_arguments_arrive_and_one_it_lacks_does_no_harm(vllm_server: Server) -> None:
    told = {"chat_template_kwargs": {"enable_thinking": False}}

    assert texts(vllm_server, "vllm", told) == texts(vllm_server, "vllm", {})
    with pytest.raises(CallError, match="chat_template_kwargs") as caught:
        texts(vllm_server, "vllm", {"chat_template_kwargs": "none"})
    assert caught.value.kind is Kind.BAD_REQUEST
