"""Client for OpenAI's API, and for servers compatible with it, through OpenAI's SDK."""

from functools import partial

import httpx2
import openai

from aif.providers import chat_completions
from aif.providers.base import DEFAULT_OPTIONS, Options, Reply, Request
from aif.providers.duplicates import DuplicateDetector
from aif.providers.http import TIMEOUT, Response, deadline, make_http_client, post_request

BASE_URL = "https://api.openai.com/v1"


class OpenAIChat:
    """Client for one model, at OpenAI or on a compatible server.

    model: the model's name in requests.
    options: settings of every request; the API key is one of its headers.
    base_url: the compatible server's URL, including `/v1`; None for OpenAI.
    timeout_s: the most seconds that a whole call may take, from connecting to the last byte.
    limit: the most calls in flight; 0 for no limit.
    """

    def __init__(
        self, model: str, options: Options = DEFAULT_OPTIONS, *, base_url: str | None, timeout_s: float, limit: int
    ) -> None:
        self._model = model
        self._options = options
        self._timeout_s = timeout_s
        self._url = base_url or BASE_URL
        self._limit = limit
        self._duplicates = DuplicateDetector()
        self._client = self._connect()

    def _connect(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key="none",  # else the SDK looks for a key in the environment
            base_url=self._url,
            default_query=self._options.query,
            max_retries=0,
            timeout=TIMEOUT,
            # CPU of a call, 2 kB each way, on one core: 0.5 ms like this, 0.8 by with_raw_response, 0.9 with the reply
            # parsed by the SDK, 1.4 over httpx2's own transport.
            # The SDK makes headers of OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS in the environment.
            http_client=make_http_client(
                openai.DefaultAioHttpClient, self._url, limit=self._limit, headers=self._options.headers
            ),
        )

    async def ask(self, request: Request) -> Reply:
        """Send the request once. Raises CallError."""
        body, secrets = chat_completions.request_body(request, self._model, self._options), self._options.secrets
        sent, read = chat_completions.sent_settings(body), partial(chat_completions.read_reply, tags=self._options.tags)
        return await post_request(body, sent, self._post, self._duplicates, self._reconnect, keys=secrets, read=read)

    async def _reconnect(self) -> None:
        client, self._client = self._client, self._connect()
        await client.close()

    async def aclose(self) -> None:
        """Close connections."""
        await self._client.close()

    async def _post(self, body: bytes) -> Response:
        """Post the body and return the response, whatever its status.

        The SDK doesn't parse the response: it would return an HTML page as a reply, and raise no error of its own for
        broken JSON.
        """
        try:
            async with deadline(self._timeout_s, self._url, self._options.secrets, openai.APIConnectionError):
                answer = await self._client.post("/chat/completions", content=body, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            answer = error.response
        return answer.status_code, answer.headers, answer.content
