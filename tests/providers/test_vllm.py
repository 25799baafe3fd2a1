"""aif/providers/vllm.py against loopback servers."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web

from aif.core.errors import BadInput
from aif.core.types import Usage
from aif.providers.base import CallError, Kind, Request
from aif.providers.vllm import VllmChat, _Server, normalize_base_url
from tests.support.loopback import KEY, Answering, body, completion, hang, keyed, says


def client(*urls: str, key: str | None = None, **more: Any) -> VllmChat:
    return VllmChat(urls, "tiny", keyed(key), **{"timeout_s": 10.0, "limit": 8} | more)


async def ask_all(chat: VllmChat, requests: Sequence[Request]) -> list[Any]:
    return await asyncio.gather(*map(chat.ask, requests), return_exceptions=True)


async def test_a_reply(answering: Answering, request_: Request) -> None:
    server = await answering(says(completion() | {"system_fingerprint": "fp"}))
    chat = client(server.url, key=KEY)
    reply = await chat.ask(request_)
    await chat.aclose()

    assert reply.text == "Four."
    assert reply.finish == "stop"
    assert reply.usage == Usage(input=12, output=5)
    assert reply.served == {"model": "tiny-2024", "system_fingerprint": "fp", "id": "chatcmpl-1"}
    assert reply.sent == {"model": "tiny", "max_tokens": 64, "temperature": 0.5, "seed": 7}
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert server.headers[0]["content-type"] == "application/json"
    assert server.bodies == [{**reply.sent, "messages": [{"role": "user", "content": "What is 2 + 2?"}]}]


async def test_without_a_key_none_is_sent(answering: Answering, request_: Request) -> None:
    server = await answering(says(completion()))
    chat = client(server.url)
    await chat.ask(request_)
    await chat.aclose()

    assert "authorization" not in server.headers[0]


async def test_calls_go_where_the_fewest_are_in_flight(answering: Answering, request_: Request) -> None:
    slow, quick = await answering(hang), await answering(says(completion()))
    chat = client(slow.url, quick.url, timeout_s=5.0)
    stuck = asyncio.create_task(chat.ask(request_))
    await slow.asked.wait()
    for _ in range(5):
        await chat.ask(request_)
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)
    await chat.aclose()

    assert (len(slow.bodies), len(quick.bodies)) == (1, 5)


async def test_ties_go_round(answering: Answering, request_: Request) -> None:
    servers = [await answering(says(completion())) for _ in range(3)]
    chat = client(*(server.url for server in servers))
    for _ in range(6):
        await chat.ask(request_)
    await ask_all(chat, [request_] * 6)
    await chat.aclose()

    assert [len(server.bodies) for server in servers] == [4, 4, 4]


async def test_a_failing_server_rests_and_comes_back(answering: Answering, request_: Request) -> None:
    bad, good = await answering(body(b"", 500), body(b"", 500), says(completion())), await answering(says(completion()))
    now = 100.0
    chat = client(bad.url, good.url, clock=lambda: now)

    async def asked(calls: int) -> int:
        before = len(bad.bodies)
        await ask_all(chat, [request_] * calls)
        return len(bad.bodies) - before

    seen = [await asked(1), await asked(4)]  # fails, and rests for 1 s
    now += 1.0
    seen += [await asked(2), await asked(4)]  # fails again, and rests for 2 s
    now += 1.9
    seen.append(await asked(4))
    now += 0.1
    seen += [await asked(4), await asked(4)]  # one call shows that it is well
    await chat.aclose()

    assert seen == [1, 0, 1, 0, 0, 1, 2]


async def test_one_that_hangs_gets_one_call_after_its_rest_until_one_is_answered(
    answering: Answering, request_: Request
) -> None:
    stuck, good = await answering(hang), await answering(says(completion()))
    now = 100.0
    chat = client(stuck.url, good.url, timeout_s=0.2, clock=lambda: now)
    ended = await ask_all(chat, [request_] * 8)
    assert sum(isinstance(one, CallError) and one.kind is Kind.TIMEOUT for one in ended) == 4
    now += 1.0
    await ask_all(chat, [request_] * 8)
    await chat.aclose()

    assert len(stuck.bodies) == 5


@pytest.mark.parametrize(
    ("ends", "hangs"),
    [
        ([Kind.TIMEOUT] * 3, True),
        ([Kind.TIMEOUT] * 2, False),
        ([Kind.CONNECTION] * 9, False),
        ([Kind.TIMEOUT, Kind.TIMEOUT, None, Kind.TIMEOUT], False),
        ([Kind.TIMEOUT, Kind.TIMEOUT, Kind.SERVER_ERROR, Kind.TIMEOUT], False),
        ([Kind.TIMEOUT, Kind.CONNECTION, Kind.TIMEOUT, Kind.TIMEOUT], True),
    ],
)
def test_one_hangs_if_calls_time_out_and_nothing_else_comes(ends: list[Kind | None], hangs: bool) -> None:
    server = _Server("http://one/v1")
    server.record(None, 0.0)
    for end in ends:
        server.record(end, 60.0)

    assert server.hangs(60.0, 60.0) is hangs
    assert not server.hangs(59.0, 60.0), "it spoke less than a call's time ago"


async def test_a_server_of_the_client_can_be_asked_about_by_its_url(answering: Answering, request_: Request) -> None:
    stuck, good = await answering(hang), await answering(says(completion()))
    chat = client(stuck.url, good.url, timeout_s=0.05)
    await ask_all(chat, [request_] * 6)
    await chat.aclose()

    assert (chat.hangs(stuck.url), chat.hangs(good.url), chat.hangs("http://gone/v1")) == (True, False, False)


async def test_calls_that_fail_together_count_as_one_failure(answering: Answering, request_: Request) -> None:
    bad, good = await answering(body(b"", 503)), await answering(says(completion()))
    now = 100.0
    chat = client(bad.url, good.url, clock=lambda: now)
    await ask_all(chat, [request_] * 8)
    assert len(bad.bodies) == 4
    now += 1.0
    await ask_all(chat, [request_] * 2)
    await chat.aclose()

    assert len(bad.bodies) == 5


async def test_if_all_rest_the_one_that_rests_least_is_asked(answering: Answering, request_: Request) -> None:
    first, second = await answering(body(b"", 500)), await answering(body(b"", 500))
    now = 100.0
    chat = client(first.url, second.url, clock=lambda: now)
    await ask_all(chat, [request_])
    now += 0.5
    await ask_all(chat, [request_])
    await ask_all(chat, [request_])
    await chat.aclose()

    assert (len(first.bodies), len(second.bodies)) == (2, 1)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_one_that_refuses_everybody_is_left_alone_too(
    answering: Answering, request_: Request, status: int
) -> None:
    """It fails at once, so that it would be given most of the calls."""
    bad, good = await answering(body(b"", status)), await answering(says(completion()))
    chat = client(bad.url, good.url, clock=lambda: 100.0)
    for _ in range(6):
        await ask_all(chat, [request_] * 2)
    await chat.aclose()

    assert (len(bad.bodies), len(good.bodies)) == (1, 11)


async def test_an_item_s_own_error_lets_no_server_rest(answering: Answering, request_: Request) -> None:
    bad, good = await answering(body(b"", 400)), await answering(says(completion()))
    chat = client(bad.url, good.url)
    for _ in range(6):
        await ask_all(chat, [request_])
    await chat.aclose()

    assert len(bad.bodies) == 3


async def test_servers_can_be_swapped_while_calls_are_in_flight(answering: Answering, request_: Request) -> None:
    go = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await go.wait()
        return await says(completion("from the old one"))(request)

    old, new = await answering(wait), await answering(says(completion("from the new one")))
    chat = client(old.url, timeout_s=5.0)
    call = asyncio.create_task(chat.ask(request_))
    await old.asked.wait()
    chat.set_urls([new.url])
    texts = [(await chat.ask(request_)).text]
    go.set()
    texts.append((await call).text)
    await chat.aclose()

    assert texts == ["from the new one", "from the old one"]


async def test_without_any_server_a_call_is_for_later(request_: Request) -> None:
    chat = client()
    with pytest.raises(CallError, match="No server of tiny") as caught:
        await chat.ask(request_)
    await chat.aclose()

    assert caught.value.kind is Kind.CONNECTION


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://gpu-2:8000", "http://gpu-2:8000/v1"),
        ("http://gpu-2:8000/", "http://gpu-2:8000/v1"),
        ("http://gpu-2:8000/v1/", "http://gpu-2:8000/v1"),
        ("https://host/models/tiny", "https://host/models/tiny"),
    ],
)
async def test_base_url(given: str, base: str) -> None:
    assert normalize_base_url(given) == base


@pytest.mark.parametrize("given", ["gpu-2:8000", "ftp://gpu-2", "http://", ""])
async def test_base_url_that_is_none(given: str) -> None:
    with pytest.raises(BadInput, match="base_url"):
        client(given)
