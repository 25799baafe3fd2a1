"""Queries: each unanswered item is counted once, by its last failure; damaged columns are read as far as possible."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aif.config.pipeline import Pipeline
from aif.core.types import Usage
from aif.judging.rubric import Rubric
from aif.providers.base import CallError, Kind, Reply
from aif.providers.retry import Verdict
from aif.store import records
from aif.store.database import Store
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from aif.store.set_aside import SetAsideStore
from tests.support.building import STARTED, Fate, build, completion_item, judgement_item

ENDS: list[Verdict] = ["answered", "again", "later", "failed", "refused"]
KINDS = {"again": Kind.SERVER_ERROR, "later": Kind.TIMEOUT, "failed": Kind.BLOCKED, "refused": Kind.QUOTA_EXHAUSTED}


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the system says of the process")
def test_dictionary_encoded_rows_hold_no_other_memory(tmp_path: Path) -> None:
    """A column of numbers from DuckDB keeps the texts of its rows in memory unless it is copied: 400 MB here."""

    def held_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    _, _, journaled = build(tmp_path, 1)
    with journaled, Reader.of(journaled.store) as reader:
        before = held_mb()
        found = reader._arrow_by_number(
            "SELECT i::UINTEGER AS n, repeat((i % 7)::VARCHAR, 2000) AS text FROM range(200000) t(i)"
        )
        assert held_mb() - before < 200
        assert found.slice(150_000, 2).to_pylist() == [{"n": n, "text": str(n % 7) * 2000} for n in (150_000, 150_001)]


@pytest.fixture(scope="module")
def unasked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pipeline, Rubric, JournaledStore]]:
    made = build(tmp_path_factory.mktemp("unasked"), 2, complete=lambda n, m: Fate.PENDING)
    with made[2]:
        yield made


def come(item: records.CallItem, verdict: Verdict, at: int, text: str = "Four.") -> dict[str, Any]:
    """The record of a call; each hundred calls are a run."""
    error = None if verdict == "answered" else CallError(KINDS[verdict], f"{verdict} says the server")
    reply = None if error else Reply(text, "stop", Usage(1, 1))
    return records.call(
        item, id=f"run{at // 100}-{at}", n=1, started=STARTED, seconds=1, verdict=verdict, reply=reply, error=error,
        usd=0.0,
    )  # fmt: skip


Drawn = list[list[Verdict]]


@settings(max_examples=25)
@given(
    slots=st.lists(st.lists(st.sampled_from(ENDS), max_size=3), min_size=8, max_size=8),
    judged=st.lists(st.lists(st.sampled_from(ENDS), max_size=3), min_size=2, max_size=2),
    turns=st.randoms(use_true_random=False),
)
@example(slots=[["answered"]] * 8, judged=[["answered"]] * 2, turns=Random(1))
@example(slots=[["failed"]] * 8, judged=[[], []], turns=Random(1))
@example(slots=[["refused"]] + [[]] * 7, judged=[[], []], turns=Random(1))
@example(slots=[["answered"]] * 8, judged=[["again"], []], turns=Random(1))
def test_each_unanswered_item_is_counted_once_by_its_last_failure(
    unasked: tuple[Pipeline, Rubric, JournaledStore], slots: Drawn, judged: Drawn, turns: Random
) -> None:
    """Whatever the results of the calls, and in whatever order and number of runs."""
    pipeline, rubric, journaled = unasked
    for name in ("calls", "failed", "completions", "judgements"):
        journaled.store.cursor().execute(f"DELETE FROM {name}")
    at = iter(range(0, 10**6, turns.choice([1, 40])))

    def keep(asked: list[tuple[records.CallItem, list[Verdict], str]]) -> None:
        left, calls = [(item, iter(verdicts), text) for item, verdicts, text in asked], []
        while left:
            one = turns.choice(left)
            if verdict := next(one[1], None):
                calls.append(come(one[0], verdict, next(at), one[2]))
            else:
                left.remove(one)
        cut = turns.randint(0, len(calls))
        for part in filter(None, (calls[:cut], calls[cut:])):
            journaled.keep(part)

    journaled.store.list_pending(None)
    with Reader.of(journaled.store) as reader:
        todos = [todo for name in pipeline.models for todo in reader.pending_slots(name, 0, 100)]
    keep([(completion_item(pipeline, todo), ends, "Four.") for todo, ends in zip(todos, slots, strict=True)])
    journaled.store.list_pending(None)
    with Reader.of(journaled.store) as reader:
        ready = [(one, need) for one in reader.judgeable_prompts(0, 100) for need in one.needs]
    keep(
        [(judgement_item(pipeline, rubric, *one), ends, "no rating") for one, ends in zip(ready, judged, strict=False)]
    )

    with Reader.of(journaled.store) as reader:
        balance = reader.item_counts()
        rows = reader._query("SELECT stage, endpoint, state, waits, kind FROM items WHERE state <> 'answered'")
    told = Counter[tuple[str, str]]()
    for one in balance.missing:
        told[one.stage, one.endpoint] += one.items
        assert (one.kind == "") == (one.example == "") == (one.verdict in ("pending", "waiting"))
    missing = {place: tally.failed + tally.pending for place, tally in balance.tallies.items()}
    assert told == {place: n for place, n in missing.items() if n}
    for verdict, state in (("failed", "failed"), ("waiting", "pending")):
        wanted = sum(row["state"] == state and row["waits"] == (verdict == "waiting") for row in rows)
        assert sum(one.items for one in balance.missing if one.verdict == verdict) == wanted
    words = {(one.stage, one.endpoint, one.kind) for one in balance.missing}
    assert words >= {(row["stage"], row["endpoint"], row["kind"]) for row in rows if row["kind"]}


def test_a_column_with_a_damaged_block_is_read_except_for_that_block(tmp_path: Path) -> None:
    """Except for rows that DuckDB reads together with some of it: 2,048 at either end."""
    path, block = tmp_path / "s.duckdb", 256 * 1024
    Store.open(path).close()
    with duckdb.connect(str(path)) as db:
        keys = "SELECT md5(i::VARCHAR) || md5((i * 7)::VARCHAR) AS id, 'run' AS run FROM range(60_000) t(i)"
        db.execute(f"INSERT INTO calls BY NAME {keys}")
        db.execute("CHECKPOINT")
        parts = "SELECT start, count, block_id FROM pragma_storage_info('calls') WHERE column_name = 'id'"
        first, count, place = db.execute(f"{parts} AND segment_type = 'VARCHAR' ORDER BY start").fetchall()[2]
    with path.open("r+b") as file:
        file.seek(3 * 4096 + place * block + 5000)  # after the headers
        file.write(b"?!")
    with SetAsideStore.open(path) as former:
        found = {row for rows in former.columns("calls", "id") for row in rows["row"].to_pylist()}
        assert former.torn
    assert found >= {*range(60_000)} - {*range(first - 2048, first + count + 2048)}
    assert len(found) < 60_000
