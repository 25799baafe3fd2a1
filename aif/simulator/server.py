"""The loopback server: chat completions as vLLM and OpenAI answer them, from an author or a critic.

`answer` is the whole of a reply as a pure function of the cast and the request's body: the same body is answered with
the same bytes, on any machine, in any order. The server around it adds latency, the key and the statistics.
"""

import asyncio
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web

from aif.errors import BadInput
from aif.records import Message, Role, digest, fraction
from aif.simulator import author, critic
from aif.simulator.words import count_tokens, cut

CREATED = 1_767_225_600  # every reply's `created`: a clock would make replies differ
FRAME = 4  # tokens that a chat template puts around each message
MAX_BODY = 64 * 2**20
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_NOT_SERVED = ("stream", "tools", "functions", "logprobs", "stop", "logit_bias")


@dataclass(frozen=True, slots=True)
class Cast:
    """Who answers: models by name with their quality (0 to 1), judges with their noise.

    Noise is the standard deviation of a rating, in units of the whole scale. A name declared in one role answers in
    the other with what an undeclared one would have: quality 0.2 to 0.9 by a hash of seed and name, noise 0.1. `open`
    serves undeclared names, too.
    """

    models: Mapping[str, float]
    judges: Mapping[str, float]
    seed: int = 0
    open: bool = False

    def __post_init__(self) -> None:
        for kind, values in (("quality of model", self.models), ("noise of judge", self.judges)):
            for name, value in values.items():
                if not 0 <= value <= 1:
                    raise BadInput(f"simulator: the {kind} {name!r} is {value}; give a number from 0 to 1")

    def serves(self, name: str) -> bool:
        """Whether requests for this model are answered."""
        return self.open or name in self.models or name in self.judges

    def quality(self, name: str) -> float:
        """How well this model writes."""
        return self.models.get(name, 0.2 + 0.7 * fraction(self.seed, name))

    def noise(self, name: str) -> float:
        """How far this model's ratings stray."""
        return self.judges.get(name, 0.1)


class RefusedError(Exception):
    """A request that is answered with an error: status and body as OpenAI shapes them."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        sort = "server_error" if status >= 500 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": sort, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class _Ask:
    """A request's body, read and checked."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None
    schema: Mapping[str, Any] | None
    settings: tuple[Any, ...]  # what the draw depends on beside messages and model


def answer(cast: Cast, body: Any, max_model_len: int = 32768) -> dict[str, Any]:
    """The reply to one chat completion request, as JSON values. Raises RefusedError where the request gets an error."""
    ask = _read(body)
    if not cast.serves(ask.model):
        raise RefusedError(404, f"The model `{ask.model}` does not exist.", code="model_not_found", param="model")
    prompt_tokens = sum(FRAME + count_tokens(message.content) for message in ask.messages)
    limit = _room(prompt_tokens, ask.max_tokens, max_model_len)
    text, tokens, was_cut = cut(_say(cast, ask), limit)
    return {
        "id": f"chatcmpl-{digest(body)[:24]}",
        "object": "chat.completion",
        "created": CREATED,
        "model": ask.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "length" if was_cut else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "system_fingerprint": f"simulator-{cast.seed}",
    }


def _say(cast: Cast, ask: _Ask) -> str:
    seed = int(digest([cast.seed, ask.model, ask.settings])[:16], 16)
    if critic.read(ask.messages) is not None:
        return critic.judge(ask.messages, ask.schema, cast.noise(ask.model), seed)
    if ask.schema is not None:
        return critic.instance(ask.schema)
    return author.write(ask.messages, cast.quality(ask.model), seed)


def _room(prompt_tokens: int, max_tokens: int | None, max_model_len: int) -> int:
    """How many tokens the reply may have."""
    wanted = max_tokens if max_tokens is not None else 1
    if prompt_tokens + wanted > max_model_len:
        raise RefusedError(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, you requested {wanted} output "
            f"tokens and your prompt contains {prompt_tokens} input tokens, for a total of {prompt_tokens + wanted} "
            "tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
            code="context_length_exceeded",
            param="messages",
        )
    return max_tokens if max_tokens is not None else max_model_len - prompt_tokens


def _read(body: Any) -> _Ask:
    if not isinstance(body, dict):
        raise RefusedError(400, "The body must be a JSON object.")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RefusedError(400, "Missing required parameter: 'model'.", param="model")
    for name in _NOT_SERVED:
        if body.get(name):
            raise RefusedError(400, f"The simulator does not serve '{name}': leave it out.", param=name)
    if body.get("n") not in (None, 1):
        raise RefusedError(400, "The simulator gives one choice per request: leave 'n' out or send 1.", param="n")
    room = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    temperature = float(_number(body, "temperature", 0, 2, default=1))
    top_p = float(_number(body, "top_p", 0, 1, default=1))
    seed = _number(body, "seed", -(2**63), 2**63 - 1, whole=True)
    return _Ask(
        model=model,
        messages=_messages(body.get("messages")),
        max_tokens=_number(body, room, 1, 2**31, whole=True),
        schema=_schema(body.get("response_format")),
        settings=() if temperature == 0 else (temperature, top_p, seed),
    )


def _number(body: Mapping[str, Any], name: str, low: int, high: int, whole: bool = False, default: Any = None) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        sort = "an integer" if whole else "a number"
        raise RefusedError(400, f"Invalid value for '{name}': expected {sort} from {low} to {high}.", param=name)
    return value


def _messages(rows: Any) -> tuple[Message, ...]:
    if not isinstance(rows, list) or not rows:
        raise RefusedError(400, "Missing required parameter: 'messages', a list of at least one.", param="messages")
    messages = []
    for at, row in enumerate(rows):
        given = row if isinstance(row, dict) else {}
        role, text = _ROLES.get(str(given.get("role"))), _text(given.get("content"))
        if role is None or text is None:
            want = "a role of system, developer, user or assistant, and content: a text or a list of text parts"
            raise RefusedError(400, f"Invalid 'messages[{at}]': expected {want}.", param=f"messages[{at}]")
        messages.append(Message(role, text))
    return tuple(messages)


def _text(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(content) else None


def _schema(wanted: Any) -> Mapping[str, Any] | None:
    if wanted is None or (isinstance(wanted, dict) and wanted.get("type") == "text"):
        return None
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema" and isinstance(wanted.get("json_schema"), dict):
        schema = wanted["json_schema"].get("schema")
        if isinstance(schema, dict):
            return schema
    want = "{'type': 'json_schema', 'json_schema': {'name': …, 'schema': {…}}} or {'type': 'text'}"
    raise RefusedError(400, f"Invalid 'response_format': expected {want}.", param="response_format")


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
        self.input += reply["usage"]["prompt_tokens"]
        self.output += reply["usage"]["completion_tokens"]

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

    `port` 0 takes a free one; `latency_s` is waited before each reply; `require_key` is the bearer key that /v1 asks
    for; `max_model_len` is every model's context in tokens. GET /stats tells what was asked: `calls` (all that came),
    `refused` (answered with an error), and of those answered `by_model`, `tokens` billed and `requests`: how many
    different bodies there were, and how many of them came more than once.
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
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
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
        try:
            if self._key is not None and request.path.startswith("/v1/"):
                self._check_key(request, self._key)
            return await handler(request)
        except RefusedError as refused:
            return _json(refused.body, refused.status)
        except web.HTTPException as error:
            return _json(
                RefusedError(error.status, f"{error.reason}: {request.method} {request.path}").body, error.status
            )

    @staticmethod
    def _check_key(request: web.Request, key: str) -> None:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise RefusedError(
                401, "Missing or incorrect API key: send 'Authorization: Bearer KEY'.", code="invalid_api_key"
            )

    async def _chat(self, request: web.Request) -> web.Response:
        stats = self._stats
        stats.calls += 1
        stats.in_flight += 1
        stats.peak = max(stats.peak, stats.in_flight)
        try:
            body = _loads(await request.read())
            if self._latency_s:
                await asyncio.sleep(self._latency_s)
            reply = answer(self._cast, body, self._max_model_len)
            stats.count(reply)
            return _json(reply)
        except RefusedError:
            stats.refused += 1
            raise
        finally:
            stats.in_flight -= 1

    async def _models(self, request: web.Request) -> web.Response:
        names = sorted({*self._cast.models, *self._cast.judges})
        card = {"object": "model", "created": CREATED, "owned_by": "simulator", "parent": None, "permission": []}
        rows = [{"id": name, "root": name, "max_model_len": self._max_model_len, **card} for name in names]
        return _json({"object": "list", "data": rows})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _show_stats(self, request: web.Request) -> web.Response:
        return _json(self._stats.as_json())


def _loads(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RefusedError(400, f"The body is not valid JSON: {error}.") from error


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
