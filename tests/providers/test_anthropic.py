"""aif/providers/anthropic.py against loopback servers."""

from pathlib import Path
from typing import Any

import pytest

from aif.core.types import Message, Usage
from aif.providers.anthropic import AnthropicChat
from aif.providers.base import Request
from tests.support.loopback import HEADERS, KEY, Answering, keyed, message, says


def client(url: str, **more: Any) -> AnthropicChat:
    settings: dict[str, Any] = {"options": keyed(KEY), "timeout_s": 10.0, "limit": 8}
    return AnthropicChat("claude-tiny", base_url=url, **settings | more)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
async def test_a_reply(answering: Answering, request_: Request, path: str) -> None:
    server = await answering(says(message("Four.")))
    chat = client(server.url + path)
    reply = await chat.ask(request_)
    await chat.aclose()

    assert reply.text == "Four."
    assert reply.usage == Usage(input=12, output=5)
    assert reply.served == {"model": "claude-tiny-2026", "id": "msg_1"}
    assert reply.sent == {"model": "claude-tiny", "max_tokens": 64}
    assert server.paths == ["/v1/messages"]
    assert server.bodies == [{**reply.sent, "messages": [{"role": "user", "content": "What is 2 + 2?"}]}]


async def test_a_long_reply_is_asked_for_as_any(answering: Answering) -> None:
    """The client's own method refuses such a max_tokens unless the reply is streamed."""
    server = await answering(says(message("Four.")))
    chat = client(server.url)
    await chat.ask(Request((Message("user", "Hi"),), max_tokens=64_000))
    await chat.aclose()

    assert server.bodies[0]["max_tokens"] == 64_000


async def test_nothing_but_what_was_given_is_sent(
    answering: Answering, request_: Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The environment of another project must not reach a server: neither its key nor its version of the API."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key-of-another")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token-of-another")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://another.invalid")
    monkeypatch.setenv("ANTHROPIC_PROFILE", "another")
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv(
        "ANTHROPIC_CUSTOM_HEADERS",
        "X-Api-Key: key-of-another\nanthropic-version: 2023-06-01\nanthropic-beta: x\nX-A: 1",
    )
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    server = await answering(says(message("Four.")))
    chat = client(server.url)
    await chat.ask(request_)
    await chat.aclose()

    (headers,) = server.headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["anthropic-version"] == "2026-10-21"
    assert headers["content-type"] == "application/json"
    assert headers.keys() <= HEADERS | {"anthropic-version"}
