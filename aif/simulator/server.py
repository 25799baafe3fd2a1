"""The simulator's HTTP server, with latency, rate limits, injected faults, API key check and statistics."""

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
from aif.simulator.faults import Arrival, ChooseFault, Fault, InjectedFault, RawResponse
from aif.simulator.models import MESSAGE_OVERHEAD, RefusedError, SimulatedModels, content_text
from aif.simulator.rate_limits import RateLimitBuckets
from aif.simulator.text_analysis import count_tokens

MAX_BODY = 64 * 2**20
SHUTDOWN_S = 1.0  # for replies that are being sent when the server stops
_WAITS = (Fault.HANG, Fault.LATE)
_INPUT = ("prompt_tokens", "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_OUTPUT = ("completion_tokens", "output_tokens")

Begin = Callable[[Any], Callable[[], dict[str, Any]]]  # takes a body when it arrives; the result makes the reply later


@dataclass(frozen=True, slots=True)
class Call:
    """A finished call, passed to the callback `on_call` of a `Simulator`.

    model: name of the model in the body; empty if there is none.
    key: digest of the body; empty if the body isn't JSON.
    nth: how often this body had arrived when the call ended.
    number: number of the call, from 1 in order of arrival.
    began, ended: times by the event loop's clock, in seconds.
    status: HTTP status; None if no response was sent.
    fault: kind of the injected fault; None if there was none.
    sent: whether the whole response was sent.
    usage: token counts of the reply, as billed; None if nothing is billed.
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
    """The counts that GET /stats reports.

    calls: all calls.
    refused: calls answered with an error.
    in_flight: calls that have not ended.
    peak: the highest value of `in_flight` so far.
    input, output: billed tokens.
    by_model: replies by model.
    received: calls by the digest of their body.
    answered: replies by the digest of the call's body.
    faults: injected faults by kind.
    """

    calls: int = 0
    refused: int = 0
    in_flight: int = 0
    peak: int = 0
    input: int = 0
    output: int = 0
    by_model: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)  # by the body's digest
    answered: Counter[str] = field(default_factory=Counter)  # likewise
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
    """The HTTP server, an async context manager that serves while its block runs.

        async with Simulator(SimulatedModels(models={"small": 0.4}, judges={"judge": 0.1})) as simulator:
            simulator.base_url  # http://127.0.0.1:PORT/v1

    port: 0 picks a free port.
    latency_s: delay before each reply.
    require_key: the API key that /v1 accepts, as a bearer token or, for Messages, as `x-api-key`; None accepts all.
    max_model_len: context window of every model, in tokens.
    requests_per_minute, tokens_per_minute: rate limits of each model; None for no limit.
    burst_s: a burst of calls may use up what the rate limits allow in this many seconds.
    faults: chooses the fault of each call; may be replaced while the server runs.
    on_call: called after each call.

    Chat completions are at /v1/chat/completions, Anthropic's Messages at /v1/messages. GET /stats returns these counts:

    - of all calls: `calls`, `refused` (error replies), `faults` by kind, `in_flight`, and `peak`, the highest
      `in_flight`;
    - of answered calls: calls `by_model`, and billed `tokens`;
    - of answered calls, in `requests`: `distinct` bodies, and `repeated` bodies, which were answered more than once.
    """

    def __init__(
        self,
        models: SimulatedModels,
        host: str = "127.0.0.1",
        port: int = 0,
        latency_s: float = 0.0,
        require_key: str | None = None,
        max_model_len: int = 32768,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        burst_s: float = 60.0,
        faults: ChooseFault | None = None,
        on_call: Callable[[Call], None] | None = None,
    ) -> None:
        self.faults = faults
        self._models = models
        self._host = host
        self._port = port
        self._latency_s = latency_s
        self._key = require_key
        self._max_model_len = max_model_len
        self._new_limiter = partial(RateLimitBuckets, requests_per_minute, tokens_per_minute, burst_s)
        self._limited = requests_per_minute is not None or tokens_per_minute is not None
        self._limiters: dict[str, RateLimitBuckets] = {}
        self._on_call = on_call
        self._stats = _Stats()
        self._ending = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """The base URL for clients; its port is known once the server runs."""
        return f"http://{self._host}:{self._port}/v1"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._check_and_route])
        anthropic = anthropic_api.Messages(self._models, self._max_model_len)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._handler(self._chat, openai_api)),
                web.post(anthropic_api.PATH, self._handler(anthropic.begin, anthropic_api)),
                web.get("/v1/models", self._list_models),
                web.get("/health", self._health),
                web.get("/stats", self._show_stats),
            ]
        )
        # a client that disconnects cancels its call: else every call with Fault.HANG would stay
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
    async def _check_and_route(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Handle a request: check the API key if it is under /v1, call its handler, and turn errors into error replies
        in the API's form."""
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

    def _handler(self, begin: Begin, api: ModuleType) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return a request handler that counts the call, applies rate limits, faults and latency, and sends the reply.
        `begin` takes the body and returns a function that makes the reply; `api` is the module of the API."""
        stats, clock = self._stats, asyncio.get_running_loop().time

        async def handle(request: web.Request) -> web.StreamResponse:
            stats.calls += 1
            stats.in_flight += 1
            stats.peak = max(stats.peak, stats.in_flight)
            number, began = stats.calls, clock()
            reply: dict[str, Any] = {}
            injected, status, sent, headers = None, None, False, {}
            model = key = ""
            try:
                raw = await request.read()
                try:
                    body = _parse_json(raw)
                    model, key = _model_name(body), digest(body)
                    stats.received[key] += 1
                    injected = self._choose_fault(Arrival(model, key, stats.received[key], number, began))
                    headers = self._admit(model, body, api, began)
                    faults.raise_refusal(injected, _sent_key(request), api)
                    finish = begin(body)
                    await self._wait(self._latency_s)
                    reply = finish()
                    stats.count(key, reply)
                    outgoing = faults.raw_response(reply, injected, _sent_key(request), api)
                except RefusedError as refused:
                    stats.refused += 1
                    outgoing = RawResponse(
                        orjson.dumps(api.error(refused)), refused.status, {**headers, **refused.headers}
                    )
                else:
                    outgoing = replace(outgoing, headers=headers)
                    if injected and injected.fault in _WAITS:
                        await self._wait(injected.seconds)
                response = await self._send(request, outgoing)
                status, sent = outgoing.status, not outgoing.cut
                return response
            finally:
                stats.in_flight -= 1
                fault = injected.fault if injected else None
                usage = reply.get("usage")
                self._notify(Call(model, key, stats.received[key], number, began, clock(), status, fault, sent, usage))

        return handle

    def _choose_fault(self, arrival: Arrival) -> InjectedFault | None:
        injected = self.faults(arrival) if self.faults else None
        if injected:
            self._stats.faults[str(injected.fault)] += 1
        return injected

    def _admit(self, model: str, body: Any, api: ModuleType, now: float) -> dict[str, str]:
        """Count a request against its model's rate limits, and return the rate-limit headers for its response. Raises
        RefusedError if it exceeds a limit."""
        if not self._limited:
            return {}
        limiter = self._limiters.setdefault(model, self._new_limiter())
        try:
            limiter.take(_tokens_at_most(body), now)
        except RefusedError as refused:
            refused.headers = {**limiter.headers(now, api is anthropic_api), **refused.headers}
            raise
        return limiter.headers(now, api is anthropic_api)

    async def _wait(self, seconds: float) -> None:
        """Sleep for `seconds`, or until the server stops."""
        if seconds:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ending.wait()

    async def _send(self, request: web.Request, outgoing: RawResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=outgoing.status, headers=outgoing.headers)
        response.content_type = outgoing.content_type
        response.content_length = len(outgoing.body)
        await response.prepare(request)
        if outgoing.drip_s:
            for byte in outgoing.body:
                await response.write(bytes([byte]))
                await self._wait(outgoing.drip_s)
        else:
            await response.write(outgoing.body[: len(outgoing.body) // 2] if outgoing.cut else outgoing.body)
        if outgoing.cut and request.transport:
            request.transport.close()
        else:
            await response.write_eof()
        if (repeat_after_s := outgoing.repeat_after_s) is not None and (transport := request.transport):
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(outgoing.body)}\r\n\r\n"
            asyncio.get_running_loop().call_later(
                repeat_after_s, _write_if_open, transport, head.encode() + outgoing.body
            )
        return response

    def _notify(self, call: Call) -> None:
        if self._on_call:
            self._on_call(call)

    def _chat(self, body: Any) -> Callable[[], dict[str, Any]]:
        return partial(openai_api.answer, self._models, body, self._max_model_len)

    async def _list_models(self, request: web.Request) -> web.Response:
        names = sorted({*self._models.models, *self._models.judges})
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
    """Raise RefusedError (401) if a request does not carry the key."""
    given = request.headers.get("Authorization", "")
    if request.path == anthropic_api.PATH and "x-api-key" in request.headers:
        given = f"Bearer {request.headers['x-api-key']}"
    if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
        raise RefusedError(
            401, "Missing or incorrect API key: send 'Authorization: Bearer KEY'.", code="invalid_api_key"
        )


def _model_name(body: Any) -> str:
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else ""


def _sent_key(request: web.Request) -> str:
    """Return the header value in which the client sent its API key, such as `Bearer KEY`; empty if there is none."""
    return request.headers.get("Authorization", "") or request.headers.get("x-api-key", "")


def _tokens_at_most(body: Any) -> int:
    """Return the number of tokens to count for a request against the rate limit: the prompt's plus max_tokens. The
    reply's length isn't known when the request arrives."""
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        return 0
    turns = [{"content": body.get("system")}, *(turn for turn in body["messages"] if isinstance(turn, dict))]
    texts = [text for turn in turns if (text := content_text(turn.get("content")))]
    room = body.get("max_completion_tokens") or body.get("max_tokens")
    return sum(MESSAGE_OVERHEAD + count_tokens(text) for text in texts) + (room if isinstance(room, int) else 0)


def _write_if_open(transport: asyncio.Transport, data: bytes) -> None:
    if not transport.is_closing():
        transport.write(data)


def _parse_json(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RefusedError(400, f"The body is not valid JSON: {error}.") from error


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
