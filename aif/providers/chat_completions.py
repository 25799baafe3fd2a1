"""The chat completions format of OpenAI, vLLM and many others: build request bodies, parse replies. Pure.

Servers deviate from the format, each in its own way: a complete reply is not discarded for an odd field. Errors are
classified in error_replies.py.
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
from aif.providers.base import (
    DEFAULT_OPTIONS,
    NO_FINISH_REASON,
    TRANSIENT,
    UNKNOWN_FINISH,
    CallError,
    Finish,
    Kind,
    Options,
    Reply,
    Request,
)
from aif.providers.error_replies import classify, error_in_body, shorten
from aif.providers.limit_headers import quotas, retry_after

# Messages of these kinds are aif's own or quote the model, and stay as they are; others quote the server, so they are
# redacted and shortened.
_OWN_MESSAGE = frozenset({Kind.EMPTY, Kind.BLOCKED, Kind.CACHED, Kind.CONNECTION})

ParseBody = Callable[[Any, Mapping[str, Any]], Reply]  # (parsed body, settings sent) -> reply
CheckDuplicate = Callable[[Any, bytes], None]  # (parsed body, its bytes); called for unusable replies, too

# Keywords that OpenAI's strict mode refuses for some or all models, and Anthropic for all. The parser of the reply
# checks these bounds itself.
_BOUNDS = frozenset({
    "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "multipleOf", "minItems", "maxItems", "uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems",
    "minProperties", "maxProperties", "patternProperties", "propertyNames", "unevaluatedProperties",
})  # fmt: skip
_NAMED = frozenset({"properties", "$defs", "definitions"})  # their keys are names, not keywords
_LITERAL = frozenset({"enum", "const", "default", "examples"})

MAX_TOKENS = 2**31  # larger numbers are no token counts

# Every finish reason that aif knows, by its meaning: lower case, "_" for other characters, without "FinishReason.". A
# new provider's finish reason is added here. One that isn't here counts as "length": a completion is
# rated but never chosen, a judgement is parsed as usual (see with_finish_reason).
_FINISH_REASONS: tuple[tuple[Finish | Literal["error"], str], ...] = (
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
_FINISH = {reason: finish for finish, reasons in _FINISH_REASONS for reason in reasons.split()}
_PREFIX = re.compile("^finish_?reason_")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")  # some servers repeat it


def request_body(request: Request, model: str, options: Options = DEFAULT_OPTIONS) -> dict[str, Any]:
    """Return the JSON body of a request to `model`, without settings that are None.

    With dialect "openai" the token limit is called `max_completion_tokens`, which all OpenAI models accept, and bounds
    such as maxLength are removed from the schema. With "compatible" the token limit is called `max_tokens`, which all
    other servers accept, and the schema is unchanged.
    """
    strict = options.dialect == "openai"
    limit = "max_completion_tokens" if strict else "max_tokens"
    sent: dict[str, Any] = {"model": model, "messages": as_dicts(request.messages), limit: request.max_tokens}
    for name in ("temperature", "top_p", "seed", "reasoning_effort"):
        if (value := getattr(request, name)) is not None and name not in options.omit:
            sent[name] = value
    sent |= extra_settings(request, options)
    if request.schema is not None:
        schema = without_bounds(request.schema) if strict else request.schema
        sent["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": schema},
        }
    return sent


def extra_settings(request: Request, options: Options) -> dict[str, Any]:
    """Return the settings that every API gets unchanged: the service tier and the pipeline's `extra_body`."""
    tier = {"service_tier": options.service_tier} if options.service_tier is not None else {}
    return tier | (orjson.loads(request.extra) if request.extra else {})


def sent_settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a request body, to be recorded: everything but the messages. Of the response format only
    its type is kept, without the schema."""
    settings = {name: value for name, value in body.items() if name not in ("messages", "response_format")}
    if "response_format" in body:
        settings["response_format"] = body["response_format"]["type"]
    return settings


def _parse_body(content: bytes) -> Any:
    """Return the parsed JSON of a response body. A body that is a stream of events is joined first (`_gather_stream`).

    Raises CallError(BAD_REPLY) for any other body, and if an object has a key twice: with two contents, it is unclear
    which is the reply. Only the json module can detect repeated keys (it takes 15 µs for 8 kB, orjson 3 µs).
    """
    try:
        # JSON is sent as UTF-8 (RFC 8259); json would also accept UTF-16, in which no key was redacted
        return _parse_unique(content.decode("utf-8", "surrogatepass").removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        text = content.decode("utf-8", "replace")
        if (gathered := _gather_stream(text)) is not None:
            return gathered
        raise bad_reply(f"The answer is not JSON: {text}" if text.strip() else "The answer is empty.") from None


def _gather_stream(text: str) -> Any:
    """Return the complete body that a stream of server-sent events contains; None if the stream is incomplete, or if
    `text` is no stream. Some servers stream without being asked to.

    If an event is an error, it is the body. If the events are chunks of a reply, the body is joined from them;
    otherwise the last event is the body.
    """
    events = [line.removeprefix("data:").strip() for line in text.splitlines() if line.strip()]
    if len(events) < 2 or events.pop() != "[DONE]":
        return None
    try:
        chunks = [_parse_unique(event) for event in events if event.startswith("{")]
    except (ValueError, RecursionError):
        return None
    if error := next((chunk for chunk in chunks if chunk.get("error")), None):
        return error
    pieces = [choices[0] for chunk in chunks if isinstance(choices := chunk.get("choices"), list) and choices]
    if not pieces or not all(isinstance(piece, dict) and isinstance(piece.get("delta"), dict) for piece in pieces):
        return chunks[-1] if chunks else None
    merged = {name: value for chunk in chunks for name, value in chunk.items() if value is not None}
    message: dict[str, str] = {}
    for name, value in (part for piece in pieces for part in piece["delta"].items()):
        if isinstance(value, str) and name != "role":
            message[name] = message.get(name, "") + value
    reason = next((piece["finish_reason"] for piece in reversed(pieces) if piece.get("finish_reason")), None)
    return merged | {"choices": [{"message": message, "finish_reason": reason}]}


def _repeated_key(name: str) -> CallError:
    return bad_reply(f"The answer names {replace_surrogates(name)!r} twice in one object.")


_parse_unique = make_decoder(_repeated_key)


def read_reply(data: Any, sent: Mapping[str, Any], tags: Tags = "auto") -> Reply:
    """Return the `Reply` in a parsed chat completion; `sent` are the settings to record in it, `tags` the model's
    reasoning tags.

    The text is the model's, except that reasoning and end-of-turn tokens are removed (core/reasoning.py) and lone
    surrogates become U+FFFD.

    Raises CallError if the body reports an error, if it is no chat completion (BAD_REPLY), or if the reply is a refusal
    or blank (`require_usable`). The error carries the usage that the body reports.
    """
    if not isinstance(data, dict):
        raise reported_error(data) or bad_reply(f"The answer is {json_type(data)}, not a chat completion.")
    served = text_fields(data, "model", "system_fingerprint", "id", "service_tier")
    reply = Reply("", None, _usage(data.get("usage")), sent=sent, served=served)
    choice, message = _choice(data, reply)
    content, inline = text_and_reasoning(message.get("content"), reply)
    separate = next((text for name in _REASONING_KEYS if (text := reasoning_text(message.get(name)))), "")
    reply = with_content(reply, content, "\n".join(filter(None, (separate, inline))), tags)
    if error := choice.get("error") or _minimax_error(data.get("base_resp")) or (not reply.text and data.get("error")):
        raise reported_error({"error": error}, reply) or bad_reply("The answer's choice is an error.", reply)
    if refusal := message.get("refusal"):
        return require_usable(replace(reply, finish="refusal", text=reply.text or replace_surrogates(str(refusal))))
    return require_usable(with_finish_reason(choice.get("finish_reason"), reply))


def text_and_reasoning(content: Any, reply: Reply) -> tuple[str, str]:
    """Return the text and the reasoning in a message's content, which is a string or a list of typed parts.

    Parts without text (images, redacted reasoning) are skipped. Raises CallError(BAD_REPLY) for any other content.
    `reply` holds what was read from the body so far, and is attached to the error.
    """
    if content is None or isinstance(content, str):
        return content or "", ""
    text, reasoning = [], []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            text.append(part)
        elif not isinstance(part, dict):
            raise bad_reply(f"The content is {json_type(content)} with {json_type(part)} in it, not a text.", reply)
        elif (kind := str(part.get("type", "text"))).startswith(("thinking", "reasoning")):
            reasoning.append(reasoning_text([part]))
        elif kind in ("text", "output_text"):
            if not isinstance(part_text := part.get("text"), str):
                raise bad_reply(f"A part of the content, of type {kind}, holds no text.", reply)
            text.append(part_text)
    return "".join(text), "\n".join(filter(None, reasoning))


def reasoning_text(reasoning: Any) -> str:
    """Return the reasoning as one text; empty if there is none. `reasoning` is a string, or parts with their text under
    various keys, as Mistral, OpenRouter and Anthropic send them."""
    if isinstance(reasoning, dict):
        keys = ("thinking", "text", "summary")
        return next((text for key in keys if (text := reasoning_text(reasoning.get(key)))), "")
    if isinstance(reasoning, list):
        return "\n".join(filter(None, map(reasoning_text, reasoning)))
    return reasoning if isinstance(reasoning, str) else ""


def require_usable(reply: Reply, why: str = "") -> Reply:
    """Return the reply unless it is a refusal or blank.

    Raises CallError(BLOCKED) for a refusal, with the provider's explanation `why`, or CallError(EMPTY) for a text with
    nothing visible. The error carries the reply, which is billed.
    """
    if reply.finish == "refusal":
        reason = shorten(why or reply.text) or "its content filter"
        raise CallError(Kind.BLOCKED, f"The provider refused: {reason}", reply=reply)
    if is_blank(reply.text):
        where = " (all of it went into reasoning)" if reply.reasoning else ""
        finish = reply.served.get("finish_reason", reply.finish)
        raise CallError(Kind.EMPTY, f"The completion is empty{where}; it finished by {finish}.", reply=reply)
    return reply


def parse_response(
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    *,
    sent: Mapping[str, Any],
    keys: Sequence[str],
    read: ParseBody = read_reply,
    check: CheckDuplicate = lambda data, content: None,
) -> Reply:
    """Return the reply in an HTTP response.

    sent: the settings to record in the reply.
    keys: secrets to redact from replies and errors alike.
    read: parses the body.
    check: raises a CallError if the reply was delivered before.

    Raises a CallError for a status that isn't 2xx, with the kind that the status and the body suggest. Raises
    CallError(BAD_REPLY) if the body isn't JSON. CallErrors of `check` and `read` are passed on.
    """
    headers = {name.lower(): value for name, value in headers.items()}
    content = remove_keys(content, *keys)
    if not 200 <= status < 300:
        raise classify(status, headers, content.decode("utf-8", "replace"), keys=keys)
    try:
        return replace(_parse_reply(content, sent, keys, read, check), quotas=quotas(headers))
    except CallError as error:
        if error.kind in TRANSIENT and error.retry_after is None:
            error.retry_after = retry_after(headers)
        error.quotas = quotas(headers)
        raise


def _parse_reply(
    content: bytes, sent: Mapping[str, Any], keys: Sequence[str], read: ParseBody, check: CheckDuplicate
) -> Reply:
    try:
        data = _parse_body(content)
        check(data, content)
        return read(data, sent)
    except CallError as error:
        if error.explicit or error.kind not in _OWN_MESSAGE:
            error.message = shorten(redact(error.message, *keys))
            error.raw = redact(content.decode("utf-8", "replace"), *keys)[:2000]
        raise error from None


def bad_reply(why: str, reply: Reply | None = None) -> CallError:
    """Return a CallError(BAD_REPLY) with the message `why`. `reply` has the parts of the body that could be read."""
    return CallError(Kind.BAD_REPLY, why, reply=reply)


def text_fields(data: Mapping[str, Any], *names: str) -> dict[str, str]:
    """Return the fields of `data` with these `names`, without fields that are missing or no string."""
    return {name: replace_surrogates(value) for name in names if isinstance(value := data.get(name), str)}


def _choice(data: Mapping[str, Any], reply: Reply) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the only choice in a chat completion, and its message. Raises CallError, with `reply` attached, if there
    isn't exactly one."""
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise reported_error(data, reply) or bad_reply("The answer has no choices.", reply)
    if len(choices) > 1:
        raise bad_reply(f"The answer has {len(choices)} choices, but only one was requested.", reply)
    message = choices[0].get("message") or choices[0].get("delta")  # a delta if a gateway gathered a stream
    if message is None and isinstance(text := choices[0].get("text"), str):  # the older completions API
        message = {"content": text}
    if not isinstance(message, dict):
        raise reported_error(choices[0], reply) or bad_reply("The answer's choice has no message.", reply)
    return choices[0], message


def reported_error(data: Any, reply: Reply | None = None) -> CallError | None:
    """Return the error that a parsed body reports in place of a reply; None if it reports none. `reply`, which has the
    parts of the body that could be read, is attached to the error."""
    error = error_in_body(data) if isinstance(data, dict | list) else None
    if error is not None:
        error.reply = reply
    return error


def _minimax_error(base_resp: Any) -> Any:
    """Return the object `{"base_resp": base_resp}` if MiniMax's own status field, `base_resp`, reports an error; else
    None."""
    return {"base_resp": base_resp} if isinstance(base_resp, dict) and base_resp.get("status_code") else None


def with_finish_reason(reason: Any, reply: Reply) -> Reply:
    """Return the reply with its `finish`: the server's finish reason, translated by the table _FINISH_REASONS.

    A missing or unknown reason counts as "length", since the text may be incomplete. `served` then has the server's
    word under UNKNOWN_FINISH (NO_FINISH_REASON if it is missing). Raises CallError(BAD_REPLY) for a reason that means
    an error, so that the call is retried.
    """
    word = replace_surrogates(reason).strip() if isinstance(reason, str) else ""
    finish = _FINISH.get(word) or _FINISH.get(_PREFIX.sub("", re.sub("[^a-z]+", "_", word.lower())))
    if finish == "error":
        error = bad_reply(f"The completion finished by {shorten(word)}, so it may be incomplete.", reply)
        error.explicit = True
        raise error
    if finish is not None:
        return replace(reply, finish=finish)
    return replace(reply, finish="length", served={**reply.served, UNKNOWN_FINISH: word[:60] or NO_FINISH_REASON})


def with_content(reply: Reply, content: str, reasoning: str, tags: Tags) -> Reply:
    """Return the reply with the text and the reasoning of a message. `content` and `reasoning` are as the server sent
    them; reasoning between the model's `tags` is cut out of the content.

    If the reply isn't empty but its usage reports 0 output tokens, the usage is wrong and becomes None.
    """
    content, reasoning = replace_surrogates(content), replace_surrogates(reasoning)
    parts = split_reasoning(content, reasoning, tags)
    uncounted = (parts.text or parts.reasoning) and reply.usage is not None and not reply.usage.output
    unchanged = (parts.text, parts.reasoning or "") == (content, reasoning)
    return replace(
        reply,
        text=parts.text,
        reasoning=parts.reasoning,
        usage=None if uncounted else reply.usage,
        received=None if unchanged else (content, reasoning),
        mark=parts.mark,
    )


def _usage(data: Any) -> Usage | None:
    """Return the token counts that the server reports; None if it reports none, or impossible ones."""
    if not isinstance(data, dict):
        return None
    details = data.get("prompt_tokens_details")
    usage = Usage(
        input=token_count(data, "prompt_tokens") or 0,
        output=token_count(data, "completion_tokens") or 0,
        cached=token_count(details, "cached_tokens") or 0,
        reasoning=token_count(data.get("completion_tokens_details"), "reasoning_tokens") or 0,
        written=token_count(details, "cache_write_tokens") or 0,  # OpenAI, OpenRouter
    )
    return consistent_usage(usage, token_count(data, "total_tokens"))


def consistent_usage(usage: Usage, total: int | None = None) -> Usage | None:
    """Return `usage`, corrected so that input includes cached tokens and output includes reasoning tokens. None if the
    input is 0 or a count is impossible.

    total: the total number of tokens that the server reports; None if it reports none.

    Some servers report cached tokens in addition to the input. Some report reasoning tokens in addition to the output,
    or only in the total (xAI, Gemini). So:

    - Tokens read from or written to the cache are added to the input only if they exceed the input.
    - If the total is at least input plus output, the output becomes the total minus the input.
    - Otherwise reasoning tokens are added to the output only if they exceed the output.
    """
    input, output = usage.input, usage.output
    if usage.cached + usage.written > input:
        input += usage.cached + usage.written
    if total is not None and total >= input + output:
        output = total - input
    elif usage.reasoning > output:
        output += usage.reasoning
    if not 0 < input < MAX_TOKENS or output >= MAX_TOKENS:
        return None
    return Usage(input, output, usage.cached, min(usage.reasoning, output), usage.written)


def token_count(data: Any, name: str) -> int | None:
    """Return the token count in the field `name` of `data`; None if it is missing or no valid count."""
    value = data.get(name) if isinstance(data, dict) else None
    return value if type(value) is int and 0 <= value < MAX_TOKENS else None


def without_bounds(schema: Any) -> Any:
    """Return a JSON Schema without keywords that set bounds, such as maxLength. A property that happens to have such a
    name stays."""
    if isinstance(schema, list):
        return [without_bounds(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    unbounded: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _NAMED:
            unbounded[keyword] = {name: without_bounds(part) for name, part in value.items()}
        elif keyword not in _BOUNDS:
            unbounded[keyword] = value if keyword in _LITERAL else without_bounds(value)
    return unbounded
