"""Anthropic's client against a real server that speaks its Messages: vLLM's /v1/messages.

vLLM takes system, blocks, output_config (format and effort); it has no use for cache_control and anthropic-version, and
caches every prefix by itself. It knows no refusal, and no error types but its own.
"""

import asyncio
import json
from typing import Any

import pytest

from aif.core.types import Message
from aif.providers.anthropic import AnthropicChat
from aif.providers.base import CallError, Kind, Reply, Request
from tests.real.test_vllm_ground import ASPECTS, fixed
from tests.real.vllm_server import Server

QUESTION = (Message("system", "Be brief."), Message("user", "Why is the sky blue?"))


async def answered(chat: AnthropicChat, request: Request) -> Reply:
    """A reply with words in it: no temperature is sent, and now and then a small model's first token ends its reply."""
    for _ in range(3):
        try:
            return await chat.ask(request)
        except CallError as error:
            if error.kind is not Kind.EMPTY:
                raise
    return await chat.ask(request)


def ask(server: Server, *requests: Request, model: str = "tiny-a", timeout_s: float = 120.0) -> list[Reply]:
    """The replies to these requests, one after another."""

    async def all_of_them() -> list[Reply]:
        chat = AnthropicChat(model, base_url=server.base_url, timeout_s=timeout_s, limit=4)
        try:
            return [await answered(chat, request) for request in requests]
        finally:
            await chat.aclose()

    return asyncio.run(all_of_them())


def failure(server: Server, request: Request, **settings: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        ask(server, request, **settings)
    return caught.value


def test_a_conversation_is_answered(vllm_server: Server) -> None:
    turns = (*QUESTION, Message("assistant", "Scattering."), Message("user", "And at dusk?"))
    (reply,) = ask(vllm_server, Request(turns, max_tokens=512, temperature=0.0, seed=7))

    assert reply.text.strip()
    assert reply.finish == "stop"
    assert reply.sent == {"model": "tiny-a", "max_tokens": 512}
    assert reply.served["model"] == "tiny-a"
    assert reply.usage is not None
    assert reply.usage.output > 0


def test_the_system_turn_is_part_of_the_prompt(vllm_server: Server) -> None:
    with_it, without = ask(vllm_server, Request(QUESTION, 4), Request(QUESTION[1:], 4))
    chat = {"messages": [{"role": m.role, "content": m.content} for m in QUESTION], "max_tokens": 4}
    counted = vllm_server.chat(chat)[1]["usage"]["prompt_tokens"]

    assert with_it.usage is not None
    assert without.usage is not None
    assert with_it.usage.input == counted > without.usage.input


def test_a_reply_is_cut_at_its_limit(vllm_server: Server) -> None:
    (reply,) = ask(vllm_server, Request(QUESTION, 3))

    assert reply.finish == "length"
    assert reply.usage is not None
    assert reply.usage.output == 3


def test_a_breakpoint_does_no_harm_and_input_counts_what_was_cached(vllm_server: Server) -> None:
    """vLLM's input_tokens leave out what was cached, as Anthropic's do. Blocks are 128 tokens here."""
    content = "The beginning of another text. " * 100
    messages = (Message("user", content + "Why?"),)
    first, second = ask(vllm_server, *[Request(messages, 4, shared=len(content))] * 2)

    assert first.sent["cache_control"] == "ephemeral"
    assert first.usage is not None
    assert second.usage is not None
    assert first.usage.cached == 0
    assert 0 < second.usage.cached < second.usage.input
    assert second.usage.input == first.usage.input


def test_a_schema_is_followed(vllm_server: Server) -> None:
    """One without free texts, whose bounds are not sent: a random model would fill them to the limit."""
    rating = {"type": "string", "enum": ["1", "2", "3", "N/A"], "maxLength": 3}
    schema = fixed({str(number): fixed(dict.fromkeys(ASPECTS, rating)) for number in range(1, 5)})
    for reply in ask(vllm_server, *[Request(QUESTION, 600, schema=schema)] * 3, model="judge"):
        assert reply.finish == "stop"
        assert reply.sent["output_config"] == {"format": "json_schema"}
        ratings = json.loads(reply.text)
        assert [*ratings] == ["1", "2", "3", "4"]
        for completion in ratings.values():
            assert [*completion] == [*ASPECTS]
            assert {*completion.values()} <= {"1", "2", "3", "N/A"}


def test_what_is_refused_is_told_apart(vllm_server: Server) -> None:
    long = Request((Message("user", "word " * 9000),), 8)

    assert failure(vllm_server, long).kind is Kind.CONTEXT_OVERFLOW
    assert failure(vllm_server, Request(QUESTION, 8), model="nope").kind is Kind.UNKNOWN_MODEL
    assert failure(vllm_server, Request(QUESTION, 8, reasoning_effort="utmost")).kind is Kind.BAD_REQUEST
    assert failure(vllm_server, Request(QUESTION, 512), timeout_s=0.001).kind is Kind.TIMEOUT
