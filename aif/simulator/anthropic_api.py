"""Anthropic's Messages, as its API of version 2026-10-21 answers them, with the prefix cache it bills by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aif.core.types import Message, Role, digest
from aif.providers.base import Finish
from aif.providers.chat_completions import without_bounds
from aif.simulator.models import FRAME, Cast, ModelRequest, RefusedError, number, say, text_of
from aif.simulator.words import count_tokens, cut

PATH = "/v1/messages"
CACHED_FROM = 1024  # tokens: a shorter prefix is not cached, and nothing says so
_BREAKPOINTS = 4
_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant"}
_TAKEN = frozenset({"model", "max_tokens", "messages", "system", "output_config", "metadata"})
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


# There is no 429 for an empty account: it is a bad request like others, told by its words alone.
QUOTA = (400, "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.")


def error(refused: RefusedError) -> dict[str, Any]:
    """The body of an error."""
    sort = "invalid_request_error" if refused.status < 500 else "api_error"
    return {"type": "error", "error": {"type": _TYPES.get(refused.status, sort), "message": str(refused)}}


@dataclass(frozen=True, slots=True)
class Prefix:
    """What stands before a cache breakpoint, model and output_config with it: its digest and its tokens."""

    digest: str
    tokens: int


class Messages:
    """The endpoint. What is cached is its only state: nothing of it expires."""

    def __init__(self, cast: Cast, max_model_len: int) -> None:
        self._cast = cast
        self._max_model_len = max_model_len
        self._cached: set[str] = set()

    def begin(self, body: Any) -> Callable[[], dict[str, Any]]:
        """What gives the reply to a request that comes now. Raises RefusedError.

        Read from the cache is what stands there now, and written to it when the reply is given: requests that come
        together all pay for writing their common prefix, as with the real API.
        """
        ask, prefixes = _read(body)
        read = max((prefix.tokens for prefix in prefixes if prefix.digest in self._cached), default=0)
        written = max((prefix.tokens for prefix in prefixes), default=0) - read

        def finish() -> dict[str, Any]:
            reply = answer(self._cast, ask, f"msg_{digest(body)[:24]}", self._max_model_len)
            self._cached.update(prefix.digest for prefix in prefixes)
            reply["usage"] |= {
                "input_tokens": ask.tokens - read - written,
                "cache_read_input_tokens": read,
                "cache_creation_input_tokens": written,
            }
            return reply

        return finish


def answer(cast: Cast, ask: ModelRequest, id: str, max_model_len: int) -> dict[str, Any]:
    """The reply to a request, without a cache. Raises RefusedError."""
    if not cast.serves(ask.model):
        raise RefusedError(404, f"model: {ask.model}")
    room = max_model_len - ask.tokens
    if room <= 0:
        raise RefusedError(400, f"prompt is too long: {ask.tokens} tokens > {max_model_len} maximum")
    wanted = ask.max_tokens or room
    text, tokens, was_cut = cut(say(cast, ask), min(wanted, room))
    limit = "max_tokens" if wanted <= room else "model_context_window_exceeded"
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": ask.model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": limit if was_cut else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": ask.tokens, "output_tokens": tokens},
    }


def reworded(reply: Mapping[str, Any], words: Callable[[str], str], finish: Finish | None = None) -> dict[str, Any]:
    """The reply with other words in the place of its text, and another finish."""
    text = words("".join(block["text"] for block in reply["content"]))
    reason = {"stop": "end_turn", "length": "max_tokens", None: reply["stop_reason"]}.get(finish, finish)
    return {**reply, "content": [{"type": "text", "text": text}] if text else [], "stop_reason": reason}


def _read(body: Any) -> tuple[ModelRequest, list[Prefix]]:
    if not isinstance(body, dict):
        raise RefusedError(400, "The body must be a JSON object.")
    if refused := sorted({"temperature", "top_p", "top_k"} & body.keys()):
        raise RefusedError(400, f"{refused[0]}: not supported since API version 2026-10-21")
    if unknown := sorted(body.keys() - _TAKEN):
        raise RefusedError(400, f"{unknown[0]}: the simulator does not serve it, or it is no parameter: leave it out")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RefusedError(400, "model: Field required")
    if (max_tokens := number(body, "max_tokens", 1, 2**31, whole=True)) is None:
        raise RefusedError(400, "max_tokens: Field required")
    ask = ModelRequest(
        model=model,
        messages=(*_system(body.get("system")), *_turns(body.get("messages"))),
        max_tokens=max_tokens,
        schema=_schema(body.get("output_config")),
        settings=(1.0, 1.0, None),  # as a chat completion that sends none
    )
    return ask, _prefixes(body)


def _system(content: Any) -> tuple[Message, ...]:
    return () if content is None else (Message("system", _text(content, "system")),)


def _turns(rows: Any) -> list[Message]:
    if not isinstance(rows, list) or not rows:
        raise RefusedError(400, "messages: at least one message is required")
    turns = []
    for at, row in enumerate(rows):
        given = row if isinstance(row, dict) else {}
        if (role := _ROLES.get(str(given.get("role")))) is None:
            raise RefusedError(400, f"messages.{at}.role: Input should be 'user' or 'assistant'")
        turns.append(Message(role, _text(given.get("content"), f"messages.{at}.content")))
    if turns[-1].role == "assistant":
        raise RefusedError(
            400, "This model does not support assistant message prefill. The conversation must end with a user message."
        )
    return turns


def _text(content: Any, where: str) -> str:
    text = text_of(content)
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
    """What stands before each breakpoint, shortest first; those too short to be cached are left out."""
    before: list[Any] = [body["model"], body.get("output_config")]
    found, tokens, marks = [], 0, 0
    for row in ({"role": "system", "content": body.get("system") or []}, *body["messages"]):
        content = row["content"]
        tokens += FRAME if content else 0
        for block in [{"text": content}] if isinstance(content, str) else content:
            before.append([row["role"], block["text"]])
            tokens += count_tokens(block["text"])
            if block.get("cache_control") is not None:
                marks += 1
                found.append(Prefix(digest(before), tokens))
    if marks > _BREAKPOINTS:
        raise RefusedError(400, f"A maximum of 4 blocks with cache_control may be provided. Found {marks}.")
    return [prefix for prefix in found if prefix.tokens >= CACHED_FROM]
