"""vLLM servers, or any that speak like them, over aiohttp: one session, several servers balanced."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import aiohttp

from aif.core.errors import BadInput
from aif.providers import chat_completions
from aif.providers.base import PLAIN, PROVIDER, TRANSIENT, CallError, Kind, Options, Reply, Request
from aif.providers.duplicates import Given
from aif.providers.http import CONNECT_S, KEEPALIVE_S, Response, deadline, exchange, proxy_of, whole

LONGEST_REST_S = 30.0
HUNG_CALLS = 3


class VllmChat:
    """A model served at one or several URLs.

    `urls` with or without a trailing slash; `/v1` is added where there is no path. `timeout_s` is for the whole call,
    from connecting to the last byte. `limit` is how many calls may be open at once over all servers, 0 for any number.
    `clock` in seconds, the event loop's if left out.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        options: Options = PLAIN,
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
        self._given = Given()
        self._servers: list[_Server] = []
        self.set_urls(urls)

    def set_urls(self, urls: Sequence[str]) -> None:
        """Swap the servers. Calls in flight end where they are; a server that stays keeps what is known of it."""
        known = {server.url: server for server in self._servers}
        wanted = dict.fromkeys(map(normalised, urls))
        self._servers = [known.get(url) or _Server(url, proxy_of(url)) for url in wanted]

    def hangs(self, url: str) -> bool:
        """Whether a server takes calls and answers none: several timed out one after another, and for as long as one
        may take nothing else came."""
        return any(
            server.hangs(self._now(), self._timeout_s) for server in self._servers if server.url == normalised(url)
        )

    async def ask(self, request: Request) -> Reply:
        """One attempt at the server with the fewest calls in flight. Raises CallError."""
        body, secrets = chat_completions.body(request, self._model, self._options), self._options.secrets
        server = self._pick()
        server.in_flight += 1
        try:
            post = partial(self._post, server.url, server.proxy)
            read = partial(chat_completions.read_reply, tags=self._options.tags)
            reply = await exchange(
                body, chat_completions.sent(body), post, self._given, self.aclose, keys=secrets, read=read
            )
        except CallError as error:
            server.note(error.kind, self._now())
            raise
        finally:
            server.in_flight -= 1
        server.note(None, self._now())
        return reply

    async def aclose(self) -> None:
        """Close connections. A call after that makes new ones."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _post(self, url: str, proxy: str | None, body: bytes) -> Response:
        async with (
            deadline(self._timeout_s, url, self._options.secrets),
            self._connected().post(
                f"{url}/chat/completions",
                data=body,
                params=self._options.query,
                proxy=proxy,
                allow_redirects=False,
            ) as answer,
        ):
            return answer.status, answer.headers, await whole(answer.content.iter_any())

    def _connected(self) -> aiohttp.ClientSession:
        """The session, made at the first call since it belongs to the loop that runs then."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._limit, keepalive_timeout=KEEPALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                headers={"Content-Type": "application/json", **self._options.headers},
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _pick(self) -> "_Server":
        """Fewest in flight among those not resting; if all rest, the one that rests least. Ties go round.

        One that has rested gets one call, and others once that is answered: a server that hangs would else be given as
        many as the rest, each to be waited for to its end.
        """
        if not self._servers:
            raise CallError(Kind.CONNECTION, f"No server of {self._model} is up.", unsent=True)
        now = self._now()
        server = min(self._servers, key=lambda s: (max(0.0, s.rests_until - now), s.is_tried, s.in_flight))
        self._servers.remove(server)
        self._servers.append(server)
        return server

    def _now(self) -> float:
        return self._clock() if self._clock is not None else asyncio.get_running_loop().time()


@dataclass(slots=True, eq=False)
class _Server:
    """One server and what is known of it."""

    url: str
    proxy: str | None = None
    in_flight: int = 0
    failures: int = 0
    timeouts: int = 0  # since it was last heard
    heard: float = float("-inf")
    rests_until: float = float("-inf")

    @property
    def is_tried(self) -> bool:
        """Whether a call is to show if it is well again."""
        return self.failures > 0 and self.in_flight > 0

    def note(self, failed: Kind | None, now: float) -> None:
        """Takes in how a call ended. After what may pass, or where it refuses everybody (another may be sound), it is
        left alone for 1, 2, 4, … 30 s. What fails while it rests was sent before and tells no more."""
        if failed is Kind.TIMEOUT:
            self.timeouts += 1
        elif failed is not Kind.CONNECTION:
            self.timeouts, self.heard = 0, now
        if failed is None:
            self.failures = 0
        elif failed in (TRANSIENT | PROVIDER) - {Kind.RATE_LIMITED} and now >= self.rests_until:
            self.rests_until = now + min(LONGEST_REST_S, 2.0**self.failures)
            self.failures += 1

    def hangs(self, now: float, timeout_s: float) -> bool:
        return self.timeouts >= HUNG_CALLS and now - self.heard >= timeout_s


def normalised(url: str) -> str:
    """A server's base URL without a trailing slash, with `/v1` where it has no path. Raises BadInput."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(f"base_url {url!r} is no http:// or https:// URL.")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"
