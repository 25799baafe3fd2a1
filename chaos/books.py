"""The books balance: whatever became of a run, status, summary and card tell one balance, and it is what was served."""

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
from aif.cli.views.summary import tell_status, tell_summary
from aif.config.pipeline import Pipeline, load
from aif.core.errors import Incomplete
from aif.engine.feedback import feedback
from aif.engine.prepare import rubric_of
from aif.engine.progress import read
from aif.export.dataset import export
from aif.providers.retry import RetryPolicy
from aif.simulator.faults import Fault, Faults
from aif.store.journaled_store import JournaledStore
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from chaos import Figures
from chaos.house import JUDGE, Record, pipeline, served, start

NUMBER = 8
PROMISE = (
    "The books balance: prompts × slots = done + failed + pending, in status, summary and card; an export below the "
    "completeness asked for is refused, and says what is missing"
)
QUICK = RetryPolicy(attempts=2, first_wait_s=0.01, longest_wait_s=0.02)


def trial(folder: Path, full: bool) -> Figures:
    """A run of some prompts; one killed (in full); one of all; another plan; each with its books, told three times."""
    prompts, record, states = 1500 if full else 12, Record(), []
    some = prompts // 2
    with served(record, faults=Faults({Fault.REFUSAL: 0.08}, lasting=True)) as one:
        path = pipeline(folder, one.base_url, prompts)
        feedback(load(path), Terminal(Console(quiet=True)), limit=some, policy=QUICK)
        states.append(_state(f"--limit {some}", load(path), folder, record, prompts, 4))
        if full:
            _kill_in_mid_run(path, folder)
            # what was on its way when the run was killed is known to the server alone
            states.append(_state("killed", load(path), folder, None, prompts, 4))
        feedback(load(path), Terminal(Console(quiet=True)), policy=QUICK)
        states.append(_state("finished", load(path), folder, None if full else record, prompts, 4))
        states.append(_refused(load(path, ["export.incomplete=refuse"]), folder))
        other = load(path, ["completions.per_prompt=3", "completions.temperature=0.7"])
        feedback(other, Terminal(Console(quiet=True)), limit=some, policy=QUICK)
        states.append(_state("another plan", other, folder, None, prompts, 3))
    return {"prompts": prompts, "states": states}


def _kill_in_mid_run(path: Path, folder: Path) -> None:
    run, file = start("run", path, stdout=subprocess.DEVNULL), StorePaths(folder / "store" / "feedback.duckdb").progress
    end = time.monotonic() + 30

    def answered() -> int:
        left = read(file)
        return sum(line.answered for line in left.lines) if left else 0

    first = 0
    while not first or answered() < first + 100:
        first = first or answered()
        assert run.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()


def _state(name: str, one: Pipeline, folder: Path, record: Record | None, prompts: int, slots: int) -> dict[str, Any]:
    """The balance as each of the three tells it: completions, then judgements, each wanted, answered, failed, pending;
    and, where it is to be known, how many the server answered."""
    out = folder / "dataset"
    with JournaledStore.open(one.store, lambda words: None) as ledger:
        export(one, rubric_of(one), ledger, out, lambda words: None)
    with Reader.open(one.store) as reader:
        texts = {
            "status": _told(lambda console: tell_status(console, reader)),
            "summary": _told(lambda console: tell_summary(console, reader, 1.0)),
            "card": (out / "README.md").read_text(encoding="utf-8"),
        }
    return {
        "name": name,
        "wanted": prompts * slots,
        "told": {where: _balances(text) for where, text in texts.items()},
        "served": _served(record) if record else None,
    }


def _told(tell: Callable[[Console], None]) -> str:
    screen = io.StringIO()
    tell(Console(width=300, file=screen))
    return screen.getvalue()


def _balances(text: str) -> list[list[int]]:
    found = re.findall(r"([\d,]+) (?:completion|judgement)s? = ([\d,]+) \w+ \+ ([\d,]+) \w+ \+ ([\d,]+)", text)
    return [[int(n.replace(",", "")) for n in one] for one in found]


def _served(record: Record) -> list[int]:
    """Bodies that were answered with a text of use: of the pool, of the judge."""
    keys = {(call.model == JUDGE, call.key) for call in record.calls if call.sent and call.usage and not call.fault}
    return [sum(judged is side for judged, _ in keys) for side in (False, True)]


def _refused(one: Pipeline, folder: Path) -> dict[str, Any]:
    """What a refused export names as missing, in items, beside what is missing by the balance; and whether the dataset
    that stood there was left as it was."""
    out = folder / "dataset"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    said = ""
    with JournaledStore.open(one.store, lambda words: None) as ledger:
        try:
            export(one, rubric_of(one), ledger, out, lambda words: None)
        except Incomplete as error:
            said = str(error)
        with Reader.of(ledger.store) as reader:
            missing = sum(tally.wanted - tally.answered for tally in reader.tallies().values())
    named = sum(int(n.replace(",", "")) for n in re.findall(r"^  \S+: ([\d,]+) ", said, re.MULTILINE))
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {
        "name": "refused",
        "named": named,
        "missing": missing,
        "by_kind": "blocked" in said and "--retry-failed" in said,
        "left": before == after,
    }


def broken(figures: Figures) -> list[str]:
    """What of the promise did not hold."""
    wrong: list[str] = []
    for state in figures["states"]:
        wrong += _refusal_broken(state) if state["name"] == "refused" else _books_broken(state)
    return wrong


def _books_broken(state: dict[str, Any]) -> list[str]:
    name, told = state["name"], state["told"]
    first = told["status"]
    wrong = [f"{name}: {where} tells {said}, status {first}" for where, said in told.items() if said != first]
    for wanted, answered, failed, pending in first:
        if wanted != answered + failed + pending:
            wrong.append(f"{name}: {wanted} are not {answered} + {failed} + {pending}")
    if len(first) != 2 or first[0][0] != state["wanted"]:
        wrong.append(f"{name}: {state['wanted']} completions are wanted, told are {first}")
    elif state["served"] and [one[1] for one in first] != state["served"]:
        wrong.append(f"{name}: the server answered {state['served']}, told are {first}")
    return wrong


def _refusal_broken(state: dict[str, Any]) -> list[str]:
    if state["missing"] and state["named"] == state["missing"] and state["by_kind"] and state["left"]:
        return []
    return [f"the refused export named {state['named']} of {state['missing']} items missing: {state}"]


def told(figures: Figures) -> str:
    """The figures in words."""
    books = [state for state in figures["states"] if state["name"] != "refused"]
    (refused,) = (state for state in figures["states"] if state["name"] == "refused")
    said = "; ".join(
        f"{state['name']}: {state['wanted']:,} = " + " + ".join(f"{n:,}" for n in state["told"]["status"][0][1:])
        for state in books
    )
    return (
        f"Completions of {figures['prompts']:,} prompts (answered + failed + pending, the same in status, summary and "
        f"card): {said}. A refused export named all {refused['missing']:,} items that were missing."
    )
