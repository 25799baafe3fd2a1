"""When a call that failed is made again: what one more failure means for its item, once concurrency.py has said whose
it is.

The endpoint's: it is asked again and not counted, since the gate has the waits. What the endpoint refuses is pending.

The item's: up to 6 attempts, with waits of 1 s doubling to 60 s, half of each by chance, never shorter than the server
asked unless that is more than 60 s. It has failed for good after six of which three are alike, and where the failure is
none that passes, after three alike.

Not known: the same, but it stays pending; where there are too few others to ever find out, within 60 s.

What another sample may mend (empty, unreadable, truncated, or tokens were written and it is no reply) is asked up to 3
times, at once. What the provider's filter takes out is asked once.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from aif.providers.base import SHAPE, TRANSIENT, CallError, Kind

Verdict = Literal["answered", "again", "later", "failed", "refused"]
"""again: asked again now; later: pending on the next run; failed: for good; refused: the provider's, item pending."""

Blame = Literal["item", "endpoint", "unknown"]
"""Whose doing a failure was: the item's, or at least its endpoint answers others; the endpoint's; not known yet."""

_NUMBERED = re.compile(r"\S*\d\S*")  # request ids, times, counts
_NUMBERS = re.compile(r"\blimit:? (\d{1,12})\b.{0,40}\brequested:? (\d{1,12})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently. Counts are attempts in all, waits in seconds.

    `same` is how many of an item's attempts get the same answer when it fails for good. An endpoint that answered, or
    said that it will not now, is given up after `outage_s` without an answer; one never heard in this run after
    `silent_s`.
    """

    attempts: int = 6
    reasks: int = 3
    same: int = 3
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    silent_s: float = 60.0
    outage_s: float = 1800.0

    def backoff(self, failures: int, jitter: float) -> float:
        """Seconds to wait after so many failures in a row; `jitter` in [0, 1) draws half of them."""
        doubled = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(failures - 1, 60))
        return doubled * (0.5 + 0.5 * jitter)


@dataclass(slots=True)
class Course:
    """The failures of one item so far, counted by what they mean. `n` attempts were begun; `wait_s` goes with the last
    verdict "again"."""

    n: int = 0
    counted: int = 0
    reasked: int = 0
    since: float | None = None  # when it first failed
    unmended: CallError | None = None  # the last that another sample is asked to mend
    said: Counter[tuple[Kind, str]] = field(default_factory=Counter)  # digits apart
    wait_s: float = 0.0

    def verdict(
        self, error: CallError, blame: Blame, policy: RetryPolicy, now: float, jitter: float, few: bool = False
    ) -> Verdict:
        """What one more failure means for the item; `few` says that there are not enough others to find out whose it
        is, and none was answered since."""
        self.wait_s = 0.0
        self.since = now if self.since is None else self.since
        if blame == "endpoint":
            return "again" if error.kind in TRANSIENT else "refused"
        if error.kind is Kind.BLOCKED:
            return "failed"
        if error.mendable:
            self.reasked, self.unmended = self.reasked + 1, error
            return "again" if self.reasked < policy.reasks else "failed" if blame == "item" else "later"
        self.counted += 1
        self.said[error.kind, _NUMBERED.sub("", error.message)] += 1
        if self._for_good(error, blame, policy, few):
            return "failed"
        backoff = policy.backoff(self.counted, jitter)
        self.wait_s = max(backoff, min(error.retry_after or 0.0, policy.longest_wait_s))
        late = (
            few and blame == "unknown" and now + max(backoff, error.retry_after or 0.0) > self.since + policy.silent_s
        )
        return "later" if self.counted >= policy.attempts or late else "again"

    def _for_good(self, error: CallError, blame: Blame, policy: RetryPolicy, few: bool) -> bool:
        if error.kind in SHAPE and error.told:  # its own words say that it is this request's length, or its turns
            return blame == "item" or (few and error.kind is Kind.CONTEXT_OVERFLOW)
        if error.kind is Kind.QUOTA_EXHAUSTED or _fits(error):  # a smaller one may be paid, or go, while this waits
            return False
        alike = max(self.said.values()) >= min(policy.same, policy.attempts)
        return blame == "item" and alike and (error.kind not in TRANSIENT or self.counted >= policy.attempts)


def _fits(error: CallError) -> bool:
    """Whether a 429 says that the request is within its limit, only not now: "Limit 30000, … Requested 9000"."""
    said = _NUMBERS.search(error.message) if error.kind is Kind.RATE_LIMITED else None
    return said is not None and int(said[2]) <= int(said[1])
