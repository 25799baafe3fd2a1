"""The budget: what a run may still spend, reserved before a call is sent and settled after it. No I/O.

A call is reserved at its *bound*, the most it can cost, and settled at what it did cost; where that is not known (a
timeout, a broken reply), the bound counts. It is sent only while counted + the bounds of those in flight + its own
bound are within the cap, so what is counted never passes the cap, and the bill never passes what is counted.

That a crash does not change this, a run writes down its *ceiling* before it spends up to it: what it counts never
passes a ceiling that is synced. Of a run that crashed the ceiling counts. It is raised in blocks, ahead of need, so
that calls seldom wait for a sync: each leaves room for a quarter of what is in flight, which a crash counts, too.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf

from aif.core.types import Spent

# Of what is in flight. Calls cost about a fifth of their bound, so with 16 in flight one block serves 10 of them, and
# with 64 40: more than end within a sync (0.1 s) at 400 a second.
AHEAD = 0.25


@dataclass(frozen=True, slots=True)
class BudgetShortfall:
    """That the budget did not cover some calls: the least of their bounds, and what was counted as spent by then."""

    budget: float
    spent: Spent
    bound: float


@dataclass
class Account:
    """One run's books in USD: counted (known and unknown), in flight, and the ceiling that is synced."""

    limit: float = inf
    known: float = 0.0
    unknown: float = 0.0
    flying: float = 0.0
    calls: int = 0
    ceiling: float = 0.0

    @property
    def counted(self) -> float:
        return self.known + self.unknown

    def covers(self, bound: float) -> bool:
        """Whether a call may be sent now. The ceiling is never above the limit."""
        return self.counted + self.flying + bound <= self.ceiling

    def never_covers(self, bound: float) -> bool:
        """Whether it doesn't fit even when all that is in flight turns out to cost nothing."""
        return self.counted + bound > self.limit

    def send(self, bound: float) -> None:
        self.flying += bound
        self.calls += 1

    def settle(self, bound: float, usd: float | None) -> None:
        """A call has come to its end: what it cost, or None where nothing tells."""
        self.calls -= 1
        self.flying = self.flying - bound if self.calls else 0.0  # nothing is left of many roundings
        if usd is None:
            self.unknown += bound
        else:
            self.known += usd

    def short_of(self, asked: float, waiting: float) -> float | None:
        """The next ceiling to write down, where the one asked for last leaves too little room for calls of so much
        that wait, and for those to come."""
        ahead = AHEAD * (self.flying + waiting)
        used = self.counted + self.flying + waiting
        wanted = min(self.limit, used + ahead)
        return wanted if asked < min(self.limit, used + ahead / 2) else None


@dataclass
class _Turn:
    bound: float
    sent: asyncio.Future[bool]


@dataclass
class Budget:
    """The gate that calls pass in the order they came, so that dear ones are not passed by for ever.

    `cap` is in USD and holds for all that the store ever spent, of which `before` was before this run; None sets no
    limit. `write` hands a ceiling over to be synced, numbered from 1; `synced` is told when it is.
    """

    cap: float | None
    before: Spent
    write: Callable[[int, float], Awaitable[None]]
    account: Account = field(init=False)

    def __post_init__(self) -> None:
        self.account = Account(inf if self.cap is None else self.cap - self.before.counted)
        self._turns: deque[_Turn] = deque()
        self._waiting = 0.0  # the sum of their bounds
        self._asked = 0.0
        self._blocks = 0
        self._least: float | None = None
        self._stopped = False

    @property
    def spent(self) -> Spent:
        """By the store, up to now."""
        known, unknown = self.before.known + self.account.known, self.before.unknown + self.account.unknown
        return Spent(known, unknown, self.before.unpriced)

    @property
    def shortfall(self) -> BudgetShortfall | None:
        """Set once a call was not covered."""
        return None if self._least is None or self.cap is None else BudgetShortfall(self.cap, self.spent, self._least)

    async def reserve(self, bound: float) -> bool:
        """True when a call that costs at most so much can be sent; False where this run's budget can't cover it any
        more, or no call is to be made. Waits while what is in flight may still turn out cheaper."""
        if self._stopped or not bound:
            return not self._stopped
        turn = _Turn(bound, asyncio.get_running_loop().create_future())
        self._turns.append(turn)
        self._waiting += bound
        self._let_go()
        await self._raise_ceiling()
        return await turn.sent

    async def settle(self, bound: float, usd: float | None) -> None:
        """What a reserved call cost in the end; None: not known."""
        if bound:
            self.account.settle(bound, usd)
            self._let_go()
            await self._raise_ceiling()

    def synced(self, ceiling: float) -> None:
        """The highest holds: where the disk is behind, a later one may come first."""
        self.account.ceiling = max(self.account.ceiling, ceiling)
        self._let_go()

    def stop(self) -> None:
        """No further call is made: nobody waits."""
        self._stopped = True
        for turn in self._turns:
            if not turn.sent.done():
                turn.sent.set_result(False)
        self._turns.clear()
        self._waiting = 0.0

    async def close(self) -> None:
        """Nothing is in flight any more, and nothing will be: what was counted is all that was spent."""
        if self._blocks:
            await self._write(self.account.counted)

    def _let_go(self) -> None:
        while self._turns:
            turn = self._turns[0]
            if not turn.sent.done():  # else whoever waited has left
                if self.account.never_covers(turn.bound):
                    self._least = min(turn.bound, self._least or inf)
                    turn.sent.set_result(False)
                elif self.account.covers(turn.bound):
                    self.account.send(turn.bound)
                    turn.sent.set_result(True)
                else:
                    return
            self._turns.popleft()
            self._waiting = self._waiting - turn.bound if self._turns else 0.0  # nothing is left of many roundings

    async def _raise_ceiling(self) -> None:
        wanted = self.account.short_of(self._asked, self._waiting)
        if wanted is not None:
            await self._write(wanted)

    async def _write(self, ceiling: float) -> None:
        self._asked = ceiling
        self._blocks += 1
        await self.write(self._blocks, ceiling)
