"""When a call that failed is made again.

The policy: what may pass (server errors, timeouts, broken connections and answers) is asked up to 6 times with waits
of 1 s doubling to 60 s, half of each by chance, never shorter than the server asked unless it asked for more than 60 s;
what is the endpoint's doing (a rate limit, an outage: see gate.py) does not count and has no wait of its own; what
another sample may mend (empty, unreadable or truncated) is asked up to 3 times, at once; and everything else once.

An item whose six attempts got the same answer at least three times, while its endpoint answered others, has failed
for good: it would get that answer for ever. Where it was the only one asked, nobody can tell, and it stays pending.
"""

import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from aif.chat.base import PROVIDER, REASKED, TRANSIENT, CallError, Kind

T = TypeVar("T")

Verdict = Literal["answered", "again", "later", "failed", "refused"]
"""again: asked again now; later: pending on the next run; failed: for good; refused: the provider's, item pending."""

Blame = Literal["item", "endpoint", "unknown"]
"""Whose doing a failure was: the item's, or at least its endpoint answers others; the endpoint's; not known yet."""

_NUMBERED = re.compile(r"\S*\d\S*")  # request ids, times, counts


@dataclass(frozen=True, slots=True)
class Policy:
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


@dataclass(frozen=True, slots=True)
class Attempt(Generic[T]):
    """One call: its number from 1, what becomes of the item, and its result or its error."""

    n: int
    verdict: Verdict
    result: T | None
    error: CallError | None


async def persist(
    attempt_once: Callable[[int], Awaitable[T]],
    policy: Policy,
    on_attempt: Callable[[Attempt[T]], Awaitable[None]],
    sleep: Callable[[float], Awaitable[bool]],
    jitter: Callable[[], float] = random.random,
    blame: Callable[[], Blame] = lambda: "item",
) -> Attempt[T]:
    """Call until there is an answer or the policy says to stop, and return the last attempt.

    Every attempt goes to `on_attempt` before any wait. `sleep` returns False when the run is being stopped: then the
    last attempt is returned with the verdict "later", though it was reported as "again". `jitter` draws from [0, 1);
    `blame` says whose doing the last failure was. Anything but CallError raised by `attempt_once` (a cancellation, a
    bug) passes through unreported.
    """
    course = _Course(policy, jitter)
    last: Attempt[T]

    async def once() -> Attempt[T]:
        nonlocal last
        course.n += 1
        try:
            last = Attempt(course.n, "answered", await attempt_once(course.n), None)
        except CallError as error:
            last = Attempt(course.n, course.verdict(error, blame()), None, error)
        await on_attempt(last)
        return last

    async def pause(seconds: float) -> None:
        if not await sleep(seconds):
            raise _Stopped

    try:
        if (await once()).verdict == "again":  # of most calls the first: tenacity's hooks would take 50 µs of each
            await pause(course.wait_s)
            await AsyncRetrying(sleep=pause, wait=course.wait, retry=retry_if_result(_again))(once)
    except _Stopped:
        return replace(last, verdict="later")
    return last


class _Stopped(Exception):
    """The run is being stopped."""


def _again(attempt: Attempt[object]) -> bool:
    return attempt.verdict == "again"


class _Course:
    """The failures of one item so far, counted by what they mean."""

    def __init__(self, policy: Policy, jitter: Callable[[], float]) -> None:
        self.policy = policy
        self.jitter = jitter
        self.n = self.transient = self.reasked = 0
        self.said: Counter[tuple[Kind, str]] = Counter()  # answers that would come again, digits apart
        self.wait_s = 0.0

    def verdict(self, error: CallError, blame: Blame) -> Verdict:
        """What one more failure means for the item; sets the wait that goes with "again"."""
        self.wait_s = 0.0
        if error.kind in PROVIDER:
            return "refused"
        if error.kind in TRANSIENT:
            return "again" if blame == "endpoint" else self._passing(error, blame)
        if error.kind in REASKED:
            self.reasked += 1
            return "again" if self.reasked < self.policy.reasks else "failed"
        return "failed" if blame == "item" else "later"

    def _passing(self, error: CallError, blame: Blame) -> Verdict:
        self.transient += 1
        if error.kind in (Kind.SERVER_ERROR, Kind.BAD_REPLY):
            self.said[error.kind, _NUMBERED.sub("", error.message)] += 1
        if self.transient < self.policy.attempts:
            backoff = self.policy.backoff(self.transient, self.jitter())
            self.wait_s = max(backoff, min(error.retry_after or 0.0, self.policy.longest_wait_s))
            return "again"
        same = max(self.said.values(), default=0) >= min(self.policy.same, self.policy.attempts)
        return "failed" if same and blame == "item" else "later"

    def wait(self, _: RetryCallState) -> float:
        return self.wait_s
