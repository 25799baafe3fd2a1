"""The store: states of slots and judgements, lists of pending work, views."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from aif.core.errors import JournalDamaged, StoreDamaged
from aif.core.types import Usage
from aif.engine.make_pairs import make_pairs
from aif.engine.prepare import prepare
from aif.providers.base import CallError, Kind, Reply
from aif.providers.retry import Verdict
from aif.store import records
from aif.store.database import Store
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from tests.support.building import STARTED, Cut, Fate, build


def sql(journaled: JournaledStore, query: str) -> list[dict[str, Any]]:
    with Reader.of(journaled.store) as reader:
        return reader._query(query)


def states(journaled: JournaledStore, view: str) -> dict[str, int]:
    return {row["state"]: row["n"] for row in sql(journaled, f"SELECT state, count(*) AS n FROM {view} GROUP BY state")}


def fail(journaled: JournaledStore, slot: dict[str, Any], verdict: str, n: int = 1) -> None:
    details = {"sample": 0, "seed": slot["seed"], "principle": slot["principle"], "system": "role"}
    item = records.CallItem("completion", slot["key"], slot["prompt_id"], slot["model"], slot["identity"], details)
    error = CallError(Kind.TIMEOUT, "no answer")
    journaled.keep(
        [
            records.call(
                item, id=f"{slot['key']}-{n}", n=n, started=STARTED, seconds=1, verdict=verdict, reply=None,
                error=error, usd=None,
            )
        ]
    )  # fmt: skip


def test_a_prompt_is_judged_when_no_slot_is_pending_and_enough_are_answered(tmp_path: Path) -> None:
    """Prompt 0: one slot pending. 1: one failed permanently. 2: three failed, so too few are left. 3: complete."""

    def complete(number: int, model: str) -> str | Cut | Fate:
        if number == 0 and model == "poor":
            return Fate.PENDING
        if (number == 1 and model == "poor") or (number == 2 and model != "able"):
            return Fate.FAILED
        return f"{model} on {number}"

    _, _, journaled = build(tmp_path, 4, complete=complete, rate=pending)
    with journaled:
        assert states(journaled, "slot_states") == {"answered": 11, "pending": 1, "failed": 4}
        needed = sql(journaled, "SELECT position, len(answers) AS n, state FROM needed ORDER BY position")
        assert needed == [{"position": 1, "n": 3, "state": "pending"}, {"position": 3, "n": 4, "state": "pending"}]


def test_single_requests_are_needed_for_each_completion_and_listwise_ones_once(tmp_path: Path) -> None:
    _, _, journaled = build(tmp_path, 2, sets=["rubric=ultrafeedback"], rate=pending)
    with journaled:
        found = sql(journaled, "SELECT request, count(*) AS n FROM needed GROUP BY request ORDER BY request")
        assert {row["request"]: row["n"] for row in found} == {
            "critique": 8, "helpfulness": 2, "honesty": 2, "instruction_following": 2, "truthfulness": 2,
        }  # fmt: skip


def test_later_is_pending_again_and_failed_only_after_retry(tmp_path: Path) -> None:
    _, _, journaled = build(tmp_path, 1, complete=lambda n, m: Fate.PENDING)
    with journaled:
        first, second = sql(journaled, "SELECT * FROM slots ORDER BY slot")[:2]
        fail(journaled, first, "later")
        fail(journaled, second, "failed")
        assert states(journaled, "slot_states") == {"pending": 2, "later": 1, "failed": 1}
        journaled.store.list_pending(None)
        assert len(sql(journaled, "FROM todo")) == 3
        assert len(sql(journaled, "FROM settled")) == 1
        journaled.keep([records.retry(STARTED)])
        assert states(journaled, "slot_states") == {"pending": 2, "later": 2}
        with Reader.of(journaled.store) as reader:
            assert reader.permanent_failures() == []


def test_an_answer_ends_a_failure_and_both_calls_are_counted(tmp_path: Path) -> None:
    _, _, journaled = build(tmp_path, 1, complete=lambda n, m: Fate.PENDING)
    with journaled:
        for n, slot in enumerate(sql(journaled, "SELECT * FROM slots")):
            fail(journaled, slot, "later", n)
        assert sql(journaled, "SELECT kind, items, verdict FROM failures LIMIT 1")[0]["kind"] == "timeout"
    _, _, journaled = build(tmp_path, 1)
    with journaled:
        assert sql(journaled, "FROM failures") == []
        assert sql(journaled, "SELECT count(*) AS n FROM calls")[0]["n"] == 4 + 4 + 1


@pytest.mark.parametrize("step", [timedelta(hours=1), timedelta(0), timedelta(hours=-1), timedelta(days=-400)])
def test_a_refusal_counts_until_a_later_run_is_answered_whatever_the_clock_says(
    tmp_path: Path, step: timedelta
) -> None:
    """After a refusal, pending items have its error, even if calls in flight are answered later; not once a later run
    is answered. The clock moves by `step` before each call."""
    _, _, journaled = build(tmp_path, 2, complete=lambda n, m: Fate.PENDING)
    with journaled:
        slot, _ = sql(journaled, "SELECT * FROM slots WHERE model = 'able'")
        at = STARTED
        calls = [("a", True), ("a", False), ("b", False), ("b", True), ("b", False), ("c", False)]
        for n, (run, refused) in enumerate(calls):
            at += step
            error = CallError(Kind.UNAUTHORIZED, f"no such key, {run}") if refused else None
            verdict: Verdict = "refused" if refused else "answered"
            reply = None if error else Reply("Four.", "stop", Usage(1, 1))
            details = {"sample": 0, "seed": slot["seed"], "principle": slot["principle"], "system": "role"}
            item = records.CallItem(
                "completion", slot["key"], slot["prompt_id"], slot["model"], slot["identity"], details
            )
            call = records.call(
                item, id=f"{run}-{n}", n=1, started=at, seconds=1, verdict=verdict, reply=reply, error=error, usd=0.0
            )
            journaled.keep([call])
            told = sql(journaled, "SELECT verdict, example, items FROM failures WHERE endpoint = 'able'")
            stands = {"verdict": "refused", "example": f"no such key, {run}", "items": 1 if n else 2}
            assert told == [stands if n in (0, 1, 3, 4) else {"verdict": "pending", "example": None, "items": 1}]


def test_prompts_become_judgeable_once(tmp_path: Path) -> None:
    _, _, journaled = build(tmp_path, 6, rate=pending)
    with journaled:
        journaled.store.list_pending(None)
        before = sql(journaled, "SELECT position FROM ready ORDER BY seq")
        assert [row["position"] for row in before] == list(range(6))
        with Reader.of(journaled.store) as reader:
            first, rest = reader.judgeable_prompts(0, 4), reader.judgeable_prompts(4, 4)
        assert [len(page) for page in (first, rest)] == [4, 2]
        assert all(len(ready.needs) == 1 and len(ready.texts) == 4 for ready in first + rest)


def pending(number: int, model: str, aspect: str) -> Fate:
    return Fate.PENDING


def alike(number: int, model: str, aspect: str) -> int:
    return 3


def test_another_rubric_needs_all_judgements_and_changing_back_needs_none(tmp_path: Path) -> None:
    for sets, asked in ((["rubric=unified"], 0), (["rubric=ultrafeedback"], 16), (["rubric=unified"], 0)):
        _, _, journaled = build(tmp_path, 2, sets=sets, rate=pending if asked else alike)
        with journaled:
            assert states(journaled, "needed").get("pending", 0) == asked


def test_the_leaderboard_counts_sides_and_means(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 12)
    with journaled:
        make_pairs(pipeline, rubric, journaled.store)
        board = {row["model"]: row for row in sql(journaled, "FROM leaderboard")}
        assert list(board) == ["able", "fair", "plain", "poor"]
        assert board["able"]["chosen"] == 12
        assert sum(row["rejected"] for row in board.values()) == 12
        assert {name: row["mean_score"] for name, row in board.items()} == {"able": 5, "fair": 4, "plain": 2, "poor": 1}
        assert dict(board["poor"]["aspects"])["honesty"] == 1


def test_records_applied_twice_change_nothing(tmp_path: Path) -> None:
    _, _, journaled = build(tmp_path, 3)
    with journaled:
        tables = ("prompts", "completions", "judgements", "calls", "selection", "texts")
        before = {table: sql(journaled, f"FROM {table} ORDER BY ALL") for table in tables}
        journaled.store._db.execute('UPDATE about SET segment = 1, "offset" = 0')
    JournaledStore.open(journaled.paths.store, print).close()
    again = JournaledStore.open(journaled.paths.store, print)
    with again:
        assert {table: sql(again, f"FROM {table} ORDER BY ALL") for table in tables} == before


def test_a_failure_after_the_answer_changes_nothing(tmp_path: Path) -> None:
    """Out of order: an abandoned attempt is recorded after the answered one."""
    _, _, journaled = build(tmp_path, 2)
    with journaled:
        before = {
            table: sql(journaled, f"FROM {table} ORDER BY ALL") for table in ("completions", "failed", "slot_states")
        }
        slot = sql(journaled, "SELECT * FROM slots LIMIT 1")[0]
        fail(journaled, slot, "later", n=1)
        fail(journaled, slot, "failed", n=2)
        assert {table: sql(journaled, f"FROM {table} ORDER BY ALL") for table in before} == before
        assert sql(journaled, "FROM failures") == []
        assert sql(journaled, "SELECT count(*) AS n FROM calls") == [{"n": 2 * 4 + 2 + 2}], "the bill has them"


def test_a_failed_transaction_leaves_nothing_behind(tmp_path: Path) -> None:
    _, _, journaled = build(tmp_path, 2)
    with journaled:
        position, calls = journaled.store.position, sql(journaled, "SELECT count(*) AS n FROM calls")
        with pytest.raises(JournalDamaged, match="later version"):
            journaled.keep([records.retry(STARTED), {"t": "unheard_of"}])
        assert journaled.store.position == position
        assert sql(journaled, "SELECT count(*) AS n FROM calls") == calls


def test_rows_of_a_transaction_leave_memory_before_its_end(tmp_path: Path) -> None:
    held: list[int] = []

    def parts() -> Iterator[dict[str, pa.Table]]:
        for part in range(10):
            held.append(pa.total_allocated_bytes())
            ids = pa.array([f"{part}-{n:0100}" for n in range(10_000)])  # 1 MB
            yield {"outcomes": pa.table({"outcome": pa.array(["paired"] * len(ids)), "prompt_id": ids})}

    _, _, journaled = build(tmp_path, 1)
    with journaled:
        journaled.store.replace_outcomes(parts(), "{}")
        assert sql(journaled, "SELECT count(*) AS n, min(outcome) AS least FROM outcomes") == [
            {"n": 100_000, "least": "paired"}
        ]
    assert max(held) - held[0] < 4 * 2**20


def test_a_store_left_incomplete_by_a_kill_is_created_again(tmp_path: Path) -> None:
    """The file under its temporary name. The log of a deleted store is kept: it may hold what nothing else has."""
    path = tmp_path / "s.duckdb"
    for name in ("s.duckdb.new", "s.duckdb.new.wal", "s.duckdb.wal"):
        (tmp_path / name).write_bytes(b"half")
    Store.open(path).close()
    Store.open(path).close()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["s.duckdb", "s.duckdb.unreadable.wal"]


@pytest.mark.parametrize("version", [0, 99])
def test_a_store_of_another_version_is_not_opened(tmp_path: Path, version: int) -> None:
    path = tmp_path / "s.duckdb"
    Store.open(path).close()
    with duckdb.connect(str(path)) as db:
        db.execute("UPDATE about SET schema_version = ?", [version])
    with pytest.raises(StoreDamaged, match=f"schema {version}"):
        Store.open(path)


def test_times_can_be_read_without_another_package(tmp_path: Path) -> None:
    """For a TIMESTAMPTZ column DuckDB's Python client needs pytz."""
    _, _, journaled = build(tmp_path, 1)
    with journaled:
        cursor = journaled.store.cursor()
        assert cursor.execute("SELECT min(started) FROM calls").fetchone() == (STARTED.replace(tzinfo=None),)


def test_a_store_whose_file_shrank_is_not_rebuilt(tmp_path: Path) -> None:
    """DuckDB removes free blocks from the file's end when it closes it; the third opening took that for damage."""
    pipeline, rubric, journaled = build(tmp_path, 20)
    journaled.close()
    said: list[str] = []
    for _ in range(6):
        with JournaledStore.open(pipeline.store, said.append) as journaled:
            prepare(pipeline, journaled, rubric, said.append)
    assert said == []
