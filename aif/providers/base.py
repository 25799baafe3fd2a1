"""The interface between the engine and the clients of providers: a request, a reply, and the kinds of error.

A client (vllm.py, openai.py, anthropic.py) makes one attempt and classifies its failure. It never retries: retry.py
decides whether a failed item is retried.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

from aif.core.reasoning import Tags
from aif.core.types import Message, Usage

Finish = Literal["stop", "length", "refusal"]
"""Why a reply ended. chat_completions.py maps each provider's finish reasons to these."""
UNKNOWN_FINISH = "finish_reason"  # the key in `Reply.served` for a finish reason that aif doesn't know
NO_FINISH_REASON = "no word"  # its value where the server gave none; stored in journals
Dialect = Literal["openai", "compatible"]
Measure = Literal["requests", "tokens", "input", "output"]
"""What a rate limit counts; `input` and `output` are tokens."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a model, in no provider's format. Settings that are None are not sent.

    messages: the turns of the conversation.
    max_tokens: the most tokens that the reply may have.
    extra: a JSON object of settings that are sent unchanged; empty for none.
    schema: a JSON Schema that the reply must follow.
    shared: the number of characters at the start of the last message that other requests share. For providers with
        explicit prompt caching, a cache breakpoint follows these characters.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    reasoning_effort: str | None = None
    extra: str = ""
    schema: Mapping[str, Any] | None = None
    shared: int = 0

    @property
    def chars(self) -> int:
        """Characters in all messages together."""
        return sum(len(message.content) for message in self.messages)


@dataclass(frozen=True, slots=True)
class Options:
    """Settings that apply to every request sent to an endpoint. They are not part of any completion's identity.

    dialect: decides the name of the token limit and the form of schemas: `openai` or `compatible`.
    omit: names of settings that are not sent.
    service_tier: the provider's service tier to ask for; None for its default.
    headers: headers added to each request.
    query: query parameters added to each request's URL.
    secrets: API keys and header values that must never be shown.
    tags: the tags around the model's reasoning.
    """

    dialect: Dialect = "compatible"
    omit: frozenset[str] = frozenset()
    service_tier: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    tags: Tags = "auto"


DEFAULT_OPTIONS = Options()


@dataclass(frozen=True, slots=True)
class Quota:
    """One rate limit as response headers report it. Only a hint: some servers report nonsense.

    measure: what is counted, such as requests or tokens.
    limit: how many are allowed.
    remaining: how many are left now.
    reset_s: the seconds until all are available again.
    """

    measure: Measure
    limit: float
    remaining: float
    reset_s: float

    @property
    def per_second(self) -> float:
        """The requests or tokens per second that the limit allows on average over the next minute: the sum of what
        remains now and what is refilled within the minute, divided by 60."""
        used = self.limit - self.remaining
        return self.remaining / 60.0 + (used / self.reset_s if used and self.reset_s else self.limit / 60.0)


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply, with its reasoning split from its text.

    text: the reply without its reasoning.
    finish: why the reply ended. A missing or unknown reason becomes "length", and `served` has the server's word under
        UNKNOWN_FINISH. None only in a reply attached to a CallError, if the call failed before the reason was read.
    usage: the token counts that the server reports; None if it reports none, or impossible ones.
    reasoning: the model's reasoning; None if it gave none.
    sent: the settings of the request, without messages and schema.
    served: what the server reports about itself: model, fingerprint, request id.
    quotas: the rate limits that the server reports.
    received: the content and the reasoning as the server sent them; None if splitting changed neither.
    mark: a part of the text that is possibly a reasoning tag; None if there is none (see core/reasoning.py).
    """

    text: str
    finish: Finish | None
    usage: Usage | None
    reasoning: str | None = None
    sent: Mapping[str, Any] = field(default_factory=dict)
    served: Mapping[str, Any] = field(default_factory=dict)
    quotas: tuple[Quota, ...] = ()
    received: tuple[str, str] | None = None
    mark: str | None = None

    @property
    def truncated(self) -> bool:
        """Whether the server says that the reply reached its token limit. False for an unknown finish reason."""
        return self.finish == "length" and UNKNOWN_FINISH not in self.served


class Kind(StrEnum):
    """Why a call gave no usable reply. The values are stored in journals."""

    # transient: retried within the run, then by the next run
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    BAD_REPLY = "bad_reply"  # HTML, broken JSON, no choices: the response is no chat completion
    # another sample is requested a few times, then the item has failed permanently
    EMPTY = "empty"
    UNREADABLE = "unreadable"  # a judge's reply could not be parsed as ratings
    TRUNCATED = "truncated"  # a judgement reached its token limit
    CACHED = "cached"  # a gateway with a cache returned the reply to another request
    # always the item's failure, never the endpoint's
    BLOCKED = "blocked"  # the provider's content filter or refusal
    # the item's failure if other items are answered, else that of all requests: for a setting, a length, or a chat
    # template
    CONTEXT_OVERFLOW = "context_overflow"
    BAD_REQUEST = "bad_request"
    # the item's failure if other items are answered (a firewall sends 403, too), else the endpoint's until it is fixed
    UNAUTHORIZED = "unauthorized"
    QUOTA_EXHAUSTED = "quota_exhausted"
    UNKNOWN_MODEL = "unknown_model"
    WRONG_URL = "wrong_url"  # a redirect, or a web page in place of an API


TRANSIENT = frozenset({Kind.RATE_LIMITED, Kind.SERVER_ERROR, Kind.TIMEOUT, Kind.CONNECTION, Kind.BAD_REPLY})
RESAMPLED = frozenset({Kind.EMPTY, Kind.UNREADABLE, Kind.TRUNCATED, Kind.CACHED})
REQUEST_ERRORS = frozenset({Kind.CONTEXT_OVERFLOW, Kind.BAD_REQUEST})
ACCESS_ERRORS = frozenset({Kind.UNAUTHORIZED, Kind.QUOTA_EXHAUSTED, Kind.UNKNOWN_MODEL, Kind.WRONG_URL})
# refused before any token was read or written
UNBILLED = REQUEST_ERRORS | ACCESS_ERRORS | {Kind.RATE_LIMITED}


class CallError(Exception):
    """A call that gave no usable reply. The message never contains an API key.

    kind: why there is no usable reply.
    retry_after: the wait in seconds that the server asked for; None if it asked for none.
    reply: the unusable reply, which may be billed: an unparseable judgement, an empty completion, the usage in a broken
        body. None if there was no reply.
    raw: the first 2,000 characters of a body that was no reply.
    quotas: the rate limits that the server reported.
    unsent: True if no connection was made, so nothing was sent.
    explicit: True if the server's message or code names the kind, or for a web page with status 401 or 402. Otherwise
        the kind was inferred, such as from the HTTP status.
    busy: True if the message says that the server is loading, overloaded or restarting. Such a server exists and may
        recover.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        retry_after: float | None = None,
        reply: Reply | None = None,
        raw: str = "",
        quotas: tuple[Quota, ...] = (),
        unsent: bool = False,
        explicit: bool = False,
        busy: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after = retry_after
        self.reply = reply
        self.raw = raw[:2000]
        self.quotas = quotas
        self.unsent = unsent
        self.explicit = explicit
        self.busy = busy

    @property
    def resamplable(self) -> bool:
        """Whether another sample may succeed at once: the model replied, but the reply is unusable, such as an empty
        text or a broken body that reports output tokens.

        False for a broken reply that the server itself reports as an error (`explicit`): the server may be in trouble.
        """
        counted = self.reply is not None and self.reply.usage is not None and self.reply.usage.output > 0
        return self.kind in RESAMPLED or (self.kind is Kind.BAD_REPLY and counted and not self.explicit)

    @property
    def unbilled(self) -> bool:
        """Whether the call is known to cost nothing: it was not sent, or it was refused. A call counts as billed if its
        body reports usage, or if the server may have processed it, such as after a timeout."""
        counted = self.reply is not None and self.reply.usage is not None
        return self.unsent or (self.kind in UNBILLED and not counted)


class ChatModel(Protocol):
    """A client for one model of one provider. It may be used by many tasks of one event loop at the same time."""

    async def ask(self, request: Request) -> Reply:
        """Send the request once, without retries, and return the reply. Raises CallError if the connection or the
        provider fails, or if the reply is unusable."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...
