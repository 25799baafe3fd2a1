"""The HTTP beneath every client: connections kept, only the headers a call needs, one deadline for all of it, and a
reply that is the request's own."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import aiohttp
import httpx2
import orjson

from aif.core.redaction import redact
from aif.providers import chat_completions
from aif.providers.base import CallError, Kind, Reply
from aif.providers.duplicates import Given, Misdelivered

CONNECT_S = 10.0  # to a host that is up it takes milliseconds; one that is gone shouldn't cost a whole call
TIMEOUT = httpx2.Timeout(None, connect=CONNECT_S)  # none for a read, since `deadline` has one for the whole
KEEPALIVE_S = 4.0  # below the 5 s after which many servers close: a request sent just then is lost, and paid for
# Nothing was sent: there was no connection yet.
_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
# Of a reply, decompressed: 64 for each of 131,072 tokens. 64 calls whose replies never end take half a gigabyte.
MOST_BYTES = 8 * 2**20
_NEEDED = frozenset(
    {b"accept", b"accept-encoding", b"connection", b"content-length", b"content-type", b"host", b"user-agent"}
)


def connections(
    client: Callable[..., httpx2.AsyncClient], url: str, *, limit: int, headers: Mapping[str, str]
) -> httpx2.AsyncClient:
    """Up to `limit` connections to a server, 0 for any number, by an SDK's own kind of client.

    Whatever headers the SDK adds to those that HTTP needs are left out, and ours put in: an SDK takes some, even a key,
    from the environment.
    """

    ours = httpx2.Headers(headers).raw
    needed_only = _NEEDED - {name.lower() for name, _ in ours}

    async def strip(request: httpx2.Request) -> None:
        needed = [(name, value) for name, value in request.headers.raw if name.lower() in needed_only]
        request.headers = httpx2.Headers([*needed, *ours])  # all at once: one by one they take 30 µs

    return client(
        limits=httpx2.Limits(max_connections=limit, keepalive_expiry=KEEPALIVE_S),
        event_hooks={"request": [strip], "response": [_read]},
        follow_redirects=False,
        trust_env=not _loopback(url),  # a proxy named in the environment can't reach this machine
    )


async def whole(pieces: AsyncIterator[bytes]) -> bytes:
    """A body that comes in pieces, decompressed. Raises CallError(BAD_REPLY) once it is larger than a reply can be."""
    read: list[bytes] = []
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > MOST_BYTES:
            raise chat_completions.bad(
                f"The answer is larger than {MOST_BYTES / 2**20:.0f} MiB: it was not read to its end."
            )
        read.append(piece)
    return b"".join(read)


async def _read(response: httpx2.Response) -> None:
    """Reads a body before the client does, which would hold all of one that never ends."""
    async with aclosing(response.aiter_bytes()) as pieces:
        response._content = await whole(pieces)


Response = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body of a response."""


async def exchange(
    body: Mapping[str, Any],
    sent: Mapping[str, Any],
    post: Callable[[bytes], Awaitable[Response]],
    given: Given,
    start_over: Callable[[], Awaitable[None]],
    *,
    keys: Sequence[str],
    read: chat_completions.Read = chat_completions.read_reply,
) -> Reply:
    """A request's body posted and the reply read. Where that is another request's, the connections are made anew: what
    is open now would go on being one answer behind. Raises CallError."""
    asked = orjson.dumps(body)
    status, headers, content = await post(asked)
    take = partial(given.take, asked, orjson.dumps(body["messages"]))
    try:
        return chat_completions.receive(status, headers, content, sent=sent, keys=keys, read=read, take=take)
    except Misdelivered:
        await start_over()
        raise


@asynccontextmanager
async def deadline(
    seconds: float, url: str, keys: Sequence[str], unconnected: type[Exception] = aiohttp.ClientError
) -> AsyncIterator[None]:
    """A call to a server within so many seconds, from connecting to the last byte: a server that sends a byte now and
    then would meet every limit that aiohttp and the SDKs have, since theirs are per read.

    Raises CallError of kind TIMEOUT or CONNECTION; `unconnected` is the client's own error for the latter. It tells of
    its cause without the key and has no chain: of an answer that is no HTTP, clients quote whatever the server sent.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except (unconnected, httpx2.HTTPError, aiohttp.ClientError) as error:
        raise _lost(error, url, keys) from None
    except TimeoutError:  # behind aiohttp's own, which is of connecting
        raise CallError(Kind.TIMEOUT, f"No whole answer within {seconds:g} s.") from None
    except OSError as error:
        raise _lost(error, url, keys) from None
    except asyncio.CancelledError:
        # aiohttp cancels those who wait for a connection when its session is closed: the task itself goes on
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        raise CallError(Kind.CONNECTION, f"{_host(url)}: closed before it was connected", unsent=True) from None


def _lost(error: Exception, url: str, keys: Sequence[str]) -> CallError:
    """No connection, or none that held. A refused one arrives as an SDK's timeout: only the last cause that has words
    tells what happened. A CallError of ours arrives as such an error's cause."""
    causes = list(_causes(error))
    if ours := next((one for one in causes if isinstance(one, CallError)), None):
        return ours
    why = [words for one in causes if (words := _words(one))] or [type(error).__name__]
    proxy = proxy_of(url)
    through = f" through the proxy {_host(proxy)}" if proxy else ""
    if proxy and proxy.startswith("socks"):  # the clients speak HTTP to it, and it hangs up
        through += " (SOCKS, which aif doesn't speak)"
    said = redact(f"{_host(url)}{through}: {why[-1]}", *keys)
    return CallError(Kind.CONNECTION, said, unsent=any(isinstance(one, _UNSENT) for one in causes))


def _words(error: BaseException) -> str:
    """Of a refused or broken connection the system's own words, for clients add what they were about to do
    (`ssl:default`, where no TLS is used)."""
    cause = getattr(error, "os_error", error)
    words = os.strerror(cause.errno) if isinstance(cause, ConnectionError) and cause.errno else str(error)
    return " ".join(words.split())


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for a server (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY); none for this
    machine."""
    parts, named = urlsplit(url), getproxies_environment()
    if _loopback(url) or proxy_bypass(parts.netloc):
        return None
    return named.get(parts.scheme) or named.get("all")


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its cause, the cause of that, …"""
    while error is not None:
        yield error
        error = error.__cause__
