"""Whose fault a failure is, how many calls an endpoint takes at a time, and when it is left alone. Pure: the time is
given.

Whose fault it is is told by what other items get, never by a status alone:

- another item was answered since this one first failed: it is the item's;
- three different items (all there are, where these are fewer) fail alike and none is answered between: it is the
  endpoint's. What may pass is waited for; a refusal ends the endpoint, and so does what no request of this shape gets
  past. A page of a firewall looks like a refusal, and rows that are alike stand together: before a status without words
  ends an endpoint, an item from elsewhere is asked, too;
- else nobody knows yet.

A gate is open, with a window of calls that may be in flight, or shut. After a rest one call goes, the probe: if it is
answered the gate opens, else it rests longer.

The window is TCP's: a 429 leaves four fifths of what was in flight, once for all the calls sent before it; after a rest
it begins at a quarter and grows by a call an answer until where it was, then by a twentieth a round. Server errors and
timeouts pause its growth for a round and take nothing: fewer calls would not mend them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from aif.providers.base import PROVIDER, TRANSIENT, CallError, Kind
from aif.providers.retry import Blame, RetryPolicy

SHRINK, REOPEN, GROWTH = 0.8, 0.25, 0.05
ITEMS = 3  # so many different items that fail alike are enough to tell
MANY_ITEMS = 20  # of a judge that is unreadable every other time, so many in a row are one in a million
# A server that says how long to wait is taken at its word; one that says a second, for ten minutes, is asked less.
TOLD_S = 8.0
DOUBT = 5  # items from elsewhere that are asked at most before an endpoint is refused
# Of a provider that limits, a sound item gets six 429s in a row once in 100,000 times where it is one call in ten.
RARE, TRUST = 9, 2

Cause = Literal["rate limited", "gets no answer", "is in doubt"]
Class = Literal["passing", "refusal", "shape", "no use"]


@dataclass(slots=True, eq=False)
class Caller:
    """One item as a gate knows it: by class of failure, the how manieth call its first was (`met`), how long it
    is (`size`), and whose doing the last failure was. `spread`: it was taken from elsewhere than the items before it.
    `limited` has the answers there had been, and the items with a 429 and itself, when the first call was sent that got
    one. `parts`: where it is too long it is asked in parts, or is such a part, and tells nothing of others."""

    met: dict[Class, int] = field(default_factory=dict)
    size: int = 0
    blame: Blame = "item"
    spread: bool = False
    limited: tuple[int, int] | None = None
    parts: bool = False


@dataclass(frozen=True, slots=True)
class Others:
    """Who else could be asked: as many items as are enough to tell, whether there are too `few` of them, and whether
    `more` come that were not asked yet."""

    least: int = ITEMS
    few: bool = False
    more: bool = True


MANY = Others()


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """A place in flight: whose, the how manieth, after how many answers and items with a 429, in which episode it was
    given, and whether it is the probe."""

    caller: Caller
    n: int
    answers: int
    limits: int
    episode: int
    probe: bool


class Gate:
    """The gate of one endpoint: at most `most` calls in flight, at least one. `jitter` draws from [0, 1); `usable` says
    that a reply of the endpoint was of use before.

    `in_flight` counts them; `given_up` says why no further call is worth making.
    """

    def __init__(self, most: int, policy: RetryPolicy, jitter: Callable[[], float], usable: bool = False) -> None:
        self.in_flight = 0
        self.given_up: str | None = None
        self._most = most
        self._policy = policy
        self._jitter = jitter
        self._usable = usable
        self._window = self._reach = float(most)  # the reach is where a window grows to quickly
        self._pause = 0.0  # answers until growth goes on
        self._sent = self._answers = self._limits = 0  # the last: items that got a 429
        self._newest = 0  # of the calls that were answered
        self._trust = 0  # whether items are answered after a 429, or get another: then it is theirs
        self._heard = False
        self._episode = 0
        self._outage = 0  # the episode that the last one began
        self._shut: Cause | None = None
        self._probing = False
        self._rests = 0  # in a row
        self._rests_until = 0.0
        self._failing_since: float | None = None
        self._last: Kind | None = None  # of the failures
        self._doubts = 0  # refusals that an item from elsewhere has disproved
        self._longest = 0  # of what was answered
        self._troubled: dict[Class, set[Caller]] = {"passing": set(), "refusal": set(), "shape": set(), "no use": set()}

    @property
    def window(self) -> int:
        """Calls that may be in flight while the gate is open."""
        return max(1, int(self._window))

    @property
    def probing(self) -> bool:
        """Whether the next call is to show if the endpoint answers: one of an item that did not just fail."""
        return self._shut is not None

    @property
    def doubtful(self) -> bool:
        """Whether items fail alike, so that one from elsewhere may tell whose fault it is."""
        return any(len(items) > 1 for items in self._troubled.values())

    def wait(self, now: float) -> float:
        """Seconds until a call may go; infinite where only the end of another can tell."""
        if self._shut is None:
            return 0.0 if self.in_flight < self.window else math.inf
        if self._probing or (self._shut == "is in doubt" and self.in_flight):
            return math.inf
        return max(0.0, self._rests_until - now)

    def enter(self, caller: Caller) -> Pass:
        """Lets a call go that need not wait."""
        self.in_flight += 1
        self._probing = self._shut is not None
        self._sent += 1
        return Pass(caller, self._sent, self._answers, self._limits, self._episode, self._probing)

    def leave(self, one: Pass) -> None:
        """A call is over, or was not made."""
        self.in_flight -= 1
        if one.probe and one.episode == self._episode:  # it told nothing
            self._probing = False

    def ended(self, one: Pass, error: CallError | None, now: float, others: Others = MANY) -> None:
        """Takes in how a call ended, before it leaves, and tells its caller whose doing that was."""
        if error is None or error.mendable or error.kind is Kind.BLOCKED:
            one.caller.blame = self._replied(one, error, now, others)
            return
        self._last = error.kind
        if error.kind not in TRANSIENT:
            one.caller.blame = self._refused(one, error, now, others)
            return
        self._heard = self._heard or error.busy or error.retry_after is not None
        asked_s = min(error.retry_after or 0.0, self._policy.longest_wait_s)
        if error.kind is Kind.RATE_LIMITED:
            one.caller.blame = self._limited(one, asked_s, now, others)
        else:
            one.caller.blame = self._failed(one, asked_s, now, 1 if error.busy else others.least)
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
        self._rests = self._longest = 0
        self._open()
        self._window = self._reach = float(self._most)

    def instead(self, now: float) -> str | None:
        """What the endpoint does instead of answering, in words."""
        if self._shut is None:
            return None
        left = math.ceil(self._rests_until - now)
        shut = self._shut if self._shut == "rate limited" else f"{self._shut} ({self._last})"
        return f"{shut}, asks again {f'in {left} s' if left > 0 and not self._probing else 'now'}"

    # --- replies ------------------------------------------------------------------------------------------------------

    def _replied(self, one: Pass, error: CallError | None, now: float, others: Others) -> Blame:
        """A reply shows that the endpoint takes requests, be it of use or not."""
        self._answers += 1
        self._newest = max(self._newest, one.n)
        self._heard = True
        self._failing_since = None
        if one.caller.limited is not None:
            self._trust, one.caller.limited = min(TRUST, self._trust + 1), None
        if error is not None:
            blame = self._of_no_use(one, error, now, others)
        else:
            self._usable, self._longest, blame = True, max(self._longest, one.caller.size), "item"
            self._troubled["no use"].clear()
        for of, items in self._troubled.items():
            items -= {item for item in items if of != "no use" and self._newest > item.met[of]}
        if self._shut is None:
            self._rests = 0
            self._grow()
        elif self._opens(one):
            self._doubts += self._shut == "is in doubt" and one.probe
            self._rests = 0
            self._open()
        return blame

    def _opens(self, one: Pass) -> bool:
        """Whether a reply opens the gate. What was sent before may be answered in spite of a 429."""
        if self._shut == "is in doubt":
            return not any(self._troubled.values())
        return one.probe or self._shut == "gets no answer"

    def _of_no_use(self, one: Pass, error: CallError, now: float, others: Others) -> Blame:
        """A reply that is empty or can't be read, or a refusal by a filter, since another was of use. An endpoint of
        which none ever was is not asked on for what each costs; of others, and of a filter, many are needed."""
        alike, blocked = self._troubled["no use"], error.kind is Kind.BLOCKED
        alike.add(one.caller)
        many = self._usable or blocked
        enough = len(alike) >= (MANY_ITEMS if many else ITEMS)
        if enough or not many:
            self._doubt(now)
        # the shortest come first: of 24 in flight, the three that are empty
        if not enough or self.in_flight > 1 or (not many and self._doubted(alike, others.more, now)):
            return "item" if self._usable or others.least < ITEMS else "unknown"
        self._last = error.kind
        said = f"{error.kind}: {error.message}"
        self.given_up = f"none of its replies to {len(alike)} items in a row could be used; the last: {said}"
        return "endpoint"

    def _doubted(self, alike: set[Caller], more: bool, now: float) -> bool:
        """Whether an item from elsewhere has to tell first: those that failed may stand together. Until it is known,
        calls go one at a time."""
        wanted = min(DOUBT, 1 + self._usable + self._doubts) if more else 0
        if sum(item.spread for item in alike) >= wanted:
            return False
        self._doubt(now)
        return True

    def _doubt(self, now: float) -> None:
        if self._shut is None:
            self._shut, self._rests_until = "is in doubt", now
            self._episode += 1

    def _grow(self) -> None:
        if self._pause >= 1:
            self._pause -= 1
            return
        more = 1.0 if self._window < self._reach else max(1.0 / self._window, GROWTH)
        self._window = min(float(self._most), self._window + more)

    # --- what may pass ------------------------------------------------------------------------------------------------

    def _limited(self, one: Pass, asked_s: float, now: float, others: Others) -> Blame:
        """A 429. An item that gets another, while hardly any others got one and were answered, is asked for what no
        limit ever allows: it holds up nobody else."""
        caller, its_own = one.caller, self._its_own(one, "passing")
        self._limits += caller.limited is None
        caller.limited = answers, limits = caller.limited or (one.answers, one.limits + 1)
        if its_own and (others.few or self._answers - answers > RARE * (self._limits - limits)):
            self._trust = max(-TRUST, self._trust - 1)
            return "item"
        troubled = self._troubled["passing"]
        troubled.add(caller)
        alike = len(troubled) >= others.least
        if one.episode != self._episode:  # sent before the rest
            if self._shut:
                self._rests_until = max(self._rests_until, now + asked_s)
        elif alike or self._shut or self._trust >= 0:
            if self._shut is None:
                self._reach = max(1.0, SHRINK * min(self._window, max(self._window / 2, self.in_flight)))
            self._rest("rate limited", asked_s, now)
        else:
            return "item" if its_own else "unknown"
        return "unknown" if others.few and not alike else "endpoint"

    def _failed(self, one: Pass, asked_s: float, now: float, least: int) -> Blame:
        """Whose doing a failure was that may pass. An item that fails while others are answered is no sign of an
        outage, nor excused by one: else one that hangs for ever might be asked for ever."""
        its_own = self._its_own(one, "passing")
        if one.episode < self._outage:
            return "item" if its_own else "unknown"
        if self._shut == "gets no answer":
            self._rest(self._shut, asked_s, now)
            return "item" if its_own else "endpoint"
        if self._shut == "rate limited" and one.probe and one.episode == self._episode:  # it is no 429
            self._open()
        self._pause = self._window
        if its_own:
            return "item"
        troubled = self._troubled["passing"]
        troubled.add(one.caller)
        if len(troubled) < least:
            return "unknown"
        self._rest("gets no answer", asked_s, now)
        self._outage = self._episode
        return "unknown"  # until a probe tells

    def _its_own(self, one: Pass, of: Class) -> bool:
        """Whether a call was answered that was sent after the one with which its item first failed: what was sent
        before says nothing, since an endpoint may go on with that for long."""
        return self._newest > one.caller.met.setdefault(of, one.n)

    def _rest(self, cause: Cause, asked_s: float, now: float) -> None:
        """Shuts the gate, or keeps it shut; what was sent before belongs to an episode gone by."""
        self._shut = cause
        self._probing = False
        self._episode += 1
        self._rests += 1
        backoff = self._policy.backoff(self._rests, self._jitter())
        self._rests_until = now + max(asked_s, min(backoff, TOLD_S) if asked_s else backoff)

    def _open(self) -> None:
        if self._shut not in (None, "is in doubt"):
            self._window = min(self._reach, max(2.0, REOPEN * self._reach))
        self._shut = None
        self._probing = False
        self._pause = 0.0
        for items in self._troubled.values():
            items.clear()

    # --- what does not pass -------------------------------------------------------------------------------------------

    def _refused(self, one: Pass, error: CallError, now: float, others: Others) -> Blame:
        """A refusal, or a request of a shape that is not taken. Where the server names it and a key, an account or a
        model is what it names, no item can be at fault."""
        of: Class = "refusal" if error.kind in PROVIDER else "shape"
        # rows may be sorted by length: what is longer than all that was answered is too long by its own words
        long = one.caller.parts or 0 < self._longest < one.caller.size
        long = long and error.kind is Kind.CONTEXT_OVERFLOW and error.told
        if self._its_own(one, of) or long:
            return "item"
        alike, certain = self._troubled[of], of == "refusal" and error.told
        alike.add(one.caller)
        if certain:
            self._doubt(now)
        # what is in flight may still tell: a firewall answers in no time, and a model takes long
        if len(alike) < others.least or (not certain and self._doubted(alike, others.more, now)) or self.in_flight > 1:
            return "unknown"
        who = "1 item was" if len(alike) == 1 else f"{len(alike)} items were"
        refused = f"{who} refused alike, and none was answered: "
        self.given_up = error.message if of == "refusal" else refused + error.message
        return "endpoint"
