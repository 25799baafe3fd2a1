"""Answer chat completion requests like vLLM and OpenAI. Pure: the same body gets the same bytes on any machine."""

from collections.abc import Callable, Mapping
from typing import Any

from aif.config.sections import REASONING_MODELS
from aif.core.types import Message, Role, digest
from aif.providers.base import Finish
from aif.simulator.models import ModelRequest, RefusedError, SimulatedModels, content_text, number_field, reply_text
from aif.simulator.text_analysis import truncate

CREATED = 1_767_225_600  # every reply's `created`: a clock would make replies differ
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_NOT_SERVED = ("stream", "tools", "functions", "logprobs", "stop", "logit_bias")


def answer(models: SimulatedModels, body: Any, max_model_len: int = 32768) -> dict[str, Any]:
    """Return the reply to a chat completion request, as JSON values. Raises RefusedError if the reply is an error.
    `max_model_len` is the context window in tokens."""
    request = _parse_request(body)
    if not models.serves(request.model):
        raise RefusedError(404, f"The model `{request.model}` does not exist.", code="model_not_found", param="model")
    prompt_tokens = request.tokens
    limit = _reply_limit(prompt_tokens, request.max_tokens, max_model_len)
    text, tokens, was_cut = truncate(reply_text(models, request), limit)
    return {
        "id": f"chatcmpl-{digest(body)[:24]}",
        "object": "chat.completion",
        "created": CREATED,
        "model": request.model,
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
        "system_fingerprint": f"simulator-{models.seed}",
    }


def error(refused: RefusedError) -> dict[str, Any]:
    """Return the JSON body of an OpenAI error reply, with the error's `message`, `type`, `param` and `code`."""
    kind = "server_error" if refused.status >= 500 else "invalid_request_error"
    return {"error": {"message": str(refused), "type": kind, "param": refused.param, "code": refused.code}}


def replace_text(
    reply: Mapping[str, Any], rewrite: Callable[[str], str], finish: Finish | None = None
) -> dict[str, Any]:
    """Return the reply with its text replaced by `rewrite(text)`. `finish`, if given, is the new finish reason:
    "refusal" becomes OpenAI's `finish_reason` "content_filter"."""
    (choice,) = reply["choices"]
    message = choice["message"] | {"content": rewrite(choice["message"]["content"])}
    if finish == "refusal":
        message["refusal"] = "I can't help with that."
    reason = {"refusal": "content_filter", None: choice["finish_reason"]}.get(finish, finish)
    return {**reply, "choices": [choice | {"message": message, "finish_reason": reason}]}


def _reply_limit(prompt_tokens: int, max_tokens: int | None, max_model_len: int) -> int:
    """Return the maximum number of tokens in the reply. Raises RefusedError if prompt and `max_tokens` together exceed
    the context window (`max_model_len`)."""
    asked = max_tokens if max_tokens is not None else 1
    if prompt_tokens + asked > max_model_len:
        raise RefusedError(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, you requested {asked} output "
            f"tokens and your prompt contains {prompt_tokens} input tokens, for a total of {prompt_tokens + asked} "
            "tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
            code="context_length_exceeded",
            param="messages",
        )
    return max_tokens if max_tokens is not None else max_model_len - prompt_tokens


def _parse_request(body: Any) -> ModelRequest:
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
    limit_name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    temperature = float(number_field(body, "temperature", 0, 2, default=1))
    top_p = float(number_field(body, "top_p", 0, 1, default=1))
    seed = number_field(body, "seed", -(2**63), 2**63 - 1, whole=True)
    return ModelRequest(
        model=model,
        messages=_messages(body.get("messages")),
        max_tokens=number_field(body, limit_name, 1, 2**31, whole=True),
        schema=_schema(body.get("response_format")),
        settings=() if temperature == 0 else (temperature, top_p, seed),
    )


def _check_reasoning(model: str, body: Mapping[str, Any]) -> None:
    """Raise RefusedError if a reasoning model of OpenAI is called with a temperature or top_p other than 1, or any
    model with a `reasoning_effort` that isn't text."""
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
        turn = row if isinstance(row, dict) else {}
        role, text = _ROLES.get(str(turn.get("role"))), content_text(turn.get("content"))
        if role is None or text is None:
            expected = "a role of system, developer, user or assistant, and content: a text or a list of text parts"
            raise RefusedError(400, f"Invalid 'messages[{at}]': expected {expected}.", param=f"messages[{at}]")
        messages.append(Message(role, text))
    return tuple(messages)


def _schema(response_format: Any) -> Mapping[str, Any] | None:
    if response_format is None or (isinstance(response_format, dict) and response_format.get("type") == "text"):
        return None
    if (
        isinstance(response_format, dict)
        and response_format.get("type") == "json_schema"
        and isinstance(response_format.get("json_schema"), dict)
    ):
        schema = response_format["json_schema"].get("schema")
        if isinstance(schema, dict):
            return schema
    expected = "{'type': 'json_schema', 'json_schema': {'name': …, 'schema': {…}}} or {'type': 'text'}"
    raise RefusedError(400, f"Invalid 'response_format': expected {expected}.", param="response_format")
