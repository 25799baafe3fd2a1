"""Decide whether a failed call is retried, once concurrency.py has decided who is at fault.

If the endpoint is at fault, the item is retried, and the call doesn't count as an attempt, since the concurrency
limiter does the waiting. If the endpoint refused the call, the item stays pending.

If the item is at fault, it gets up to 6 attempts. The time between attempts doubles from 1 s up to 60 s; the wait is a
random share of that time, from 50 to 100 %. A wait is at least as long as the server asked for, but never longer than
60 s. The error decides when the item has failed permanently:

- The server names the request's own length or turns: at once.
- Any other error that isn't transient: once three attempts ended with the same error.
- A transient error: after six attempts, if three of them ended with the same error.
- An account's quota is exhausted, or a 429 says that the request is within the limit: never; the item stays pending
  after its attempts.

If it is not known who is at fault, the item gets the same attempts, but stays pending afterwards. If there are too few
other items to find out, it is retried for 60 s only. In this case, a context overflow that the server names is a
permanent failure.

Unusable replies where another sample may be usable (empty, unparseable, truncated, or broken with output tokens) are
requested again at once, up to 3 times in all. A request that the provider's filter blocks is not retried.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from aif.providers.base import REQUEST_ERRORS, TRANSIENT, CallError, Kind

Verdict = Literal["answered", "again", "later", "failed", "refused"]
"""What happens to an item after a call. again: retried in this run; later: pending, retried by the next run; failed:
failed permanently; refused: pending, its endpoint makes no further calls."""

Blame = Literal["item", "endpoint", "unknown"]
"""Who is at fault for a failure. item: the endpoint answers other items; unknown: not known yet."""

_NUMBERED = re.compile(r"\S*\d\S*")  # request ids, times, counts
_LIMIT_AND_REQUESTED = re.compile(r"\blimit:? (\d{1,12})\b.{0,40}\brequested:? (\d{1,12})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long to retry. Counts include the first attempt; waits are in seconds.

    `attempts` is the most failed calls of an item, `resamples` the most unusable replies. An item that is at fault has
    failed permanently when `same_failures` of its calls ended with the same error. If the error is transient, all
    `attempts` are made first.

    An endpoint is given up if no call is answered for `outage_s`. For an endpoint that in this run has never replied,
    said that it is busy, or asked to wait, the time is `silent_s`.
    """

    attempts: int = 6
    resamples: int = 3
    same_failures: int = 3
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    silent_s: float = 60.0
    outage_s: float = 1800.0

    def backoff(self, failures: int, jitter: float) -> float:
        """Return the seconds to wait after this many consecutive failures: `first_wait_s`, doubled with each further
        failure up to `longest_wait_s`, then multiplied by a random factor. The factor grows with `jitter` (in [0, 1))
        from 0.5 to 1."""
        doubled = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(failures - 1, 60))
        return doubled * (0.5 + 0.5 * jitter)


@dataclass(slots=True)
class RetryState:
    """The failures of one item so far. `n` is the number of attempts begun, `counted` the failures that count as
    attempts, `resampled` the unusable replies. `since` is the time of the first failure, `wait_s` the seconds to wait
    before the next attempt."""

    n: int = 0
    counted: int = 0  # failures that count as attempts
    resampled: int = 0  # replies that were unusable
    since: float | None = None  # the time of the first failure
    last_unusable: CallError | None = None
    errors: Counter[tuple[Kind, str]] = field(default_factory=Counter)  # messages without their numbers
    wait_s: float = 0.0

    def verdict(
        self, error: CallError, blame: Blame, policy: RetryPolicy, now: float, jitter: float, too_few: bool = False
    ) -> Verdict:
        """Record a failure and return what happens to the item: whether it is retried, has failed permanently, or stays
        pending (see `Verdict`). If it is retried, `wait_s` is set.

        `blame` says who is at fault; `too_few`: there are too few other items to find out. `now` is in seconds of any
        clock.
        """
        self.wait_s = 0.0
        self.since = now if self.since is None else self.since
        if blame == "endpoint":
            return "again" if error.kind in TRANSIENT else "refused"
        if error.kind is Kind.BLOCKED:
            return "failed"
        if error.resamplable:
            self.resampled, self.last_unusable = self.resampled + 1, error
            return "again" if self.resampled < policy.resamples else "failed" if blame == "item" else "later"
        self.counted += 1
        self.errors[error.kind, _NUMBERED.sub("", error.message)] += 1
        if self._is_permanent(error, blame, policy, too_few):
            return "failed"
        backoff = policy.backoff(self.counted, jitter)
        self.wait_s = max(backoff, min(error.retry_after or 0.0, policy.longest_wait_s))
        next_try = now + max(backoff, error.retry_after or 0.0)
        late = too_few and blame == "unknown" and next_try > self.since + policy.silent_s
        return "later" if self.counted >= policy.attempts or late else "again"

    def _is_permanent(self, error: CallError, blame: Blame, policy: RetryPolicy, too_few: bool) -> bool:
        if error.kind in REQUEST_ERRORS and error.explicit:  # the server names this request's length or turns
            return blame == "item" or (too_few and error.kind is Kind.CONTEXT_OVERFLOW)
        if error.kind is Kind.QUOTA_EXHAUSTED or _fits_limit(error):  # smaller items may pass while this one waits
            return False
        alike = max(self.errors.values()) >= min(policy.same_failures, policy.attempts)
        return blame == "item" and alike and (error.kind not in TRANSIENT or self.counted >= policy.attempts)


def _fits_limit(error: CallError) -> bool:
    """Return whether a 429 says that the request by itself is within the limit, as in "Limit 30000, … Requested
    9000"."""
    match = _LIMIT_AND_REQUESTED.search(error.message) if error.kind is Kind.RATE_LIMITED else None
    return match is not None and int(match[2]) <= int(match[1])
