"""What goes wrong between a client and a provider, on purpose: what befalls a call, and what is sent then. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import StrEnum
from types import ModuleType
from typing import Any

import orjson

from aif.core.errors import BadInput
from aif.core.types import fraction
from aif.simulator.models import RefusedError

BLANKS = 250_000  # what a model under a JSON grammar was once seen to write instead of its reply


class Fault(StrEnum):
    """What can befall a call."""

    # refused, before any token is read
    RATE_LIMITED = "rate_limited"  # 429, with the Retry-After of the mishap
    SERVER_ERROR = "server_error"  # 500
    OVERLOADED = "overloaded"  # 503
    QUOTA = "quota"  # 429 that must not be retried; of Anthropic, its 400
    UNAUTHORIZED = "unauthorized"  # 401
    FORBIDDEN = "forbidden"  # 403
    UNKNOWN_MODEL = "unknown_model"  # 404
    # answered and billed, and something is wrong with the answer
    HANG = "hang"  # nothing comes
    LATE = "late"  # it comes after so many seconds more
    DRIP = "drip"  # a byte every so many seconds
    CUT = "cut"  # the connection ends within the body
    DUPLICATE = "duplicate"  # the whole response comes on its connection again, so many seconds later
    HTML = "html"  # a page, with status 200
    BROKEN_JSON = "broken_json"
    CONTROL = "control"  # raw control characters inside the JSON
    NO_CHOICES = "no_choices"
    EMPTY = "empty"
    BLANKS = "blanks"
    TRUNCATED = "truncated"  # half the text, cut at its limit
    REFUSAL = "refusal"  # by the provider's filter
    SAYS = "says"  # the text of the mishap


@dataclass(frozen=True, slots=True)
class Mishap:
    """One fault with what it needs: `retry_after` is the header as it goes out ("date:120" is the HTTP date in 120 s,
    None leaves it out), `seconds` the wait of HANG, LATE, DRIP and DUPLICATE, `text` what SAYS puts in the reply's
    place."""

    fault: Fault
    retry_after: str | None = None
    seconds: float = 0.0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A call as it comes: of which model, the digest of its body, how often that body has come (from 1), its number
    among all calls (from 1), and when, by the event loop's clock."""

    model: str
    key: str
    nth: int
    number: int
    at: float


Befall = Callable[[Arrival], Mishap | None]


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults by the share of calls that they befall, drawn by a hash of the body and of how often it has come: the same
    calls fare the same in any order. `lasting` draws by the body alone, so that asking again does not help."""

    rates: Mapping[Fault, float]
    seed: int = 0
    lasting: bool = False
    retry_after: tuple[str | None, ...] = ("1",)
    seconds: Mapping[Fault, float] = field(
        default_factory=lambda: {Fault.HANG: 3600.0, Fault.LATE: 1.0, Fault.DRIP: 0.5, Fault.DUPLICATE: 0.05}
    )

    def __post_init__(self) -> None:
        if any(rate < 0 for rate in self.rates.values()) or sum(self.rates.values()) > 1:
            raise BadInput("simulator: the rates of faults are shares of the calls; together they can't be above 1")

    def __call__(self, arrival: Arrival) -> Mishap | None:
        which = arrival.key, 0 if self.lasting else arrival.nth
        draw = fraction(self.seed, *which)
        for fault, rate in self.rates.items():
            draw -= rate
            if draw < 0:
                turn = int(fraction("retry_after", self.seed, *which) * len(self.retry_after))
                return Mishap(fault, self.retry_after[turn], self.seconds.get(fault, 0.0))
        return None


@dataclass(frozen=True, slots=True)
class Sending:
    """A response as it goes out: cut in the middle, sent again, or byte by byte where that is its fate."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    cut: bool = False
    again_s: float | None = None
    drip_s: float = 0.0


_REFUSED: Mapping[Fault, tuple[int, str, str | None]] = {
    Fault.RATE_LIMITED: (429, "Rate limit reached. Please slow down.", "rate_limit_exceeded"),
    Fault.SERVER_ERROR: (500, "The server had an error while processing your request.", None),
    Fault.OVERLOADED: (503, "The engine is overloaded.", None),
    Fault.QUOTA: (429, "You exceeded your current quota, please check your plan.", "insufficient_quota"),
    Fault.UNAUTHORIZED: (401, "Incorrect API key provided.", "invalid_api_key"),
    Fault.FORBIDDEN: (403, "The key may not use this model.", None),
    Fault.UNKNOWN_MODEL: (404, "The model does not exist.", "model_not_found"),
}


def check(mishap: Mishap | None, echo: str, api: ModuleType) -> None:
    """Raises RefusedError where a call is refused. `echo` is what the client sent as its key: servers have been seen to
    say it back."""
    if mishap is None or mishap.fault not in _REFUSED:
        return
    status, words, code = _REFUSED[mishap.fault]
    if mishap.fault is Fault.QUOTA:
        status, words = getattr(api, "QUOTA", (status, words))
    headers = {} if mishap.retry_after is None else {"Retry-After": _retry_after(mishap.retry_after)}
    raise RefusedError(status, f"{words} (Authorization: {echo})", code=code, headers=headers)


def _retry_after(given: str) -> str:
    said, _, seconds = given.partition("date:")
    return said or format_datetime(datetime.now(UTC) + timedelta(seconds=float(seconds)), usegmt=True)


def sending(reply: dict[str, Any], mishap: Mishap | None, echo: str, api: ModuleType) -> Sending:
    """A reply as it is sent. `api` has `reworded`, the reply with other words in it."""
    fault = mishap.fault if mishap else None
    match fault:
        case Fault.HTML:
            page = f"<html><head><title>Sign in</title></head><body>You sent: {echo}</body></html>"
            return Sending(page.encode(), content_type="text/html")
        case Fault.NO_CHOICES:
            return Sending(orjson.dumps({**reply, "choices": None, "content": None}))
        case Fault.EMPTY:
            reply = api.reworded(reply, lambda text: "", "stop")
        case Fault.BLANKS:
            reply = api.reworded(reply, lambda text: " " * BLANKS, "stop")
        case Fault.TRUNCATED:
            reply = api.reworded(reply, lambda text: text[: len(text) // 2], "length")
        case Fault.REFUSAL:
            reply = api.reworded(reply, lambda text: "", "refusal")
        case Fault.SAYS if mishap:
            reply = api.reworded(reply, lambda text: mishap.text, "stop")
        case Fault.CONTROL:
            reply = api.reworded(reply, lambda text: text.replace(" ", " \x01\x0b", 1))
    sent = Sending(orjson.dumps(reply))
    match fault:
        case Fault.CONTROL:
            return replace(sent, body=sent.body.replace(rb"\u0001\u000b", b"\x01\x0b"))
        case Fault.BROKEN_JSON:
            return replace(sent, body=sent.body[: 2 * len(sent.body) // 3])
        case Fault.CUT:
            return replace(sent, cut=True)
        case Fault.DUPLICATE if mishap:
            return replace(sent, again_s=mishap.seconds)
        case Fault.DRIP if mishap:
            return replace(sent, drip_s=mishap.seconds)
    return sent
