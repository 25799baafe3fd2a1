"""The writing end of the store: what the journal holds, as tables and views anyone can ask in SQL.

`Store` writes, with one connection that only one thread uses at a time; `Reader` (reader.py) asks, with its own.
DuckDB 2.0 raises when a connection is shared between threads, and fails at commit when two insert the same key.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, Self

import duckdb
import pyarrow as pa

from aif.core.errors import JournalDamaged, StoreDamaged
from aif.core.resources import shipped
from aif.core.types import PROVIDED_JUDGE, JudgingSpec, Slot
from aif.store.connection import (
    AMPLE,
    ROOMY,
    SCHEMA_VERSION,
    SETTINGS,
    check_version,
    connect,
    noticing,
    twice,
    unreadable,
    within,
)
from aif.store.ingest import Batch, Step, table
from aif.store.journal import Position
from aif.store.records import Record

# How rows get into a table, if not by "an answer that is there already stays". Of a prompt and of what failed the last
# word stands; what is settled has no key.
_VERBS = {"prompts": "INSERT OR REPLACE", "failed": "INSERT OR REPLACE", "settled": "INSERT"}


class Store:
    """The writing end of the store."""

    def __init__(self, path: Path, connection: duckdb.DuckDBPyConnection) -> None:
        self.path = path
        self._db = connection

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens or makes the store. Raises StoreDamaged when it is unreadable or of another version."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _, log = _files(path)
        _take_back_log(path)
        if not path.exists() or path.stat().st_size == 0:
            if log.exists():  # it may hold what nothing else does, and can't be read alone
                set_aside(path, ".unreadable")
            _make(path)
        replayed = log.exists()  # then blocks may be missing that the log still holds
        db = connect(path)
        try:
            check_version(db, path)
            # DuckDB gives the file's free end back to the system, and goes on counting it among all blocks
            sizes = db.execute("SELECT used_blocks * block_size FROM pragma_database_size()").fetchall()
        except duckdb.Error as error:
            db.close()
            raise unreadable(path, "can't be read", error) from error
        except BaseException:
            db.close()
            raise
        if not replayed and any(size > path.stat().st_size for (size,) in sizes):
            db.close()
            raise StoreDamaged(f"{path}: the store has been cut short")
        return cls(path, db)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own for another thread. Call it from the thread that owns the store."""
        return self._db.cursor()

    def close(self) -> None:
        self._db.close()

    @property
    def position(self) -> Position:
        """How far into the journal the store has come."""
        with noticing(self.path):
            (row,) = self._db.execute('SELECT segment, "offset" FROM about').fetchall()
        return Position(*row)

    @property
    def damaged(self) -> int:
        """Journal lines that were lost since the sources were last read whole: a prompt, a page or a completion that
        came with a prompt may have been among them."""
        with noticing(self.path):
            (row,) = self._db.execute("SELECT damaged FROM about").fetchall()
        return int(row[0])

    @contextmanager
    def roomy(self) -> Iterator[None]:
        """Gives DuckDB more memory: while a store is made again, there is nothing else that needs it, and 1,000,000
        calls are taken in in 53 s with 1 GB, in place of 66 with 320 MB."""
        if SETTINGS["memory_limit"] != AMPLE:
            self._db.execute(f"SET memory_limit = '{ROOMY}'")
        try:
            yield
        finally:
            with suppress(duckdb.Error):  # keys of some 4,000,000 calls don't fit into less until a checkpoint
                self._db.execute(f"SET memory_limit = '{SETTINGS['memory_limit']}'")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of the block, or none of it."""
        with noticing(self.path):
            self._db.begin()
            try:
                yield
                self._db.commit()
            except BaseException:
                with suppress(duckdb.Error):  # a commit that failed has ended the transaction itself
                    self._db.rollback()
                raise

    def apply(self, steps: Sequence[Step], position: Position, damaged: int = 0) -> None:
        """Takes in what the journal holds up to `position`, all or none. An answer that is there already stays as it
        is."""

        def take() -> None:
            with self._transaction():
                self._db.execute(
                    'UPDATE about SET segment = ?, "offset" = ?, damaged = damaged + ?',
                    [position.segment, position.offset, damaged],
                )
                for step in steps:
                    if isinstance(step, Batch):
                        self._take(step)
                    else:
                        self._turn(step)

        twice(self._db, self.path, take)

    def _take(self, batch: Batch) -> None:
        if batch.answered:
            self._db.execute("DELETE FROM failed WHERE key IN (SELECT unnest(?))", [batch.answered])
        for name, rows in batch.tables.items():
            self.insert(name, rows, _VERBS.get(name, "INSERT OR IGNORE"))
        if batch.failed:  # a reply that was late, or a record out of its order: what is answered has not failed
            self._db.execute(
                "DELETE FROM failed WHERE key IN (SELECT unnest(?)) AND (key IN (SELECT key FROM completions) "
                "OR key IN (SELECT key FROM judgements))",
                [batch.failed],
            )

    def insert(self, name: str, rows: pa.Table, verb: str = "INSERT") -> None:
        """Appends Arrow rows to a table, by column name. DuckDB finds `rows` by the variable's name: registered as a
        view they stay in memory until the transaction ends, 350 MB of 2,480,000 pairs."""
        self._db.execute(f"{verb} INTO {name} BY NAME SELECT * FROM rows")

    def _turn(self, record: Record) -> None:
        match record["t"]:
            case "page":
                if record["start"] == 0:
                    self._db.execute("DELETE FROM incoming; DELETE FROM incoming_carried")
                start = record["start"]
                rows = [
                    {"position": start + i, "prompt_id": r[0], "source": r[1]} for i, r in enumerate(record["rows"])
                ]
                self.insert("incoming", table("incoming", rows), "INSERT OR IGNORE")
                if carried := record.get("carried"):
                    self._carry(carried, record.get("sources") or [None] * len(carried))
            case "selected":
                self._select(record)
            case "retry":
                self._db.execute("UPDATE failed SET verdict = 'later'")
            case "mended":
                self._db.execute("UPDATE about SET damaged = greatest(0, damaged - ?)", [record["lines"]])
            case "split":
                self._db.execute("INSERT INTO splits VALUES (?, ?)", [record["asked"], record["threshold"]])
            case kind:
                raise JournalDamaged(
                    f"the journal holds a record of type {kind!r}; it was written by a later version of aif"
                )

    def _carry(self, rows: Sequence[Sequence[Any]], sources: Sequence[str | None]) -> None:
        (had,) = self._db.execute("SELECT count(*) FROM incoming_carried").fetchall()
        batch = [
            {"seq": had[0] + i, "prompt_id": p, "key": k, "score": s, "source": source}
            for i, ((p, k, s), source) in enumerate(zip(rows, sources, strict=True))
        ]
        self.insert("incoming_carried", table("incoming_carried", batch), "INSERT OR IGNORE")

    def _select(self, record: Record) -> None:
        self._db.execute("DELETE FROM selection")
        self._db.execute(
            "INSERT INTO selection SELECT row_number() OVER (ORDER BY position) - 1, prompt_id, source FROM incoming"
        )
        self._db.execute(
            "DELETE FROM carried; INSERT INTO carried "
            "SELECT prompt_id, row_number() OVER (PARTITION BY prompt_id ORDER BY seq) - 1, key, score, source "
            "FROM incoming_carried SEMI JOIN selection USING (prompt_id)"
        )
        self._score_carried()
        self._db.execute("DELETE FROM incoming; DELETE FROM incoming_carried")
        self._db.execute("DELETE FROM intake")
        self._db.execute("DELETE FROM slots")  # planned over other positions: until the new plan all are pending
        self._db.execute("DELETE FROM marks WHERE name = 'plan'")
        rows = [{"source": s, "reason": r, "rows": n} for s, r, n in record["counts"]]
        self.insert("intake", table("intake", rows))
        self.mark("sources", record["fingerprint"])

    def _score_carried(self) -> None:
        """Scores that came with completions, as a judgement by no one: from here on ratings like all others. Where some
        prompts have scores, one without any has a judgement without ratings: nobody is going to give it some."""
        # a judge may be called so, too: what it said has a call
        self._db.execute("DELETE FROM judgements WHERE identity = ? AND call_id IS NULL", [PROVIDED_JUDGE])
        self._db.execute(
            "INSERT INTO judgements BY NAME SELECT left(sha256('carried:' || prompt_id), 32) AS key, prompt_id, "
            "$name AS judge, $name AS identity, 0 AS pass, $name AS request, $name AS spec, "
            "list(key ORDER BY n) AS completions, list(key ORDER BY key) AS answers, "
            "coalesce(list({'completion': key, 'aspect': 'overall', 'state': 'rated', 'score': score, 'rationale': '', "
            "'types': []::INTEGER[]} ORDER BY n) FILTER (score IS NOT NULL), []) AS ratings "
            "FROM carried WHERE (SELECT count(score) FROM carried) > 0 GROUP BY prompt_id",
            {"name": PROVIDED_JUDGE},
        )

    # --- the plan, and the run that goes on ---------------------------------------------------------------------------

    def mark(self, name: str, value: str) -> None:
        """Remembers a value that tells whether something derived still holds."""
        self._db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", [name, value])

    def marked(self, name: str) -> str | None:
        with noticing(self.path):
            rows = self._db.execute("SELECT value FROM marks WHERE name = ?", [name]).fetchall()
        return rows[0][0] if rows else None

    def compare_texts(self) -> None:
        """Looks whether a completion is gone or another than a judge was shown; then judgements stand by their texts
        from now on. While a run goes on that can't come to be: only what has no completion gets one."""
        if self.marked("texts"):
            return
        shown = " UNION ALL ".join(
            f"SELECT unnest(answers) AS key, unnest(shown) AS text FROM {name} WHERE shown IS NOT NULL"
            for name in ("judgements", "failed")
        )
        others = f"FROM ({shown}) s LEFT JOIN completions c USING (key) WHERE c.text_id IS DISTINCT FROM s.text"
        with noticing(self.path):
            some = self._db.execute(f"SELECT 1 {others} LIMIT 1").fetchall()
        if some:
            with self._transaction():
                self._db.execute("CREATE OR REPLACE MACRO stands(shown, shows) AS shown_now(shown, shows)")
                self.mark("texts", "compared")

    def replan(self, batches: Iterable[Sequence[tuple[int, Slot, str | None]]], mark: str) -> None:
        """Puts other slots in the place of the present ones; rows are (position, slot, digest of its principle)."""
        with self._transaction():
            self._db.execute("DELETE FROM slots")
            for batch in batches:
                rows = [
                    {
                        "position": position, "prompt_id": s.prompt_id, "slot": s.slot, "key": s.key, "model": s.model,
                        "identity": s.identity, "sample": s.sample, "seed": s.seed, "principle": principle,
                    }
                    for position, s, principle in batch
                ]  # fmt: skip
                self.insert("slots", table("slots", rows))
            self.mark("plan", mark)

    def judged_by(self, specs: Sequence[JudgingSpec]) -> None:
        """Says which requests the present rubric makes of the present judges."""
        rows = [
            {
                "judge": s.judge, "identity": s.identity, "pass": s.judge_pass, "request": s.request,
                "listwise": s.listwise, "n": s.n, "least": s.least, "spec": s.spec, "instead": s.instead,
            }
            for s in specs
        ]  # fmt: skip
        with self._transaction():
            self._db.execute("DELETE FROM specs")
            self.insert("specs", table("specs", rows))

    def show_materials(self, batches: Iterable[Sequence[tuple[str, str]]], mark: str) -> None:
        """Says what the present rubric shows a judge of each prompt's material: (prompt_id, digest of the text)."""
        with self._transaction():
            self._db.execute("DELETE FROM materials")
            for batch in batches:
                rows = [{"prompt_id": prompt_id, "digest": digest} for prompt_id, digest in batch]
                self.insert("materials", table("materials", rows))
            self.mark("materials", mark)

    def begin(self, limit: int | None) -> None:
        """Lists what a run has to do: slots without an answer, and prompts that are ready to be judged."""
        reached = within(limit)
        with self._transaction():
            self._db.execute("DELETE FROM settled; DELETE FROM todo; DELETE FROM ready")
            self._db.execute(
                f"INSERT INTO settled SELECT position, slot, state = 'answered' FROM slot_states "
                f"WHERE state IN ('answered', 'failed') AND {reached}"
            )
            self._db.execute(
                "INSERT INTO todo "
                "SELECT row_number() OVER (PARTITION BY model ORDER BY position, slot), model, position, slot "
                f"FROM slot_states WHERE state IN ('pending', 'later') AND {reached}"
            )
            self._db.execute(
                f"INSERT INTO ready SELECT row_number() OVER (ORDER BY position), position "
                f"FROM (SELECT DISTINCT position FROM needed WHERE state IN ('pending', 'later') AND {reached})"
            )

    def notice_ready(self, positions: Sequence[int], per_prompt: int, min_completions: int) -> None:
        """Of the prompts at these positions, lists those whose slots are now all terminal as ready."""
        with noticing(self.path):
            self._db.register("touched", pa.table({"position": pa.array(positions, pa.int64())}))
            self._db.execute(
                "INSERT INTO ready "
                "SELECT (SELECT coalesce(max(seq), 0) FROM ready) + row_number() OVER (ORDER BY position), position "
                "FROM settled WHERE position IN (SELECT position FROM touched) AND position BETWEEN ? AND ? "
                "GROUP BY position HAVING count(*) = ? AND count(*) FILTER (answered) >= ?",
                [min(positions), max(positions), per_prompt, min_completions],
            )
            self._db.unregister("touched")

    def keep_outcomes(self, parts: Iterable[Mapping[str, pa.Table]], policy: str) -> None:
        """Puts down what became of each prompt, and by which policy (JSON), in the place of what the tables held."""
        with self._transaction():
            self._db.execute(
                "DELETE FROM outcomes; DELETE FROM preferences; DELETE FROM scores; DELETE FROM judge_scores"
            )
            for part in parts:
                for name, rows in part.items():
                    self.insert(name, rows)
            self.mark("pairs", policy)


def _make(path: Path) -> None:
    """An empty store, under its name once it is whole: one that a kill or a full disk left half made, with no journal
    yet, would be taken for somebody else's file."""
    aside = path.with_name(path.name + ".new")
    for name in (*_files(aside), *_files(path)):
        name.unlink(missing_ok=True)
    with noticing(path):
        db = connect(aside)
        try:
            db.begin()
            db.execute(shipped("data", "schemas", "store.sql").read_text(encoding="utf-8"))
            db.execute("INSERT INTO about VALUES (?, 1, 0, 0)", [SCHEMA_VERSION])
            db.commit()
            db.execute("CHECKPOINT")
        finally:
            db.close()
    aside.rename(path)


def _files(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(path.name + ".wal")


def free(path: Path, suffix: str) -> Path:
    """A name for what is moved out of the way that nothing has, with a log or without."""
    name = re.sub(r"\.aside\d*$", "", path.name) + suffix
    every = (path.with_name(f"{name}{n or ''}") for n in chain([0], count(2)))
    return next(one for one in every if not any(map(os.path.lexists, _files(one))))


def set_aside(path: Path, suffix: str = ".aside") -> Path:
    """Takes a store out of the way, its write-ahead log too, under a name that nothing has: what is there may hold what
    no other file does. The log goes first: by its name it is known whose it is, should a kill part the two."""
    moves = moving(path, suffix)
    for file, moved in moves:
        if os.path.lexists(file):
            file.rename(moved)
    return moves[-1][1]


def moving(path: Path, suffix: str = ".aside") -> list[tuple[Path, Path]]:
    """What `set_aside` renames, in order."""
    return list(zip(reversed(_files(path)), reversed(_files(free(path, suffix))), strict=True))


def _take_back_log(path: Path) -> None:
    """Gives a store its log back, after a kill between the two renames of `set_aside`."""
    _, log = _files(path)
    alone = (one for one in asides(path, ".wal") if not one.with_suffix("").exists())
    if path.exists() and not log.exists() and (moved := next(alone, None)):
        moved.rename(log)


def asides(path: Path, end: str = "") -> list[Path]:
    """The stores that were set aside and are not known to hold nothing that the journal lacks."""
    name = re.compile(re.escape(path.name + ".aside") + r"\d*" + re.escape(end))
    return sorted(one for one in path.parent.iterdir() if name.fullmatch(one.name))


def drop_aside(path: Path) -> None:
    """Deletes one that was set aside, once all it holds is in the journal. The log goes first: alone it would be taken
    for one of `_take_back_log`."""
    for name in reversed(_files(path)):
        name.unlink(missing_ok=True)
