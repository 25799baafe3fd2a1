"""Answer requests like Anthropic's Messages API (version 2026-10-21), with its prompt cache.

A reply's `usage` says how many input tokens were read from the cache, and how many were written to it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aif.core.types import Message, Role, digest
from aif.providers.base import Finish
from aif.providers.chat_completions import without_bounds
from aif.simulator.models import (
    MESSAGE_OVERHEAD,
    ModelRequest,
    RefusedError,
    SimulatedModels,
    content_text,
    number_field,
    reply_text,
)
from aif.simulator.text_analysis import count_tokens, truncate

PATH = "/v1/messages"
CACHED_FROM = 1024  # tokens: a shorter prefix is silently not cached
_BREAKPOINTS = 4
_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant"}
_PARAMETERS = frozenset({"model", "max_tokens", "messages", "system", "output_config", "metadata"})
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


# An empty account gets no 429: it is a 400 that differs from other bad requests by its message alone.
QUOTA = (400, "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.")


def error(refused: RefusedError) -> dict[str, Any]:
    """Return the JSON body of an Anthropic error reply, with the error's `type` and `message`."""
    kind = "invalid_request_error" if refused.status < 500 else "api_error"
    return {"type": "error", "error": {"type": _TYPES.get(refused.status, kind), "message": str(refused)}}


@dataclass(frozen=True, slots=True)
class Prefix:
    """The part of a request before a cache breakpoint.

    digest: of the prefix, with the request's model and output_config.
    tokens: number of tokens in the prefix.
    """

    digest: str
    tokens: int


class Messages:
    """Answers the requests to /v1/messages. Its only state is the prompt cache, whose entries never expire."""

    def __init__(self, models: SimulatedModels, max_model_len: int) -> None:
        self._models = models
        self._max_model_len = max_model_len
        self._cached: set[str] = set()

    def begin(self, body: Any) -> Callable[[], dict[str, Any]]:
        """Look up which prefixes of a request are in the prompt cache, and return a function that makes the reply.
        Raises RefusedError if the request is invalid.

        The request's prefixes are added to the cache when the reply is made. So requests that are in flight together
        all pay for writing their common prefix, as with the real API.
        """
        request, prefixes = _parse_request(body)
        read = max((prefix.tokens for prefix in prefixes if prefix.digest in self._cached), default=0)
        written = max((prefix.tokens for prefix in prefixes), default=0) - read

        def finish() -> dict[str, Any]:
            reply = answer(self._models, request, f"msg_{digest(body)[:24]}", self._max_model_len)
            self._cached.update(prefix.digest for prefix in prefixes)
            reply["usage"] |= {
                "input_tokens": request.tokens - read - written,
                "cache_read_input_tokens": read,
                "cache_creation_input_tokens": written,
            }
            return reply

        return finish


def answer(models: SimulatedModels, request: ModelRequest, id: str, max_model_len: int) -> dict[str, Any]:
    """Return the reply to a parsed request, as JSON values; its `usage` counts all input as not cached. `id` is the
    reply's id, `max_model_len` the context window in tokens. Raises RefusedError if the reply is an error."""
    if not models.serves(request.model):
        raise RefusedError(404, f"model: {request.model}")
    room = max_model_len - request.tokens
    if room <= 0:
        raise RefusedError(400, f"prompt is too long: {request.tokens} tokens > {max_model_len} maximum")
    limit_asked = request.max_tokens or room
    text, tokens, was_cut = truncate(reply_text(models, request), min(limit_asked, room))
    limit = "max_tokens" if limit_asked <= room else "model_context_window_exceeded"
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": limit if was_cut else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": request.tokens, "output_tokens": tokens},
    }


def replace_text(
    reply: Mapping[str, Any], rewrite: Callable[[str], str], finish: Finish | None = None
) -> dict[str, Any]:
    """Return the reply with its text replaced by `rewrite(text)`. `finish`, if given, is the new finish reason:
    "length" becomes Anthropic's `stop_reason` "max_tokens"."""
    text = rewrite("".join(block["text"] for block in reply["content"]))
    reason = {"stop": "end_turn", "length": "max_tokens", None: reply["stop_reason"]}.get(finish, finish)
    return {**reply, "content": [{"type": "text", "text": text}] if text else [], "stop_reason": reason}


def _parse_request(body: Any) -> tuple[ModelRequest, list[Prefix]]:
    if not isinstance(body, dict):
        raise RefusedError(400, "The body must be a JSON object.")
    if refused := sorted({"temperature", "top_p", "top_k"} & body.keys()):
        raise RefusedError(400, f"{refused[0]}: not supported since API version 2026-10-21")
    if unknown := sorted(body.keys() - _PARAMETERS):
        raise RefusedError(400, f"{unknown[0]}: the simulator does not serve it, or it is no parameter: leave it out")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RefusedError(400, "model: Field required")
    if (max_tokens := number_field(body, "max_tokens", 1, 2**31, whole=True)) is None:
        raise RefusedError(400, "max_tokens: Field required")
    request = ModelRequest(
        model=model,
        messages=(*_system(body.get("system")), *_turns(body.get("messages"))),
        max_tokens=max_tokens,
        schema=_schema(body.get("output_config")),
        settings=(1.0, 1.0, None),  # as a chat completion that sends none
    )
    return request, _prefixes(body)


def _system(content: Any) -> tuple[Message, ...]:
    return () if content is None else (Message("system", _text(content, "system")),)


def _turns(rows: Any) -> list[Message]:
    if not isinstance(rows, list) or not rows:
        raise RefusedError(400, "messages: at least one message is required")
    turns = []
    for at, row in enumerate(rows):
        turn = row if isinstance(row, dict) else {}
        if (role := _ROLES.get(str(turn.get("role")))) is None:
            raise RefusedError(400, f"messages.{at}.role: Input should be 'user' or 'assistant'")
        turns.append(Message(role, _text(turn.get("content"), f"messages.{at}.content")))
    if turns[-1].role == "assistant":
        raise RefusedError(
            400, "This model does not support assistant message prefill. The conversation must end with a user message."
        )
    return turns


def _text(content: Any, where: str) -> str:
    text = content_text(content)
    if text is None:
        raise RefusedError(400, f"{where}: expected a text or a list of text blocks")
    if not text or (isinstance(content, list) and not all(block["text"] for block in content)):
        raise RefusedError(400, f"{where}: text content blocks must be non-empty")
    return text


def _schema(config: Any) -> Mapping[str, Any] | None:
    if config is None:
        return None
    if not isinstance(config, dict) or config.keys() - {"effort", "format"}:
        raise RefusedError(400, "output_config: expected {effort, format}")
    if config.get("effort") not in (None, *_EFFORTS):
        raise RefusedError(400, f"output_config.effort: Input should be one of {', '.join(_EFFORTS)}")
    if (format := config.get("format")) is None:
        return None
    schema = format.get("schema") if isinstance(format, dict) and format.get("type") == "json_schema" else None
    if not isinstance(schema, dict):
        raise RefusedError(400, "output_config.format: expected {'type': 'json_schema', 'schema': {…}}")
    if without_bounds(schema) != schema:
        raise RefusedError(400, "output_config.format.schema: bounds such as maxLength and minItems are not supported")
    return schema


def _prefixes(body: Mapping[str, Any]) -> list[Prefix]:
    """Return the prefix of a request before each cache breakpoint, shortest first; those too short to be cached are
    left out.

    Raises RefusedError if there are too many breakpoints.
    """
    before: list[Any] = [body["model"], body.get("output_config")]
    prefixes, tokens, breakpoints = [], 0, 0
    for row in ({"role": "system", "content": body.get("system") or []}, *body["messages"]):
        content = row["content"]
        tokens += MESSAGE_OVERHEAD if content else 0
        for block in [{"text": content}] if isinstance(content, str) else content:
            before.append([row["role"], block["text"]])
            tokens += count_tokens(block["text"])
            if block.get("cache_control") is not None:
                breakpoints += 1
                prefixes.append(Prefix(digest(before), tokens))
    if breakpoints > _BREAKPOINTS:
        raise RefusedError(400, f"A maximum of 4 blocks with cache_control may be provided. Found {breakpoints}.")
    return [prefix for prefix in prefixes if prefix.tokens >= CACHED_FROM]
