"""Budget: the simulator adds up what each run costs, while runs are killed and calls fail."""

import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.config.pipeline import load
from aif.engine.run import run_pipeline
from aif.providers.retry import RetryPolicy
from aif.simulator.faults import Arrival, Fault, Faults, InjectedFault
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from trials.reliability import Figures
from trials.reliability.simulated_run import CallLog, pipeline, served, start

NUMBER = 12
PROMISE = (
    "Spend never exceeds the budget, even if runs are killed or calls never answered, and at least 97% of it is used."
)

PROMPTS = 150  # more than the budget pays for
PRICE = {"input": 1.0, "cached_input": 0.25, "output": 4.0}  # USD per million tokens
# a late reply, sent after the client has given up, is billed like any other
FAULTS = Faults(
    {Fault.LATE: 0.01, Fault.SERVER_ERROR: 0.02, Fault.BROKEN_JSON: 0.02, Fault.CUT: 0.01}, seconds={Fault.LATE: 5.0}
)
TIMEOUT_S = 1.5
QUICK = RetryPolicy(first_wait_s=0.05, longest_wait_s=0.2)


def trial(folder: Path, full: bool) -> Figures:
    """Run 50 stores with up to two kills each and 3 without, each with 0.5 USD (60 prompts; 40 times the cost of the
    most expensive call).

    A short run has one of each, with 0.1 USD.
    """
    budget, concurrency = (0.5, 8) if full else (0.1, 2)
    stores, kills, more = (50, 2, 3) if full else (1, 1, 1)
    killed = [_killed(folder / f"killed-{n}", budget, concurrency, random.Random(n), kills) for n in range(stores)]
    calm = [_calm(folder / f"calm-{n}", budget, concurrency) for n in range(more)]
    return {"budget": budget, "killed": killed, "calm": calm}


def violations(figures: Figures) -> list[str]:
    problems = []
    for n, store in enumerate([*figures["killed"], *figures["calm"]]):
        problems += [] if store["reached"] else [f"store {n}: the run did not stop at the budget"]
        for state in (store, *store.get("at_kills", ())):
            problems += (
                [f"store {n}: billed {state['bill']}, counted {state['counted']}"]
                if state["bill"] > state["counted"]
                else []
            )
        problems += [f"store {n}: counted {store['counted']}"] if store["counted"] > figures["budget"] + 1e-9 else []
        problems += [f"store {n}: used {store['counted']}"] if store["counted"] < 0.97 * figures["budget"] else []
    problems += [
        f"billed {store['bill']} undisturbed" for store in figures["calm"] if store["bill"] < 0.97 * figures["budget"]
    ]
    if not all(state["unknown"] for store in figures["killed"] for state in store["at_kills"]):
        problems.append("no call was in flight at a kill, so the trial is void")
    return problems


def summary(figures: Figures) -> str:
    killed, calm = figures["killed"], figures["calm"]
    kills = sum(store["kills"] for store in killed)
    bills, counted = ([store[name] / figures["budget"] for store in killed] for name in ("bill", "counted"))
    return (
        f"{len(killed)} stores, {kills} kills, {sum(store['calls'] for store in killed):,} calls of which 6% failed: "
        f"billed {_range(bills)} of the budget, counted {_range(counted)}; "
        f"undisturbed, billed {_range([store['bill'] / figures['budget'] for store in calm])}"
    )


def _range(shares: Sequence[float]) -> str:
    least, most = f"{min(shares):.1%}", f"{max(shares):.1%}"
    return least if least == most else f"{least} to {most}"


def _killed(folder: Path, budget: float, concurrency: int, draw: random.Random, most: int) -> Figures:
    """Kill runs of a store with calls in flight, then run to the end; return what was billed and counted."""

    def fault_for(arrival: Arrival) -> InjectedFault:
        return FAULTS(arrival) or InjectedFault(Fault.LATE, seconds=draw.uniform(0.02, 0.2))

    call_log = CallLog()
    with served(call_log, faults=fault_for) as server:
        path = _pipeline(folder, server.base_url, budget, concurrency)
        kills, at_kills = draw.randint(1, most), []
        for _ in range(kills):
            target = len(call_log.calls) + draw.randint(5, 10 * concurrency)
            process = start("run", path)
            while process.poll() is None and len(call_log.calls) < target:
                time.sleep(0.005)
            process.kill()
            process.communicate()
            time.sleep(0.3)  # until the server has noticed the kill and logged the calls in flight
            JournaledStore.open(_store(path), lambda words: None).close()
            at_kills.append(_bill_and_count(path, call_log))
        reached = _ended(path)
    return {"kills": kills, "at_kills": at_kills, "reached": reached} | _bill_and_count(path, call_log)


def _calm(folder: Path, budget: float, concurrency: int) -> Figures:
    """Run a store to its end undisturbed; return what was billed and counted."""
    call_log = CallLog()
    with served(call_log) as server:
        path = _pipeline(folder, server.base_url, budget, concurrency)
        reached = _ended(path)
    return {"kills": 0, "reached": reached} | _bill_and_count(path, call_log)


def _ended(path: Path) -> bool:
    """Run to the end; return whether the run stopped at the budget."""
    return run_pipeline(load(path), Terminal(Console(quiet=True)), policy=QUICK).calling.budget_shortfall is not None


def _pipeline(folder: Path, base_url: str, budget: float, concurrency: int) -> Path:
    paid = {"price": PRICE, "timeout_s": TIMEOUT_S, "concurrency": concurrency}
    judge = {**paid, "max_tokens": 1500}
    return pipeline(folder, base_url, PROMPTS, budget_usd=budget, models=paid, judges=judge)


def _bill_and_count(path: Path, call_log: CallLog) -> dict[str, Any]:
    """Return what the server billed and what the store counts, in USD."""
    with Reader.open(_store(path)) as reader:
        spent = reader.spent()
    calls = call_log.calls
    return {
        "calls": len(calls),
        "bill": round(sum(_usd(call.usage) for call in calls if call.usage), 9),
        "counted": round(spent.counted, 9),
        "unknown": round(spent.unknown, 9),
    }


def _store(path: Path) -> Path:
    return path.parent / "store" / "feedback.duckdb"


def _usd(usage: Mapping[str, Any]) -> float:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    uncached, output = usage["prompt_tokens"] - cached, usage["completion_tokens"]
    return float(uncached * PRICE["input"] + cached * PRICE["cached_input"] + output * PRICE["output"]) / 1e6
