"""Loopback servers with scripted answers, and the ways in which real servers fail."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from aif.providers.base import CallError, Kind, Options

KEY = "key-7f3a9c51d2e8"


def keyed(key: str | None) -> Options:
    """Return the options of a client with an API key."""
    return Options(headers={"Authorization": f"Bearer {key}"}, secrets=(key,)) if key else Options()


# the headers that a call must have, and no others that tell something about the caller
HEADERS = {
    "accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host", "user-agent",
}  # fmt: skip

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def completion(text: str | None = "Four.", finish: str = "stop", **message: Any) -> dict[str, Any]:
    """Return a chat completion as servers send it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "tiny-2024",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17},
    }


def message(*texts: str, stop: str | None = "end_turn", **more: Any) -> dict[str, Any]:
    """Return a message as Anthropic's API sends it."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-tiny-2026",
        "content": [{"type": "text", "text": text} for text in texts],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": 12, "output_tokens": 5},
        **more,
    }


def says(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """Answer with JSON."""
    return body(json.dumps(data).encode(), status, "application/json", headers)


def body(
    content: bytes, status: int = 200, content_type: str = "text/html", headers: dict[str, str] | None = None
) -> Answer:
    """Answer with these bytes."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=content, status=status, content_type=content_type, headers=headers)

    return answer


async def hang(_: web.Request) -> web.StreamResponse:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def drip(request: web.Request) -> web.StreamResponse:
    """Send a byte now and then, so that no single read times out."""
    answer = web.StreamResponse(headers={"Content-Type": "application/json"})
    await answer.prepare(request)
    while True:
        await answer.write(b" ")
        await asyncio.sleep(0.01)


async def cut(request: web.Request) -> web.StreamResponse:
    """Announce more bytes than are sent, and close."""
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    await answer.write(b'{"choices": [')
    assert request.transport is not None
    request.transport.close()
    return answer


async def close(request: web.Request) -> web.StreamResponse:
    """Close the connection without an answer."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def unused_url() -> str:
    """Return an address on this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@dataclass
class Served:
    """A running server: its address, its scripted answers and the requests it got. The last answer repeats."""

    answers: list[Answer]
    url: str = ""
    bodies: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(json.loads(await request.read()))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.paths.append(request.path)
        self.queries.append(dict(request.query))
        self.asked.set()
        return await (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])(request)


Answering = Callable[..., Awaitable[Served]]


@dataclass(frozen=True)
class Failure:
    """An answer of a server, and the error that a client must make of it."""

    answer: Answer
    kind: Kind
    words: str = ""
    retry_after: float | None = None
    paid: bool = False

    def check(self, error: CallError) -> None:
        assert error.kind is self.kind
        assert self.words in error.message
        assert error.retry_after == self.retry_after
        assert (error.reply is not None and error.reply.usage is not None) == self.paid
        assert KEY not in error.message + error.raw
        assert len(error.message) < 400


def _error(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Answer:
    return says({"error": {"message": message, **more}}, status, headers)


def _content(content: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]}


FAILURES = {
    "hang": Failure(hang, Kind.TIMEOUT, "0.2 s"),
    "drip": Failure(drip, Kind.TIMEOUT, "0.2 s"),
    "body cut short": Failure(cut, Kind.CONNECTION),
    "closed without a word": Failure(close, Kind.CONNECTION),
    "html": Failure(body(b"<html><body>Welcome to <b>our</b> Wi-Fi"), Kind.BAD_REPLY, "Wi-Fi"),
    "broken json": Failure(body(b'{"choices": [{', content_type="application/json"), Kind.BAD_REPLY, "not JSON"),
    "endless nesting": Failure(body(b"[" * 100_000), Kind.BAD_REPLY, "not JSON"),
    "no body": Failure(body(b""), Kind.BAD_REPLY, "The answer is empty."),
    "redirect": Failure(body(b"", 302, headers={"Location": "/elsewhere"}), Kind.WRONG_URL, "302 to /elsewhere"),
    "a string": Failure(says("OK"), Kind.BAD_REPLY, "a text, not a"),
    "nested without end": Failure(body(b'{"choices": ' * 10_000), Kind.BAD_REPLY, "not JSON"),
    "cut within a character": Failure(body(b'{"choices": "\xe2\x82"}'), Kind.BAD_REPLY, "not JSON"),
    "null bytes": Failure(body(b"\0" * 1000), Kind.BAD_REPLY, "not JSON"),
    "250,000 blanks for a body": Failure(body(b" " * 250_000), Kind.BAD_REPLY, "The answer is empty."),
    "content twice": Failure(
        body(b'{"choices": [{"message": {"content": "4", "content": "5"}, "finish_reason": "stop"}]}'),
        Kind.BAD_REPLY,
        "'content' twice",
    ),
    "choices twice": Failure(
        body(json.dumps(completion("Four.")).encode()[:-1] + b', "choices": []}'), Kind.BAD_REPLY, "'choices' twice"
    ),
    "two choices": Failure(
        says(completion() | {"choices": completion()["choices"] * 2}), Kind.BAD_REPLY, "2 choices", paid=True
    ),
    "content a number": Failure(says(completion() | _content(float("nan"))), Kind.BAD_REPLY, "a number", paid=True),
    "choices null": Failure(says(completion() | {"choices": None}), Kind.BAD_REPLY, "choices", paid=True),
    "choices empty": Failure(says(completion() | {"choices": []}), Kind.BAD_REPLY, "choices", paid=True),
    "message missing": Failure(says({"choices": [{"finish_reason": "stop"}]}), Kind.BAD_REPLY, "message"),
    "error with status 200": Failure(says({"error": {"message": "upstream is down"}}), Kind.BAD_REPLY, "upstream"),
    "aborted": Failure(says(completion("Fo", "abort")), Kind.BAD_REPLY, "abort", paid=True),
    "empty": Failure(says(completion("")), Kind.EMPTY, paid=True),
    "null": Failure(says(completion(None)), Kind.EMPTY, paid=True),
    "white space": Failure(says(completion(" \n\t ")), Kind.EMPTY, paid=True),
    "250,000 blanks": Failure(says(completion(" " * 250_000)), Kind.EMPTY, paid=True),
    "zero-width": Failure(says(completion("\u200b\ufeff\u2060\u202e\u3164 \0")), Kind.EMPTY, paid=True),
    "only thought": Failure(says(completion("<think>2 + 2", "length")), Kind.EMPTY, "reasoning", paid=True),
    "filtered": Failure(says(completion("Fo", "content_filter")), Kind.BLOCKED, "Fo", paid=True),
    "refusal": Failure(says(completion(None, refusal="I can't.")), Kind.BLOCKED, "I can't.", paid=True),
    "400": Failure(_error(400, "seed must be an integer"), Kind.BAD_REQUEST, "seed must be"),
    "400 filter": Failure(_error(400, "filtered", code="content_filter"), Kind.BLOCKED),
    "400 policy": Failure(_error(400, "no", code="content_policy_violation"), Kind.BLOCKED),
    "400 overflow, OpenAI": Failure(
        _error(400, "Your messages resulted in 9000 tokens.", code="context_length_exceeded"), Kind.CONTEXT_OVERFLOW
    ),
    "400 overflow, vLLM": Failure(
        says(
            {
                "object": "error",
                "message": "This model's maximum context length is 2048 tokens. However, you requested 2100 tokens.",
                "type": "BadRequestError",
                "code": 400,
            },
            400,
        ),
        Kind.CONTEXT_OVERFLOW,
        "2048",
    ),
    "400 overflow, engine": Failure(
        _error(400, "The decoder prompt (length 9) is longer than the maximum model length of 8."),
        Kind.CONTEXT_OVERFLOW,
    ),
    "413": Failure(_error(413, "prompt is too long: 9 tokens > 8 maximum"), Kind.CONTEXT_OVERFLOW),
    "422": Failure(says({"detail": [{"msg": "field required"}]}, 422), Kind.BAD_REQUEST, "field required"),
    "401 echoing the key": Failure(
        _error(401, f"Incorrect API key provided: {KEY}.", code="invalid_api_key"), Kind.UNAUTHORIZED, "[key]"
    ),
    "403": Failure(_error(403, "Country not supported"), Kind.UNAUTHORIZED, "Country"),
    "403 moderation": Failure(_error(403, "Your input was flagged for violence"), Kind.BLOCKED),
    "400 usage policy": Failure(
        _error(
            400, "Invalid prompt: your prompt was flagged as potentially violating our policy.", code="invalid_prompt"
        ),
        Kind.BLOCKED,
    ),
    "403 model": Failure(_error(403, "no access", code="model_not_found"), Kind.UNKNOWN_MODEL),
    "402": Failure(_error(402, "Insufficient Balance"), Kind.QUOTA_EXHAUSTED),
    "404 vLLM": Failure(_error(404, "The model `tiny` does not exist.", type="NotFoundError"), Kind.UNKNOWN_MODEL),
    "404 OpenAI": Failure(_error(404, "no such model", code="model_not_found"), Kind.UNKNOWN_MODEL),
    "404 path": Failure(says({"detail": "Not Found"}, 404), Kind.WRONG_URL, "base_url"),
    "408": Failure(_error(408, "slow"), Kind.SERVER_ERROR),
    "409": Failure(_error(409, "conflict"), Kind.SERVER_ERROR),
    "429": Failure(_error(429, "slow down"), Kind.RATE_LIMITED, "slow down"),
    "429 seconds": Failure(_error(429, "", {"Retry-After": "7.5"}), Kind.RATE_LIMITED, retry_after=7.5),
    "429 milliseconds": Failure(
        _error(429, "", {"retry-after-ms": "250", "Retry-After": "1"}), Kind.RATE_LIMITED, retry_after=0.25
    ),
    "429 a date": Failure(
        _error(
            429,
            "",
            {"Date": "Fri, 20 Nov 2026 10:00:00 GMT", "Retry-After": "Fri, 20 Nov 2026 10:00:30 GMT"},
        ),
        Kind.RATE_LIMITED,
        retry_after=30.0,
    ),
    "429 a date gone by": Failure(
        _error(
            429,
            "",
            {"Date": "Fri, 20 Nov 2026 10:00:00 GMT", "Retry-After": "Fri, 20 Nov 2026 09:00:00 GMT"},
        ),
        Kind.RATE_LIMITED,
        retry_after=0.0,
    ),
    "429 nonsense": Failure(_error(429, "", {"Retry-After": "soon"}), Kind.RATE_LIMITED),
    "429 not a number": Failure(_error(429, "", {"Retry-After": "nan"}), Kind.RATE_LIMITED),
    "429 quota": Failure(
        _error(429, "You exceeded your current quota.", type="insufficient_quota"), Kind.QUOTA_EXHAUSTED, "billing"
    ),
    "429 billing": Failure(_error(429, "", code="billing_hard_limit_reached"), Kind.QUOTA_EXHAUSTED),
    "500": Failure(_error(500, "boom"), Kind.SERVER_ERROR, "boom"),
    "502 html": Failure(body(b"<html><h1>502 Bad Gateway</h1></html>", 502), Kind.SERVER_ERROR, "502 Bad Gateway"),
    "503": Failure(_error(503, "loading", {"Retry-After": "3"}), Kind.SERVER_ERROR, retry_after=3.0),
    "key in html": Failure(body(f"<p>got Authorization: Bearer {KEY}".encode()), Kind.BAD_REPLY, "[key]"),
}


def _refused(status: int, type: str, message: str, headers: dict[str, str] | None = None, **more: Any) -> Answer:
    return says({"type": "error", "error": {"type": type, "message": message, **more}}, status, headers)


_INVALID = "invalid_request_error"
_NO_CHAT = (
    "choices",
    "two",
    "content",
    "message missing",
    "aborted",
    "250,000 blanks",
    "zero-width",
    "empty",
    "null",
    "white space",
    "only",
    "filtered",
    "refusal",
)

# Failures below the API's format are the same for every client; the others are Anthropic's own.
MESSAGE_FAILURES = {name: failure for name, failure in FAILURES.items() if not name.startswith(_NO_CHAT)} | {
    "content null": Failure(says(message(content=None)), Kind.BAD_REPLY, "content", paid=True),
    "content named twice": Failure(
        body(json.dumps(message("4")).encode()[:-1] + b', "content": []}'), Kind.BAD_REPLY, "'content' twice"
    ),
    "block a number": Failure(says(message(content=[4])), Kind.BAD_REPLY, "content", paid=True),
    "text a number": Failure(
        says(message(content=[{"type": "text", "text": 4}])), Kind.BAD_REPLY, "type text", paid=True
    ),
    "text named twice": Failure(
        body(b'{"content": [{"type": "text", "text": "4", "text": "5"}], "stop_reason": "end_turn"}'),
        Kind.BAD_REPLY,
        "'text' twice",
    ),
    "ended in an error": Failure(says(message("Fo", stop="error")), Kind.BAD_REPLY, "by error", paid=True),
    "zero-width, Anthropic": Failure(says(message("\u200b", "\u200f\n")), Kind.EMPTY, paid=True),
    "no content": Failure(says(message()), Kind.EMPTY, paid=True),
    "white space": Failure(says(message(" \n", "\t")), Kind.EMPTY, paid=True),
    "only thought": Failure(
        says(message(stop="max_tokens", content=[{"type": "thinking", "thinking": "2 + 2"}])),
        Kind.EMPTY,
        "reasoning",
        paid=True,
    ),
    "refusal": Failure(says(message("I can't.", stop="refusal")), Kind.BLOCKED, "I can't.", paid=True),
    "refusal with its reason": Failure(
        says(message(stop="refusal", stop_details={"type": "refusal", "category": "bio", "explanation": "No."})),
        Kind.BLOCKED,
        "bio: No.",
        paid=True,
    ),
    "error with status 200, Anthropic": Failure(_refused(200, "api_error", "boom"), Kind.BAD_REPLY, "boom"),
    "400 temperature": Failure(_refused(400, _INVALID, "temperature: not supported"), Kind.BAD_REQUEST, "temperature"),
    "400 too many tokens": Failure(
        _refused(400, _INVALID, "max_tokens: 9 > 8, which is the maximum allowed number of output tokens for tiny"),
        Kind.BAD_REQUEST,
    ),
    "400 overflow, prompt": Failure(
        _refused(400, _INVALID, "prompt is too long: 9 tokens > 8 maximum"), Kind.CONTEXT_OVERFLOW
    ),
    "400 overflow, both": Failure(
        _refused(400, _INVALID, "input length and `max_tokens` exceed context limit: 5 + 4 > 8, decrease either"),
        Kind.CONTEXT_OVERFLOW,
    ),
    "400 credit": Failure(
        _refused(400, _INVALID, "Your credit balance is too low to access the Anthropic API."), Kind.QUOTA_EXHAUSTED
    ),
    "400 limit of one's own": Failure(
        _refused(400, _INVALID, "You have reached your specified API usage limits. You will regain access on …"),
        Kind.QUOTA_EXHAUSTED,
    ),
    "400 filter, Anthropic": Failure(
        _refused(400, _INVALID, "Output blocked by content filtering policy"), Kind.BLOCKED, "filtering"
    ),
    "400 on hold": Failure(
        _refused(400, _INVALID, "disabled", details={"error_code": "organization_on_hold"}), Kind.UNAUTHORIZED
    ),
    "401 Anthropic": Failure(_refused(401, "authentication_error", f"invalid key {KEY}"), Kind.UNAUTHORIZED, "[key]"),
    "402 Anthropic": Failure(_refused(402, "billing_error", "pay"), Kind.QUOTA_EXHAUSTED),
    "403 Anthropic": Failure(_refused(403, "permission_error", "no access"), Kind.UNAUTHORIZED),
    "404 Anthropic": Failure(_refused(404, "not_found_error", "model: claude-0"), Kind.UNKNOWN_MODEL, "claude-0"),
    "413 Anthropic": Failure(_refused(413, "request_too_large", "more than 32 MB"), Kind.CONTEXT_OVERFLOW),
    "429 Anthropic": Failure(
        _refused(429, "rate_limit_error", "slow down", {"retry-after": "7"}), Kind.RATE_LIMITED, retry_after=7.0
    ),
    "429 spend limit": Failure(
        _refused(429, "rate_limit_error", "reached", details={"error_code": "enforced_spend_limit_reached"}),
        Kind.QUOTA_EXHAUSTED,
    ),
    "504 Anthropic": Failure(_refused(504, "timeout_error", "slow"), Kind.SERVER_ERROR),
    "529": Failure(_refused(529, "overloaded_error", "Overloaded"), Kind.SERVER_ERROR, "Overloaded"),
}
