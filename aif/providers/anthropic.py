"""Anthropic's API, and any server that speaks it, through Anthropic's own client."""

from functools import partial

import anthropic
import httpx2

from aif.providers import anthropic_messages
from aif.providers.base import PLAIN, Options, Reply, Request
from aif.providers.duplicates import Given
from aif.providers.http import TIMEOUT, Response, connections, deadline, exchange

BASE_URL = "https://api.anthropic.com"
# As the client sends it. Another version is another API, which an upgrade of the client shouldn't bring.
API_VERSION = "2026-10-21"


class AnthropicChat:
    """A model of Anthropic's (`base_url` None), or of a server that speaks its API (its URL with or without `/v1`).

    The key is one of the headers in `options`. `timeout_s` is for the whole call, from connecting to the last
    byte. `limit` is how many calls may be open at once, 0 for any number.
    """

    def __init__(
        self, model: str, options: Options = PLAIN, *, base_url: str | None, timeout_s: float, limit: int
    ) -> None:
        self._model = model
        self._options = options
        self._timeout_s = timeout_s
        self._url = (base_url or BASE_URL).rstrip("/").removesuffix("/v1")
        # The client sends a key as a bearer since its version 2, and ANTHROPIC_CUSTOM_HEADERS beside it.
        self._headers = {"anthropic-version": API_VERSION, **options.headers}
        self._limit = limit
        self._given = Given()
        self._client = self._connected()

    def _connected(self) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(
            api_key="none",  # given, so that none is looked for in the environment or in a profile on disk
            base_url=self._url,
            default_query=self._options.query,
            max_retries=0,
            timeout=TIMEOUT,
            open_telemetry=False,
            http_client=connections(
                anthropic.DefaultAioHttpClient, self._url, limit=self._limit, headers=self._headers
            ),
        )

    async def ask(self, request: Request) -> Reply:
        """One attempt. Raises CallError."""
        body, secrets = anthropic_messages.body(request, self._model, self._options), self._options.secrets
        sent, read = anthropic_messages.sent(body), partial(anthropic_messages.read_reply, tags=self._options.tags)
        return await exchange(body, sent, self._post, self._given, self._start_over, keys=secrets, read=read)

    async def _start_over(self) -> None:
        client, self._client = self._client, self._connected()
        await client.close()

    async def aclose(self) -> None:
        """Close connections."""
        await self._client.close()

    async def _post(self, body: bytes) -> Response:
        """Whatever its status: bytes in and out, for the reasons of openai.py."""
        try:
            async with deadline(self._timeout_s, self._url, self._options.secrets, anthropic.APIConnectionError):
                answer = await self._client.post("/v1/messages", content=body, cast_to=httpx2.Response)
        except anthropic.APIStatusError as error:
            answer = error.response
        return answer.status_code, answer.headers, answer.content
