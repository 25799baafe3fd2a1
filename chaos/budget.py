"""Budget: the simulator keeps the bill, run by run, while runs are killed and calls go wrong."""

import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.config.pipeline import load
from aif.engine.feedback import feedback
from aif.providers.retry import RetryPolicy
from aif.simulator.faults import Arrival, Fault, Faults, Mishap
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from chaos import Figures
from chaos.house import Record, pipeline, served, start

NUMBER = 12
PROMISE = "Spend never passes the budget, whatever is killed or never answered, and at least 97% of it is used."

PROMPTS = 150  # more than there is money for
PRICE = {"input": 1.0, "cached_input": 0.25, "output": 4.0}  # USD per million tokens
# a reply that comes after the client has gone is billed, as every other that was made
FAULTS = Faults(
    {Fault.LATE: 0.01, Fault.SERVER_ERROR: 0.02, Fault.BROKEN_JSON: 0.02, Fault.CUT: 0.01}, seconds={Fault.LATE: 5.0}
)
TIMEOUT_S = 1.5
QUICK = RetryPolicy(first_wait_s=0.05, longest_wait_s=0.2)


def trial(folder: Path, full: bool) -> Figures:
    """Fifty stores with up to two kills each and three without, at 0.5 dollars (60 prompts; 40 bounds of the dearest
    calls); in short one of each, at a fifth of that."""
    budget, flying = (0.5, 8) if full else (0.1, 2)
    stores, kills, more = (50, 2, 3) if full else (1, 1, 1)
    killed = [_killed(folder / f"killed-{n}", budget, flying, random.Random(n), kills) for n in range(stores)]
    calm = [_calm(folder / f"calm-{n}", budget, flying) for n in range(more)]
    return {"budget": budget, "killed": killed, "calm": calm}


def broken(figures: Figures) -> list[str]:
    wrong = []
    for n, one in enumerate([*figures["killed"], *figures["calm"]]):
        wrong += [] if one["reached"] else [f"store {n}: the budget did not end it"]
        for at in (one, *one.get("at_kills", ())):
            wrong += [f"store {n}: billed {at['bill']}, counted {at['counted']}"] if at["bill"] > at["counted"] else []
        wrong += [f"store {n}: counted {one['counted']}"] if one["counted"] > figures["budget"] + 1e-9 else []
        wrong += [f"store {n}: used {one['counted']}"] if one["counted"] < 0.97 * figures["budget"] else []
    wrong += [f"billed {one['bill']} undisturbed" for one in figures["calm"] if one["bill"] < 0.97 * figures["budget"]]
    if not all(at["unknown"] for one in figures["killed"] for at in one["at_kills"]):
        wrong.append("a kill hit nothing in flight, so nothing was tried")
    return wrong


def told(figures: Figures) -> str:
    killed, calm = figures["killed"], figures["calm"]
    kills = sum(one["kills"] for one in killed)
    bills, counted = ([one[name] / figures["budget"] for one in killed] for name in ("bill", "counted"))
    return (
        f"{len(killed)} stores, {kills} kills, {sum(one['calls'] for one in killed):,} calls of which 6% went wrong: "
        f"billed {_range(bills)} of the budget, counted {_range(counted)}; "
        f"undisturbed, billed {_range([one['bill'] / figures['budget'] for one in calm])}"
    )


def _range(shares: Sequence[float]) -> str:
    least, most = f"{min(shares):.1%}", f"{max(shares):.1%}"
    return least if least == most else f"{least} to {most}"


def _killed(folder: Path, budget: float, flying: int, draw: random.Random, most: int) -> Figures:
    """A store of which a run or two are killed with calls in flight, and the next is left to its end."""

    def befall(arrival: Arrival) -> Mishap:
        return FAULTS(arrival) or Mishap(Fault.LATE, seconds=draw.uniform(0.02, 0.2))

    record = Record()
    with served(record, faults=befall) as one:
        path = _pipeline(folder, one.base_url, budget, flying)
        kills, at_kills = draw.randint(1, most), []
        for _ in range(kills):
            target = len(record.calls) + draw.randint(5, 10 * flying)
            process = start("run", path)
            while process.poll() is None and len(record.calls) < target:
                time.sleep(0.005)
            process.kill()
            process.communicate()
            time.sleep(0.3)  # until the server has noticed, and tells of what was in flight
            JournaledStore.open(_store(path), lambda words: None).close()
            at_kills.append(_books(path, record))
        reached = _ended(path)
    return {"kills": kills, "at_kills": at_kills, "reached": reached} | _books(path, record)


def _calm(folder: Path, budget: float, flying: int) -> Figures:
    """A store that nothing happens to."""
    record = Record()
    with served(record) as one:
        path = _pipeline(folder, one.base_url, budget, flying)
        reached = _ended(path)
    return {"kills": 0, "reached": reached} | _books(path, record)


def _ended(path: Path) -> bool:
    """A run to its end: whether that was the budget's."""
    return feedback(load(path), Terminal(Console(quiet=True)), policy=QUICK).asked.short is not None


def _pipeline(folder: Path, base_url: str, budget: float, flying: int) -> Path:
    paid = {"price": PRICE, "timeout_s": TIMEOUT_S, "concurrency": flying}
    judge = {**paid, "max_tokens": 1500}
    return pipeline(folder, base_url, PROMPTS, budget_usd=budget, models=paid, judges=judge)


def _books(path: Path, record: Record) -> dict[str, Any]:
    """The server's bill beside what the store counts, in USD."""
    with Reader.open(_store(path)) as reader:
        spent = reader.spent()
    calls = record.calls
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
    plain, said = usage["prompt_tokens"] - cached, usage["completion_tokens"]
    return float(plain * PRICE["input"] + cached * PRICE["cached_input"] + said * PRICE["output"]) / 1e6
