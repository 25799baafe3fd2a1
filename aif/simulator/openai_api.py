"""Chat completions as vLLM and OpenAI answer them. Pure: one body is answered with the same bytes, on any machine, in
any order."""

from collections.abc import Callable, Mapping
from typing import Any

from aif.config.sections import REASONING_MODELS
from aif.core.types import Message, Role, digest
from aif.providers.base import Finish
from aif.simulator.models import Cast, ModelRequest, RefusedError, number, say, text_of
from aif.simulator.words import cut

CREATED = 1_767_225_600  # every reply's `created`: a clock would make replies differ
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_NOT_SERVED = ("stream", "tools", "functions", "logprobs", "stop", "logit_bias")


def answer(cast: Cast, body: Any, max_model_len: int = 32768) -> dict[str, Any]:
    """The reply to one chat completion request, as JSON values. Raises RefusedError where the request gets an error."""
    ask = _read(body)
    if not cast.serves(ask.model):
        raise RefusedError(404, f"The model `{ask.model}` does not exist.", code="model_not_found", param="model")
    prompt_tokens = ask.tokens
    limit = _room(prompt_tokens, ask.max_tokens, max_model_len)
    text, tokens, was_cut = cut(say(cast, ask), limit)
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


def error(refused: RefusedError) -> dict[str, Any]:
    """The body of an error."""
    sort = "server_error" if refused.status >= 500 else "invalid_request_error"
    return {"error": {"message": str(refused), "type": sort, "param": refused.param, "code": refused.code}}


def reworded(reply: Mapping[str, Any], words: Callable[[str], str], finish: Finish | None = None) -> dict[str, Any]:
    """The reply with other words in the place of its text, and another finish."""
    (choice,) = reply["choices"]
    message = choice["message"] | {"content": words(choice["message"]["content"])}
    if finish == "refusal":
        message["refusal"] = "I can't help with that."
    reason = {"refusal": "content_filter", None: choice["finish_reason"]}.get(finish, finish)
    return {**reply, "choices": [choice | {"message": message, "finish_reason": reason}]}


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


def _read(body: Any) -> ModelRequest:
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
    _check_reasoning(model, body)
    room = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    temperature = float(number(body, "temperature", 0, 2, default=1))
    top_p = float(number(body, "top_p", 0, 1, default=1))
    seed = number(body, "seed", -(2**63), 2**63 - 1, whole=True)
    return ModelRequest(
        model=model,
        messages=_messages(body.get("messages")),
        max_tokens=number(body, room, 1, 2**31, whole=True),
        schema=_schema(body.get("response_format")),
        settings=() if temperature == 0 else (temperature, top_p, seed),
    )


def _check_reasoning(model: str, body: Mapping[str, Any]) -> None:
    """OpenAI's reasoning models take no sampling settings but the default."""
    for name in ("temperature", "top_p"):
        if REASONING_MODELS.match(model) and body.get(name) not in (None, 1):
            raise RefusedError(
                400,
                f"Unsupported value: '{name}' does not support {body[name]} with this model. "
                "Only the default (1) value is supported.",
                code="unsupported_value",
                param=name,
            )
    if not isinstance(body.get("reasoning_effort"), str | None):
        raise RefusedError(400, "Invalid type for 'reasoning_effort': expected a text.", param="reasoning_effort")


def _messages(rows: Any) -> tuple[Message, ...]:
    if not isinstance(rows, list) or not rows:
        raise RefusedError(400, "Missing required parameter: 'messages', a list of at least one.", param="messages")
    messages = []
    for at, row in enumerate(rows):
        given = row if isinstance(row, dict) else {}
        role, text = _ROLES.get(str(given.get("role"))), text_of(given.get("content"))
        if role is None or text is None:
            want = "a role of system, developer, user or assistant, and content: a text or a list of text parts"
            raise RefusedError(400, f"Invalid 'messages[{at}]': expected {want}.", param=f"messages[{at}]")
        messages.append(Message(role, text))
    return tuple(messages)


def _schema(wanted: Any) -> Mapping[str, Any] | None:
    if wanted is None or (isinstance(wanted, dict) and wanted.get("type") == "text"):
        return None
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema" and isinstance(wanted.get("json_schema"), dict):
        schema = wanted["json_schema"].get("schema")
        if isinstance(schema, dict):
            return schema
    want = "{'type': 'json_schema', 'json_schema': {'name': …, 'schema': {…}}} or {'type': 'text'}"
    raise RefusedError(400, f"Invalid 'response_format': expected {want}.", param="response_format")
