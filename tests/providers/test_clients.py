"""What every client does alike, each against loopback servers that answer in its API."""

import asyncio
import re
import ssl
import traceback
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aif.core.types import Message
from aif.providers.anthropic import AnthropicChat
from aif.providers.base import CallError, ChatModel, Kind, Options, Request
from aif.providers.openai import OpenAIChat
from aif.providers.vllm import VllmChat
from aif.simulator import Arrival, Fault, InjectedFault, SimulatedModels, Simulator
from tests.support.loopback import (
    FAILURES,
    KEY,
    MESSAGE_FAILURES,
    Answer,
    Answering,
    Failure,
    body,
    completion,
    drip,
    hang,
    keyed,
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

CLIENT_BODIES = {_vllm: completion("Four."), _openai: completion("Four."), _anthropic: message("Four.")}

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
    settings: dict[str, Any] = {"options": keyed(KEY), "timeout_s": 10.0, "limit": 8}
    return client.make(url, **settings | more)


async def test_what_goes_with_every_request(answering: Answering, request_: Request, client: Client) -> None:
    secret = "sesame-open-1234"
    headers = {"api-key": secret, "User-Agent": "mine/1"}
    options = Options(headers=headers, query={"api-version": "2025-04-01", "a b": "ü"}, secrets=(secret,))
    server = await answering(client.four, says({"error": {"message": f"no {secret}"}}, 400))
    asked = chat(client, server.url, options=options)
    await asked.ask(request_)
    with pytest.raises(CallError) as caught:
        await asked.ask(request_)
    await asked.aclose()

    assert server.queries[0] == {"api-version": "2025-04-01", "a b": "ü"}
    assert server.headers[0]["api-key"] == secret
    assert server.headers[0]["user-agent"] == "mine/1"
    assert "authorization" not in server.headers[0]
    assert "no [key]" in caught.value.message
    assert secret not in caught.value.message + (caught.value.raw or "")


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
    assert caught.value.message == f"{url.removeprefix('http://')}: Connection refused"
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


async def test_a_reply_that_was_given_to_another_request_is_no_reply(
    answering: Answering, request_: Request, client: Client
) -> None:
    one, two = (replace(request_, seed=None, max_tokens=n) for n in (10, 11))
    first, second = (says({**CLIENT_BODIES[client.make], "id": id}) for id in ("id-1", "id-2"))
    server = await answering(first, second, first, second)
    asked = chat(client, server.url)
    await asked.ask(one)
    await asked.ask(two)
    await asked.ask(one)  # a request's own answer may well come again: it was asked again
    with pytest.raises(CallError) as caught:
        await asked.ask(one)
    await asked.aclose()

    assert caught.value.kind is Kind.CONNECTION
    assert "another request" in caught.value.message


async def test_nor_is_one_that_could_not_be_used(answering: Answering, request_: Request, client: Client) -> None:
    """Else the answer behind it on its connection would be taken for the next request's."""
    one, two = (replace(request_, seed=None, max_tokens=n) for n in (10, 11))
    first, empty = ({**CLIENT_BODIES[client.make], "id": id} for id in ("id-1", "id-2"))
    empty |= {"content": []} if "content" in empty else {"choices": completion("")["choices"]}
    server = await answering(says(first), says(empty))
    asked = chat(client, server.url)
    await asked.ask(one)
    kinds = []
    for request in (one, two):
        with pytest.raises(CallError) as caught:
            await asked.ask(request)
        kinds.append(caught.value.kind)
    await asked.aclose()

    assert kinds == [Kind.EMPTY, Kind.CONNECTION]


async def test_a_gateway_that_keeps_replies_is_named(answering: Answering, request_: Request, client: Client) -> None:
    one, two = (replace(request_, max_tokens=n) for n in (10, 11))  # asked with the same words
    first, second = (says({**CLIENT_BODIES[client.make], "id": id}) for id in ("id-1", "id-2"))
    server = await answering(first, second, first)
    asked = chat(client, server.url)
    await asked.ask(one)
    await asked.ask(replace(one, messages=(Message("user", "Else?"),)))
    errors = []
    for _ in range(3):
        with pytest.raises(CallError) as caught:
            await asked.ask(two)
        errors.append(caught.value)
    await asked.aclose()

    assert [error.kind for error in errors] == [Kind.CONNECTION, Kind.CACHED, Kind.CACHED]
    assert "caches replies and ignores the seed" in errors[-1].message


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("status", [200, 500])
async def test_a_reply_without_end_is_not_read_to_its_end(
    answering: Answering, request_: Request, client: Client, zipped: bool, status: int
) -> None:
    """Held whole, 64 of them would take all memory within seconds."""
    piece = b" " * 2**20
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        answer = web.StreamResponse(status=status, headers={"Content-Encoding": "gzip"} if zipped else {})
        await answer.prepare(request)
        packer = zlib.compressobj(wbits=31)
        with suppress(ConnectionError):
            for sent in range(200):  # noqa: B007
                await answer.write(packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH) if zipped else piece)
                await asyncio.sleep(0)
        return answer

    server = await answering(endless, client.four)
    asked = chat(client, server.url, limit=1)
    with pytest.raises(CallError, match="larger than 8 MiB") as caught:
        await asked.ask(request_)
    reply = await asked.ask(request_)
    await asked.aclose()

    assert (caught.value.kind, caught.value.unsent, reply.text) == (Kind.BAD_REPLY, False, "Four.")
    assert zipped or sent < 100


async def test_a_long_reply_is_read(answering: Answering, request_: Request, client: Client) -> None:
    text = "Four. " * 2**20
    data = completion(text) if client.make is not _anthropic else message(text)
    server = await answering(says(data))
    asked = chat(client, server.url)
    reply = await asked.ask(request_)
    await asked.aclose()

    assert reply.text == text


async def test_connections_closed_under_a_call_that_waits_for_one_cancel_nobody(
    answering: Answering, request_: Request, client: Client
) -> None:
    """aiohttp cancels those who wait for a connection; a worker that ended by it would be missed by nobody."""
    server = await answering(hang)
    asked = chat(client, server.url, limit=1)
    sent = asyncio.create_task(asked.ask(request_))
    await server.asked.wait()
    waiting = asyncio.create_task(asked.ask(request_))
    for _ in range(100):  # turns of the loop, until it waits
        await asyncio.sleep(0)
    await asked.aclose()
    ended = await asyncio.gather(sent, waiting, return_exceptions=True)

    assert [type(one) for one in ended] == [CallError, CallError]
    assert [one.unsent for one in ended if isinstance(one, CallError)] == [False, True]


async def test_servers_whose_ids_are_all_the_same_are_believed(
    answering: Answering, request_: Request, client: Client
) -> None:
    server = await answering(client.four, client.four, client.four)
    asked = chat(client, server.url)
    replies = [await asked.ask(replace(request_, max_tokens=n)) for n in (10, 11, 12)]
    await asked.aclose()

    assert [reply.text for reply in replies] == ["Four."] * 3


async def test_no_response_that_comes_twice_is_taken_for_another(request_: Request, client: Client) -> None:
    def doubled(arrival: Arrival) -> InjectedFault | None:
        return InjectedFault(Fault.DUPLICATE, seconds=0.02) if arrival.number % 3 == 0 else None

    async with Simulator(SimulatedModels({"tiny": 0.5}, {}), latency_s=0.05, faults=doubled) as simulator:
        asked = chat(client, simulator.base_url.removesuffix("/v1"))
        ids: list[str] = []

        async def ask(n: int) -> None:
            with suppress(CallError):
                reply = await asked.ask(replace(request_, max_tokens=10 + n, temperature=None, top_p=None))
                ids.append(str(reply.served["id"]))

        for batch in range(0, 80, 8):
            await asyncio.gather(*(ask(batch + n) for n in range(8)))
        await asked.aclose()

    assert len(ids) == len(set(ids)), "a reply was taken for two requests"
    assert len(ids) > 20


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(answering: Answering, request_: Request, client: Client, status: int) -> None:
    """A key goes to the host that the pipeline names, and to no other that this one names."""
    elsewhere = await answering(client.four)
    server = await answering(body(b"", status, headers={"Location": f"{elsewhere.url}/v1/chat/completions"}))
    asked = chat(client, server.url)
    with pytest.raises(
        CallError, match=rf"{status} to {elsewhere.url}/\S+: set base_url to {elsewhere.url}/v1$"
    ) as caught:
        await asked.ask(request_)
    await asked.aclose()

    assert (caught.value.kind, caught.value.explicit) == (Kind.WRONG_URL, True)
    assert elsewhere.paths == []


async def test_a_certificate_that_nobody_signed_is_refused(
    answering: Answering, request_: Request, client: Client, self_signed: ssl.SSLContext
) -> None:
    server = await answering(client.four, ssl_context=self_signed)
    asked = chat(client, server.url)
    with pytest.raises(CallError, match=r"(?i)certificate") as caught:
        await asked.ask(request_)
    await asked.aclose()

    assert caught.value.kind is Kind.CONNECTION
    assert server.paths == []
    async with aiohttp.ClientSession() as careless, careless.post(server.url, json={}, ssl=False) as answer:
        assert answer.status == 200  # nothing but its certificate is wrong with that server


async def test_what_the_environment_says_of_a_host_changes_no_key(
    answering: Answering, request_: Request, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password key-of-another\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", unused_url())
    server = await answering(client.four)
    asked = chat(client, server.url)
    await asked.ask(request_)
    await asked.aclose()

    (headers,) = server.headers
    assert headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.filterwarnings("ignore:.*(BasicAuth|proxy_auth).* deprecated")  # the SDKs' transport makes one
@pytest.mark.parametrize("named", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_a_proxy_of_the_environment_is_the_way_out(
    answering: Answering, request_: Request, client: Client, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    proxy = await answering(client.four)
    monkeypatch.setenv(named, proxy.url.replace("//", "//me:pass-word-1@"))
    asked = chat(client, "http://models.invalid")
    reply = await asked.ask(request_)
    await asked.aclose()

    assert reply.text == "Four."
    assert proxy.headers[0]["host"] == "models.invalid"
    monkeypatch.setenv("NO_PROXY", "models.invalid")
    asked = chat(client, "http://models.invalid")
    with pytest.raises(CallError, match=r"^models\.invalid: "):
        await asked.ask(request_)
    await asked.aclose()
    assert len(proxy.headers) == 1


async def test_a_socks_proxy_is_named_as_one(
    request_: Request, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ALL_PROXY=socks5://…`, as many a shell has it: httpx alone asks for a package there, with a traceback."""
    for name in ("HTTP_PROXY", "http_proxy", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", unused_url().replace("http", "socks5"))
    asked = chat(client, "http://models.invalid")
    with pytest.raises(CallError, match=r"^models\.invalid through the proxy 127\.0\.0\.1:\d+ \(SOCKS, which"):
        await asked.ask(request_)
    await asked.aclose()


@pytest.mark.filterwarnings("ignore:.*(BasicAuth|proxy_auth).* deprecated")  # the SDKs' transport makes one
async def test_a_proxy_that_is_gone_is_named_without_its_password(
    request_: Request, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", unused_url().replace("//", "//me:pass-word-1@"))
    asked = chat(client, "http://models.invalid")
    with pytest.raises(CallError, match=r"models\.invalid through the proxy 127\.0\.0\.1:") as caught:
        await asked.ask(request_)
    await asked.aclose()
    assert caught.value.kind is Kind.CONNECTION
    assert "pass-word" not in caught.value.message


async def test_an_answer_that_is_no_http_shows_no_key(request_: Request, client: Client) -> None:
    """aiohttp quotes what it can't read: here the header line that carries the key, sent back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n \x00" + re.sub(rb"\r\n", b" ", head) + b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        asked = chat(client, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(CallError) as caught:
            await asked.ask(request_)
        await asked.aclose()

    assert caught.value.kind is Kind.CONNECTION
    assert "[key]" in caught.value.message
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("sdk", "host", "named"),
    [(OpenAIChat, "api.openai.com", "OPENAI_BASE_URL"), (AnthropicChat, "api.anthropic.com", "ANTHROPIC_BASE_URL")],
)
async def test_the_provider_s_own_endpoint_is_the_default(
    request_: Request,
    monkeypatch: pytest.MonkeyPatch,
    sdk: type[OpenAIChat | AnthropicChat],
    host: str,
    named: str,
) -> None:
    """Over a proxy that refuses, so that the test sees where the call would have gone, and that nothing is sent."""
    monkeypatch.setenv(named, "http://another.invalid/v1")
    monkeypatch.setenv("HTTPS_PROXY", unused_url())
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    asked = sdk("tiny", keyed(KEY), base_url=None, timeout_s=1.0, limit=1)
    with pytest.raises(CallError, match=re.escape(host)) as caught:
        await asked.ask(request_)
    await asked.aclose()

    assert caught.value.kind is Kind.CONNECTION
