"""Anthropic's Messages format: bodies out, replies in. Pure. Its errors are read by error_replies.py.

https://platform.claude.com/docs/en/api/messages, of the API version that anthropic.py names.
"""

from collections.abc import Mapping
from typing import Any

from aif.core.reasoning import Tags
from aif.core.strict_json import json_type, replace_surrogates
from aif.core.types import Message, Usage, as_dicts
from aif.providers import chat_completions
from aif.providers.base import PLAIN, Options, Reply, Request


def body(request: Request, model: str, options: Options = PLAIN) -> dict[str, Any]:
    """The JSON body of a request.

    Seed, temperature and top_p are not sent: the API refuses them. Turns go as they are, since it takes those of one
    role in a row, and conversations that an assistant begins. What the last message shares with other requests is a
    block of its own with a cache breakpoint at its end.
    """
    *before, last = (message for message in request.messages if message.role != "system")
    sent: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "messages": [*as_dicts(before), {"role": last.role, "content": _content(last, request.shared)}],
    }
    if system := "\n\n".join(message.content for message in request.messages if message.role == "system"):
        sent["system"] = system
    sent |= chat_completions.beside(request, options)
    if request.reasoning_effort is not None:
        sent["output_config"] = {"effort": request.reasoning_effort}
    if request.schema is not None:
        format = {"type": "json_schema", "schema": chat_completions.unbounded(request.schema)}
        sent["output_config"] = sent.get("output_config", {}) | {"format": format}
    return sent


def sent(body: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a body as they went out: messages, system and schema left out, the kind of format kept, and
    `cache_control` where there was a breakpoint."""
    settings = {name: value for name, value in body.items() if name not in ("messages", "system")}
    if "format" in settings.get("output_config", {}):
        settings["output_config"] = settings["output_config"] | {"format": settings["output_config"]["format"]["type"]}
    if isinstance(content := body["messages"][-1]["content"], list):
        settings["cache_control"] = content[0]["cache_control"]["type"]
    return settings


def read_reply(data: Any, sent: Mapping[str, Any], tags: Tags = "auto") -> Reply:
    """A parsed message as a Reply: its texts joined, and thoughts apart from them.

    Raises CallError, with what was used: what an error in the body means, BAD_REPLY for what is no message, and those
    of `wire.usable`.
    """
    if not isinstance(data, dict):
        raise chat_completions.reported(data) or chat_completions.bad(
            f"The answer is {json_type(data)}, not a message."
        )
    heard = Reply("", None, _usage(data.get("usage")), sent=sent, served=_served(data))
    content = data.get("content")
    if content is None or data.get("error"):
        raise chat_completions.reported(data, heard) or chat_completions.bad("The answer has no content.", heard)
    heard = chat_completions.saying(heard, *chat_completions.parts(content, heard), tags)
    return chat_completions.usable(
        chat_completions.finished(data.get("stop_reason"), heard), _why(data.get("stop_details"))
    )


def _content(message: Message, shared: int) -> str | list[dict[str, Any]]:
    """A message's content, in two blocks where its first `shared` characters are to be cached."""
    if not shared:
        return message.content
    head, tail = message.content[:shared], message.content[shared:]
    marked = {"type": "text", "text": head, "cache_control": {"type": "ephemeral"}}
    return [marked, {"type": "text", "text": tail}] if tail else [marked]  # the API refuses an empty block


def _why(details: Any) -> str:
    """What the provider says of a refusal: its category and its words."""
    if not isinstance(details, dict):
        return ""
    said = (details.get("category"), details.get("explanation"))
    return replace_surrogates(": ".join(part for part in said if isinstance(part, str)))


def _served(data: Mapping[str, Any]) -> dict[str, str]:
    usage = data.get("usage")  # which names the tier, too
    return chat_completions.served(data, "model", "id") | (
        chat_completions.served(usage, "service_tier") if isinstance(usage, dict) else {}
    )


def _usage(data: Any) -> Usage | None:
    """Tokens as the server counted them. Its `input_tokens` are those neither read from a cache nor written to one."""
    if not isinstance(data, dict) or (plain := chat_completions.count(data, "input_tokens")) is None:
        return None
    cached = chat_completions.count(data, "cache_read_input_tokens") or 0
    written = chat_completions.count(data, "cache_creation_input_tokens") or 0
    usage = Usage(
        input=plain + cached + written,
        output=chat_completions.count(data, "output_tokens") or 0,
        cached=cached,
        reasoning=chat_completions.count(data.get("output_tokens_details"), "thinking_tokens") or 0,
        written=written,
    )
    return chat_completions.sound(usage)
