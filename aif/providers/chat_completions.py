"""The chat completions format that vLLM, OpenAI and many others speak: bodies out, replies in. Pure. (What an error
means, error_replies.py says.)

Every server that speaks it does so in its own way: a reply that is whole is not thrown away for a word or a shape.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import orjson

from aif.core.reasoning import Tags, split_reasoning
from aif.core.redaction import redact, remove_keys
from aif.core.strict_json import json_type, make_decoder, replace_surrogates
from aif.core.types import Usage, as_dicts, is_blank
from aif.providers.base import NO_WORD, PLAIN, TRANSIENT, UNKNOWN_END, CallError, Finish, Kind, Options, Reply, Request
from aif.providers.error_replies import classify, cut, inside
from aif.providers.limit_headers import quotas, retry_after

# Of these the message is the model's or ours; of others, or where it is `told`, the server's.
_NOT_ITS_WORDS = frozenset({Kind.EMPTY, Kind.BLOCKED, Kind.CACHED, Kind.CONNECTION})

Read = Callable[[Any, Mapping[str, Any]], Reply]  # a parsed body and the settings sent -> the reply in it
Take = Callable[[Any, bytes], None]  # a parsed body and its bytes, once, whatever becomes of it

# Bounds that OpenAI's strict mode refuses for some or all of its models, and Anthropic's for all; the reader of the
# reply checks them itself.
_BOUNDS = frozenset({
    "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "multipleOf", "minItems", "maxItems", "uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems",
    "minProperties", "maxProperties", "patternProperties", "propertyNames", "unevaluatedProperties",
})  # fmt: skip
_NAMED = frozenset({"properties", "$defs", "definitions"})  # here the keys are names, not keywords
_LITERAL = frozenset({"enum", "const", "default", "examples"})

MOST_TOKENS = 2**31  # what is more is no count of tokens

# Why a reply ended, in the field's words: in lower case, _ for any other sign, without "FinishReason." in front.
_ENDS: tuple[tuple[Finish | Literal["error"], str], ...] = (
    ("stop", "stop"),  # OpenAI, Gemini and most
    ("stop", "eos eos_token stop_sequence"),  # Together, TGI; watsonx
    ("stop", "end_turn end_of_turn stop_token complete"),  # Anthropic, Bedrock; AI21; Cohere
    ("stop", "end completed finished finish done normal"),  # LM Studio, gateways
    ("length", "length"),  # OpenAI and most
    ("length", "max_tokens max_length max_output_tokens max_completion_tokens"),  # Gemini, Anthropic, Cohere; gateways
    ("length", "model_length model_context_window_exceeded error_limit"),  # Mistral; Anthropic, vLLM; Cohere
    ("length", "token_limit time_limit not_finished"),  # watsonx
    ("refusal", "content_filter content_filtered refusal"),  # OpenAI, Azure; Bedrock; Anthropic
    ("refusal", "safety recitation prohibited_content blocklist spii model_armor"),  # Gemini, Vertex
    ("refusal", "sensitive guardrail_intervened error_toxic"),  # Zhipu, MiniMax; Bedrock; Cohere
    ("error", "error abort aborted cancelled canceled user_cancel timeout"),  # OpenRouter, Mistral; vLLM; Cohere
    ("error", "insufficient_system_resource network_error"),  # DeepSeek; Zhipu
    ("error", "malformed_response malformed_function_call malformed_model_output"),  # Gemini; Bedrock
)
_FINISH = {word: finish for finish, words in _ENDS for word in words.split()}
_PREFIX = re.compile("^finish_?reason_")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")  # what one server sends under several


def body(request: Request, model: str, options: Options = PLAIN) -> dict[str, Any]:
    """The JSON body of a request. None is not sent.

    OpenAI's own endpoint ("openai") gets `max_completion_tokens`, which all of its models take, and a schema without
    bounds; every other server ("compatible") gets `max_tokens`, which all of them take, and the schema as it is.
    """
    strict = options.dialect == "openai"
    limit = "max_completion_tokens" if strict else "max_tokens"
    sent: dict[str, Any] = {"model": model, "messages": as_dicts(request.messages), limit: request.max_tokens}
    for name in ("temperature", "top_p", "seed", "reasoning_effort"):
        if (value := getattr(request, name)) is not None and name not in options.omit:
            sent[name] = value
    sent |= beside(request, options)
    if request.schema is not None:
        schema = unbounded(request.schema) if strict else request.schema
        sent["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": schema},
        }
    return sent


def beside(request: Request, options: Options) -> dict[str, Any]:
    """What goes into a body of any API as it is said: the tier, and settings that only the provider knows."""
    tier = {"service_tier": options.service_tier} if options.service_tier is not None else {}
    return tier | (orjson.loads(request.extra) if request.extra else {})


def sent(body: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a body as they went out: messages and schema left out, the kind of response format kept."""
    settings = {name: value for name, value in body.items() if name not in ("messages", "response_format")}
    if "response_format" in body:
        settings["response_format"] = body["response_format"]["type"]
    return settings


def _parse_once(content: bytes) -> Any:
    """The JSON of a body that names nothing twice, since of two contents nobody could say which is the reply.

    json alone tells (15 µs of 8 kB, orjson 3). Raises CallError(BAD_REPLY).
    """
    try:
        # as UTF-8, as JSON is sent (RFC 8259): json would also read UTF-16, in which no key was looked for
        return _read_once(content.decode("utf-8", "surrogatepass").removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        said = content.decode("utf-8", "replace")
        if (gathered := _streamed(said)) is not None:
            return gathered
        raise bad(f"The answer is not JSON: {said}" if said.strip() else "The answer is empty.") from None


def _streamed(said: str) -> Any:
    """What a server said by events though none were asked for: a whole reply, an error, or one put together from its
    pieces; None where it is no stream, or one that was cut."""
    events = [line.removeprefix("data:").strip() for line in said.splitlines() if line.strip()]
    if len(events) < 2 or events.pop() != "[DONE]":
        return None
    try:
        chunks = [_read_once(event) for event in events if event.startswith("{")]
    except (ValueError, RecursionError):
        return None
    if error := next((chunk for chunk in chunks if chunk.get("error")), None):
        return error
    pieces = [choices[0] for chunk in chunks if isinstance(choices := chunk.get("choices"), list) and choices]
    if not pieces or not all(isinstance(piece, dict) and isinstance(piece.get("delta"), dict) for piece in pieces):
        return chunks[-1] if chunks else None
    whole = {name: value for chunk in chunks for name, value in chunk.items() if value is not None}
    message: dict[str, str] = {}
    for name, value in (part for piece in pieces for part in piece["delta"].items()):
        if isinstance(value, str) and name != "role":
            message[name] = message.get(name, "") + value
    ended = next((piece["finish_reason"] for piece in reversed(pieces) if piece.get("finish_reason")), None)
    return whole | {"choices": [{"message": message, "finish_reason": ended}]}


def _twice(name: str) -> CallError:
    return bad(f"The answer names {replace_surrogates(name)!r} twice in one object.")


_read_once = make_decoder(_twice)


def read_reply(data: Any, sent: Mapping[str, Any], tags: Tags = "auto") -> Reply:
    """A parsed chat completion as a Reply.

    The text is what the model said, unchanged but for reasoning taken out (core/reasoning.py), with the marks that a
    chat format ends with, and lone surrogates replaced by U+FFFD.
    Raises CallError, with what was used: what an error in the body means, BAD_REPLY for what is no chat completion, and
    those of `usable`.
    """
    if not isinstance(data, dict):
        raise reported(data) or bad(f"The answer is {json_type(data)}, not a chat completion.")
    about = served(data, "model", "system_fingerprint", "id", "service_tier")
    heard = Reply("", None, _usage(data.get("usage")), sent=sent, served=about)
    choice, message = _choice(data, heard)
    said, thoughts = parts(message.get("content"), heard)
    thought = next((one for name in _THOUGHTS if (one := thinking(message.get(name)))), "")
    heard = saying(heard, said, "\n".join(filter(None, (thought, thoughts))), tags)
    if error := choice.get("error") or _failed(data.get("base_resp")) or (not heard.text and data.get("error")):
        raise reported({"error": error}, heard) or bad("The answer's choice is an error.", heard)
    if refusal := message.get("refusal"):
        return usable(replace(heard, finish="refusal", text=heard.text or replace_surrogates(str(refusal))))
    return usable(finished(choice.get("finish_reason"), heard))


def parts(content: Any, heard: Reply) -> tuple[str, str]:
    """The text and the thoughts of a content: a text, or parts of several kinds. Those that are no words (images, what
    is redacted) say nothing. Raises CallError(BAD_REPLY) for what is none of these."""
    if content is None or isinstance(content, str):
        return content or "", ""
    text, thoughts = [], []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            text.append(part)
        elif not isinstance(part, dict):
            raise bad(f"The content is {json_type(content)} with {json_type(part)} in it, not a text.", heard)
        elif (kind := str(part.get("type", "text"))).startswith(("thinking", "reasoning")):
            thoughts.append(thinking([part]))
        elif kind in ("text", "output_text"):
            if not isinstance(words := part.get("text"), str):
                raise bad(f"A part of the content, of type {kind}, holds no text.", heard)
            text.append(words)
    return "".join(text), "\n".join(filter(None, thoughts))


def thinking(said: Any) -> str:
    """A thought: a text, or parts that hold texts under one name or another (Mistral, OpenRouter, Anthropic)."""
    if isinstance(said, dict):
        return next((one for name in ("thinking", "text", "summary") if (one := thinking(said.get(name)))), "")
    if isinstance(said, list):
        return "\n".join(filter(None, map(thinking, said)))
    return said if isinstance(said, str) else ""


def usable(reply: Reply, why: str = "") -> Reply:
    """The reply, if it is one that can be used.

    Raises CallError, with the reply, since it was paid for: BLOCKED for a refusal (`why` is what the provider says of
    it beside the text), EMPTY for nothing that could be seen.
    """
    if reply.finish == "refusal":
        said = cut(why or reply.text) or "its content filter"
        raise CallError(Kind.BLOCKED, f"The provider refused: {said}", reply=reply)
    if is_blank(reply.text):
        where = " (all of it went into reasoning)" if reply.reasoning else ""
        ended = reply.served.get("finish_reason", reply.finish)
        raise CallError(Kind.EMPTY, f"The completion is empty{where}; it finished by {ended}.", reply=reply)
    return reply


def receive(
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    *,
    sent: Mapping[str, Any],
    keys: Sequence[str],
    read: Read = read_reply,
    take: Take = lambda data, content: None,
) -> Reply:
    """The reply in an HTTP response, as `read` finds it in the parsed body, with what the headers say of limits.

    Raises CallError: of `classify` for a status other than 2xx, else of `take`, which gets the parsed body and its
    bytes first, and of `read`. Nothing of the body goes past here with the key in it, be it a reply or an error.
    """
    headers = {name.lower(): value for name, value in headers.items()}
    content = remove_keys(content, *keys)
    if not 200 <= status < 300:
        raise classify(status, headers, content.decode("utf-8", "replace"), keys=keys)
    try:
        return replace(_read(content, sent, keys, read, take), quotas=quotas(headers))
    except CallError as error:
        if error.kind in TRANSIENT and error.retry_after is None:
            error.retry_after = retry_after(headers)
        error.quotas = quotas(headers)
        raise


def _read(content: bytes, sent: Mapping[str, Any], keys: Sequence[str], read: Read, take: Take) -> Reply:
    try:
        data = _parse_once(content)
        take(data, content)
        return read(data, sent)
    except CallError as error:
        if error.told or error.kind not in _NOT_ITS_WORDS:
            error.message = cut(redact(error.message, *keys))
            error.raw = redact(content.decode("utf-8", "replace"), *keys)[:2000]
        raise error from None


def bad(why: str, heard: Reply | None = None) -> CallError:
    """What is no reply, with what is known of it."""
    return CallError(Kind.BAD_REPLY, why, reply=heard)


def served(data: Mapping[str, Any], *names: str) -> dict[str, str]:
    """What a server says of itself under these names, where it is a text."""
    return {name: replace_surrogates(value) for name in names if isinstance(value := data.get(name), str)}


def _choice(data: Mapping[str, Any], heard: Reply) -> tuple[dict[str, Any], dict[str, Any]]:
    """The one choice and its message, or CallError."""
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise reported(data, heard) or bad("The answer has no choices.", heard)
    if len(choices) > 1:
        raise bad(f"The answer has {len(choices)} choices, where one was asked for.", heard)
    message = choices[0].get("message") or choices[0].get("delta")  # of a stream that was gathered into one
    if message is None and isinstance(text := choices[0].get("text"), str):  # as of the older API
        message = {"content": text}
    if not isinstance(message, dict):
        raise reported(choices[0], heard) or bad("The answer's choice has no message.", heard)
    return choices[0], message


def reported(data: Any, heard: Reply | None = None) -> CallError | None:
    """The error that a body holds in the place of a reply, if it does, with what is known of it nonetheless."""
    error = inside(data) if isinstance(data, dict | list) else None
    if error is not None:
        error.reply = heard
    return error


def _failed(base_resp: Any) -> Any:
    """MiniMax's own status, where it is an error's."""
    return {"base_resp": base_resp} if isinstance(base_resp, dict) and base_resp.get("status_code") else None


def finished(reason: Any, heard: Reply) -> Reply:
    """The reply with why the model stopped. One that ended in an error is asked for again. An unknown word, or none,
    leaves open whether the text is whole: it is kept as if it were cut, with the word."""
    said = replace_surrogates(reason).strip() if isinstance(reason, str) else ""
    finish = _FINISH.get(said) or _FINISH.get(_PREFIX.sub("", re.sub("[^a-z]+", "_", said.lower())))
    if finish == "error":
        error = bad(f"The completion finished by {cut(said)}, so it may not be whole.", heard)
        error.told = True
        raise error
    if finish is not None:
        return replace(heard, finish=finish)
    return replace(heard, finish="length", served={**heard.served, UNKNOWN_END: said[:60] or NO_WORD})


def saying(heard: Reply, content: str, thoughts: str, tags: Tags) -> Reply:
    """The reply with what the model said. Usage in which that took no token is none."""
    content, thoughts = replace_surrogates(content), replace_surrogates(thoughts)
    told = split_reasoning(content, thoughts, tags)
    free = (told.text or told.reasoning) and heard.usage is not None and not heard.usage.output
    said = None if (told.text, told.reasoning or "") == (content, thoughts) else (content, thoughts)
    usage = None if free else heard.usage
    return replace(heard, text=told.text, reasoning=told.reasoning, usage=usage, said=said, mark=told.mark)


def _usage(data: Any) -> Usage | None:
    """Tokens as the server counted them; None when it didn't, or in no way that adds up."""
    if not isinstance(data, dict):
        return None
    details = data.get("prompt_tokens_details")
    usage = Usage(
        input=count(data, "prompt_tokens") or 0,
        output=count(data, "completion_tokens") or 0,
        cached=count(details, "cached_tokens") or 0,
        reasoning=count(data.get("completion_tokens_details"), "reasoning_tokens") or 0,
        written=count(details, "cache_write_tokens") or 0,  # OpenAI, OpenRouter
    )
    return sound(usage, count(data, "total_tokens"))


def sound(usage: Usage, total: int | None = None) -> Usage | None:
    """Usage whose parts add up. Where servers count otherwise, the larger bill holds: what a cache gave beside the
    input rather than within it; thoughts beside the output, or in the total alone (xAI, Gemini). None where nothing was
    read."""
    input, output = usage.input, usage.output
    if usage.cached + usage.written > input:
        input += usage.cached + usage.written
    if total is not None and total >= input + output:
        output = total - input
    elif usage.reasoning > output:
        output += usage.reasoning
    if not 0 < input < MOST_TOKENS or output >= MOST_TOKENS:
        return None
    return Usage(input, output, usage.cached, min(usage.reasoning, output), usage.written)


def count(data: Any, name: str) -> int | None:
    """A number of tokens in a mapping, or None for what is none."""
    value = data.get(name) if isinstance(data, dict) else None
    return value if type(value) is int and 0 <= value < MOST_TOKENS else None


def unbounded(schema: Any) -> Any:
    """A JSON Schema without its bounds. Properties that happen to be named like a bound stay."""
    if isinstance(schema, list):
        return [unbounded(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _NAMED:
            kept[keyword] = {name: unbounded(part) for name, part in value.items()}
        elif keyword not in _BOUNDS:
            kept[keyword] = value if keyword in _LITERAL else unbounded(value)
    return kept
