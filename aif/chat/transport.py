"""The HTTP beneath the SDKs' clients: connections kept, only the headers a call needs, one deadline for all of it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
import httpx2

from aif.chat.base import CallError, Kind
from aif.chat.redaction import redact

# Connecting to a host that is up takes milliseconds; one that is gone shouldn't cost a whole call. There is no limit
# for a read, since `deadline` has one for the whole: a server that sends a byte now and then would meet every read's.
TIMEOUT = httpx2.Timeout(None, connect=10.0)
KEEPALIVE_S = 4.0  # below the 5 s after which many servers close: a request sent just then is lost, and paid for
_NEEDED = frozenset({"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"})


def connections(
    client: Callable[..., httpx2.AsyncClient], url: str, *, limit: int, headers: Mapping[str, str]
) -> httpx2.AsyncClient:
    """Up to `limit` connections to a server, 0 for any number, by an SDK's own kind of client.

    Whatever headers the SDK adds to those that HTTP needs are left out, and ours put in: an SDK takes some, even a key,
    from the environment.
    """

    async def strip(request: httpx2.Request) -> None:
        for name in set(request.headers) - _NEEDED:
            del request.headers[name]
        request.headers.update(headers)

    return client(
        limits=httpx2.Limits(max_connections=limit, keepalive_expiry=KEEPALIVE_S),
        event_hooks={"request": [strip]},
        follow_redirects=False,
        trust_env=not _loopback(url),  # a proxy named in the environment can't reach this machine
    )


@asynccontextmanager
async def deadline(seconds: float, url: str, key: str, unconnected: type[Exception]) -> AsyncIterator[None]:
    """A call to a server within so many seconds, from connecting to the last byte.

    Raises CallError of kind TIMEOUT or CONNECTION; `unconnected` is the SDK's own error for the latter. It tells of its
    cause without the key and has no chain: of an answer that is no HTTP, the client quotes whatever the server sent.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise CallError(Kind.TIMEOUT, f"No whole answer within {seconds:g} s.") from None
    except (unconnected, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
        # A refused connection arrives here as the SDK's timeout: only the cause tells what happened.
        *_, cause = causes = list(_causes(error))
        host = urlsplit(url).netloc.rpartition("@")[2]
        unsent = any(isinstance(one, aiohttp.ClientConnectorError) for one in causes)
        said = redact(f"{host}: {str(cause) or type(cause).__name__}", key)
        raise CallError(Kind.CONNECTION, said, unsent=unsent) from None


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its cause, the cause of that, …"""
    while error is not None:
        yield error
        error = error.__cause__
