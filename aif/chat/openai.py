"""OpenAI's API, and any server that speaks it, through OpenAI's own client."""

import asyncio
from urllib.parse import urlsplit

import aiohttp
import httpx2
import openai
import orjson

from aif.chat import wire
from aif.chat.base import CallError, Kind, Reply, Request

BASE_URL = "https://api.openai.com/v1"
CONNECT_S = 10.0  # to a host that is up a connection takes milliseconds; one that is gone shouldn't cost a whole call
KEEPALIVE_S = 4.0  # below the 5 s after which many servers close: a request sent just then is lost, and paid for
_SENT_HEADERS = frozenset(
    {"accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host", "user-agent"}
)


class OpenAIChat:
    """A model of OpenAI's (`base_url` None), or of a server that speaks its API (its URL up to and with `/v1`).

    A server that wants no key gets "none" as `api_key`. `timeout_s` is for the whole call, from connecting to the last
    byte. `limit` is how many calls may be open at once, 0 for any number.
    """

    def __init__(self, model: str, *, base_url: str | None, api_key: str, timeout_s: float, limit: int) -> None:
        self._model = model
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._dialect: wire.Dialect = "openai" if base_url is None else "compatible"
        url = base_url or BASE_URL
        self._host = urlsplit(url).netloc.rpartition("@")[2]
        self._client = openai.AsyncOpenAI(
            api_key=api_key,
            base_url=url,
            max_retries=0,
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            # CPU of a call, 2 kB each way, on one core: 0.5 ms like this, 0.8 by with_raw_response, 0.9 with the reply
            # parsed by the client, 1.4 over httpx2's own transport.
            http_client=openai.DefaultAioHttpClient(
                limits=httpx2.Limits(max_connections=limit, keepalive_expiry=KEEPALIVE_S),
                event_hooks={"request": [self._strip]},
                follow_redirects=False,
                trust_env=not _loopback(url),  # a proxy named in the environment can't reach this machine
            ),
        )

    async def ask(self, request: Request) -> Reply:
        """One attempt. Raises CallError."""
        body = wire.body(request, self._model, dialect=self._dialect)
        answer = await self._post(orjson.dumps(body))
        return wire.receive(answer.status_code, answer.headers, answer.content, sent=wire.sent(body), key=self._api_key)

    async def aclose(self) -> None:
        """Close connections."""
        await self._client.close()

    async def _post(self, body: bytes) -> httpx2.Response:
        """The answer with its body, whatever its status, all within `timeout_s`: the client's own limits are per read,
        so that a server sending a byte now and then would never meet them.

        The body goes in as bytes and the answer comes out raw: parsing, the client would hand on an HTML page as if it
        were a reply, and raise no error of its own for broken JSON.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._client.post("/chat/completions", content=body, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            return error.response
        except TimeoutError:
            raise CallError(Kind.TIMEOUT, f"No whole answer within {self._timeout_s:g} s.") from None
        except (openai.APIConnectionError, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            # A refused connection arrives here as openai.APITimeoutError: only the cause tells what happened.
            cause = _root(error)
            raise CallError(Kind.CONNECTION, f"{self._host}: {str(cause) or type(cause).__name__}") from error

    async def _strip(self, request: httpx2.Request) -> None:
        """Leave only the headers a chat completion needs: the client takes others, even a key, from the environment
        (OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_CUSTOM_HEADERS)."""
        for name in set(request.headers) - _SENT_HEADERS:
            del request.headers[name]
        request.headers["Authorization"] = f"Bearer {self._api_key}"


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
