"""The loopback server around what the cast says: the APIs' paths, latency, the key and the statistics."""

import asyncio
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web

from aif.simulator import completions, messages
from aif.simulator.cast import Cast, RefusedError

MAX_BODY = 64 * 2**20
_INPUT = ("prompt_tokens", "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_OUTPUT = ("completion_tokens", "output_tokens")

Begin = Callable[[Any], Callable[[], dict[str, Any]]]  # takes a body as it comes; what it gives makes the reply


@dataclass(slots=True)
class _Stats:
    calls: int = 0
    refused: int = 0
    in_flight: int = 0
    peak: int = 0
    input: int = 0
    output: int = 0
    by_model: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)  # by the reply's id, which is a digest of the request

    def count(self, reply: Mapping[str, Any]) -> None:
        self.by_model[reply["model"]] += 1
        self.asked[reply["id"]] += 1
        self.input += sum(reply["usage"].get(name, 0) for name in _INPUT)
        self.output += sum(reply["usage"].get(name, 0) for name in _OUTPUT)

    def as_json(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "refused": self.refused,
            "by_model": dict(sorted(self.by_model.items())),
            "in_flight": self.in_flight,
            "peak": self.peak,
            "tokens": {"input": self.input, "output": self.output},
            "requests": {
                "distinct": len(self.asked),
                "repeated": sum(1 for times in self.asked.values() if times > 1),
            },
        }


class Simulator:
    """The server, up between `async with` and its end.

        async with Simulator(Cast(models={"small": 0.4}, judges={"judge": 0.1})) as simulator:
            simulator.base_url  # http://127.0.0.1:PORT/v1

    Chat completions are at /v1/chat/completions, Anthropic's Messages at /v1/messages. `port` 0 takes a free one;
    `latency_s` is waited before each reply; `require_key` is the key that /v1 asks for, as a bearer or, of Messages, as
    `x-api-key`; `max_model_len` is every model's context in tokens. GET /stats tells what was asked: `calls` (all that
    came), `refused` (answered with an error), and of those answered `by_model`, `tokens` billed and `requests`: how
    many different bodies there were, and how many of them came more than once.
    """

    def __init__(
        self,
        cast: Cast,
        host: str = "127.0.0.1",
        port: int = 0,
        latency_s: float = 0.0,
        require_key: str | None = None,
        max_model_len: int = 32768,
    ) -> None:
        self._cast = cast
        self._host = host
        self._port = port
        self._latency_s = latency_s
        self._key = require_key
        self._max_model_len = max_model_len
        self._stats = _Stats()
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """What a client is given; known once the server is up."""
        return f"http://{self._host}:{self._port}/v1"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._gate])
        anthropic = messages.Messages(self._cast, self._max_model_len)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._answering(self._chat)),
                web.post(messages.PATH, self._answering(anthropic.begin)),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/stats", self._show_stats),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _gate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Every request passes here: the key is checked, and what is refused gets its error's shape."""
        shape = messages.error if request.path == messages.PATH else completions.error
        try:
            if self._key is not None and request.path.startswith("/v1/"):
                _check_key(request, self._key)
            if request.path == messages.PATH and "anthropic-version" not in request.headers:
                raise RefusedError(400, "anthropic-version: header is required")
            return await handler(request)
        except RefusedError as refused:
            return _json(shape(refused), refused.status)
        except web.HTTPException as error:
            why = f"{error.reason}: {request.method} {request.path}"
            return _json(shape(RefusedError(error.status, why)), error.status)

    def _answering(self, begin: Begin) -> Callable[[web.Request], Awaitable[web.Response]]:
        """A handler that counts its calls, and waits before it replies."""
        stats = self._stats

        async def handle(request: web.Request) -> web.Response:
            stats.calls += 1
            stats.in_flight += 1
            stats.peak = max(stats.peak, stats.in_flight)
            try:
                finish = begin(_loads(await request.read()))
                if self._latency_s:
                    await asyncio.sleep(self._latency_s)
                reply = finish()
                stats.count(reply)
                return _json(reply)
            except RefusedError:
                stats.refused += 1
                raise
            finally:
                stats.in_flight -= 1

        return handle

    def _chat(self, body: Any) -> Callable[[], dict[str, Any]]:
        return partial(completions.answer, self._cast, body, self._max_model_len)

    async def _models(self, request: web.Request) -> web.Response:
        names = sorted({*self._cast.models, *self._cast.judges})
        card = {
            "object": "model",
            "created": completions.CREATED,
            "owned_by": "simulator",
            "parent": None,
            "permission": [],
        }
        rows = [{"id": name, "root": name, "max_model_len": self._max_model_len, **card} for name in names]
        return _json({"object": "list", "data": rows})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _show_stats(self, request: web.Request) -> web.Response:
        return _json(self._stats.as_json())


def _check_key(request: web.Request, key: str) -> None:
    """Raises RefusedError where a request does not bring the key."""
    given = request.headers.get("Authorization", "")
    if request.path == messages.PATH and "x-api-key" in request.headers:
        given = f"Bearer {request.headers['x-api-key']}"
    if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
        raise RefusedError(
            401, "Missing or incorrect API key: send 'Authorization: Bearer KEY'.", code="invalid_api_key"
        )


def _loads(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RefusedError(400, f"The body is not valid JSON: {error}.") from error


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
