"""Item counts add up: status, summary and card report the same counts after any run, and the server confirms them."""

import io
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.cli.views.summary import print_status, print_summary
from aif.config.pipeline import Pipeline, load
from aif.core.errors import Incomplete
from aif.engine.prepare import rubric_of
from aif.engine.progress import read_snapshot
from aif.engine.run import run_pipeline
from aif.export.dataset import export
from aif.providers.retry import RetryPolicy
from aif.simulator.faults import Fault, Faults
from aif.store.journaled_store import JournaledStore
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from trials.reliability import Figures
from trials.reliability.simulated_run import JUDGE, CallLog, pipeline, served, start

NUMBER = 8
PROMISE = (
    "Item counts add up: prompts × slots = done + failed + pending, in status, summary and card; an export below the "
    "required completeness is refused, and the message says what is missing"
)
QUICK = RetryPolicy(attempts=2, first_wait_s=0.01, longest_wait_s=0.02)


def trial(folder: Path, full: bool) -> Figures:
    """Compare the counts after a run of half the prompts, a killed run (at full length), a full run, another plan."""
    prompts, call_log, states = 1500 if full else 12, CallLog(), []
    half = prompts // 2
    with served(call_log, faults=Faults({Fault.REFUSAL: 0.08}, lasting=True)) as server:
        path = pipeline(folder, server.base_url, prompts)
        run_pipeline(load(path), Terminal(Console(quiet=True)), limit=half, policy=QUICK)
        states.append(_state(f"--limit {half}", load(path), folder, call_log, prompts, 4))
        if full:
            _kill_in_mid_run(path, folder)
            # only the server knows what was in flight when the run was killed
            states.append(_state("killed", load(path), folder, None, prompts, 4))
        run_pipeline(load(path), Terminal(Console(quiet=True)), policy=QUICK)
        states.append(_state("finished", load(path), folder, None if full else call_log, prompts, 4))
        states.append(_refused(load(path, ["export.incomplete=refuse"]), folder))
        other = load(path, ["completions.per_prompt=3", "completions.temperature=0.7"])
        run_pipeline(other, Terminal(Console(quiet=True)), limit=half, policy=QUICK)
        states.append(_state("another plan", other, folder, None, prompts, 3))
    return {"prompts": prompts, "states": states}


def _kill_in_mid_run(path: Path, folder: Path) -> None:
    run, file = start("run", path, stdout=subprocess.DEVNULL), StorePaths(folder / "store" / "feedback.duckdb").progress
    end = time.monotonic() + 30

    def answered() -> int:
        left = read_snapshot(file)
        return sum(line.answered for line in left.lines) if left else 0

    first = 0
    while not first or answered() < first + 100:
        first = first or answered()
        assert run.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < end, "the run makes no progress"
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()


def _state(
    name: str, pipeline: Pipeline, folder: Path, call_log: CallLog | None, prompts: int, slots: int
) -> dict[str, Any]:
    """Return the counts in status, summary and card: wanted, answered, failed and pending completions, then judgements.

    With a call log, also how many the server answered.
    """
    out = folder / "dataset"
    with JournaledStore.open(pipeline.store, lambda words: None) as journaled:
        export(pipeline, rubric_of(pipeline), journaled, out, lambda words: None)
    with Reader.open(pipeline.store) as reader:
        texts = {
            "status": _printed(lambda console: print_status(console, reader)),
            "summary": _printed(lambda console: print_summary(console, reader, 1.0)),
            "card": (out / "README.md").read_text(encoding="utf-8"),
        }
    return {
        "name": name,
        "wanted": prompts * slots,
        "told": {where: _balances(text) for where, text in texts.items()},
        "served": _served(call_log) if call_log else None,
    }


def _printed(tell: Callable[[Console], None]) -> str:
    screen = io.StringIO()
    tell(Console(width=300, file=screen))
    return screen.getvalue()


def _balances(text: str) -> list[list[int]]:
    matches = re.findall(r"([\d,]+) (?:completion|judgement)s? = ([\d,]+) \w+ \+ ([\d,]+) \w+ \+ ([\d,]+)", text)
    return [[int(n.replace(",", "")) for n in match] for match in matches]


def _served(call_log: CallLog) -> list[int]:
    """Return how many bodies got a usable reply: those of the pool, then those of the judge."""
    keys = {(call.model == JUDGE, call.key) for call in call_log.calls if call.sent and call.usage and not call.fault}
    return [sum(judged is side for judged, _ in keys) for side in (False, True)]


def _refused(pipeline: Pipeline, folder: Path) -> dict[str, Any]:
    """Export with `export.incomplete: refuse`; return how many items the refusal names and how many are missing.

    Also whether the dataset that was there before is unchanged.
    """
    out = folder / "dataset"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    message = ""
    with JournaledStore.open(pipeline.store, lambda words: None) as journaled:
        try:
            export(pipeline, rubric_of(pipeline), journaled, out, lambda words: None)
        except Incomplete as error:
            message = str(error)
        with Reader.of(journaled.store) as reader:
            missing = sum(tally.wanted - tally.answered for tally in reader.tallies().values())
    named = sum(int(n.replace(",", "")) for n in re.findall(r"^  \S+: ([\d,]+) ", message, re.MULTILINE))
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {
        "name": "refused",
        "named": named,
        "missing": missing,
        "by_kind": "blocked" in message and "--retry-failed" in message,
        "left": before == after,
    }


def violations(figures: Figures) -> list[str]:
    problems: list[str] = []
    for state in figures["states"]:
        problems += _refusal_violations(state) if state["name"] == "refused" else _count_violations(state)
    return problems


def _count_violations(state: dict[str, Any]) -> list[str]:
    name, reported = state["name"], state["told"]
    first = reported["status"]
    problems = [
        f"{name}: {where} reports {counts}, status {first}" for where, counts in reported.items() if counts != first
    ]
    for wanted, answered, failed, pending in first:
        if wanted != answered + failed + pending:
            problems.append(f"{name}: {wanted} is not {answered} + {failed} + {pending}")
    if len(first) != 2 or first[0][0] != state["wanted"]:
        problems.append(f"{name}: {state['wanted']} completions are wanted, reported are {first}")
    elif state["served"] and [row[1] for row in first] != state["served"]:
        problems.append(f"{name}: the server answered {state['served']}, reported are {first}")
    return problems


def _refusal_violations(state: dict[str, Any]) -> list[str]:
    if state["missing"] and state["named"] == state["missing"] and state["by_kind"] and state["left"]:
        return []
    return [f"the refused export named {state['named']} of {state['missing']} items missing: {state}"]


def summary(figures: Figures) -> str:
    states = [state for state in figures["states"] if state["name"] != "refused"]
    (refused,) = (state for state in figures["states"] if state["name"] == "refused")
    counts = "; ".join(
        f"{state['name']}: {state['wanted']:,} = " + " + ".join(f"{n:,}" for n in state["told"]["status"][0][1:])
        for state in states
    )
    return (
        f"Completions of {figures['prompts']:,} prompts (answered + failed + pending, the same in status, summary and "
        f"card): {counts}. A refused export named all {refused['missing']:,} items that were missing."
    )
