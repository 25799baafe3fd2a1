"""Inject faults into calls: choose which call gets a fault, and make the faulty response."""

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

BLANKS = 250_000  # spaces: what a model under a JSON grammar was once seen to write instead of its reply


class Fault(StrEnum):
    """The kinds of fault that can be injected into a call."""

    # refused with an error status, before any token is read
    RATE_LIMITED = "rate_limited"  # 429, with `retry_after` of the InjectedFault
    SERVER_ERROR = "server_error"  # 500
    OVERLOADED = "overloaded"  # 503
    QUOTA = "quota"  # 429 that must not be retried; Anthropic's is a 400
    UNAUTHORIZED = "unauthorized"  # 401
    FORBIDDEN = "forbidden"  # 403
    UNKNOWN_MODEL = "unknown_model"  # 404
    # answered and billed, but the response is wrong
    HANG = "hang"  # no response
    LATE = "late"  # the response comes `seconds` later
    DRIP = "drip"  # one byte each `seconds`
    CUT = "cut"  # the connection closes within the body
    DUPLICATE = "duplicate"  # the whole response is sent again on the same connection, `seconds` later
    HTML = "html"  # an HTML page with status 200
    BROKEN_JSON = "broken_json"
    CONTROL = "control"  # raw control characters inside the JSON
    NO_CHOICES = "no_choices"
    EMPTY = "empty"
    BLANKS = "blanks"
    TRUNCATED = "truncated"  # half the text, with finish reason length
    REFUSAL = "refusal"  # by the provider's content filter
    SAYS = "says"  # `text` of the InjectedFault replaces the reply's text


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """A fault for one call, with its parameters.

    fault: the kind of fault.
    retry_after: value of the Retry-After header, for faults that are an error status. "date:120" stands for the HTTP
        date 120 s from now; None sends no header.
    seconds: delay of HANG, LATE and DUPLICATE; for DRIP, the pause after each byte.
    text: the reply's text, for SAYS.
    """

    fault: Fault
    retry_after: str | None = None
    seconds: float = 0.0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A call that has just arrived.

    model: name of the model in the body; empty if there is none.
    key: digest of the body.
    nth: number of calls with this body so far, including this call.
    number: number of all calls so far, including this call.
    at: time of arrival by the event loop's clock, in seconds.
    """

    model: str
    key: str
    nth: int
    number: int
    at: float


ChooseFault = Callable[[Arrival], InjectedFault | None]


@dataclass(frozen=True, slots=True)
class Faults:
    """Choose a fault for some of the calls.

    rates: share of calls that get each kind of fault, 0 to 1.
    seed: another seed chooses other calls.
    lasting: whether a retry gets the same fault again.
    retry_after: values of the Retry-After header to choose from; None sends no header.
    seconds: delay in seconds, by kind of fault.

    The choice is a hash of `seed`, the call's body and, unless `lasting`, how often the body has arrived. So calls get
    the same faults in any order. Raises BadInput if a share is negative or their sum exceeds 1.
    """

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

    def __call__(self, arrival: Arrival) -> InjectedFault | None:
        drawn_by = arrival.key, 0 if self.lasting else arrival.nth
        draw = fraction(self.seed, *drawn_by)
        for fault, rate in self.rates.items():
            draw -= rate
            if draw < 0:
                index = int(fraction("retry_after", self.seed, *drawn_by) * len(self.retry_after))
                return InjectedFault(fault, self.retry_after[index], self.seconds.get(fault, 0.0))
        return None


@dataclass(frozen=True, slots=True)
class RawResponse:
    """A response and how to send it.

    cut: send half the body and close the connection.
    repeat_after_s: send the response a second time, after that many seconds; None sends it once.
    drip_s: pause after each byte, in seconds; 0 sends the body at once.
    """

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    cut: bool = False
    repeat_after_s: float | None = None
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


def raise_refusal(injected: InjectedFault | None, echo: str, api: ModuleType) -> None:
    """Raise RefusedError if there is an injected fault that is an error status; else do nothing.

    injected: the call's fault, None if it has none.
    echo: the API key that the client sent. The error's message repeats it, as some real servers do.
    api: the module of the API in use.
    """
    if injected is None or injected.fault not in _REFUSED:
        return
    status, words, code = _REFUSED[injected.fault]
    if injected.fault is Fault.QUOTA:
        status, words = getattr(api, "QUOTA", (status, words))
    headers = {} if injected.retry_after is None else {"Retry-After": _retry_after(injected.retry_after)}
    raise RefusedError(status, f"{words} (Authorization: {echo})", code=code, headers=headers)


def _retry_after(value: str) -> str:
    header, _, seconds = value.partition("date:")
    return header or format_datetime(datetime.now(UTC) + timedelta(seconds=float(seconds)), usegmt=True)


def raw_response(reply: dict[str, Any], injected: InjectedFault | None, echo: str, api: ModuleType) -> RawResponse:
    """Return the HTTP response that sends `reply`, changed by the injected fault if there is one.

    injected: the call's fault, None if it has none.
    echo: the API key that the client sent. The web page of Fault.HTML repeats it.
    api: the module of the API in use.
    """
    fault = injected.fault if injected else None
    match fault:
        case Fault.HTML:
            page = f"<html><head><title>Sign in</title></head><body>You sent: {echo}</body></html>"
            return RawResponse(page.encode(), content_type="text/html")
        case Fault.NO_CHOICES:
            return RawResponse(orjson.dumps({**reply, "choices": None, "content": None}))
        case Fault.EMPTY:
            reply = api.replace_text(reply, lambda text: "", "stop")
        case Fault.BLANKS:
            reply = api.replace_text(reply, lambda text: " " * BLANKS, "stop")
        case Fault.TRUNCATED:
            reply = api.replace_text(reply, lambda text: text[: len(text) // 2], "length")
        case Fault.REFUSAL:
            reply = api.replace_text(reply, lambda text: "", "refusal")
        case Fault.SAYS if injected:
            reply = api.replace_text(reply, lambda text: injected.text, "stop")
        case Fault.CONTROL:
            reply = api.replace_text(reply, lambda text: text.replace(" ", " \x01\x0b", 1))
    response = RawResponse(orjson.dumps(reply))
    match fault:
        case Fault.CONTROL:
            return replace(response, body=response.body.replace(rb"\u0001\u000b", b"\x01\x0b"))
        case Fault.BROKEN_JSON:
            return replace(response, body=response.body[: 2 * len(response.body) // 3])
        case Fault.CUT:
            return replace(response, cut=True)
        case Fault.DUPLICATE if injected:
            return replace(response, repeat_after_s=injected.seconds)
        case Fault.DRIP if injected:
            return replace(response, drip_s=injected.seconds)
    return response
