"""The loopback server around what the cast says: the APIs' paths, latency, limits, faults, the key, the statistics."""

import asyncio
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType, TracebackType
from typing import Any, Self

import orjson
from aiohttp import web

from aif.core.types import digest
from aif.simulator import anthropic_api, faults, openai_api
from aif.simulator.faults import Arrival, Befall, Fault, Mishap, Sending
from aif.simulator.models import FRAME, Cast, RefusedError, text_of
from aif.simulator.rate_limits import Allowance
from aif.simulator.words import count_tokens

MAX_BODY = 64 * 2**20
SHUTDOWN_S = 1.0  # for replies that are being sent when the server ends
_WAITS = (Fault.HANG, Fault.LATE)
_INPUT = ("prompt_tokens", "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_OUTPUT = ("completion_tokens", "output_tokens")

Begin = Callable[[Any], Callable[[], dict[str, Any]]]  # takes a body as it comes; what it gives makes the reply


@dataclass(frozen=True, slots=True)
class Call:
    """What became of one call, told when the server is through with it.

    `key` is the digest of its body, `nth` how often that had come, `began` and `ended` are times of the event loop's
    clock; `status` is None where nothing was sent, `sent` whether all of it was; `usage` what is billed, if anything.
    """

    model: str
    key: str
    nth: int
    number: int
    began: float
    ended: float
    status: int | None
    fault: Fault | None
    sent: bool
    usage: Mapping[str, Any] | None


@dataclass(slots=True)
class _Stats:
    calls: int = 0
    refused: int = 0
    in_flight: int = 0
    peak: int = 0
    input: int = 0
    output: int = 0
    by_model: Counter[str] = field(default_factory=Counter)
    came: Counter[str] = field(default_factory=Counter)  # by the body's digest
    answered: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)

    def count(self, key: str, reply: Mapping[str, Any]) -> None:
        self.by_model[reply["model"]] += 1
        self.answered[key] += 1
        self.input += sum(reply["usage"].get(name, 0) for name in _INPUT)
        self.output += sum(reply["usage"].get(name, 0) for name in _OUTPUT)

    def as_json(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "refused": self.refused,
            "by_model": dict(sorted(self.by_model.items())),
            "faults": dict(sorted(self.faults.items())),
            "in_flight": self.in_flight,
            "peak": self.peak,
            "tokens": {"input": self.input, "output": self.output},
            "requests": {
                "distinct": len(self.answered),
                "repeated": sum(1 for times in self.answered.values() if times > 1),
            },
        }


class Simulator:
    """The server, up between `async with` and its end.

        async with Simulator(Cast(models={"small": 0.4}, judges={"judge": 0.1})) as simulator:
            simulator.base_url  # http://127.0.0.1:PORT/v1

    Chat completions are at /v1/chat/completions, Anthropic's Messages at /v1/messages. `port` 0 takes a free one;
    `latency_s` is waited before each reply; `require_key` is the key that /v1 asks for, as a bearer or, of Messages, as
    `x-api-key`; `max_model_len` is every model's context in tokens. Each model takes so many `requests_per_minute` and
    `tokens_per_minute`, `burst_s` seconds' worth at once. `faults` says what befalls a call; it may be changed while
    the server is up. `on_call` is told of every call that the server is through with.

    GET /stats tells what was asked: `calls` (all that came), `refused` (answered with an error), `faults` by kind, and
    of those answered `by_model`, `tokens` billed and `requests`: how many different bodies there were, and how many of
    them were answered more than once.
    """

    def __init__(
        self,
        cast: Cast,
        host: str = "127.0.0.1",
        port: int = 0,
        latency_s: float = 0.0,
        require_key: str | None = None,
        max_model_len: int = 32768,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        burst_s: float = 60.0,
        faults: Befall | None = None,
        on_call: Callable[[Call], None] | None = None,
    ) -> None:
        self.faults = faults
        self._cast = cast
        self._host = host
        self._port = port
        self._latency_s = latency_s
        self._key = require_key
        self._max_model_len = max_model_len
        self._allowance = partial(Allowance, requests_per_minute, tokens_per_minute, burst_s)
        self._limited = requests_per_minute is not None or tokens_per_minute is not None
        self._allowances: dict[str, Allowance] = {}
        self._on_call = on_call
        self._stats = _Stats()
        self._ending = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """What a client is given; known once the server is up."""
        return f"http://{self._host}:{self._port}/v1"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._gate])
        anthropic = anthropic_api.Messages(self._cast, self._max_model_len)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._answering(self._chat, openai_api)),
                web.post(anthropic_api.PATH, self._answering(anthropic.begin, anthropic_api)),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/stats", self._show_stats),
            ]
        )
        # a client that goes away ends its call here, too: else each that hangs would stay
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _gate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Every request passes here: the key is checked, and what is refused gets its error's shape."""
        shape = anthropic_api.error if request.path == anthropic_api.PATH else openai_api.error
        try:
            if self._key is not None and request.path.startswith("/v1/"):
                _check_key(request, self._key)
            if request.path == anthropic_api.PATH and "anthropic-version" not in request.headers:
                raise RefusedError(400, "anthropic-version: header is required")
            return await handler(request)
        except RefusedError as refused:
            return _json(shape(refused), refused.status)
        except web.HTTPException as error:
            why = f"{error.reason}: {request.method} {request.path}"
            return _json(shape(RefusedError(error.status, why)), error.status)

    def _answering(self, begin: Begin, api: ModuleType) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """A handler that counts its calls, lets befall them what is to, and waits before it replies."""
        stats, clock = self._stats, asyncio.get_running_loop().time

        async def handle(request: web.Request) -> web.StreamResponse:
            stats.calls += 1
            stats.in_flight += 1
            stats.peak = max(stats.peak, stats.in_flight)
            number, began = stats.calls, clock()
            reply: dict[str, Any] = {}
            mishap, status, sent, headers = None, None, False, {}
            model = key = ""
            try:
                raw = await request.read()
                try:
                    body = _loads(raw)
                    model, key = _named(body), digest(body)
                    stats.came[key] += 1
                    mishap = self._befalls(Arrival(model, key, stats.came[key], number, began))
                    headers = self._admit(model, body, api, began)
                    faults.check(mishap, _shown(request), api)
                    finish = begin(body)
                    await self._wait(self._latency_s)
                    reply = finish()
                    stats.count(key, reply)
                    sending = faults.sending(reply, mishap, _shown(request), api)
                except RefusedError as refused:
                    stats.refused += 1
                    sending = Sending(orjson.dumps(api.error(refused)), refused.status, {**headers, **refused.headers})
                else:
                    sending = replace(sending, headers=headers)
                    if mishap and mishap.fault in _WAITS:
                        await self._wait(mishap.seconds)
                response = await self._send(request, sending)
                status, sent = sending.status, not sending.cut
                return response
            finally:
                stats.in_flight -= 1
                fault = mishap.fault if mishap else None
                usage = reply.get("usage")
                self._tell(Call(model, key, stats.came[key], number, began, clock(), status, fault, sent, usage))

        return handle

    def _befalls(self, arrival: Arrival) -> Mishap | None:
        mishap = self.faults(arrival) if self.faults else None
        if mishap:
            self._stats.faults[str(mishap.fault)] += 1
        return mishap

    def _admit(self, model: str, body: Any, api: ModuleType, now: float) -> dict[str, str]:
        """The headers that say what is left of a model's allowance. Raises RefusedError where that is too little."""
        if not self._limited:
            return {}
        allowance = self._allowances.setdefault(model, self._allowance())
        try:
            allowance.take(_asked_tokens(body), now)
        except RefusedError as refused:
            refused.headers = {**allowance.headers(now, api is anthropic_api), **refused.headers}
            raise
        return allowance.headers(now, api is anthropic_api)

    async def _wait(self, seconds: float) -> None:
        """Until then, or until the server ends."""
        if seconds:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ending.wait()

    async def _send(self, request: web.Request, sending: Sending) -> web.StreamResponse:
        response = web.StreamResponse(status=sending.status, headers=sending.headers)
        response.content_type = sending.content_type
        response.content_length = len(sending.body)
        await response.prepare(request)
        if sending.drip_s:
            for byte in sending.body:
                await response.write(bytes([byte]))
                await self._wait(sending.drip_s)
        else:
            await response.write(sending.body[: len(sending.body) // 2] if sending.cut else sending.body)
        if sending.cut and request.transport:
            request.transport.close()
        else:
            await response.write_eof()
        if (again_s := sending.again_s) is not None and (transport := request.transport):
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(sending.body)}\r\n\r\n"
            asyncio.get_running_loop().call_later(again_s, _write, transport, head.encode() + sending.body)
        return response

    def _tell(self, call: Call) -> None:
        if self._on_call:
            self._on_call(call)

    def _chat(self, body: Any) -> Callable[[], dict[str, Any]]:
        return partial(openai_api.answer, self._cast, body, self._max_model_len)

    async def _models(self, request: web.Request) -> web.Response:
        names = sorted({*self._cast.models, *self._cast.judges})
        card = {
            "object": "model",
            "created": openai_api.CREATED,
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
    if request.path == anthropic_api.PATH and "x-api-key" in request.headers:
        given = f"Bearer {request.headers['x-api-key']}"
    if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
        raise RefusedError(
            401, "Missing or incorrect API key: send 'Authorization: Bearer KEY'.", code="invalid_api_key"
        )


def _named(body: Any) -> str:
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else ""


def _shown(request: web.Request) -> str:
    """What the client sent as its key."""
    return request.headers.get("Authorization", "") or request.headers.get("x-api-key", "")


def _asked_tokens(body: Any) -> int:
    """Tokens of the prompt and the most the reply may have: what counts towards a limit when a request comes."""
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        return 0
    turns = [{"content": body.get("system")}, *(turn for turn in body["messages"] if isinstance(turn, dict))]
    texts = [text for turn in turns if (text := text_of(turn.get("content")))]
    room = body.get("max_completion_tokens") or body.get("max_tokens")
    return sum(FRAME + count_tokens(text) for text in texts) + (room if isinstance(room, int) else 0)


def _write(transport: asyncio.Transport, data: bytes) -> None:
    if not transport.is_closing():
        transport.write(data)


def _loads(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RefusedError(400, f"The body is not valid JSON: {error}.") from error


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
