"""1. At most one result per key, even if calls, replies or journal lines are repeated, late or out of order."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

from aif.core.types import fraction
from aif.simulator import Fault
from aif.simulator.faults import Arrival, InjectedFault
from aif.store.journal import Journal
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from trials.reliability import Figures
from trials.reliability.interrupted_run import FORMATS, export_digests, journal_records, run_to_end, undisturbed_digests
from trials.reliability.simulated_run import CallLog, pipeline, served

NUMBER = 1
PROMISE = (
    "At most one result per key: calls that succeed twice, repeated segments and late replies change no row and no data"
)

PATIENCE_S, LATE_S = 1.0, 1.5  # a client's timeout, and the delay of a late reply
RESULTS = ("completions", "judgements", "failed", "slot_states", "selection", "prompts", "texts")
PER_PROMPT = 5  # four completions and one judgement


def trial(folder: Path, full: bool) -> Figures:
    prompts, call_log = 60 if full else 6, CallLog()
    changes = {"export": FORMATS, "models": {"timeout_s": PATIENCE_S}}
    with served(latency_s=0.02) as server:
        wanted = undisturbed_digests(folder / "undisturbed", server.base_url, prompts, models=changes["models"])
    with served(call_log, latency_s=0.02, faults=_twice) as server:
        path = pipeline(folder / "run", server.base_url, prompts, **changes)
        places = StorePaths(path.parent / "store" / "feedback.duckdb")
        run_to_end(path, limit=prompts // 2)
        older = Path(shutil.copy(places.store, folder / "older.duckdb"))
        run_to_end(path)
        same, calls = export_digests(path, places.store.parent / "dataset") == wanted, len(call_log.calls)
        times_asked = Counter(call.key for call in call_log.calls)
        before, disturbed = shutil.copytree(places.store.parent, folder / "before"), []
        results, bill = _rows(places.store, RESULTS), _billed(places.store)
        for name, disturb in (DISTURBANCES if full else {name: DISTURBANCES[name] for name in SHORT}).items():
            shutil.rmtree(places.store.parent)
            shutil.copytree(before, places.store.parent)
            billed = disturb(places, older)
            run_to_end(path)
            outcome = {
                "what": name,
                "rows_same": _rows(places.store, RESULTS) == results,
                "bill_same": _billed(places.store) == bill + billed,
                "data_same": export_digests(path, places.store.parent / "dataset") == wanted,
            }
            disturbed.append(outcome)
    journal = journal_records(before / places.store.name)
    answers = Counter(entry["key"] for entry in journal if entry.get("verdict") == "answered")
    return {
        "keys": len(answers),
        "asked_more_than_once": sum(times > 1 for times in times_asked.values()),
        "answered_more_than_once": sum(times > 1 for times in answers.values()),
        "missing": prompts * PER_PROMPT - len(answers),
        "data_same": same,
        "calls_afterwards": len(call_log.calls) - calls,
        "disturbed": disturbed,
    }


def _twice(arrival: Arrival) -> InjectedFault | None:
    """Answer every tenth call too late for its client, which then calls again."""
    late = arrival.nth == 1 and fraction("twice", arrival.key) < 0.1
    return InjectedFault(Fault.LATE, seconds=LATE_S) if late else None


def _rows(store: Path, tables: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    with Reader.open(store) as reader:
        return {table: reader._query(f"SELECT * FROM {table} ORDER BY ALL") for table in tables}


def _billed(store: Path) -> int:
    """Return the tokens of all calls."""
    with Reader.open(store) as reader:
        return int(reader._query("SELECT sum(input_tokens + output_tokens) AS tokens FROM spend")[0]["tokens"])


# --- disturbances of a finished run; each returns the tokens that it adds to the bill ---------------------------------


def _segment_again(places: StorePaths, older: Path) -> int:
    shutil.copy(places.journal / "000001.jsonl", places.journal / "000002.jsonl")
    return 0


def _lines_again(places: StorePaths, older: Path) -> int:
    """Append a third of the lines again."""
    lines = _lines(places)
    _write(places, [*lines, *Random(1).sample(lines, len(lines) // 3)])
    return 0


def _lines_doubled(places: StorePaths, older: Path) -> int:
    _write(places, [copy for line in _lines(places) for copy in (line, line)])
    places.store.unlink()
    return 0


def _out_of_order(places: StorePaths, older: Path) -> int:
    """Shuffle the lines of all calls."""
    lines = _lines(places)
    calls = [n for n, line in enumerate(lines) if b'"t":"call"' in line]
    shuffled = iter(Random(2).sample(calls, len(calls)))
    _write(places, [lines[next(shuffled)] if n in set(calls) else line for n, line in enumerate(lines)])
    places.store.unlink()
    return 0


def _store_behind(places: StorePaths, older: Path) -> int:
    """Restore an older store, as a kill between journal and store leaves it."""
    shutil.copy(older, places.store)
    return 0


def _late_replies(places: StorePaths, older: Path) -> int:
    """Append, for a third of the keys, a second reply with another text, and a failure."""
    answers = [record for record in journal_records(places.store) if record.get("verdict") == "answered"][::3]
    late_replies = [
        record | {"id": f"{record['id']}-late", "text": f"{record['text']} And more."} for record in answers
    ]
    failures = [
        record | {"id": f"{record['id']}-gone", "text": None, "verdict": "failed", "kind": "timeout"}
        for record in answers
    ]
    journal, _ = Journal.open(places.journal)
    journal.append(late_replies + failures)
    journal.close()
    return sum(record["usage"]["input"] + record["usage"]["output"] for record in late_replies + failures)


DISTURBANCES: dict[str, Callable[[StorePaths, Path], int]] = {
    "a repeated segment": _segment_again,
    "repeated lines at the end": _lines_again,
    "every line doubled": _lines_doubled,
    "calls out of order": _out_of_order,
    "a store older than its journal": _store_behind,
    "second replies and failures after an answer": _late_replies,
}


SHORT = ("every line doubled", "second replies and failures after an answer")


def _lines(places: StorePaths) -> list[bytes]:
    return (places.journal / "000001.jsonl").read_bytes().splitlines(keepends=True)


def _write(places: StorePaths, lines: Iterable[bytes]) -> None:
    (places.journal / "000001.jsonl").write_bytes(b"".join(lines))


# --- results ----------------------------------------------------------------------------------------------------------


def violations(figures: Figures) -> list[str]:
    problems = [
        f"{outcome['what']}: {name} differ"
        for outcome in figures["disturbed"]
        for name, same in (("rows", "rows_same"), ("the bill's sums", "bill_same"), ("data files", "data_same"))
        if not outcome[same]
    ]
    counts = ("answered_more_than_once", "missing", "calls_afterwards")
    problems += [f"{name.replace('_', ' ')}: {figures[name]}" for name in counts if figures[name]]
    if not figures["data_same"]:
        problems.append("with calls that succeeded twice, data files differ")
    if not figures["asked_more_than_once"]:
        problems.append("no call was repeated")
    return problems


def summary(figures: Figures) -> str:
    disturbances = ", ".join(outcome["what"] for outcome in figures["disturbed"])
    twice = figures["asked_more_than_once"]
    return (
        f"{figures['keys']} keys, of which {twice} were requested and billed twice, since the client had timed out: "
        f"one result each. Rows, bill and data files are unchanged by: {disturbances}"
    )
