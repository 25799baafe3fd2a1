"""The budget: the most that a call can cost is reserved before it is sent; its actual cost counts afterwards. No I/O.

- The *bound* of a call is the most that it can cost.
- *Counted spend* is the sum of the actual costs of ended calls. If an actual cost is unknown (a timeout, a broken
  reply), the bound counts instead.
- The *cap* is the pipeline's `budget_usd`.

A call is sent only if counted spend + the bounds of calls in flight + its own bound stay within the cap. So counted
spend never exceeds the cap, however many calls are in flight. The provider's bill is no higher than counted spend.

A crash loses the actual costs of calls in flight. So the journal says in advance how much a run may spend:

- A *ceiling* is an amount in USD that the run writes to its journal. The run spends up to a ceiling only after the
  journal is synced to disk.
- If the run crashes, its last ceiling counts as its spend, even if the run spent less.
- A new ceiling is written before the old one is reached, so that calls seldom wait for a sync.
- The *headroom* of a ceiling is the part beyond counted spend and the bounds of calls in flight or waiting. A crash
  counts the headroom as spent, so it is small: a quarter of these bounds.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf

from aif.core.types import Spent

# Headroom of a ceiling, as a share of the bounds in flight. Calls cost about a fifth of their bound, so with 16 in
# flight a block serves 10 calls, and with 64 in flight 40 calls: more than end within a sync (0.1 s) at 400 a second.
AHEAD = 0.25


@dataclass(frozen=True, slots=True)
class BudgetShortfall:
    """Why the budget refused calls.

    budget: the limit of the store's spend, in USD.
    spent: the store's spend so far.
    bound: the most that the cheapest refused call can cost, in USD.
    """

    budget: float
    spent: Spent
    bound: float


@dataclass
class Account:
    """The spend of one run, in USD.

    limit: the most that the run may spend: what earlier runs left of the budget; infinite without a budget.
    known: the sum of the known costs of ended calls.
    unknown: the sum of the bounds (the most a call can cost) of ended calls whose cost is unknown.
    in_flight: the sum of the bounds of calls in flight.
    calls: the number of calls in flight whose bound is above 0.
    ceiling: the amount that the journal on disk already lets the run spend; at most `limit`.
    """

    limit: float = inf
    known: float = 0.0
    unknown: float = 0.0
    in_flight: float = 0.0
    calls: int = 0
    ceiling: float = 0.0

    @property
    def counted(self) -> float:
        return self.known + self.unknown

    def covers(self, bound: float) -> bool:
        """Return whether a call that costs at most `bound` USD may be sent now. Together, the spend, `bound` and the
        bounds of calls in flight must not exceed `ceiling`."""
        return self.counted + self.in_flight + bound <= self.ceiling  # which is never above the limit

    def never_covers(self, bound: float) -> bool:
        """Return whether a call can't be sent any more in this run: its `bound` (USD) exceeds what is left of the
        limit, even if all calls in flight turn out free."""
        return self.counted + bound > self.limit

    def send(self, bound: float) -> None:
        """Count a call that costs at most `bound` USD as in flight."""
        self.in_flight += bound
        self.calls += 1

    def settle(self, bound: float, usd: float | None) -> None:
        """Count the cost of a call that has ended, `usd`; if it is None, the cost is unknown and `bound` counts."""
        self.calls -= 1
        self.in_flight = self.in_flight - bound if self.calls else 0.0  # drops the sum of rounding errors
        if usd is None:
            self.unknown += bound
        else:
            self.known += usd

    def next_ceiling(self, requested: float, waiting: float) -> float | None:
        """Return the next ceiling in USD to write to the journal; None if `requested` is still high enough. The run may
        spend up to a ceiling once the journal with it is synced to disk.

        requested: the last ceiling that was written to the journal, whether it is synced or not.
        waiting: the sum of the bounds of calls that wait to be sent; a bound is the most that a call can cost.
        """
        ahead = AHEAD * (self.in_flight + waiting)
        used = self.counted + self.in_flight + waiting
        wanted = min(self.limit, used + ahead)
        return wanted if requested < min(self.limit, used + ahead / 2) else None


@dataclass
class _Reservation:
    bound: float
    granted: asyncio.Future[bool]


@dataclass
class Budget:
    """Limits what a run spends: a call is sent only after the most that it can cost is reserved. Calls are admitted in
    the order they arrive, so that cheap calls can't overtake an expensive one forever.

    A run writes to the journal in advance how much it may spend: a *ceiling*, in USD, raised as needed. It spends up to
    a ceiling only after `synced` was called with it, which says that it is on disk.

    cap: the limit in USD for all spend of the store, earlier runs included; None: no limit.
    before: the store's spend before this run.
    write: called as `write(n, ceiling)`; writes the run's n-th ceiling to the journal.
    """

    cap: float | None
    before: Spent
    write: Callable[[int, float], Awaitable[None]]
    account: Account = field(init=False)

    def __post_init__(self) -> None:
        self.account = Account(inf if self.cap is None else self.cap - self.before.counted)
        self._queue: deque[_Reservation] = deque()
        self._waiting = 0.0  # the sum of the bounds in the queue
        self._requested = 0.0
        self._blocks = 0
        self._lowest_refused: float | None = None
        self._stopped = False

    @property
    def spent(self) -> Spent:
        """All that the store has spent so far, before and in this run."""
        known, unknown = self.before.known + self.account.known, self.before.unknown + self.account.unknown
        return Spent(known, unknown, self.before.unpriced)

    @property
    def shortfall(self) -> BudgetShortfall | None:
        """Details of the calls that the budget refused; None if it refused none."""
        if self._lowest_refused is None or self.cap is None:
            return None
        return BudgetShortfall(self.cap, self.spent, self._lowest_refused)

    async def reserve(self, bound: float) -> bool:
        """Reserve `bound` USD, the most that a call can cost. Return True when the call may be sent, False if the
        budget can't cover it any more or the run stops.

        If the budget covers the call only when calls in flight turn out cheaper than their bounds, waits for these
        calls to end. Also waits until a high enough ceiling is on disk.
        """
        if self._stopped or not bound:
            return not self._stopped
        reservation = _Reservation(bound, asyncio.get_running_loop().create_future())
        self._queue.append(reservation)
        self._waiting += bound
        self._admit()
        await self._raise_ceiling()
        return await reservation.granted

    async def settle(self, bound: float, usd: float | None) -> None:
        """Count the actual cost (`usd`) of a call that has ended, and release its reserved `bound`. If `usd` is None,
        the cost is unknown and the bound counts."""
        if bound:
            self.account.settle(bound, usd)
            self._admit()
            await self._raise_ceiling()

    def synced(self, ceiling: float) -> None:
        """Note that a ceiling passed to `write` is on disk, and admit waiting calls that fit within it. Ceilings may be
        noted in any order: the highest counts."""
        self.account.ceiling = max(self.account.ceiling, ceiling)
        self._admit()

    def stop(self) -> None:
        """Refuse all calls from now on, including those that wait in `reserve`."""
        self._stopped = True
        for reservation in self._queue:
            if not reservation.granted.done():
                reservation.granted.set_result(False)
        self._queue.clear()
        self._waiting = 0.0

    async def close(self) -> None:
        """Write the actual spend to the journal as the run's last ceiling, so that unused headroom doesn't count as
        spent. Call it when no call is in flight."""
        if self._blocks:
            await self._write(self.account.counted)

    def _admit(self) -> None:
        while self._queue:
            first = self._queue[0]
            if not first.granted.done():  # done if the waiting task was cancelled
                if self.account.never_covers(first.bound):
                    self._lowest_refused = min(first.bound, self._lowest_refused or inf)
                    first.granted.set_result(False)
                elif self.account.covers(first.bound):
                    self.account.send(first.bound)
                    first.granted.set_result(True)
                else:
                    return
            self._queue.popleft()
            self._waiting = self._waiting - first.bound if self._queue else 0.0  # drops the sum of rounding errors

    async def _raise_ceiling(self) -> None:
        ceiling = self.account.next_ceiling(self._requested, self._waiting)
        if ceiling is not None:
            await self._write(ceiling)

    async def _write(self, ceiling: float) -> None:
        self._requested = ceiling
        self._blocks += 1
        await self.write(self._blocks, ceiling)
