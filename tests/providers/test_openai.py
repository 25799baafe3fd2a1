"""aif/providers/openai.py against loopback servers."""

from typing import Any

import pytest

from aif.core.types import Usage
from aif.providers.base import Request
from aif.providers.openai import OpenAIChat
from tests.support.loopback import HEADERS, KEY, Answering, completion, keyed, says


def client(url: str, **more: Any) -> OpenAIChat:
    settings: dict[str, Any] = {"options": keyed(KEY), "timeout_s": 10.0, "limit": 8}
    return OpenAIChat("tiny", base_url=f"{url}/v1", **settings | more)


async def test_a_reply(answering: Answering, request_: Request) -> None:
    server = await answering(says(completion() | {"system_fingerprint": "fp"}))
    chat = client(server.url)
    reply = await chat.ask(request_)
    await chat.aclose()

    assert reply.text == "Four."
    assert reply.usage == Usage(input=12, output=5)
    assert reply.served == {"model": "tiny-2024", "system_fingerprint": "fp", "id": "chatcmpl-1"}
    assert reply.sent == {"model": "tiny", "max_tokens": 64, "temperature": 0.5, "seed": 7}
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [{**reply.sent, "messages": [{"role": "user", "content": "What is 2 + 2?"}]}]


async def test_nothing_but_what_was_given_is_sent(
    answering: Answering, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment of another project must not reach a server: neither its key nor its organisation."""
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-another")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://another.invalid/v1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-another")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer key-of-another\nX-Extra: 1")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    server = await answering(says(completion()))
    chat = client(server.url)
    await chat.ask(request_)
    await chat.aclose()

    (headers,) = server.headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"
    assert headers.keys() <= HEADERS
