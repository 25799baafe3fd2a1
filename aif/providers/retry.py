"""Decide whether a failed call is retried, once concurrency.py has decided who is at fault.

An *item* is one completion or judgement that is to be made. A *pending* item is retried by the next run.

If the endpoint is at fault, the call doesn't count as an attempt, since the concurrency limiter does the waiting. The
item is retried after a transient error, and stays pending after any other.

If the item is at fault, it gets up to 6 attempts. The time between attempts doubles from 1 s up to 60 s. The wait is a
random share of that time, from 50 to 100 %. A wait is at least as long as the server asked for, but never longer than
60 s. The error decides when the item has failed permanently:

- The server names the request's own length or turns: at once.
- Any other error that isn't transient: once three attempts ended with the same error.
- A transient error: after six attempts, if three of them ended with the same error.
- An account's quota is exhausted, or a 429 says that the request is within the limit: never. The item stays pending
  after its attempts.

If it is not known who is at fault, the item gets the same attempts, but stays pending afterwards. If there are too few
other items to find out, the item is retried for 60 s only. In that case a context overflow that the server names is a
permanent failure.

An *unusable* reply is empty, unparseable, truncated, repeated by a gateway's cache, or broken with output tokens.
Another sample may be usable, so the request is sent again at once, until the item has had 3 unusable replies. Then the
item has failed permanently, but stays pending if it is not known who is at fault. A request that the provider's filter
blocks is not retried.
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
    """How often and how long to retry. Waits and times are in seconds.

    attempts: the most failures of an item that count as attempts, the first included.
    resamples: the most unusable replies of an item, the first included.
    same_failures: the number of calls with the same error after which an item that is at fault has failed permanently.
        After a transient error, all `attempts` are made first.
    first_wait_s: the wait after the first failure; it doubles with each further failure.
    longest_wait_s: the longest wait between two attempts.
    silent_s: the time without an answered call after which a *silent* endpoint is given up. Such an endpoint has not
        replied in this run, nor said that it is busy, nor asked to wait. An item is also retried for this time if too
        few other items show who is at fault.
    outage_s: the same time for any other endpoint.
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
    """The failures of one item so far.

    n: the number of attempts begun.
    counted: the number of failures that count as attempts.
    resampled: the number of unusable replies.
    since: the time of the first failure; None before it.
    last_unusable: the error of the last unusable reply; None before it.
    errors: how often each error occurred, by kind and message.
    wait_s: the seconds to wait before the next attempt.
    """

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
        """Record a failure and return what happens to the item. If the item is retried, set `wait_s`.

        The verdict is "again" (retried in this run), "later" (pending until the next run), "failed" (permanently), or
        "refused" (pending; the endpoint gets no more calls in this run).

        blame: who is at fault for the failure.
        policy: how often and how long to retry.
        now: the time, in seconds of any clock.
        jitter: a random number in [0, 1), for the wait.
        too_few: True if there are too few other items to find out who is at fault.
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
