"""The seam between the engine and every provider: a request, a reply, and the kinds of failure.

A client (vllm.py, openai.py, …) translates and classifies, once, without retrying: retry.py decides what a kind of
failure means for the item and for the provider.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

from aif.core.reasoning import Tags
from aif.core.types import Message, Usage

Finish = Literal["stop", "length", "refusal"]
UNKNOWN_END = "finish_reason"  # in `Reply.served`: the server's word for why it ended, where it is not known
NO_WORD = "no word"
Dialect = Literal["openai", "compatible"]
Measure = Literal["requests", "tokens", "input", "output"]  # the last two: tokens read, and tokens written


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a model, free of any provider's dialect.

    `shared` counts the leading characters of the last message that the other requests of the same prompt share:
    where a provider takes explicit cache breakpoints, one goes there. `schema` is a JSON Schema the reply must follow,
    `extra` the JSON of an object with settings that go along as they are.
    None (temperature, top_p, seed, reasoning_effort, schema) is not sent.
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
        """How long its texts are together."""
        return sum(len(message.content) for message in self.messages)


@dataclass(frozen=True, slots=True)
class Options:
    """What an endpoint wants of every request, whatever is asked; nothing of it tells one reply from another.

    `dialect` is of names and schemas (see wire.body); `omit` names settings that are not sent. `headers` and `query`
    are added; what nobody may see of them stands in `secrets`, too. `tags` are the marks around its reasoning.
    """

    dialect: Dialect = "compatible"
    omit: frozenset[str] = frozenset()
    service_tier: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    tags: Tags = "auto"


PLAIN = Options()


@dataclass(frozen=True, slots=True)
class Quota:
    """What a response's headers say of one limit: all of it, what is left, seconds until it is whole again. A hint."""

    measure: Measure
    limit: float
    left: float
    whole_s: float

    @property
    def per_second(self) -> float:
        """What may go in a second of the next minute: what is left, and what comes back meanwhile."""
        used = self.limit - self.left
        return self.left / 60.0 + (used / self.whole_s if used and self.whole_s else self.limit / 60.0)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said. `reasoning` is kept apart from `text`; `said` is the content as it came, and the thoughts that
    came apart from it, where these two are others; `mark` what looks like a mark of reasoning (see core/reasoning.py).
    `sent` holds the settings as they went over the wire (messages and schema left out); `served` what the server says
    of itself (model, fingerprint, request id); `quotas` what it says of its limits. `finish` is None only in a
    CallError, where a body did not say it in a way that can be read; it is length, too, where the server's word for it
    is not known, which then stands in `served`."""

    text: str
    finish: Finish | None
    usage: Usage | None
    reasoning: str | None = None
    sent: Mapping[str, Any] = field(default_factory=dict)
    served: Mapping[str, Any] = field(default_factory=dict)
    quotas: tuple[Quota, ...] = ()
    said: tuple[str, str] | None = None
    mark: str | None = None

    @property
    def cut(self) -> bool:
        """Whether the server says that it is cut at a limit, and is not only kept as if it were."""
        return self.finish == "length" and UNKNOWN_END not in self.served


class Kind(StrEnum):
    """Why a call gave no usable reply."""

    # asked again within the run, then on the next run
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    BAD_REPLY = "bad_reply"  # HTML, broken JSON, no choices: what came was no chat completion
    # asked again a few times, then failed for good
    EMPTY = "empty"
    UNREADABLE = "unreadable"  # the judge's words could not be read as ratings
    TRUNCATED = "truncated"  # a judgement cut at its limit
    CACHED = "cached"  # the reply to another request, from a gateway that keeps replies
    # this item's failure for good, never the provider's
    BLOCKED = "blocked"  # the provider's filter or stop reason
    # the item's where others are answered; else the request's shape: a setting, a length, a template
    CONTEXT_OVERFLOW = "context_overflow"
    BAD_REQUEST = "bad_request"
    # the item's where others are answered (a firewall says 403, too); else the provider's, until something is mended
    UNAUTHORIZED = "unauthorized"
    QUOTA_EXHAUSTED = "quota_exhausted"
    UNKNOWN_MODEL = "unknown_model"
    WRONG_URL = "wrong_url"  # a redirect, or a page where no API is


TRANSIENT = frozenset({Kind.RATE_LIMITED, Kind.SERVER_ERROR, Kind.TIMEOUT, Kind.CONNECTION, Kind.BAD_REPLY})
REASKED = frozenset({Kind.EMPTY, Kind.UNREADABLE, Kind.TRUNCATED, Kind.CACHED})
SHAPE = frozenset({Kind.CONTEXT_OVERFLOW, Kind.BAD_REQUEST})
PROVIDER = frozenset({Kind.UNAUTHORIZED, Kind.QUOTA_EXHAUSTED, Kind.UNKNOWN_MODEL, Kind.WRONG_URL})
# answered with an error before any token was read or written
UNBILLED = SHAPE | PROVIDER | {Kind.RATE_LIMITED}


class CallError(Exception):
    """A call that gave no usable reply.

    `retry_after` is in seconds, as the server asked; `quotas` what it said of its limits. `reply` is what was paid for
    and received nonetheless (an unreadable judgement, an empty completion; of a body that is no reply, what it says it
    used); `raw` the body of an answer that was no reply at all, cut to 2,000 characters; `unsent` says that there was
    no connection to send anything over. `told` says that the server's own words or codes name the kind, and not the
    status alone; `busy` that they say it is loading, crashed or overloaded, so that it is there and may come back. The
    message never holds a key.
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
        told: bool = False,
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
        self.told = told
        self.busy = busy

    @property
    def mendable(self) -> bool:
        """Whether another sample may mend it: a reply was written and paid for, and is of no use. Where the server says
        that it gave up (`told`), it may be in trouble."""
        counted = self.reply is not None and self.reply.usage is not None and self.reply.usage.output > 0
        return self.kind in REASKED or (self.kind is Kind.BAD_REPLY and counted and not self.told)

    @property
    def unbilled(self) -> bool:
        """Whether nobody charges for the call. A body that counts tokens beside its error is charged for."""
        counted = self.reply is not None and self.reply.usage is not None
        return self.unsent or (self.kind in UNBILLED and not counted)


class ChatModel(Protocol):
    """A client bound to one model of one provider. Safe for concurrent use within one event loop."""

    async def ask(self, request: Request) -> Reply:
        """One attempt, no retries. Raises CallError, and nothing else, for whatever goes wrong outside this process."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...
