"""The chat completions format that vLLM, OpenAI and many others speak: bodies out, replies and errors in. Pure.

Every server that speaks it errs in its own way, so a reply is read strictly and an error by its status first, its
codes next, and its words only where there is nothing better. The errors of every other format are read here, too:
they differ by server rather than by format.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import orjson

from aif.chat.base import CallError, Finish, Kind, Reply, Request
from aif.chat.headers import quotas, retry_after
from aif.chat.redaction import redact, without
from aif.jsontext import encodable, reader
from aif.records import Usage, as_dicts, is_blank

Dialect = Literal["openai", "compatible"]
Read = Callable[[Any, Mapping[str, Any]], Reply]  # a parsed body and the settings sent -> the reply in it
Take = Callable[[Any, bytes], None]  # a parsed body and its bytes, once, whatever becomes of it

SAID_LENGTH = 300  # characters of a server's own words in a message

# Bounds that OpenAI's strict mode refuses for some or all of its models, and Anthropic's for all; the reader of the
# reply checks them itself.
_BOUNDS = frozenset(
    {
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minItems",
        "maxItems",
        "uniqueItems",
        "contains",
        "minContains",
        "maxContains",
        "unevaluatedItems",
        "minProperties",
        "maxProperties",
        "patternProperties",
        "propertyNames",
        "unevaluatedProperties",
    }
)
_NAMED = frozenset({"properties", "$defs", "definitions"})  # here the keys are names, not keywords
_LITERAL = frozenset({"enum", "const", "default", "examples"})

_FINISH: Mapping[str, Finish] = {"stop": "stop", "length": "length", "content_filter": "refusal"}

# By code or type only: some servers say "exceeded your current quota, check your billing" for a per-minute limit.
_QUOTA = re.compile(r"insufficient_(quota|balance|funds|credits)|billing|credit_balance|spend_limit")
# With status 400 and a type that says no more than that.
_UNPAID = re.compile(r"credit balance is too low|reached your specified api usage limits")
_FILTERED = re.compile(
    r"content_filter|content_policy|responsibleaipolicy|content (management|filtering) policy"
    r"|(input|prompt) was flagged"
)
# A name such as context_size alone is none: a server that doesn't know a setting refuses it with every request.
_OVERFLOW = re.compile(
    r"context_length_exceeded|context[ _-]window[ _-]exceeded|maximum (context|model|input|prompt) length"
    r"|context (length|window|size) (is|of|was) |exceed\S*\b.{0,40}\bcontext[ _-](length|window|size|limit)"
    r"|(prompt|input|request|max_tokens'?) (is|are|was) too (long|large)|prompt_too_long|string_above_max_length"
    r"|reduce the length|request_too_large"
)
# OpenAI's 429 for what no minute holds: "Request too large for … on tokens per min: Limit 30000, Requested 40000".
_TOO_LARGE = re.compile(r"request too large\b(?:.*\blimit:? (\d+), (?:used \d+, )?requested:? (\d+))?", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_THINK = re.compile(r"\s*<think>(.*?)(</think>\s*|\Z)", re.DOTALL)
# Some chat templates open the block in the prompt, so that only its end is in the text, on a line of its own.
_THOUGHT = re.compile(r"((?:(?!<think>).)*?)\n</think>\s*?\n\s*", re.DOTALL)


def body(request: Request, model: str, *, dialect: Dialect) -> dict[str, Any]:
    """The JSON body of a request. None is not sent.

    OpenAI's own endpoint ("openai") gets `max_completion_tokens`, which all of its models take, and a schema without
    bounds; every other server ("compatible") gets `max_tokens`, which all of them take, and the schema as it is.
    """
    limit = "max_completion_tokens" if dialect == "openai" else "max_tokens"
    sent: dict[str, Any] = {"model": model, "messages": as_dicts(request.messages), limit: request.max_tokens}
    for name in ("temperature", "top_p", "seed", "reasoning_effort"):
        if (value := getattr(request, name)) is not None:
            sent[name] = value
    if request.schema is not None:
        schema = unbounded(request.schema) if dialect == "openai" else request.schema
        sent["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": schema},
        }
    return sent


def sent(body: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a body as they went out: messages and schema left out, the kind of response format kept."""
    settings = {name: value for name, value in body.items() if name not in ("messages", "response_format")}
    if "response_format" in body:
        settings["response_format"] = body["response_format"]["type"]
    return settings


def parse(content: bytes) -> Any:
    """A JSON body, also one with raw control characters, lone surrogates or a byte order mark, as servers send them.

    Raises ValueError or RecursionError for what is not JSON.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content, strict=False)


def _parse_once(content: bytes) -> Any:
    """`parse`, of a body that names nothing twice, since of two contents nobody could say which is the reply.

    json alone tells (15 µs of 8 kB, orjson 3). Raises CallError(BAD_REPLY).
    """
    try:
        # as UTF-8, as JSON is sent (RFC 8259): json would also read UTF-16, in which no key was looked for
        return _read_once(content.decode("utf-8", "surrogatepass").removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        raise bad(f"The answer is not JSON: {content.decode('utf-8', 'replace')}") from None


def _twice(name: str) -> CallError:
    return bad(f"The answer names {encodable(name)!r} twice in one object.")


_read_once = reader(_twice)


def read_reply(data: Any, sent: Mapping[str, Any]) -> Reply:
    """A parsed chat completion as a Reply.

    The text is what the model said, unchanged but for reasoning taken out and lone surrogates replaced by U+FFFD.
    Raises CallError: BAD_REPLY for what is no chat completion, with what it used, and those of `usable`.
    """
    if not isinstance(data, dict):
        raise bad(f"The answer is {type(data).__name__}, not a chat completion.")
    heard = Reply(
        "", None, _usage(data.get("usage")), sent=sent, served=served(data, "model", "system_fingerprint", "id")
    )
    choice, message = _choice(data, heard)
    refusal = message.get("refusal")
    content = message.get("content")
    if not isinstance(content, str | None):
        raise bad(f"The message's content is {type(content).__name__}, not a text.", heard)
    text, reasoning = apart(content or "", message.get("reasoning_content") or message.get("reasoning"))
    heard = replace(heard, text=text, reasoning=reasoning)
    finish: Finish = "refusal" if refusal else finished(choice.get("finish_reason"), heard)
    if finish == "refusal" and not text and isinstance(refusal, str):
        heard = replace(heard, text=encodable(refusal))
    return usable(replace(heard, finish=finish))


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
        raise CallError(Kind.EMPTY, f"The completion is empty{where}; it finished by {reply.finish}.", reply=reply)
    return reply


def receive(
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    *,
    sent: Mapping[str, Any],
    key: str | None,
    read: Read = read_reply,
    take: Take = lambda data, content: None,
) -> Reply:
    """The reply in an HTTP response, as `read` finds it in the parsed body, with what the headers say of limits.

    Raises CallError: of `classify` for a status other than 200, else of `take`, which gets the parsed body and its
    bytes first, and of `read`. Nothing of the body goes past here with the key in it, be it a reply or an error.
    """
    headers = {name.lower(): value for name, value in headers.items()}
    content = without(content, key)
    if status != 200:
        raise classify(status, headers, content.decode("utf-8", "replace"), key=key)
    return replace(_read(content, sent, key, read, take), quotas=quotas(headers))


def _read(content: bytes, sent: Mapping[str, Any], key: str | None, read: Read, take: Take) -> Reply:
    try:
        data = _parse_once(content)
        take(data, content)
        return read(data, sent)
    except CallError as error:
        if error.kind is not Kind.BAD_REPLY:
            raise
        raw = redact(content.decode("utf-8", "replace"), key)
        raise CallError(Kind.BAD_REPLY, cut(redact(error.message, key)), reply=error.reply, raw=raw) from None


def classify(status: int, headers: Mapping[str, str], text: str, *, key: str | None = None) -> CallError:
    """What an HTTP error means. `text` is the body; `headers` have names in lower case."""
    said = _said(text)
    kind = _kind(status, said.codes.lower(), said.words.lower())
    words = cut(redact(said.words, key)) or "(no message)"
    return CallError(
        kind,
        f"HTTP {status}: {words}{_MEND.get(kind, '')}",
        retry_after=retry_after(headers) if kind in (Kind.RATE_LIMITED, Kind.SERVER_ERROR) else None,
        raw=redact(text, key),
        quotas=quotas(headers),
    )


_MEND = {
    Kind.UNAUTHORIZED: " (check the API key and what it may use)",
    Kind.UNKNOWN_MODEL: " (check model and base_url)",
    Kind.QUOTA_EXHAUSTED: " (check the account's quota and billing)",
}


class _Said(NamedTuple):
    """A server's own words on an error, and its codes and types in one string."""

    words: str
    codes: str


def _said(text: str) -> _Said:
    try:
        data = parse(text.encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return _Said(encodable(_TAG.sub(" ", text)), "")
    error = data.get("error") or data if isinstance(data, dict) else data
    if not isinstance(error, dict):
        return _Said(encodable(error if isinstance(error, str) else text), "")
    words = error.get("message") or error.get("detail") or error.get("error")
    details = error.get("details")
    named = [error.get("code"), error.get("type"), details.get("error_code") if isinstance(details, dict) else None]
    codes = " ".join(code for code in named if isinstance(code, str))
    return _Said(encodable(words if isinstance(words, str) else text), codes)


def _kind(status: int, codes: str, words: str) -> Kind:
    """The kind of failure; `codes` and `words` in lower case."""
    if status == 408 or status == 409 or status >= 500:
        return Kind.SERVER_ERROR
    if status < 400:
        return Kind.BAD_REPLY  # a redirect, an empty 204: no chat completion, and no fault of the request
    if status == 402 or _QUOTA.search(codes) or (status == 400 and _UNPAID.search(words)):
        return Kind.QUOTA_EXHAUSTED
    if status == 429:
        return Kind.CONTEXT_OVERFLOW if _never_fits(words) else Kind.RATE_LIMITED
    if status == 404 or "model_not_found" in codes:
        return Kind.UNKNOWN_MODEL
    if _FILTERED.search(codes) or (status in (400, 403) and _FILTERED.search(words)):
        return Kind.BLOCKED
    if status in (401, 403) or "organization_on_hold" in codes:
        return Kind.UNAUTHORIZED
    if "max_tokens" in words and "cannot be greater than max_model_len" in words:
        return Kind.BAD_REQUEST  # a setting no prompt will ever fit: vLLM refuses it with every request
    if status in (400, 413, 422) and _OVERFLOW.search(f"{codes} {words}"):
        return Kind.CONTEXT_OVERFLOW
    return Kind.BAD_REQUEST


def _never_fits(words: str) -> bool:
    """Whether a request is larger than its limit, and not only than what is left of it now."""
    said = _TOO_LARGE.search(words)
    return said is not None and (said[1] is None or float(said[2]) > float(said[1]))


def bad(why: str, heard: Reply | None = None) -> CallError:
    """What is no reply, with what is known of it."""
    return CallError(Kind.BAD_REPLY, why, reply=heard)


def served(data: Mapping[str, Any], *names: str) -> dict[str, str]:
    """What a server says of itself under these names, where it is a text."""
    return {name: encodable(value) for name in names if isinstance(value := data.get(name), str)}


def _choice(data: Mapping[str, Any], heard: Reply) -> tuple[dict[str, Any], dict[str, Any]]:
    """The one choice and its message, or CallError(BAD_REPLY)."""
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise bad(f"The answer has no choices{reported(data)}", heard)
    if len(choices) > 1:
        raise bad(f"The answer has {len(choices)} choices, where one was asked for.", heard)
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise bad("The answer's choice has no message.", heard)
    return choices[0], message


def reported(data: Mapping[str, Any]) -> str:
    """The error in a body that came with status 200, as the end of a sentence."""
    error = data.get("error")
    words = error.get("message") if isinstance(error, dict) else error
    return f": {encodable(words)}" if isinstance(words, str) else "."


def finished(reason: Any, heard: Reply, known: Mapping[str, Finish] = _FINISH) -> Finish:
    """Why the model stopped. An unknown reason (abort, error, none at all) leaves open whether the text is whole."""
    if not isinstance(reason, str) or reason not in known:
        named = encodable(reason) if isinstance(reason, str) else "no reason"
        raise bad(f"The completion finished by {named}, so it may not be whole.", heard)
    return known[reason]


def apart(content: str, field: Any) -> tuple[str, str | None]:
    """Text and reasoning, told apart. A block that is never closed has no text after it."""
    said = [encodable(field)] if isinstance(field, str) else []
    content = encodable(content)
    if "think>" in content and (block := _THINK.match(content) or _THOUGHT.match(content)):
        said.append(block[1].strip())
        content = content[block.end() :]
    return content, "\n".join(filter(None, said)) or None


def _usage(data: Any) -> Usage | None:
    """Tokens as the server counted them; None when it didn't, or in no way that can be read."""
    if not isinstance(data, dict):
        return None
    input_, output = count(data, "prompt_tokens"), count(data, "completion_tokens")
    if input_ is None or output is None:
        return None
    cached = count(data.get("prompt_tokens_details"), "cached_tokens")
    reasoning = count(data.get("completion_tokens_details"), "reasoning_tokens")
    return Usage(input=input_, output=output, cached=cached or 0, reasoning=reasoning or 0)


def count(data: Any, name: str) -> int | None:
    """A number of tokens in a mapping, or None for what is none."""
    value = data.get(name) if isinstance(data, dict) else None
    return value if type(value) is int and 0 <= value < 2**31 else None


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


def cut(text: str) -> str:
    """A server's words on one line, cut to SAID_LENGTH characters."""
    line = " ".join(text.split())
    return line if len(line) <= SAID_LENGTH else line[: SAID_LENGTH - 1] + "…"
