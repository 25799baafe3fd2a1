"""Client for Anthropic's API, and for servers compatible with it, through Anthropic's SDK."""

from functools import partial

import anthropic
import httpx2

from aif.providers import anthropic_messages
from aif.providers.base import DEFAULT_OPTIONS, Options, Reply, Request
from aif.providers.duplicates import DuplicateDetector
from aif.providers.http import TIMEOUT, Response, deadline, make_http_client, post_request

BASE_URL = "https://api.anthropic.com"
# The version that the SDK sends. Fixed here, since an upgrade of the SDK shouldn't change the API.
API_VERSION = "2026-10-21"


class AnthropicChat:
    """Client for one model, at Anthropic or on a compatible server.

    model: the model's name in requests.
    options: settings of every request; the API key is one of its headers.
    base_url: the compatible server's URL, with or without `/v1`; None for Anthropic.
    timeout_s: the most seconds that a whole call may take, from connecting to the last byte.
    limit: the most calls in flight; 0 for no limit.
    """

    def __init__(
        self, model: str, options: Options = DEFAULT_OPTIONS, *, base_url: str | None, timeout_s: float, limit: int
    ) -> None:
        self._model = model
        self._options = options
        self._timeout_s = timeout_s
        self._url = (base_url or BASE_URL).rstrip("/").removesuffix("/v1")
        # Since version 2 the SDK would send its key as a bearer token, and ANTHROPIC_CUSTOM_HEADERS, too.
        self._headers = {"anthropic-version": API_VERSION, **options.headers}
        self._limit = limit
        self._duplicates = DuplicateDetector()
        self._client = self._connect()

    def _connect(self) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(
            api_key="none",  # else the SDK looks for a key in the environment or in a profile on disk
            base_url=self._url,
            default_query=self._options.query,
            max_retries=0,
            timeout=TIMEOUT,
            open_telemetry=False,
            http_client=make_http_client(
                anthropic.DefaultAioHttpClient, self._url, limit=self._limit, headers=self._headers
            ),
        )

    async def ask(self, request: Request) -> Reply:
        """Send the request once. Raises CallError."""
        body, secrets = anthropic_messages.request_body(request, self._model, self._options), self._options.secrets
        sent, read = (
            anthropic_messages.sent_settings(body),
            partial(anthropic_messages.read_reply, tags=self._options.tags),
        )
        return await post_request(body, sent, self._post, self._duplicates, self._reconnect, keys=secrets, read=read)

    async def _reconnect(self) -> None:
        client, self._client = self._client, self._connect()
        await client.close()

    async def aclose(self) -> None:
        """Close connections."""
        await self._client.close()

    async def _post(self, body: bytes) -> Response:
        """Post the body and return the response, whatever its status.

        The SDK is kept from parsing the response. It would return an HTML page as a reply, and its own errors don't
        cover broken JSON.
        """
        try:
            async with deadline(self._timeout_s, self._url, self._options.secrets, anthropic.APIConnectionError):
                answer = await self._client.post("/v1/messages", content=body, cast_to=httpx2.Response)
        except anthropic.APIStatusError as error:
            answer = error.response
        return answer.status_code, answer.headers, answer.content
