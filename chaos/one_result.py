"""1. At most one result per key, whatever comes twice, late or out of order: calls, replies, lines of the journal."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

from aif.core.types import fraction
from aif.simulator import Fault
from aif.simulator.faults import Arrival, Mishap
from aif.store.journal import Journal
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from chaos import Figures
from chaos.house import Record, pipeline, served
from chaos.keeping import FORMATS, finish, records, undisturbed, written

NUMBER = 1
PROMISE = (
    "At most one result per key: calls that succeed twice, replayed segments, late replies change no row and no data"
)

PATIENCE_S, LATE_S = 1.0, 1.5  # a client gives up after the one; the reply comes after the other
RESULTS = ("completions", "judgements", "failed", "slot_states", "selection", "prompts", "texts")
PER_PROMPT = 5  # four completions and one judgement


def trial(folder: Path, full: bool) -> Figures:
    prompts, record = 60 if full else 6, Record()
    changes = {"export": FORMATS, "models": {"timeout_s": PATIENCE_S}}
    with served(latency_s=0.02) as server:
        wanted = undisturbed(folder / "undisturbed", server.base_url, prompts, models=changes["models"])
    with served(record, latency_s=0.02, faults=_twice) as server:
        path = pipeline(folder / "run", server.base_url, prompts, **changes)
        places = StorePaths(path.parent / "store" / "feedback.duckdb")
        finish(path, limit=prompts // 2)
        older = Path(shutil.copy(places.store, folder / "older.duckdb"))
        finish(path)
        same, calls = written(path, places.store.parent / "dataset") == wanted, len(record.calls)
        came = Counter(call.key for call in record.calls)
        before, disturbed = shutil.copytree(places.store.parent, folder / "before"), []
        results, bill = _rows(places.store, RESULTS), _billed(places.store)
        for name, disturb in (DISTURBED if full else {name: DISTURBED[name] for name in SHORT}).items():
            shutil.rmtree(places.store.parent)
            shutil.copytree(before, places.store.parent)
            billed = disturb(places, older)
            finish(path)
            one = {
                "what": name,
                "rows_same": _rows(places.store, RESULTS) == results,
                "bill_same": _billed(places.store) == bill + billed,
                "data_same": written(path, places.store.parent / "dataset") == wanted,
            }
            disturbed.append(one)
    kept = records(before / places.store.name)
    answers = Counter(one["key"] for one in kept if one.get("verdict") == "answered")
    return {
        "keys": len(answers),
        "asked_more_than_once": sum(times > 1 for times in came.values()),
        "answered_more_than_once": sum(times > 1 for times in answers.values()),
        "missing": prompts * PER_PROMPT - len(answers),
        "data_same": same,
        "calls_afterwards": len(record.calls) - calls,
        "disturbed": disturbed,
    }


def _twice(arrival: Arrival) -> Mishap | None:
    """Of every ten calls one is answered too late for its client, which asks again."""
    late = arrival.nth == 1 and fraction("twice", arrival.key) < 0.1
    return Mishap(Fault.LATE, seconds=LATE_S) if late else None


def _rows(store: Path, tables: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    with Reader.open(store) as reader:
        return {table: reader._query(f"SELECT * FROM {table} ORDER BY ALL") for table in tables}


def _billed(store: Path) -> int:
    """Tokens of all calls."""
    with Reader.open(store) as reader:
        return int(reader._query("SELECT sum(input_tokens + output_tokens) AS tokens FROM spend")[0]["tokens"])


# --- what disturbs a finished run; each returns the tokens that were billed by it -------------------------------------


def _segment_again(places: StorePaths, older: Path) -> int:
    shutil.copy(places.journal / "000001.jsonl", places.journal / "000002.jsonl")
    return 0


def _lines_again(places: StorePaths, older: Path) -> int:
    """Some of them, behind all others."""
    lines = _lines(places)
    _write(places, [*lines, *Random(1).sample(lines, len(lines) // 3)])
    return 0


def _lines_doubled(places: StorePaths, older: Path) -> int:
    _write(places, [one for line in _lines(places) for one in (line, line)])
    places.store.unlink()
    return 0


def _out_of_order(places: StorePaths, older: Path) -> int:
    """Every call in another's place."""
    lines = _lines(places)
    calls = [n for n, line in enumerate(lines) if b'"t":"call"' in line]
    shuffled = iter(Random(2).sample(calls, len(calls)))
    _write(places, [lines[next(shuffled)] if n in set(calls) else line for n, line in enumerate(lines)])
    places.store.unlink()
    return 0


def _store_behind(places: StorePaths, older: Path) -> int:
    """What a kill between journal and store leaves."""
    shutil.copy(older, places.store)
    return 0


def _late_replies(places: StorePaths, older: Path) -> int:
    """A second reply to each of some keys, in other words, and a failure behind the answer."""
    some = [one for one in records(places.store) if one.get("verdict") == "answered"][::3]
    late = [one | {"id": f"{one['id']}-late", "text": f"{one['text']} And more."} for one in some]
    gone = [one | {"id": f"{one['id']}-gone", "text": None, "verdict": "failed", "kind": "timeout"} for one in some]
    journal, _ = Journal.open(places.journal)
    journal.append(late + gone)
    journal.close()
    return sum(one["usage"]["input"] + one["usage"]["output"] for one in late + gone)


DISTURBED: dict[str, Callable[[StorePaths, Path], int]] = {
    "a segment again behind itself": _segment_again,
    "lines again behind all others": _lines_again,
    "every line doubled": _lines_doubled,
    "calls out of order": _out_of_order,
    "a store behind its journal": _store_behind,
    "second replies and failures behind the answer": _late_replies,
}


SHORT = ("every line doubled", "second replies and failures behind the answer")


def _lines(places: StorePaths) -> list[bytes]:
    return (places.journal / "000001.jsonl").read_bytes().splitlines(keepends=True)


def _write(places: StorePaths, lines: Iterable[bytes]) -> None:
    (places.journal / "000001.jsonl").write_bytes(b"".join(lines))


# --- what is said of it -----------------------------------------------------------------------------------------------


def broken(figures: Figures) -> list[str]:
    wrong = [
        f"{one['what']}: {said} differ"
        for one in figures["disturbed"]
        for said, same in (("rows", "rows_same"), ("the bill's sums", "bill_same"), ("data files", "data_same"))
        if not one[same]
    ]
    counts = ("answered_more_than_once", "missing", "calls_afterwards")
    wrong += [f"{name.replace('_', ' ')}: {figures[name]}" for name in counts if figures[name]]
    if not figures["data_same"]:
        wrong.append("with calls that succeeded twice, data files differ")
    if not figures["asked_more_than_once"]:
        wrong.append("nothing came twice")
    return wrong


def told(figures: Figures) -> str:
    what = ", ".join(one["what"] for one in figures["disturbed"])
    twice = figures["asked_more_than_once"]
    return (
        f"{figures['keys']} keys, of which {twice} were asked and billed twice, the client having given up: one result "
        f"each. Rows, bill and data files unchanged by {what}"
    )
