"""Anthropic's Messages format: bodies out, replies in. Pure. Its errors are read by wire.py.

https://platform.claude.com/docs/en/api/messages, of the API version that anthropic.py names.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aif.chat import wire
from aif.chat.base import Finish, Reply, Request
from aif.jsontext import encodable
from aif.records import Message, Usage, as_dicts

# tool_use and pause_turn end no reply to what is asked here. The model's window cuts a reply as its limit does; vLLM
# calls both by one name.
_FINISH: Mapping[str, Finish] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}


def body(request: Request, model: str) -> dict[str, Any]:
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
    if request.reasoning_effort is not None:
        sent["output_config"] = {"effort": request.reasoning_effort}
    if request.schema is not None:
        format = {"type": "json_schema", "schema": wire.unbounded(request.schema)}
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


def read_reply(data: Any, sent: Mapping[str, Any]) -> Reply:
    """A parsed message as a Reply: its texts joined, and thoughts apart from them.

    Raises CallError: BAD_REPLY for what is no message, with what it used, and those of `wire.usable`.
    """
    if not isinstance(data, dict):
        raise wire.bad(f"The answer is {type(data).__name__}, not a message.")
    heard = Reply("", None, _usage(data.get("usage")), sent=sent, served=wire.served(data, "model", "id"))
    blocks = data.get("content")
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise wire.bad(f"The answer has no content{wire.reported(data)}", heard)
    said, thought = _joined(blocks, "text", "", heard), _joined(blocks, "thinking", "\n", heard)
    text, reasoning = wire.apart(said, thought)
    heard = replace(heard, text=text, reasoning=reasoning)
    finish = wire.finished(data.get("stop_reason"), heard, _FINISH)
    return wire.usable(replace(heard, finish=finish), _why(data.get("stop_details")))


def _content(message: Message, shared: int) -> str | list[dict[str, Any]]:
    """A message's content, in two blocks where its first `shared` characters are to be cached."""
    if not shared:
        return message.content
    head, tail = message.content[:shared], message.content[shared:]
    marked = {"type": "text", "text": head, "cache_control": {"type": "ephemeral"}}
    return [marked, {"type": "text", "text": tail}] if tail else [marked]  # the API refuses an empty block


def _joined(blocks: list[dict[str, Any]], kind: str, between: str, heard: Reply) -> str:
    """What the blocks of one kind say. Those of another kind (redacted_thinking, …) say nothing that can be read."""
    of_kind = [block for block in blocks if block.get("type") == kind]
    said = [part for block in of_kind if isinstance(part := block.get(kind), str)]
    if len(said) < len(of_kind):
        raise wire.bad(f"A block of type {kind} holds no text.", heard)
    return between.join(said)


def _why(details: Any) -> str:
    """What the provider says of a refusal: its category and its words."""
    if not isinstance(details, dict):
        return ""
    said = (details.get("category"), details.get("explanation"))
    return encodable(": ".join(part for part in said if isinstance(part, str)))


def _usage(data: Any) -> Usage | None:
    """Tokens as the server counted them. Its `input_tokens` are those neither read from a cache nor written to one."""
    if not isinstance(data, dict):
        return None
    input_, output = wire.count(data, "input_tokens"), wire.count(data, "output_tokens")
    if input_ is None or output is None:
        return None
    cached = wire.count(data, "cache_read_input_tokens") or 0
    written = wire.count(data, "cache_creation_input_tokens") or 0
    return Usage(
        input=input_ + cached + written,
        output=output,
        cached=cached,
        reasoning=wire.count(data.get("output_tokens_details"), "thinking_tokens") or 0,
        written=written,
    )
