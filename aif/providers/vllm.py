"""Client for vLLM and compatible servers, over aiohttp. The calls of a client share a connection pool and are balanced
over the client's servers."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import aiohttp

from aif.core.errors import BadInput
from aif.providers import chat_completions
from aif.providers.base import ACCESS_ERRORS, DEFAULT_OPTIONS, TRANSIENT, CallError, Kind, Options, Reply, Request
from aif.providers.duplicates import DuplicateDetector
from aif.providers.http import CONNECT_S, KEEPALIVE_S, Response, deadline, post_request, proxy_of, read_body

MAX_BACKOFF_S = 30.0
HUNG_CALLS = 3


class VllmChat:
    """Client for a model served at one or several URLs.

    urls: the servers' URLs; a URL without a path gets `/v1`.
    model: the model's name in requests.
    options: settings of every request.
    timeout_s: the most seconds that a whole call may take, from connecting to the last byte.
    limit: the most calls in flight over all servers; 0 for no limit.
    clock: returns the time in seconds; None for the event loop's clock.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        options: Options = DEFAULT_OPTIONS,
        *,
        timeout_s: float,
        limit: int,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._model = model
        self._options = options
        self._timeout_s = timeout_s
        self._limit = limit
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._duplicates = DuplicateDetector()
        self._servers: list[_Server] = []
        self.set_urls(urls)

    def set_urls(self, urls: Sequence[str]) -> None:
        """Replace the servers. Calls in flight finish; a server in both lists keeps its state."""
        known = {server.url: server for server in self._servers}
        wanted = dict.fromkeys(map(normalize_base_url, urls))
        self._servers = [known.get(url) or _Server(url, proxy_of(url)) for url in wanted]

    def hangs(self, url: str) -> bool:
        """Return whether the server at this URL accepts calls but answers none.

        It hangs if at least HUNG_CALLS consecutive calls timed out, and no response was received within the last
        `timeout_s`.
        """
        return any(
            server.hangs(self._now(), self._timeout_s)
            for server in self._servers
            if server.url == normalize_base_url(url)
        )

    async def ask(self, request: Request) -> Reply:
        """Send the request once, to the server that `_pick` selects, and return the reply. Raises CallError."""
        body, secrets = chat_completions.request_body(request, self._model, self._options), self._options.secrets
        server = self._pick()
        server.in_flight += 1
        try:
            post = partial(self._post, server.url, server.proxy)
            read = partial(chat_completions.read_reply, tags=self._options.tags)
            reply = await post_request(
                body, chat_completions.sent_settings(body), post, self._duplicates, self.aclose, keys=secrets, read=read
            )
        except CallError as error:
            server.record(error.kind, self._now())
            raise
        finally:
            server.in_flight -= 1
        server.record(None, self._now())
        return reply

    async def aclose(self) -> None:
        """Close connections. A later call opens new ones."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _post(self, url: str, proxy: str | None, body: bytes) -> Response:
        async with (
            deadline(self._timeout_s, url, self._options.secrets),
            self._connect().post(
                f"{url}/chat/completions",
                data=body,
                params=self._options.query,
                proxy=proxy,
                allow_redirects=False,
            ) as answer,
        ):
            return answer.status, answer.headers, await read_body(answer.content.iter_any())

    def _connect(self) -> aiohttp.ClientSession:
        """Return the session, created at the first call because it belongs to the running event loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._limit, keepalive_timeout=KEEPALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                headers={"Content-Type": "application/json", **self._options.headers},
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _pick(self) -> "_Server":
        """Return the server for the next call: the server with the fewest calls in flight among those that aren't
        backing off. If all are backing off, return the server whose backoff ends first. Raises CallError if there is no
        server.

        Ties go round robin. After its backoff a server gets one call, and further calls once that is answered: a server
        that hangs would otherwise get as many calls as the others, each lasting until its timeout.
        """
        if not self._servers:
            raise CallError(Kind.CONNECTION, f"No server of {self._model} is up.", unsent=True)
        now = self._now()
        server = min(self._servers, key=lambda s: (max(0.0, s.backoff_until - now), s.is_probed, s.in_flight))
        self._servers.remove(server)
        self._servers.append(server)
        return server

    def _now(self) -> float:
        return self._clock() if self._clock is not None else asyncio.get_running_loop().time()


@dataclass(slots=True, eq=False)
class _Server:
    """One server and its state. Times are in seconds by the client's clock.

    proxy: the URL of the proxy for calls to the server; None without a proxy.
    in_flight: the number of calls in flight.
    failures: the number of the server's backoffs since its last usable reply.
    timeouts: the number of calls that timed out since the server's last response.
    last_response: the time of the last response, even of an error; -inf before the first.
    backoff_until: the time when the current backoff ends, or the last one ended; -inf before the first.
    """

    url: str
    proxy: str | None = None
    in_flight: int = 0
    failures: int = 0
    timeouts: int = 0  # consecutive
    last_response: float = float("-inf")
    backoff_until: float = float("-inf")

    @property
    def is_probed(self) -> bool:
        """Whether the server's last call failed and a call in flight now tests whether it answers again."""
        return self.failures > 0 and self.in_flight > 0

    def record(self, failed: Kind | None, now: float) -> None:
        """Record the result of a call: the kind of failure, or None.

        After a transient error other than a 429, and after an access error (another server may work), the server backs
        off: for 1 s, then 2, 4, … up to 30 s. Failures that arrive during a backoff belong to earlier calls and don't
        lengthen it.
        """
        if failed is Kind.TIMEOUT:
            self.timeouts += 1
        elif failed is not Kind.CONNECTION:
            self.timeouts, self.last_response = 0, now
        if failed is None:
            self.failures = 0
        elif failed in (TRANSIENT | ACCESS_ERRORS) - {Kind.RATE_LIMITED} and now >= self.backoff_until:
            self.backoff_until = now + min(MAX_BACKOFF_S, 2.0**self.failures)
            self.failures += 1

    def hangs(self, now: float, timeout_s: float) -> bool:
        return self.timeouts >= HUNG_CALLS and now - self.last_response >= timeout_s


def normalize_base_url(url: str) -> str:
    """Return a base URL without a trailing slash, and with `/v1` if it has no path. Raises BadInput if it isn't an
    http:// or https:// URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(f"base_url {url!r} isn't an http:// or https:// URL.")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"
