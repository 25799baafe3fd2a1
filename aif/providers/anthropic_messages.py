"""Anthropic's Messages format: build request bodies, parse replies. Pure.

See https://platform.claude.com/docs/en/api/messages for the API version in anthropic.py. Errors are classified in
error_replies.py.
"""

from collections.abc import Mapping
from typing import Any

from aif.core.reasoning import Tags
from aif.core.strict_json import json_type, replace_surrogates
from aif.core.types import Message, Usage, as_dicts
from aif.providers import chat_completions
from aif.providers.base import DEFAULT_OPTIONS, Options, Reply, Request


def request_body(request: Request, model: str, options: Options = DEFAULT_OPTIONS) -> dict[str, Any]:
    """Return the JSON body of a request to `model`.

    Seed, temperature and top_p are left out, since the API refuses them. The turns stay as they are: the API accepts
    turns of the same role in a row, and conversations that start with the assistant. The first `request.shared`
    characters of the last message, which other requests share, become a block that ends in a cache breakpoint.
    """
    *before, last = (message for message in request.messages if message.role != "system")
    sent: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "messages": [*as_dicts(before), {"role": last.role, "content": _content(last, request.shared)}],
    }
    if system := "\n\n".join(message.content for message in request.messages if message.role == "system"):
        sent["system"] = system
    sent |= chat_completions.extra_settings(request, options)
    if request.reasoning_effort is not None:
        sent["output_config"] = {"effort": request.reasoning_effort}
    if request.schema is not None:
        format = {"type": "json_schema", "schema": chat_completions.without_bounds(request.schema)}
        sent["output_config"] = sent.get("output_config", {}) | {"format": format}
    return sent


def sent_settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a request body, to be recorded: everything but the messages and the system prompt. Of the
    output format only its type is kept, without the schema.

    `cache_control` is added if the body has a cache breakpoint.
    """
    settings = {name: value for name, value in body.items() if name not in ("messages", "system")}
    if "format" in settings.get("output_config", {}):
        settings["output_config"] = settings["output_config"] | {"format": settings["output_config"]["format"]["type"]}
    if isinstance(content := body["messages"][-1]["content"], list):
        settings["cache_control"] = content[0]["cache_control"]["type"]
    return settings


def read_reply(data: Any, sent: Mapping[str, Any], tags: Tags = "auto") -> Reply:
    """Return the `Reply` in a parsed response body; `sent` are the settings to record in it, `tags` the model's
    reasoning tags.

    Raises CallError if the body reports an error, if it is no message (BAD_REPLY), or if the reply is a refusal or
    blank (`chat_completions.require_usable`). The error carries the usage that the body reports.
    """
    if not isinstance(data, dict):
        raise chat_completions.reported_error(data) or chat_completions.bad_reply(
            f"The answer is {json_type(data)}, not a message."
        )
    reply = Reply("", None, _usage(data.get("usage")), sent=sent, served=_served(data))
    content = data.get("content")
    if content is None or data.get("error"):
        raise chat_completions.reported_error(data, reply) or chat_completions.bad_reply(
            "The answer has no content.", reply
        )
    reply = chat_completions.with_content(reply, *chat_completions.text_and_reasoning(content, reply), tags)
    return chat_completions.require_usable(
        chat_completions.with_finish_reason(data.get("stop_reason"), reply), _refusal_reason(data.get("stop_details"))
    )


def _content(message: Message, shared: int) -> str | list[dict[str, Any]]:
    """Return a message's content for the request body. If `shared` is 0 this is a string, else a list of blocks: the
    first `shared` characters are a block that the API is asked to cache, the rest is another."""
    if not shared:
        return message.content
    head, tail = message.content[:shared], message.content[shared:]
    cached = {"type": "text", "text": head, "cache_control": {"type": "ephemeral"}}
    return [cached, {"type": "text", "text": tail}] if tail else [cached]  # the API refuses an empty block


def _refusal_reason(details: Any) -> str:
    """Return the category and explanation of a refusal as a text; empty if there are none."""
    if not isinstance(details, dict):
        return ""
    parts = (details.get("category"), details.get("explanation"))
    return replace_surrogates(": ".join(part for part in parts if isinstance(part, str)))


def _served(data: Mapping[str, Any]) -> dict[str, str]:
    usage = data.get("usage")  # it contains the service tier
    return chat_completions.text_fields(data, "model", "id") | (
        chat_completions.text_fields(usage, "service_tier") if isinstance(usage, dict) else {}
    )


def _usage(data: Any) -> Usage | None:
    """Return the token counts that the server reports; None if it reports none. The API's `input_tokens` exclude tokens
    read from and written to the cache, so these are added to the input."""
    if not isinstance(data, dict) or (plain := chat_completions.token_count(data, "input_tokens")) is None:
        return None
    cached = chat_completions.token_count(data, "cache_read_input_tokens") or 0
    written = chat_completions.token_count(data, "cache_creation_input_tokens") or 0
    usage = Usage(
        input=plain + cached + written,
        output=chat_completions.token_count(data, "output_tokens") or 0,
        cached=cached,
        reasoning=chat_completions.token_count(data.get("output_tokens_details"), "thinking_tokens") or 0,
        written=written,
    )
    return chat_completions.consistent_usage(usage)
