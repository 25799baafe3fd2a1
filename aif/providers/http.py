"""HTTP for every client: reused connections, only the headers that are needed, one deadline for the whole call, and a
check that a reply belongs to its request."""

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
from aif.providers.duplicates import DuplicateDetector, Misdelivered

CONNECT_S = 10.0  # a host that is up takes milliseconds; one that is down shouldn't cost a whole timeout
TIMEOUT = httpx2.Timeout(None, connect=CONNECT_S)  # no read timeout: `deadline` bounds the whole call
KEEPALIVE_S = 4.0  # many servers close after 5 s: a request sent at that moment is lost, yet billed
# No connection was made, so nothing was sent.
_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
# Limit of a decompressed body: 64 bytes for each of 131,072 tokens. 64 endless replies at once take half a gigabyte.
MAX_BYTES = 8 * 2**20
_NEEDED = frozenset(
    {b"accept", b"accept-encoding", b"connection", b"content-length", b"content-type", b"host", b"user-agent"}
)


def make_http_client(
    client_class: Callable[..., httpx2.AsyncClient], url: str, *, limit: int, headers: Mapping[str, str]
) -> httpx2.AsyncClient:
    """Create the HTTP client for an SDK that calls `url`.

    client_class: the SDK's own class of HTTP client.
    url: the address that is called. A loopback address gets no proxy.
    limit: the most connections; 0 for no limit.
    headers: the only headers that are sent, besides those that HTTP needs. All others that the SDK adds are dropped,
        since an SDK takes headers, even a key, from environment variables.
    """

    ours = httpx2.Headers(headers).raw
    needed_only = _NEEDED - {name.lower() for name, _ in ours}

    async def strip(request: httpx2.Request) -> None:
        needed = [(name, value) for name, value in request.headers.raw if name.lower() in needed_only]
        request.headers = httpx2.Headers([*needed, *ours])  # all at once: setting them singly takes 30 µs

    return client_class(
        limits=httpx2.Limits(max_connections=limit, keepalive_expiry=KEEPALIVE_S),
        event_hooks={"request": [strip], "response": [_read_limited]},
        follow_redirects=False,
        trust_env=not _loopback(url),  # a proxy in the environment can't reach this machine
    )


async def read_body(pieces: AsyncIterator[bytes]) -> bytes:
    """Join the decompressed pieces of a body. Raises CallError(BAD_REPLY) if the body exceeds MAX_BYTES."""
    read: list[bytes] = []
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > MAX_BYTES:
            raise chat_completions.bad_reply(
                f"The answer is larger than {MAX_BYTES / 2**20:.0f} MiB; the rest of it was not read."
            )
        read.append(piece)
    return b"".join(read)


async def _read_limited(response: httpx2.Response) -> None:
    """Read a response's body, at most MAX_BYTES of it, before the SDK does: the SDK's own client would buffer an
    endless body. Raises CallError(BAD_REPLY) for a longer body."""
    async with aclosing(response.aiter_bytes()) as pieces:
        response._content = await read_body(pieces)


Response = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body of a response."""


async def post_request(
    body: Mapping[str, Any],
    sent: Mapping[str, Any],
    post: Callable[[bytes], Awaitable[Response]],
    duplicates: DuplicateDetector,
    reconnect: Callable[[], Awaitable[None]],
    *,
    keys: Sequence[str],
    read: chat_completions.ParseBody = chat_completions.read_reply,
) -> Reply:
    """Send a request's body once and return the reply. Raises CallError.

    body: the request's body, before it becomes JSON.
    sent: the settings to record in the reply.
    post: sends the body and returns the response.
    duplicates: checks whether the reply was already delivered to another request.
    reconnect: called before the error for such a reply is raised, since open connections may deliver more replies to
        wrong requests.
    keys: secrets to redact.
    read: parses the reply's body.
    """
    content_sent = orjson.dumps(body)
    status, headers, content = await post(content_sent)
    check = partial(duplicates.check, content_sent, orjson.dumps(body["messages"]))
    try:
        return chat_completions.parse_response(status, headers, content, sent=sent, keys=keys, read=read, check=check)
    except Misdelivered:
        await reconnect()
        raise


@asynccontextmanager
async def deadline(
    seconds: float, url: str, keys: Sequence[str], unconnected: type[Exception] = aiohttp.ClientError
) -> AsyncIterator[None]:
    """Limit the time of a whole call, from connecting to the last byte. An async context manager; its block makes the
    call.

    seconds: the most seconds that the block may take.
    url: the address called, for the error's message.
    keys: secrets to redact from the error's message.
    unconnected: the client's own class of connection errors.

    The timeouts of aiohttp and the SDKs are per read: a server that sends a byte now and then never exceeds them.
    Raises CallError of kind TIMEOUT or CONNECTION. The client's own error is not attached as `__cause__`, since that
    error may quote what a server sent.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except (unconnected, httpx2.HTTPError, aiohttp.ClientError) as error:
        raise _connection_error(error, url, keys) from None
    except TimeoutError:  # after aiohttp's own timeout error, which is for connecting
        raise CallError(Kind.TIMEOUT, f"No complete answer within {seconds:g} s.") from None
    except OSError as error:
        raise _connection_error(error, url, keys) from None
    except asyncio.CancelledError:
        # when its session is closed, aiohttp cancels calls that wait for a connection, though not their task
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        raise CallError(Kind.CONNECTION, f"{_host(url)}: closed before the connection was made", unsent=True) from None


def _connection_error(error: Exception, url: str, keys: Sequence[str]) -> CallError:
    """Return the CallError for a call to `url` whose connection failed or broke. If `error` has a CallError of aif's
    own among its causes, that CallError is returned.

    Otherwise the message is taken from the innermost cause that has one: SDKs wrap the error, and report a refused
    connection as a timeout.
    """
    causes = list(_causes(error))
    if ours := next((cause for cause in causes if isinstance(cause, CallError)), None):
        return ours
    messages = [message for cause in causes if (message := _message_of(cause))] or [type(error).__name__]
    proxy = proxy_of(url)
    through = f" through the proxy {_host(proxy)}" if proxy else ""
    if proxy and proxy.startswith("socks"):  # the clients speak HTTP to it, and it hangs up
        through += " (SOCKS, which aif doesn't speak)"
    message = redact(f"{_host(url)}{through}: {messages[-1]}", *keys)
    return CallError(Kind.CONNECTION, message, unsent=any(isinstance(cause, _UNSENT) for cause in causes))


def _message_of(error: BaseException) -> str:
    """Return an error's message on one line.

    For a refused or broken connection the operating system's message is returned, since clients add misleading details
    (`ssl:default` where no TLS is used).
    """
    cause = getattr(error, "os_error", error)
    message = os.strerror(cause.errno) if isinstance(cause, ConnectionError) and cause.errno else str(error)
    return " ".join(message.split())


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def proxy_of(url: str) -> str | None:
    """Return the proxy that the environment sets for `url` (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY); None if
    there is none.

    Loopback addresses never have a proxy.
    """
    parts, proxies = urlsplit(url), getproxies_environment()
    if _loopback(url) or proxy_bypass(parts.netloc):
        return None
    return proxies.get(parts.scheme) or proxies.get("all")


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, its cause, the cause of that, …"""
    while error is not None:
        yield error
        error = error.__cause__
