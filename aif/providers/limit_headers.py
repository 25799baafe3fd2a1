"""What the headers of a response say of limits: how long to wait, and what is left. Pure; names in lower case."""

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
# OpenAI's and most others', which say a span ("6m0s"); and Anthropic's, which say a date (RFC 3339).
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
# One date with and one without a time zone (TypeError), or one of as many hours as no int of C's holds.
_NO_DATE = (ValueError, TypeError, OverflowError)
_LONGEST_S = 32 * 86400.0  # what is longer is no span but some date


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a server asks to wait, never below 0; None if it doesn't say, or says it unreadably.

    A date is taken relative to the response's own Date, since the two clocks may differ; without one it says nothing.
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


def spoken(words: str) -> float | None:
    """Seconds that a server asks to wait in words: LiteLLM ("Try again in 60 seconds"), Google ("retry in 45.5s"),
    OpenAI and Groq ("try again in 9m38.016s"). None where it doesn't."""
    said = _WAIT.search(words.lower())
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, said[1])) if said else None


def in_words(seconds: float) -> str:
    """A wait of minutes or hours, as 9 min or 3 h 20 min."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def quotas(headers: Mapping[str, str]) -> tuple[Quota, ...]:
    """What is left of each limit that the headers tell of in a way that can be: Azure has been seen to say -1 and 0."""
    found: list[Quota] = []
    for measure, *names in _NAMES:
        said = [headers.get(name) for name in names]
        if said[0] is None or said[1] is None or said[2] is None:
            continue
        limit, left, whole_s = _number(said[0]), _number(said[1]), _until(said[2], headers.get("date"))
        if limit is not None and left is not None and whole_s is not None and 0 <= left <= limit and limit >= 1:
            found.append(Quota(measure, limit, left, whole_s))
    return tuple(found)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _until(text: str, date: str | None) -> float | None:
    """Seconds, from a number of them, a span, or a date relative to the response's own."""
    seconds = _number(text)
    if seconds is None and text and (match := _SPAN.fullmatch(text)):
        seconds = sum(float(value) * _UNITS[unit] for unit, value in match.groupdict("0").items())
    if seconds is None:
        try:
            seconds = (datetime.fromisoformat(text) - parsedate_to_datetime(date or "")).total_seconds()
        except _NO_DATE:
            return None
    return max(0.0, seconds) if seconds <= _LONGEST_S else None
