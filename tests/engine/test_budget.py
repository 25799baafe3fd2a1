"""The budget holds over any order of calls, syncs and crashes, and in runs against a simulator with a bill."""

import asyncio
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.core.errors import Exit
from aif.core.types import UNSPENT, Message, Spent
from aif.engine.budget import Account, Budget
from aif.engine.orchestrator import MAX_UNCOVERED
from aif.judging.request import max_input_tokens
from aif.providers.base import Request
from aif.simulator import Call
from aif.simulator.faults import Fault, Faults
from aif.store import records
from aif.store.database import Store
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from tests.engine.test_orchestrator import aif, ask, run, write
from tests.support.building import Fate, build
from tests.support.serving import Served

Serve = Callable[..., Served]

PRICE = {"input": 1.0, "output": 4.0}


# --- any order of events ----------------------------------------------------------------------------------------------


@dataclass
class World:
    """A provider's bill, the records synced to disk, and the current run."""

    cap: float | None
    bill: float = 0.0
    disk: list[tuple[str, float | None]] = field(default_factory=list)  # ("reserve", ceiling) | ("call", counted)
    past: float = 0.0

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.buffer: list[tuple[str, float | None]] = []
        self.disk = []
        self.budget = Budget(self.cap, Spent(self.past), self.write)
        self.waiting: list[tuple[float, asyncio.Task[bool]]] = []
        self.flying: list[float] = []

    async def write(self, n: int, ceiling: float) -> None:
        self.buffer.append(("reserve", ceiling))

    def sync(self) -> None:
        for record in self.buffer:
            self.disk.append(record)
            if record[0] == "reserve":
                self.budget.synced(record[1] or 0.0)
        self.buffer.clear()

    async def turn(self) -> None:
        """Let every task run as far as it can; admitted calls are in flight from then on."""
        for _ in range(3):
            await asyncio.sleep(0)
        for bound, task in list(self.waiting):
            if task.done():
                self.waiting.remove((bound, task))
                if task.result():
                    self.flying.append(bound)

    async def settle(self, at: int, share: float, known: bool) -> None:
        if self.flying:
            bound = self.flying.pop(at % len(self.flying))
            self.bill += bound * share
            await self.budget.settle(bound, bound * share if known else None)
            self.buffer.append(("call", bound * share if known else bound))

    def counted(self) -> float:
        """Return the run's spend by the records on disk: the sum of its calls, or its last ceiling if higher."""
        ceilings = [usd or 0.0 for kind, usd in self.disk if kind == "reserve"]
        calls = sum(usd or 0.0 for kind, usd in self.disk if kind == "call")
        return max(calls, ceilings[-1] if ceilings else 0.0)

    async def crash(self, torn: int) -> None:
        """Kill the run: some of the unsynced records survive, and all calls in flight are billed in full."""
        self.bill += sum(self.flying)
        self.disk += self.buffer[: torn % (len(self.buffer) + 1)]
        self.past += self.counted()
        for _, task in self.waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in self.waiting), return_exceptions=True)
        self.begin()

    def check(self) -> None:
        counted = self.past + self.counted()
        assert self.bill + sum(self.flying) <= counted + 1e-9
        assert self.cap is None or counted <= self.cap + 1e-9


Step = tuple[Any, ...]
STEPS = st.one_of(
    st.tuples(st.just("ask"), st.floats(0.001, 3.0)),
    st.tuples(st.just("ask"), st.just(0.2)),
    st.tuples(st.just("settle"), st.integers(0, 50), st.floats(0, 1), st.booleans()),
    st.tuples(st.just("sync")),
    st.tuples(st.just("crash"), st.integers(0, 50)),
)


@given(st.lists(STEPS, max_size=80), st.one_of(st.none(), st.floats(0.1, 20.0)))
def test_the_bill_stays_within_counted_spend_and_counted_spend_within_the_cap(
    steps: list[Step], cap: float | None
) -> None:
    async def live() -> None:
        world = World(cap)
        for name, *arguments in steps:
            match name:
                case "ask":
                    world.waiting.append((arguments[0], asyncio.create_task(world.budget.reserve(arguments[0]))))
                case "settle":
                    await world.settle(*arguments)
                case "sync":
                    world.sync()
                case "crash":
                    await world.crash(*arguments)
            await world.turn()
            world.check()
        while world.waiting or world.flying:  # no call waits forever
            before = len(world.waiting) + len(world.flying)
            await world.settle(0, 0.5, True)
            world.sync()
            await world.turn()
            world.sync()
            await world.turn()
            world.check()
            assert len(world.waiting) + len(world.flying) <= before
            if not world.flying:
                assert not world.waiting
        if world.budget.account.counted:
            await world.budget.close()
            world.sync()
            assert world.counted() == pytest.approx(world.budget.account.counted)

    asyncio.run(live())


@given(st.integers(0, 2**32), st.integers(1, 32))
def test_less_than_one_bound_of_the_budget_stays_unspent(seed: int, workers: int) -> None:
    """Calls cost about a fifth of their bound, as real calls do; at the end they are admitted one by one."""
    draw = random.Random(seed)

    async def spend() -> Budget:
        async def write(n: int, ceiling: float) -> None:
            asyncio.get_running_loop().call_soon(budget.synced, ceiling)

        async def work() -> None:
            while await budget.reserve(0.02):
                await asyncio.sleep(0)
                await budget.settle(0.02, draw.uniform(0.001, 0.006))

        budget = Budget(1.0, UNSPENT, write)
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())
        return budget

    spent = asyncio.run(spend()).spent
    assert 0.98 < spent.known <= 1.0


async def test_a_block_serves_many_calls_and_leaves_little_to_a_crash() -> None:
    written: list[float] = []

    async def write(n: int, ceiling: float) -> None:
        written.append(ceiling)
        budget.synced(ceiling)

    budget = Budget(None, UNSPENT, write)
    for _ in range(16):
        await budget.reserve(0.02)
    first = len(written)
    for _ in range(1000):
        await budget.settle(0.02, 0.004)
        await budget.reserve(0.02)
        left = budget.account.ceiling - budget.account.counted - budget.account.in_flight
        assert 0 <= left <= 0.25 * budget.account.in_flight + 1e-9

    assert len(written) - first <= 1000 / 9


async def test_a_call_waits_for_its_ceiling_to_be_synced() -> None:
    written: list[float] = []

    async def write(n: int, ceiling: float) -> None:
        written.append(ceiling)

    budget = Budget(1.0, UNSPENT, write)
    task = asyncio.create_task(budget.reserve(0.1))
    for _ in range(5):
        await asyncio.sleep(0)
    assert written
    assert not task.done()
    budget.synced(written[-1])
    assert await task
    assert await budget.reserve(0.0), "a free call does not wait"


async def test_ceilings_synced_out_of_order_block_no_call() -> None:
    """A writer that waits for room in a full queue can be overtaken."""
    written: list[float] = []

    async def write(n: int, ceiling: float) -> None:
        written.append(ceiling)

    budget = Budget(1.0, UNSPENT, write)
    tasks = []
    for bound in (0.1, 0.3):
        tasks.append(asyncio.create_task(budget.reserve(bound)))
        await asyncio.sleep(0)
    assert len(written) == 2
    for ceiling in reversed(written):
        budget.synced(ceiling)
    assert await asyncio.gather(*tasks) == [True, True]
    second = asyncio.create_task(budget.reserve(0.05))
    await asyncio.sleep(0)
    assert second.done(), "it is within the synced ceiling"


async def test_cheap_calls_do_not_overtake_an_expensive_one_forever() -> None:
    async def write(n: int, ceiling: float) -> None:
        budget.synced(ceiling)

    budget = Budget(1.0, UNSPENT, write)
    assert await budget.reserve(0.5)
    expensive = asyncio.create_task(budget.reserve(0.8))
    await asyncio.sleep(0)
    cheap = asyncio.create_task(budget.reserve(0.1))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not expensive.done()
    assert not cheap.done()
    await budget.settle(0.5, 0.05)
    assert await expensive
    assert await cheap
    assert budget.shortfall is None
    assert not await budget.reserve(0.96), "more than is left, whatever the calls in flight cost"
    assert budget.shortfall is not None
    assert budget.shortfall.bound == 0.96


async def test_a_stop_refuses_waiting_calls() -> None:
    async def write(n: int, ceiling: float) -> None:
        pass

    budget = Budget(1.0, UNSPENT, write)
    task = asyncio.create_task(budget.reserve(0.1))
    await asyncio.sleep(0)
    budget.stop()
    assert not await task
    assert not await budget.reserve(0.0)
    assert budget.shortfall is None


def test_a_budget_below_what_was_counted_covers_nothing() -> None:
    account = Account(-2.0)
    assert account.never_covers(0.01)
    assert account.next_ceiling(0.0, 0.0) is None


@given(st.text(), st.lists(st.text(), min_size=1, max_size=5))
def test_no_tokenizer_makes_more_tokens_than_are_counted(schema: str, texts: list[str]) -> None:
    request = Request(tuple(Message("user", text) for text in texts), 10, schema={"title": schema})
    assert max_input_tokens(request) >= sum(len(text.encode()) for text in (*texts, schema))


# --- in the journal and the store -------------------------------------------------------------------------------------


def spent(journaled: JournaledStore) -> Spent:
    with Reader.of(journaled.store) as reader:
        total = reader.spent()
    return Spent(round(total.known, 9), round(total.unknown, 9), total.unpriced)


def test_the_ceiling_of_a_crashed_run_counts_once_however_often_it_is_read(tmp_path: Path) -> None:
    _, _, journaled = build(tmp_path, 2, complete=lambda n, m: f"{m} on {n}", rate=lambda n, m, a: Fate.PENDING)
    with journaled:
        assert spent(journaled) == Spent(0.008, 0.0, 0)  # 8 completions at 0.001, of the run `built`
        first = records.reserve("built", 1, 0.01)
        journaled.keep([first, records.reserve("built", 2, 0.02), records.reserve("other", 1, 0.5)])
        assert spent(journaled) == Spent(0.008, 0.512, 0)
        journaled.keep([first])
        assert spent(journaled) == Spent(0.008, 0.512, 0), "an old ceiling is read again"
        journaled.keep([records.reserve("built", 3, 0.008), records.reserve("other", 2, 0.0)])
        assert spent(journaled) == Spent(0.008, 0.0, 0), "both runs closed their ceilings"
    with JournaledStore.open(journaled.paths.store, lambda words: None, rebuild=True) as rebuilt:
        assert spent(rebuilt) == Spent(0.008, 0.0, 0)


def test_nothing_was_spent_in_an_empty_store(tmp_path: Path) -> None:
    Store.open(tmp_path / "s.duckdb").close()
    with Reader.open(tmp_path / "s.duckdb") as reader:
        assert reader.spent() == UNSPENT


# --- whole runs -------------------------------------------------------------------------------------------------------


def priced(folder: Path, served: Served, count: int = 40, price: dict[str, float] = PRICE, **changes: Any) -> Path:
    """Write a pipeline whose judge costs money and whose models don't."""
    judge = {"provider": "openai", "base_url": served.base_url, "price": price, "max_tokens": 1500}
    return write(folder, served, count=count, judges={"judge": judge}, **changes)


class Bill:
    """Sums up what the simulator charges for the judge: every reply it sent, whether or not it arrived."""

    def __init__(self) -> None:
        self.usd = 0.0
        self.calls = 0

    def __call__(self, call: Call) -> None:
        self.calls += call.model == "judge"
        if call.model == "judge" and call.usage:
            tokens = call.usage["prompt_tokens"], call.usage["completion_tokens"]
            self.usd += (tokens[0] * PRICE["input"] + tokens[1] * PRICE["output"]) / 1e6


def test_a_run_stops_at_its_budget_and_resumes_with_a_higher_one(tmp_path: Path, serve: Serve) -> None:
    bill = Bill()
    served = serve(on_call=bill)
    path = priced(tmp_path, served, budget_usd=0.12)
    ended = aif("run", path)

    assert ended.returncode == Exit.BUDGET, ended.stderr
    assert re.search(
        r"budget reached: \$0.1\d+ spent in all; \$0.0\d+ of the budget of \$0.1200 left, and the next call may cost "
        r"\$0.01\d+; raise budget_usd, and `aif run .*pipeline.yaml` resumes$",
        ended.stderr.strip(),
    )
    assert "of the budget of $0.1200 left" in ended.stdout, "the summary shows it too"
    assert 0.12 - 0.02 < bill.usd <= 0.12
    status = aif("status", path)
    assert f"${bill.usd:.4f} spent in all; ${0.12 - bill.usd:.4f} of the budget of $0.1200 left" in status.stdout

    before = bill.calls
    assert aif("run", path).returncode == Exit.BUDGET
    assert bill.calls == before, "no call is made with the same budget"
    estimate = aif("estimate", path)
    assert (
        f"this is more than the ${0.12 - bill.usd:.4f} left of budget_usd, where the run would stop" in estimate.stdout
    )

    pipeline, higher = run(path, "budget_usd=1")
    assert not higher.incomplete
    assert higher.calling.budget_shortfall is None
    assert ask(pipeline, "SELECT round(known, 9) AS usd, unknown FROM spent") == [
        {"usd": round(bill.usd, 9), "unknown": 0.0}
    ]
    assert not run(path)[1].calling.budget_shortfall, "a finished run needs no budget, even one that spent more"


def test_a_budget_below_the_cost_of_one_call_is_an_error(tmp_path: Path, serve: Serve) -> None:
    bill = Bill()
    path = priced(tmp_path, serve(on_call=bill), count=2, budget_usd=0.001)
    ended = aif("run", path)

    assert ended.returncode == Exit.BUDGET
    assert "the budget of $0.0010 does not cover one call, which may cost $0.01" in ended.stderr
    assert "--set budget_usd=… --set" in aif("run", path, "--set", "budget_usd=0.002", "--set", "seed=0").stderr
    assert bill.calls == 0


def test_free_endpoints_stop_too_once_no_paid_call_is_covered(tmp_path: Path, serve: Serve) -> None:
    bill = Bill()
    served = serve(on_call=bill, latency_s=0.05)
    count, two = MAX_UNCOVERED + 250, {"per_prompt": 2, "max_tokens": 64}
    path = priced(tmp_path, served, count=count, budget_usd=0.001, completions=two)
    assert run(path, limit=MAX_UNCOVERED)[1].calling.budget_shortfall
    assert served.stats()["calls"] == 2 * MAX_UNCOVERED, "the free models resumed: too few calls in a row were refused"
    assert run(path, "models.*.concurrency=1")[1].calling.budget_shortfall

    assert bill.calls == 0
    assert served.stats()["calls"] < 2 * count


def test_a_call_of_unknown_cost_counts_at_its_bound_and_is_shown_as_unknown(tmp_path: Path, serve: Serve) -> None:
    """Broken replies are billed like others: the bill stays below counted spend."""
    bill = Bill()
    faults = Faults({Fault.BROKEN_JSON: 0.3, Fault.SERVER_ERROR: 0.2})
    served = serve(on_call=bill, faults=lambda arrival: faults(arrival) if arrival.model == "judge" else None)
    path = priced(tmp_path, served, budget_usd=0.2)
    pipeline, ended = run(path)
    ((known, unknown),) = [row.values() for row in ask(pipeline, "SELECT known, unknown FROM spent")]
    ((unanswered, bounds),) = [
        row.values() for row in ask(pipeline, "SELECT count(*), sum(bound) FROM calls WHERE usd IS NULL")
    ]

    assert ended.calling.budget_shortfall
    assert unanswered > 0
    assert unknown == pytest.approx(bounds)
    assert known < bill.usd <= known + unknown <= 0.2
    assert f"of which up to ${unknown:.4f} unknown" in aif("status", path).stdout
    (judge,) = ask(pipeline, "SELECT * FROM spend WHERE endpoint = 'judge'")
    assert (judge["usd"], judge["unknown"], judge["unpriced"]) == (
        pytest.approx(known), pytest.approx(unknown), 0
    )  # fmt: skip


def test_a_rubric_trial_has_the_same_budget(tmp_path: Path, serve: Serve) -> None:
    bill = Bill()
    path = priced(tmp_path, serve(on_call=bill), count=4)
    run(path)
    before = bill.usd
    trial = aif("rubric", "try", "mt-bench", path, "--yes", "--set", f"budget_usd={before + 0.02:.6f}")

    assert trial.returncode == Exit.BUDGET, trial.stderr
    assert "left; raise" not in trial.stderr
    assert "of the budget left" in trial.stderr
    assert before < bill.usd <= before + 0.02
