"""OpenAI's API, and any server that speaks it, through OpenAI's own client."""

from functools import partial

import httpx2
import openai

from aif.providers import chat_completions
from aif.providers.base import PLAIN, Options, Reply, Request
from aif.providers.duplicates import Given
from aif.providers.http import TIMEOUT, Response, connections, deadline, exchange

BASE_URL = "https://api.openai.com/v1"


class OpenAIChat:
    """A model of OpenAI's (`base_url` None), or of a server that speaks its API (its URL up to and with `/v1`).

    The key is one of the headers in `options`. `timeout_s` is for the whole call, from connecting to the last
    byte. `limit` is how many calls may be open at once, 0 for any number.
    """

    def __init__(
        self, model: str, options: Options = PLAIN, *, base_url: str | None, timeout_s: float, limit: int
    ) -> None:
        self._model = model
        self._options = options
        self._timeout_s = timeout_s
        self._url = base_url or BASE_URL
        self._limit = limit
        self._given = Given()
        self._client = self._connected()

    def _connected(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key="none",  # given, so that none is looked for in the environment
            base_url=self._url,
            default_query=self._options.query,
            max_retries=0,
            timeout=TIMEOUT,
            # CPU of a call, 2 kB each way, on one core: 0.5 ms like this, 0.8 by with_raw_response, 0.9 with the reply
            # parsed by the client, 1.4 over httpx2's own transport.
            # The environment's OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS are headers of the client.
            http_client=connections(
                openai.DefaultAioHttpClient, self._url, limit=self._limit, headers=self._options.headers
            ),
        )

    async def ask(self, request: Request) -> Reply:
        """One attempt. Raises CallError."""
        body, secrets = chat_completions.body(request, self._model, self._options), self._options.secrets
        sent, read = chat_completions.sent(body), partial(chat_completions.read_reply, tags=self._options.tags)
        return await exchange(body, sent, self._post, self._given, self._start_over, keys=secrets, read=read)

    async def _start_over(self) -> None:
        client, self._client = self._client, self._connected()
        await client.close()

    async def aclose(self) -> None:
        """Close connections."""
        await self._client.close()

    async def _post(self, body: bytes) -> Response:
        """Whatever its status.

        The body goes in as bytes and the answer comes out raw: parsing, the client would hand on an HTML page as if it
        were a reply, and raise no error of its own for broken JSON.
        """
        try:
            async with deadline(self._timeout_s, self._url, self._options.secrets, openai.APIConnectionError):
                answer = await self._client.post("/chat/completions", content=body, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            answer = error.response
        return answer.status_code, answer.headers, answer.content
