"""How many calls an endpoint takes at a time, and when it is left alone. Pure: the time is given.

A gate is open, with a window of calls that may be in flight, or shut for a rest. A 429 shuts it, and so do failures of
so many items in a row that it is the endpoint that fails and not they. After the rest one call goes, the probe: if it
is answered the gate opens, else it rests longer.

The window is TCP's: a 429 leaves four fifths of what was in flight, once for all the calls sent before it; after a rest
it begins at a quarter and grows by a call an answer until where it was, then by a twentieth a round. Server errors and
timeouts pause its growth for a round and take nothing: fewer calls would not mend them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from aif.chat.base import TRANSIENT, CallError, Kind
from aif.chat.retry import Blame, Policy

SHRINK, REOPEN, GROWTH = 0.8, 0.25, 0.05
# Failures of so many items without an answer between are the endpoint's: by chance, a server that fails every tenth
# call does so once in 100,000 calls.
OUTAGE_ITEMS = 5
# A server that says how long to wait is taken at its word; one that says a second, for ten minutes, is asked less.
TOLD_S = 8.0

Cause = Literal["rate limited", "gets no answer"]


@dataclass(slots=True, eq=False)
class Caller:
    """One item as a gate knows it: how many answers the endpoint had given when the item first met with trouble, and
    whose doing its last failure was."""

    met: int | None = None
    blame: Blame = "item"


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """A place in flight: whose, in which episode it was given, and whether it is the probe."""

    caller: Caller
    episode: int
    probe: bool


class Gate:
    """The gate of one endpoint: at most `most` calls in flight, at least one. `jitter` draws from [0, 1).

    `in_flight` counts them; `given_up` says why no further call is worth making.
    """

    def __init__(self, most: int, policy: Policy, jitter: Callable[[], float]) -> None:
        self.in_flight = 0
        self.given_up: str | None = None
        self._most = most
        self._policy = policy
        self._jitter = jitter
        self._window = self._reach = float(most)  # the reach is where a window grows to quickly
        self._pause = 0.0  # answers until growth goes on
        self._answers = 0
        self._heard = False
        self._episode = 0
        self._outage = 0  # the episode that the last one began
        self._shut: Cause | None = None
        self._probing = False
        self._rests = 0  # in a row
        self._rests_until = 0.0
        self._failing_since: float | None = None
        self._last: Kind | None = None  # of the failures that may pass
        self._troubled: set[Caller] = set()

    @property
    def window(self) -> int:
        """Calls that may be in flight while the gate is open."""
        return max(1, int(self._window))

    def wait(self, now: float) -> float:
        """Seconds until a call may go; infinite where only the end of another can tell."""
        if self._shut is None:
            return 0.0 if self.in_flight < self.window else math.inf
        return math.inf if self._probing else max(0.0, self._rests_until - now)

    def enter(self, caller: Caller) -> Pass:
        """Lets a call go that need not wait."""
        self.in_flight += 1
        self._probing = self._shut is not None
        return Pass(caller, self._episode, self._probing)

    def leave(self, one: Pass) -> None:
        """A call is over, or was not made."""
        self.in_flight -= 1
        if one.probe and one.episode == self._episode:  # it told nothing
            self._probing = False

    def ended(self, one: Pass, error: CallError | None, now: float) -> None:
        """Takes in how a call ended, before it leaves, and tells its caller whose doing that was."""
        if error is None or error.kind not in TRANSIENT:
            self._answered(one)
            one.caller.blame = "item"
            return
        self._last = error.kind
        if error.kind is Kind.RATE_LIMITED:
            self._heard = True
            one.caller.blame = "endpoint"
            self._limited(one, error.retry_after, now)
        else:
            one.caller.blame = self._failed(one, now)
        if self._shut is None:  # else what failed before a time without work would count it as an outage
            return
        self._failing_since = now if self._failing_since is None else self._failing_since
        if now - self._failing_since >= (self._policy.outage_s if self._heard else self._policy.silent_s):
            took = f"{now - self._failing_since:,.0f} s"
            self.given_up = f"no call was answered for {took}; the last: {error.kind}: {error.message}"

    def renew(self) -> None:
        """The endpoint is another now: its server has come up. What was sent before says nothing of it."""
        self._failing_since = None
        self._episode += 1
        self._outage = self._episode
        self._rests = 0
        self._open()
        self._window = self._reach = float(self._most)

    def instead(self, now: float) -> str | None:
        """What the endpoint does instead of answering, in words."""
        if self._shut is None:
            return None
        left = math.ceil(self._rests_until - now)
        shut = f"gets no answer ({self._last})" if self._shut == "gets no answer" else self._shut
        return f"{shut}, asks again {f'in {left} s' if left > 0 and not self._probing else 'now'}"

    def _answered(self, one: Pass) -> None:
        self._answers += 1
        self._heard = True
        self._failing_since = None
        self._troubled.clear()
        if self._shut is None:
            self._rests = 0
            self._grow()
        elif one.probe or self._shut != "rate limited":  # what was sent before a 429 may be answered in spite of it
            self._rests = 0
            self._open()

    def _grow(self) -> None:
        if self._pause >= 1:
            self._pause -= 1
            return
        more = 1.0 if self._window < self._reach else max(1.0 / self._window, GROWTH)
        self._window = min(float(self._most), self._window + more)

    def _limited(self, one: Pass, asked_s: float | None, now: float) -> None:
        asked_s = min(asked_s or 0.0, self._policy.longest_wait_s)
        if one.episode != self._episode:  # sent before the rest
            if self._shut:
                self._rests_until = max(self._rests_until, now + asked_s)
            return
        if self._shut is None:
            self._reach = max(1.0, SHRINK * min(self._window, max(self._window / 2, self.in_flight)))
        self._rest("rate limited", asked_s, now)

    def _failed(self, one: Pass, now: float) -> Blame:
        """Whose doing a failure was that may pass. An item that fails while others are answered is no sign of an
        outage, nor excused by one: else one that hangs for ever might be asked for ever."""
        caller = one.caller
        its_own = caller.met is not None and self._answers > caller.met
        if one.episode < self._outage:
            caller.met = self._answers if caller.met is None else caller.met
            return "item" if its_own else "endpoint"
        if self._shut == "gets no answer":
            self._rest(self._shut, 0.0, now)
            return "item" if its_own else "endpoint"
        if one.probe and one.episode == self._episode:  # whatever it is, it is no 429
            self._open()
        self._pause = self._window
        if its_own:
            return "item"
        caller.met = self._answers
        self._troubled.add(caller)
        if len(self._troubled) < max(2, min(OUTAGE_ITEMS, self._most)):
            return "unknown"
        for one_of_many in self._troubled:
            one_of_many.met = None
        self._reach = self._window
        self._rest("gets no answer", 0.0, now)
        self._outage = self._episode
        return "endpoint"

    def _rest(self, cause: Cause, asked_s: float, now: float) -> None:
        """Shuts the gate, or keeps it shut; what was sent before belongs to an episode gone by."""
        self._shut = cause
        self._probing = False
        self._episode += 1
        self._rests += 1
        backoff = self._policy.backoff(self._rests, self._jitter())
        self._rests_until = now + max(asked_s, min(backoff, TOLD_S) if asked_s else backoff)

    def _open(self) -> None:
        if self._shut is not None:
            self._window = min(self._reach, max(2.0, REOPEN * self._reach))
        self._shut = None
        self._probing = False
        self._pause = 0.0
        self._troubled.clear()
