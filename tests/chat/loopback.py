"""Loopback servers that answer as scripted, and the ways in which real ones fail."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from aif.chat.base import CallError, Kind

KEY = "key-7f3a9c51d2e8"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def completion(text: str | None = "Four.", finish: str = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion as servers send it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "tiny-2024",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17},
    }


def says(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """Answer with JSON."""
    return body(json.dumps(data).encode(), status, "application/json", headers)


def body(
    content: bytes, status: int = 200, content_type: str = "text/html", headers: dict[str, str] | None = None
) -> Answer:
    """Answer with bytes as they are."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=content, status=status, content_type=content_type, headers=headers)

    return answer


async def hang(_: web.Request) -> web.StreamResponse:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def drip(request: web.Request) -> web.StreamResponse:
    """A byte now and then, so that every single read is quick."""
    answer = web.StreamResponse(headers={"Content-Type": "application/json"})
    await answer.prepare(request)
    while True:
        await answer.write(b" ")
        await asyncio.sleep(0.01)


async def cut(request: web.Request) -> web.StreamResponse:
    """Promise more than is sent, and close."""
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    await answer.write(b'{"choices": [')
    assert request.transport is not None
    request.transport.close()
    return answer


async def close(request: web.Request) -> web.StreamResponse:
    """Close without a word."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def unused_url() -> str:
    """An address on this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@dataclass
class Served:
    """A running server: where it is, and what it was asked. Its last answer repeats."""

    answers: list[Answer]
    url: str = ""
    bodies: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(json.loads(await request.read()))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.paths.append(request.path)
        self.asked.set()
        return await (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])(request)


Answering = Callable[..., Awaitable[Served]]


@dataclass(frozen=True)
class Failure:
    """What a server answers, and what a client must make of it."""

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


FAILURES = {
    "hang": Failure(hang, Kind.TIMEOUT, "0.2 s"),
    "drip": Failure(drip, Kind.TIMEOUT, "0.2 s"),
    "body cut short": Failure(cut, Kind.CONNECTION),
    "closed without a word": Failure(close, Kind.CONNECTION),
    "html": Failure(body(b"<html><body>Welcome to <b>our</b> Wi-Fi"), Kind.BAD_REPLY, "Wi-Fi"),
    "broken json": Failure(body(b'{"choices": [{', content_type="application/json"), Kind.BAD_REPLY, "not JSON"),
    "endless nesting": Failure(body(b"[" * 100_000), Kind.BAD_REPLY, "not JSON"),
    "no body": Failure(body(b""), Kind.BAD_REPLY, "not JSON"),
    "redirect": Failure(body(b"", 302, headers={"Location": "/elsewhere"}), Kind.BAD_REPLY, "302"),
    "a string": Failure(says("OK"), Kind.BAD_REPLY, "str"),
    "choices null": Failure(says(completion() | {"choices": None}), Kind.BAD_REPLY, "choices"),
    "choices empty": Failure(says(completion() | {"choices": []}), Kind.BAD_REPLY, "choices"),
    "message missing": Failure(says({"choices": [{"finish_reason": "stop"}]}), Kind.BAD_REPLY, "message"),
    "error with status 200": Failure(says({"error": {"message": "upstream is down"}}), Kind.BAD_REPLY, "upstream"),
    "aborted": Failure(says(completion("Fo", "abort")), Kind.BAD_REPLY, "abort"),
    "empty": Failure(says(completion("")), Kind.EMPTY, paid=True),
    "null": Failure(says(completion(None)), Kind.EMPTY, paid=True),
    "white space": Failure(says(completion(" \n\t ")), Kind.EMPTY, paid=True),
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
    "403 model": Failure(_error(403, "no access", code="model_not_found"), Kind.UNKNOWN_MODEL),
    "402": Failure(_error(402, "Insufficient Balance"), Kind.QUOTA_EXHAUSTED),
    "404 vLLM": Failure(_error(404, "The model `tiny` does not exist.", type="NotFoundError"), Kind.UNKNOWN_MODEL),
    "404 OpenAI": Failure(_error(404, "no such model", code="model_not_found"), Kind.UNKNOWN_MODEL),
    "404 path": Failure(says({"detail": "Not Found"}, 404), Kind.UNKNOWN_MODEL, "base_url"),
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
