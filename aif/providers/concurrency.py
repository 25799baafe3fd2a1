"""Decide how many calls an endpoint gets at a time, when it is paused, and who is at fault for a failure.

Pure: the caller passes the time, in seconds of any clock.

An *item* is one completion or judgement that is to be made. An *endpoint* is a model or judge that is called. For a
failed call, either the item or the endpoint is at fault. A status alone never shows which; the results of other items
do:

- The item is at fault if the endpoint has answered a call that was sent after the item's first failed call.
- The endpoint is at fault if three different items fail alike, and no call sent after these failures is answered. If
  there are fewer than three items, all of them must fail. One item is enough if the server says that it is busy, and
  usually for a 429.
- Otherwise it is not known yet who is at fault.

If the endpoint is at fault for transient errors, the endpoint is paused and retried. For refusals, or errors that every
request would get, the endpoint gets no more calls. But first an item from elsewhere in the queue is tried: a firewall's
page looks like a refusal, and neighbouring rows are often similar. No such item is tried if the server itself names the
key, the account or the model as the cause.

A limiter is either open, with a *window* (the most calls in flight), or paused. After a pause one call is sent as a
*probe*. If the probe is answered the limiter opens, else the next pause is longer. A pause to find out who is at fault
ends when replies show that the endpoint is not at fault.

The window follows TCP:

- A 429 sets a *target*: four fifths of the calls in flight, counted as at least half the window.
- 429s of calls that were sent before the pause don't change the target again.
- After the pause the window starts at a quarter of the target, and grows to the target by one call per answer.
- Beyond the target the window grows by a twentieth per round, but by at least one call. A *round* is as many answers as
  the window is large.
- Server errors and timeouts stop growth for a round. They don't change the target: fewer calls would not avoid them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from aif.providers.base import ACCESS_ERRORS, TRANSIENT, CallError, Kind
from aif.providers.retry import Blame, RetryPolicy

SHRINK, REOPEN, GROWTH = 0.8, 0.25, 0.05
ENOUGH_ITEMS = 3  # different items that fail alike, for the endpoint to be at fault
ENOUGH_UNUSABLE = 20  # if every other reply of a judge is unparseable, 20 in a row are one in a million
# A server's own wait is respected. If it asks for one second again and again, backoffs still grow to this.
MAX_HINTED_BACKOFF_S = 8.0
MAX_SAMPLED_ITEMS = 5  # items from elsewhere in the queue tried before an endpoint is ended, at most
# An item is at fault for its 429s only if more than RARE calls are answered for each limited item: where one call in
# ten gets a 429, a small enough item gets six in a row once in 100,000 times. TRUST bounds `_trust`.
RARE, TRUST = 9, 2

PauseReason = Literal["rate limited", "not answering", "failing"]
"""Shown in progress lines. "failing": items fail alike, and others are tried one at a time to find who is at fault."""
FailureClass = Literal["transient", "access", "request", "unusable"]


@dataclass(slots=True, eq=False)
class ItemHistory:
    """The results of an item (a completion or judgement) over all its calls, as the concurrency limiter needs them.

    first_failed: by class of failure, the number of the first call that failed in this way.
    size: the length of the item's request in characters.
    blame: who was at fault for the item's last failure.
    sampled: True if the item was taken from elsewhere in the queue to find out who is at fault.
    limited_at: None, or two counts for the item's first 429 since its last reply. The first is the number of calls that
        the endpoint had answered when that call was sent. The second is the number of items that had got a 429 by then,
        plus this item.
    may_split: True for a judgement whose judge has `on_overflow: single`. Its context overflow says nothing about other
        items.
    """

    first_failed: dict[FailureClass, int] = field(default_factory=dict)
    size: int = 0
    blame: Blame = "item"
    sampled: bool = False
    limited_at: tuple[int, int] | None = None
    may_split: bool = False


@dataclass(frozen=True, slots=True)
class OtherItems:
    """What an endpoint's other items can show about a failure: whether the item or the endpoint is at fault.

    enough: the number of different items that must fail alike, for the endpoint to be at fault.
    too_few: True if the endpoint has so few items that nobody can find out who is at fault.
    more_coming: True if some items have not been sent yet.
    """

    enough: int = ENOUGH_ITEMS
    too_few: bool = False
    more_coming: bool = True


MANY_OTHERS = OtherItems()


@dataclass(frozen=True, slots=True, eq=False)
class Permit:
    """Permission to make one call, as returned by `ConcurrencyLimiter.enter`.

    item: the results so far of the item that the call is for.
    n: the call's number at this endpoint, from 1.
    answers: the number of calls that the endpoint had answered when this one was sent.
    limits: the number of items that had got a 429 when this call was sent.
    episode: the number of pauses, extensions of a pause, and resets before this call was sent.
    probe: True if the call tests whether a paused endpoint answers again.
    """

    item: ItemHistory
    n: int
    answers: int
    limits: int
    episode: int
    probe: bool


class ConcurrencyLimiter:
    """Limits the calls in flight to one endpoint, and pauses an endpoint that fails.

    most: the upper bound of the calls in flight; the lower bound is 1.
    policy: how long pauses are, and when an endpoint that doesn't answer is given up.
    jitter: returns a random number in [0, 1).
    usable: True if an earlier reply of the endpoint was usable.
    in_flight: the number of calls in flight now.
    given_up: the reason why the endpoint should get no more calls, else None.
    """

    def __init__(self, most: int, policy: RetryPolicy, jitter: Callable[[], float], usable: bool = False) -> None:
        self.in_flight = 0
        self.given_up: str | None = None
        self._most = most
        self._policy = policy
        self._jitter = jitter
        self._usable = usable
        self._window = self._fast_until = float(most)  # below `_fast_until`, the target, it grows by a call an answer
        self._growth_pause = 0.0  # answers until the window grows again
        self._sent = self._answers = self._limits = 0  # `_limits`: items that got a 429
        self._newest_answered = 0  # the highest number of an answered call
        self._trust = 0  # raised if items are answered after a 429, lowered if they are at fault for it
        self._reached = False  # it gave a reply, said that it is busy, or asked to wait
        self._episode = 0
        self._outage = 0  # the episode that began with the last outage
        self._paused: PauseReason | None = None
        self._probing = False
        self._backoffs = 0  # consecutive
        self._backoff_until = 0.0
        self._failing_since: float | None = None
        self._last_kind: Kind | None = None
        self._disproved = 0  # times that a suspicion was disproved by a probe
        self._longest_answered = 0  # characters
        self._failing: dict[FailureClass, set[ItemHistory]] = {
            "transient": set(),
            "access": set(),
            "request": set(),
            "unusable": set(),
        }

    @property
    def window(self) -> int:
        """The most calls that may be in flight while the limiter is open (not paused); at least 1."""
        return max(1, int(self._window))

    @property
    def probing(self) -> bool:
        """Whether the next call is a probe: the endpoint is paused, and that call tests whether it answers again. The
        call should be for an item that didn't just fail."""
        return self._paused is not None

    @property
    def fault_unclear(self) -> bool:
        """Whether it is unclear who is at fault for recent failures, the items or the endpoint: at least two items
        failed alike. To find out, the next call should be for an item from elsewhere in the queue."""
        return any(len(items) > 1 for items in self._failing.values())

    def wait(self, now: float) -> float:
        """Return the seconds until a call may be sent: 0 if it may be sent now, infinity if a call in flight has to end
        first."""
        if self._paused is None:
            return 0.0 if self.in_flight < self.window else math.inf
        if self._probing or (self._paused == "failing" and self.in_flight):
            return math.inf
        return max(0.0, self._backoff_until - now)

    def enter(self, item: ItemHistory) -> Permit:
        """Record that a call for this item is sent, and return its permit. Only valid while `wait` returns 0."""
        self.in_flight += 1
        self._probing = self._paused is not None
        self._sent += 1
        return Permit(item, self._sent, self._answers, self._limits, self._episode, self._probing)

    def leave(self, permit: Permit) -> None:
        """Record that a permit's call is over, or was not made after all. Call it once for each permit."""
        self.in_flight -= 1
        if permit.probe and permit.episode == self._episode:  # the probe gave no result
            self._probing = False

    def record_result(
        self, permit: Permit, error: CallError | None, now: float, others: OtherItems = MANY_OTHERS
    ) -> None:
        """Adapt window and pauses to a call's result, set its item's `blame`, and set `given_up` if the endpoint should
        get no more calls. `error` is None if the reply was usable. Call it before `leave`."""
        if error is None or error.resamplable or error.kind is Kind.BLOCKED:
            permit.item.blame = self._replied(permit, error, now, others)
            return
        self._last_kind = error.kind
        if error.kind not in TRANSIENT:
            permit.item.blame = self._refused(permit, error, now, others)
            return
        self._reached = self._reached or error.busy or error.retry_after is not None
        asked_s = min(error.retry_after or 0.0, self._policy.longest_wait_s)
        if error.kind is Kind.RATE_LIMITED:
            permit.item.blame = self._rate_limited(permit, asked_s, now, others)
        else:
            permit.item.blame = self._failed(permit, asked_s, now, 1 if error.busy else others.enough)
        if self._paused is None:  # an isolated failure must not start the outage clock before an idle time
            return
        self._failing_since = now if self._failing_since is None else self._failing_since
        if now - self._failing_since >= (self._policy.outage_s if self._reached else self._policy.silent_s):
            took = f"{now - self._failing_since:,.0f} s"
            self.given_up = f"no call was answered for {took}; last error: {error.kind}: {error.message}"

    def reset(self) -> None:
        """Forget all failures and open the limiter, because the endpoint has a newly started server."""
        self._failing_since = None
        self._episode += 1
        self._outage = self._episode
        self._backoffs = self._longest_answered = 0
        self._open()
        self._window = self._fast_until = float(self._most)

    def waiting_text(self, now: float) -> str | None:
        """Return why the endpoint is paused and when it is retried, for progress lines; None while it is open."""
        if self._paused is None:
            return None
        left = math.ceil(self._backoff_until - now)
        reason = self._paused if self._paused == "rate limited" else f"{self._paused} ({self._last_kind})"
        return f"{reason}, retries {f'in {left} s' if left > 0 and not self._probing else 'now'}"

    # --- replies ------------------------------------------------------------------------------------------------------

    def _replied(self, permit: Permit, error: CallError | None, now: float, others: OtherItems) -> Blame:
        """Record a reply, which may be unusable (`error`) or usable (None). Return who is at fault for an unusable
        reply, and "item" for a usable one.

        Even an unusable reply shows that the endpoint accepts requests.
        """
        self._answers += 1
        self._newest_answered = max(self._newest_answered, permit.n)
        self._reached = True
        self._failing_since = None
        if permit.item.limited_at is not None:
            self._trust, permit.item.limited_at = min(TRUST, self._trust + 1), None
        if error is not None:
            blame = self._unusable_reply(permit, error, now, others)
        else:
            self._usable, blame = True, "item"
            self._longest_answered = max(self._longest_answered, permit.item.size)
            self._failing["unusable"].clear()
        for failure, items in self._failing.items():
            items -= {
                item for item in items if failure != "unusable" and self._newest_answered > item.first_failed[failure]
            }
        if self._paused is None:
            self._backoffs = 0
            self._grow()
        elif self._opens(permit):
            self._disproved += self._paused == "failing" and permit.probe
            self._backoffs = 0
            self._open()
        return blame

    def _opens(self, permit: Permit) -> bool:
        """Return whether a reply to this permit's call ends the pause.

        After an outage any reply does. After a 429 only a reply to the probe does, since calls sent earlier are
        answered in spite of the limit. If the endpoint is paused because items failed alike, the pause ends when
        replies have shown that the endpoint isn't at fault for any of these items.
        """
        if self._paused == "failing":
            return not any(self._failing.values())
        return permit.probe or self._paused == "not answering"

    def _unusable_reply(self, permit: Permit, error: CallError, now: float, others: OtherItems) -> Blame:
        """Return who is at fault for a reply that is empty, unparseable or blocked by a filter.

        The endpoint is given up after such replies to too many items in a row. The number is ENOUGH_UNUSABLE if the
        endpoint has given a usable reply, or if a filter blocks. Otherwise the number is ENOUGH_ITEMS, since each reply
        costs money.
        """
        alike, blocked = self._failing["unusable"], error.kind is Kind.BLOCKED
        alike.add(permit.item)
        many = self._usable or blocked
        enough = len(alike) >= (ENOUGH_UNUSABLE if many else ENOUGH_ITEMS)
        if enough or not many:
            self._suspect(now)
        # empty replies are the quickest: of 24 in flight, the first three to arrive are the empty ones
        if not enough or self.in_flight > 1 or (not many and self._needs_sample(alike, others.more_coming, now)):
            return "item" if self._usable or others.enough < ENOUGH_ITEMS else "unknown"
        self._last_kind = error.kind
        last = f"{error.kind}: {error.message}"
        self.given_up = f"none of its replies to {len(alike)} items in a row could be used; last error: {last}"
        return "endpoint"

    def _needs_sample(self, alike: set[ItemHistory], more: bool, now: float) -> bool:
        """Return whether an item from elsewhere in the queue must be tried before the endpoint is given up: the items
        that failed (`alike`) may be similar neighbours. If True, calls are sent one at a time from now on. `more`: some
        items have not been sent yet."""
        wanted = min(MAX_SAMPLED_ITEMS, 1 + self._usable + self._disproved) if more else 0
        if sum(item.sampled for item in alike) >= wanted:
            return False
        self._suspect(now)
        return True

    def _suspect(self, now: float) -> None:
        """Pause the endpoint, unless it is paused already, so that calls are sent one at a time until it is known who
        is at fault."""
        if self._paused is None:
            self._paused, self._backoff_until = "failing", now
            self._episode += 1

    def _grow(self) -> None:
        if self._growth_pause >= 1:
            self._growth_pause -= 1
            return
        more = 1.0 if self._window < self._fast_until else max(1.0 / self._window, GROWTH)
        self._window = min(float(self._most), self._window + more)

    # --- transient failures -------------------------------------------------------------------------------------------

    def _rate_limited(self, permit: Permit, asked_s: float, now: float, others: OtherItems) -> Blame:
        """Return who is at fault for a 429, and pause the endpoint unless the fault is probably the item's. `asked_s`
        is the wait in seconds that the server asked for, or 0.

        If an item gets another 429 while many other items are answered and hardly any get a 429, its request is larger
        than the limit ever allows: the item is at fault, and the others continue.
        """
        item, items_fault = permit.item, self._is_items_fault(permit, "transient")
        self._limits += item.limited_at is None
        item.limited_at = answers, limits = item.limited_at or (permit.answers, permit.limits + 1)
        if items_fault and (others.too_few or self._answers - answers > RARE * (self._limits - limits)):
            self._trust = max(-TRUST, self._trust - 1)
            return "item"
        failing = self._failing["transient"]
        failing.add(item)
        alike = len(failing) >= others.enough
        if permit.episode != self._episode:  # sent before the pause
            if self._paused:
                self._backoff_until = max(self._backoff_until, now + asked_s)
        elif alike or self._paused or self._trust >= 0:
            if self._paused is None:
                self._fast_until = max(1.0, SHRINK * min(self._window, max(self._window / 2, self.in_flight)))
            self._back_off("rate limited", asked_s, now)
        else:
            return "item" if items_fault else "unknown"
        return "unknown" if others.too_few and not alike else "endpoint"

    def _failed(self, permit: Permit, asked_s: float, now: float, enough: int) -> Blame:
        """Return who is at fault for a transient failure other than a 429, and pause the endpoint if `enough` different
        items fail. `asked_s` is the wait in seconds that the server asked for, or 0.

        A failure while other items are answered is no sign of an outage. Even during an outage a failure may count as
        the item's: otherwise an item that always times out could be retried forever.
        """
        items_fault = self._is_items_fault(permit, "transient")
        if permit.episode < self._outage:
            return "item" if items_fault else "unknown"
        if self._paused == "not answering":
            self._back_off(self._paused, asked_s, now)
            return "item" if items_fault else "endpoint"
        if self._paused == "rate limited" and permit.probe and permit.episode == self._episode:  # no longer a 429
            self._open()
        self._growth_pause = self._window
        if items_fault:
            return "item"
        failing = self._failing["transient"]
        failing.add(permit.item)
        if len(failing) < enough:
            return "unknown"
        self._back_off("not answering", asked_s, now)
        self._outage = self._episode
        return "unknown"  # until a probe fails, too

    def _is_items_fault(self, permit: Permit, failure: FailureClass) -> bool:
        """Return whether the item is at fault, not the endpoint: the endpoint works, since it has answered a call that
        was sent later than the item's first failed call of this class. Answers to calls sent earlier prove nothing."""
        return self._newest_answered > permit.item.first_failed.setdefault(failure, permit.n)

    def _back_off(self, reason: PauseReason, asked_s: float, now: float) -> None:
        """Pause the endpoint, or extend its pause. The wait grows with each backoff in a row and is at least `asked_s`
        seconds. `_episode`, which counts pauses and their extensions, is incremented: so the results of calls that were
        sent earlier are recognised."""
        self._paused = reason
        self._probing = False
        self._episode += 1
        self._backoffs += 1
        backoff = self._policy.backoff(self._backoffs, self._jitter())
        self._backoff_until = now + max(asked_s, min(backoff, MAX_HINTED_BACKOFF_S) if asked_s else backoff)

    def _open(self) -> None:
        if self._paused not in (None, "failing"):
            self._window = min(self._fast_until, max(2.0, REOPEN * self._fast_until))
        self._paused = None
        self._probing = False
        self._growth_pause = 0.0
        for items in self._failing.values():
            items.clear()

    # --- permanent failures -------------------------------------------------------------------------------------------

    def _refused(self, permit: Permit, error: CallError, now: float, others: OtherItems) -> Blame:
        """Return who is at fault for an access error or a request error; give the endpoint up once enough items fail
        alike.

        Before the endpoint is given up, an item from elsewhere in the queue is tried, unless the server's message names
        the key, the account or the model as the cause.
        """
        failure: FailureClass = "access" if error.kind in ACCESS_ERRORS else "request"
        # rows may be sorted by length: an item longer than all answered ones is at fault if the server says so
        too_long = permit.item.may_split or 0 < self._longest_answered < permit.item.size
        too_long = too_long and error.kind is Kind.CONTEXT_OVERFLOW and error.explicit
        if self._is_items_fault(permit, failure) or too_long:
            return "item"
        alike, certain = self._failing[failure], failure == "access" and error.explicit
        alike.add(permit.item)
        if certain:
            self._suspect(now)
        if len(alike) < others.enough:
            return "unknown"
        needs_sample = not certain and self._needs_sample(alike, others.more_coming, now)
        # calls in flight may still disprove it: a firewall answers at once, a model takes long
        if needs_sample or self.in_flight > 1:
            return "unknown"
        refused = "1 item was" if len(alike) == 1 else f"{len(alike)} items were"
        reason = f"{refused} refused for the same reason, and none was answered: "
        self.given_up = error.message if failure == "access" else reason + error.message
        return "endpoint"
