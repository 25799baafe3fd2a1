"""When a call that failed is made again.

The policy: what may pass (server errors, timeouts, broken connections and answers) is asked up to 6 times with waits
of 1 s doubling to 60 s, half of each by chance, never shorter than the server asked unless it asked for more than 60 s;
rate limits wait by the same rule but do not count, up to 30 in a row; what another sample may mend (empty, unreadable
or truncated) is asked up to 3 times, at once; and everything else once.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from aif.chat.base import PROVIDER, REASKED, TRANSIENT, CallError, Kind

T = TypeVar("T")

Verdict = Literal["answered", "again", "later", "failed", "refused"]
"""again: asked again now; later: pending on the next run; failed: for good; refused: the provider's, item pending."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How often and how patiently. Counts are attempts in all, waits in seconds."""

    attempts: int = 6
    reasks: int = 3
    rate_limits: int = 30
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Attempt(Generic[T]):
    """One call: its number from 1, what becomes of the item, how long it took, and its result or its error."""

    n: int
    verdict: Verdict
    seconds: float
    result: T | None
    error: CallError | None


async def persist(
    attempt_once: Callable[[int], Awaitable[T]],
    policy: Policy,
    on_attempt: Callable[[Attempt[T]], Awaitable[None]],
    sleep: Callable[[float], Awaitable[bool]],
    clock: Callable[[], float],
    jitter: Callable[[], float] = random.random,
) -> Attempt[T]:
    """Call until there is an answer or the policy says to stop, and return the last attempt.

    Every attempt goes to `on_attempt` before any wait. `sleep` returns False when the run is being stopped: then the
    last attempt is returned with the verdict "later", though it was reported as "again". `jitter` draws from [0, 1).
    Anything but CallError raised by `attempt_once` (a cancellation, a bug) passes through unreported.
    """
    course = _Course(policy, jitter)
    last: Attempt[T]

    async def once() -> Attempt[T]:
        nonlocal last
        course.n += 1
        began = clock()
        try:
            result = await attempt_once(course.n)
        except CallError as error:
            last = Attempt(course.n, course.verdict(error), clock() - began, None, error)
        else:
            last = Attempt(course.n, "answered", clock() - began, result, None)
        await on_attempt(last)
        return last

    async def pause(seconds: float) -> None:
        if not await sleep(seconds):
            raise _Stopped

    try:
        return await AsyncRetrying(sleep=pause, wait=course.wait, retry=retry_if_result(_again))(once)
    except _Stopped:
        return replace(last, verdict="later")


class _Stopped(Exception):
    """The run is being stopped."""


def _again(attempt: Attempt[object]) -> bool:
    return attempt.verdict == "again"


class _Course:
    """The failures of one item so far, counted by what they mean."""

    def __init__(self, policy: Policy, jitter: Callable[[], float]) -> None:
        self.policy = policy
        self.jitter = jitter
        self.n = self.transient = self.reasked = self.limited = 0
        self.next_wait_s = 0.0

    def verdict(self, error: CallError) -> Verdict:
        """What one more failure means for the item; sets the wait that goes with "again"."""
        self.limited = self.limited + 1 if error.kind is Kind.RATE_LIMITED else 0
        if error.kind is Kind.RATE_LIMITED:
            self.next_wait_s = self.backoff(self.limited, error.retry_after)
            return "again" if self.limited < self.policy.rate_limits else "later"
        if error.kind in TRANSIENT:
            self.transient += 1
            self.next_wait_s = self.backoff(self.transient, error.retry_after)
            return "again" if self.transient < self.policy.attempts else "later"
        if error.kind in REASKED:
            self.reasked += 1
            self.next_wait_s = 0.0
            return "again" if self.reasked < self.policy.reasks else "failed"
        return "refused" if error.kind in PROVIDER else "failed"

    def backoff(self, failures: int, asked_s: float | None) -> float:
        """Seconds to wait after so many failures. Also where the server asks for none, the doubling holds: servers
        that send `Retry-After: 0` to everybody would be asked 30 times within milliseconds."""
        longest = self.policy.longest_wait_s
        doubled = min(longest, self.policy.first_wait_s * 2.0 ** (failures - 1))
        return max(doubled * (0.5 + 0.5 * self.jitter()), min(asked_s or 0.0, longest))

    def wait(self, _: RetryCallState) -> float:
        return self.next_wait_s
