"""Read rate limits from response headers and error messages: how long to wait, and what remains. Pure.

Header names are expected in lower case.
"""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

from aif.providers.base import Measure, Quota

_PLAIN: tuple[Measure, ...] = ("requests", "tokens")
_A = "anthropic-ratelimit-"
_ANTHROPIC: Mapping[Measure, str] = {
    "requests": "requests",
    "tokens": "tokens",
    "input": "input-tokens",
    "output": "output-tokens",
}
# (measure, limit, remaining, reset): OpenAI's and most others', with a time span ("6m0s"), and Anthropic's, with a date
# (RFC 3339).
_NAMES: tuple[tuple[Measure, str, str, str], ...] = tuple(
    [(of, f"x-ratelimit-limit-{of}", f"x-ratelimit-remaining-{of}", f"x-ratelimit-reset-{of}") for of in _PLAIN]
    + [(of, f"{_A}{name}-limit", f"{_A}{name}-remaining", f"{_A}{name}-reset") for of, name in _ANTHROPIC.items()]
)
_SPAN = re.compile(
    r"(?:(?P<d>\d+)d)?(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+(?:\.\d+)?)ms)?"
)
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = r"(\d{1,9}(?:\.\d{1,9})?) ?(d|h|ms|m|s)(?:ays?|ours?|in(?:ute)?s?|ec(?:ond)?s?)?(?![a-z])"
_WAIT = re.compile(rf"(?:retry|again|wait|reset)[^.\d]{{0,20}}((?:{_PART}[ ,]*)+)", re.ASCII)
# Also a date with and one without a time zone (TypeError), and more hours than a C int holds (OverflowError).
_NO_DATE = (ValueError, TypeError, OverflowError)
_LONGEST_S = 32 * 86400.0  # longer values are dates, not spans


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds, at least 0, that the headers ask to wait; None if they don't ask or can't be parsed.

    If the header is a date, the seconds are counted from the response's own Date header, since the clocks may differ;
    without a Date header it is ignored.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        until, now = (parsedate_to_datetime(headers[name]) for name in ("retry-after", "date"))
        return max(0.0, (until - now).total_seconds())
    except (KeyError, *_NO_DATE):
        return None


def wait_in_text(message: str) -> float | None:
    """Return the seconds that an error message asks to wait, or None.

    LiteLLM: "Try again in 60 seconds"; Google: "retry in 45.5s"; OpenAI and Groq: "try again in 9m38.016s".
    """
    match = _WAIT.search(message.lower())
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, match[1])) if match else None


def format_wait(seconds: float) -> str:
    """Return a wait as text in whole minutes, rounded up: "9 min" or "3 h 20 min"."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def quotas(headers: Mapping[str, str]) -> tuple[Quota, ...]:
    """Return the rate limits that the headers report, without impossible ones: Azure has been seen to send -1 and 0."""
    plausible: list[Quota] = []
    for measure, *names in _NAMES:
        values = [headers.get(name) for name in names]
        if values[0] is None or values[1] is None or values[2] is None:
            continue
        limit, remaining, reset_s = _number(values[0]), _number(values[1]), _reset_s(values[2], headers.get("date"))
        if limit is None or remaining is None or reset_s is None:
            continue
        if 0 <= remaining <= limit and limit >= 1:
            plausible.append(Quota(measure, limit, remaining, reset_s))
    return tuple(plausible)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _reset_s(text: str, date: str | None) -> float | None:
    """Return the seconds, at least 0, until a limit resets. `text` is a number of seconds, a span such as "6m0s", or a
    date. A date is compared to `date`, the response's own Date header. None for any other text, and for more than 32
    days."""
    seconds = _number(text)
    if seconds is None and text and (match := _SPAN.fullmatch(text)):
        seconds = sum(float(value) * _UNITS[unit] for unit, value in match.groupdict("0").items())
    if seconds is None:
        try:
            seconds = (datetime.fromisoformat(text) - parsedate_to_datetime(date or "")).total_seconds()
        except _NO_DATE:
            return None
    return max(0.0, seconds) if seconds <= _LONGEST_S else None
