"""Write the store: the journal's records as tables, the plan (which models complete which prompts), and the list of
what is pending.

`Store` writes on one connection that only one thread uses at a time; a `Reader` (reader.py) has its own. DuckDB 2.0
raises if threads share a connection, and fails at commit if two connections insert the same key.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import duckdb
import pyarrow as pa

from aif.core.errors import JournalDamaged, StoreDamaged
from aif.core.resources import shipped
from aif.core.types import PROVIDED_JUDGE, JudgingSpec, Slot
from aif.store.connection import (
    MOST_MEMORY,
    REBUILD_MEMORY,
    SCHEMA_VERSION,
    SETTINGS,
    check_version,
    connect,
    file_error,
    limit_condition,
    translated_errors,
    with_more_memory,
)
from aif.store.ingest import RowBatch, Step, arrow_table
from aif.store.journal import Position
from aif.store.records import Record
from aif.store.set_aside import restore_log, set_aside, store_files

# The SQL verb that inserts rows, by table. The default, INSERT OR IGNORE, keeps an existing answer. The last row of a
# prompt or failure replaces earlier ones; table `settled` has no key.
_VERBS = {"prompts": "INSERT OR REPLACE", "failed": "INSERT OR REPLACE", "settled": "INSERT"}


class Store:
    """A store that is open for writing. Only `JournaledStore` opens one, so that the journal is written first."""

    def __init__(self, path: Path, connection: duckdb.DuckDBPyConnection) -> None:
        self.path = path
        self._db = connection

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the store, or create an empty one. Raises StoreDamaged if it can't be read or has another schema
        version, and StoreLocked if another process has it open."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _, log = store_files(path)
        restore_log(path)
        if not path.exists() or path.stat().st_size == 0:
            if log.exists():  # it may hold records that nothing else has, and can't be read alone
                set_aside(path, ".unreadable")
            _create(path)
        replayed = log.exists()  # then the log may hold blocks that the file lacks
        db = connect(path)
        try:
            check_version(db, path)
            # used blocks only: DuckDB truncates the file's free end, but still counts it among all blocks
            sizes = db.execute("SELECT used_blocks * block_size FROM pragma_database_size()").fetchall()
        except duckdb.Error as error:
            db.close()
            raise file_error(path, "can't be read", error) from error
        except BaseException:
            db.close()
            raise
        if not replayed and any(size > path.stat().st_size for (size,) in sizes):
            db.close()
            raise StoreDamaged(f"{path}: the store has been cut short")
        return cls(path, db)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Return another connection, for another thread. Call it in the thread that owns the store."""
        return self._db.cursor()

    def close(self) -> None:
        self._db.close()

    @property
    def position(self) -> Position:
        """The position in the journal up to which the journal's records are in the store."""
        with translated_errors(self.path):
            (row,) = self._db.execute('SELECT segment, "offset" FROM about').fetchall()
        return Position(*row)

    @property
    def damaged_lines(self) -> int:
        """The number of damaged journal lines whose records were not recovered. Prompts, provided completions or parts
        of the selection may be missing because of them. Reading the sources completely sets the number to 0."""
        with translated_errors(self.path):
            (row,) = self._db.execute("SELECT damaged FROM about").fetchall()
        return int(row[0])

    @contextmanager
    def more_memory(self) -> Iterator[None]:
        """Raise DuckDB's memory limit to REBUILD_MEMORY (500 MB) in this context, while a long journal is inserted and
        nothing else needs memory. (1,000,000 calls take 66 s with 320 MB and 53 s with 1 GB.)"""
        if SETTINGS["memory_limit"] != MOST_MEMORY:
            self._db.execute(f"SET memory_limit = '{REBUILD_MEMORY}'")
        try:
            yield
        finally:
            with suppress(duckdb.Error):  # keys of some 4,000,000 calls need more memory until a checkpoint
                self._db.execute(f"SET memory_limit = '{SETTINGS['memory_limit']}'")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with translated_errors(self.path):
            self._db.begin()
            try:
                yield
                self._db.commit()
            except BaseException:
                with suppress(duckdb.Error):  # a failed commit has ended the transaction
                    self._db.rollback()
                raise

    def apply(self, steps: Sequence[Step], position: Position, damaged: int = 0) -> None:
        """Apply the steps of a batch of journal records in one transaction. An existing answer is never replaced.

        position: the journal position after the batch.
        damaged: the number of damaged lines in the batch.
        """

        def apply_all() -> None:
            with self._transaction():
                self._db.execute(
                    'UPDATE about SET segment = ?, "offset" = ?, damaged = damaged + ?',
                    [position.segment, position.offset, damaged],
                )
                for step in steps:
                    if isinstance(step, RowBatch):
                        self._insert_batch(step)
                    else:
                        self._apply_record(step)

        with_more_memory(self._db, self.path, apply_all)

    def _insert_batch(self, batch: RowBatch) -> None:
        if batch.answered:
            self._db.execute("DELETE FROM failed WHERE key IN (SELECT unnest(?))", [batch.answered])
        for name, rows in batch.tables.items():
            self.insert(name, rows, _VERBS.get(name, "INSERT OR IGNORE"))
        if batch.failed:  # answered items have not failed, even if a late reply or a record out of order says so
            self._db.execute(
                "DELETE FROM failed WHERE key IN (SELECT unnest(?)) AND (key IN (SELECT key FROM completions) "
                "OR key IN (SELECT key FROM judgements))",
                [batch.failed],
            )

    def insert(self, name: str, rows: pa.Table, verb: str = "INSERT") -> None:
        """Insert Arrow rows into a table by column name; `verb` may be INSERT OR REPLACE or INSERT OR IGNORE. The query
        refers to the Python variable `rows`: rows registered as a view would stay in memory until the transaction ends
        (350 MB for 2,480,000 pairs)."""
        self._db.execute(f"{verb} INTO {name} BY NAME SELECT * FROM rows")

    def _apply_record(self, record: Record) -> None:
        match record["t"]:
            case "page":
                if record["start"] == 0:
                    self._db.execute("DELETE FROM incoming; DELETE FROM incoming_carried")
                start = record["start"]
                rows = [
                    {"position": start + i, "prompt_id": r[0], "source": r[1]} for i, r in enumerate(record["rows"])
                ]
                self.insert("incoming", arrow_table("incoming", rows), "INSERT OR IGNORE")
                if carried := record.get("carried"):
                    self._insert_provided(carried, record.get("sources") or [None] * len(carried))
            case "selected":
                self._replace_selection(record)
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

    def _insert_provided(self, rows: Sequence[Sequence[Any]], sources: Sequence[str | None]) -> None:
        ((stored,),) = self._db.execute("SELECT count(*) FROM incoming_carried").fetchall()
        batch = [
            {"seq": stored + i, "prompt_id": p, "key": k, "score": s, "source": source}
            for i, ((p, k, s), source) in enumerate(zip(rows, sources, strict=True))
        ]
        self.insert("incoming_carried", arrow_table("incoming_carried", batch), "INSERT OR IGNORE")

    def _replace_selection(self, record: Record) -> None:
        self._db.execute("DELETE FROM selection")
        self._db.execute(
            "INSERT INTO selection SELECT row_number() OVER (ORDER BY position) - 1, prompt_id, source FROM incoming"
        )
        self._db.execute(
            "DELETE FROM carried; INSERT INTO carried "
            "SELECT prompt_id, row_number() OVER (PARTITION BY prompt_id ORDER BY seq) - 1, key, score, source "
            "FROM incoming_carried SEMI JOIN selection USING (prompt_id)"
        )
        self._insert_provided_scores()
        self._db.execute("DELETE FROM incoming; DELETE FROM incoming_carried")
        self._db.execute("DELETE FROM intake")
        self._db.execute("DELETE FROM slots")  # they have positions of the old selection; the next plan replaces them
        self._db.execute("DELETE FROM marks WHERE name = 'plan'")
        rows = [{"source": s, "reason": r, "rows": n} for s, r, n in record["counts"]]
        self.insert("intake", arrow_table("intake", rows))
        self.set_mark("sources", record["fingerprint"])

    def _insert_provided_scores(self) -> None:
        """Insert the scores that came with provided completions as ratings, as if a judge had given them.

        If any provided completion has a score, every prompt with provided completions gets a judgement. The judgement
        of a prompt without scores has no ratings: no judge will rate that prompt.
        """
        # a judge may have this name too, but its judgements have calls
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

    # --- the plan and the current run ---------------------------------------------------------------------------------

    def set_mark(self, name: str, value: str) -> None:
        """Store a value (a mark) under a name, in place of an earlier one. Most marks are digests of what a table was
        made from: they show later whether the table is out of date."""
        self._db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", [name, value])

    def get_mark(self, name: str) -> str | None:
        """Return the value stored under this name, or None."""
        with translated_errors(self.path):
            rows = self._db.execute("SELECT value FROM marks WHERE name = ?", [name]).fetchall()
        return rows[0][0] if rows else None

    def compare_texts(self) -> None:
        """Check whether the texts that judges were shown are still the texts of the completions.

        If a text differs or is missing, a judgement counts from now on only if all texts shown are the present ones. A
        run can't cause such a difference: it replaces no completion.
        """
        if self.get_mark("texts"):
            return
        shown = " UNION ALL ".join(
            f"SELECT unnest(answers) AS key, unnest(shown) AS text FROM {name} WHERE shown IS NOT NULL"
            for name in ("judgements", "failed")
        )
        differing = f"FROM ({shown}) s LEFT JOIN completions c USING (key) WHERE c.text_id IS DISTINCT FROM s.text"
        with translated_errors(self.path):
            rows = self._db.execute(f"SELECT 1 {differing} LIMIT 1").fetchall()
        if rows:
            with self._transaction():
                self._db.execute("CREATE OR REPLACE MACRO stands(shown, shows) AS shown_now(shown, shows)")
                self.set_mark("texts", "compared")

    def replace_slots(self, batches: Iterable[Sequence[tuple[int, Slot, str | None]]], mark: str) -> None:
        """Replace the plan: the list of all planned completions.

        batches: for each planned completion, (position of its prompt in the selection, its slot, digest of its
            principle's text or None).
        mark: a digest of the plan's inputs, stored with the plan.
        """
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
                self.insert("slots", arrow_table("slots", rows))
            self.set_mark("plan", mark)

    def set_judging_specs(self, specs: Sequence[JudgingSpec]) -> None:
        """Replace the list of judging requests that the current rubric and judges need: one for each judge and request
        of the rubric. A request about all completions of a prompt has one for each possible number of completions."""
        rows = [
            {
                "judge": s.judge, "identity": s.identity, "pass": s.judge_pass, "request": s.request,
                "listwise": s.listwise, "n": s.n, "least": s.least, "spec": s.spec, "instead": s.instead,
            }
            for s in specs
        ]  # fmt: skip
        with self._transaction():
            self._db.execute("DELETE FROM specs")
            self.insert("specs", arrow_table("specs", rows))

    def set_materials(self, batches: Iterable[Sequence[tuple[str, str]]], mark: str) -> None:
        """Replace the list of texts that the current rubric shows judges beside the conversations.

        batches: (prompt_id, digest of the text) for each prompt with such a text.
        mark: a digest of the list's inputs, stored with the list.
        """
        with self._transaction():
            self._db.execute("DELETE FROM materials")
            for batch in batches:
                rows = [{"prompt_id": prompt_id, "digest": digest} for prompt_id, digest in batch]
                self.insert("materials", arrow_table("materials", rows))
            self.set_mark("materials", mark)

    def list_pending(self, limit: int | None) -> None:
        """Fill the tables that list a run's work, for the first `limit` selected prompts only (None: all).

        todo: pending slots, which are planned completions to request.
        ready: prompts with pending judgements whose completions are all answered or failed.
        settled: slots answered or failed.
        """
        condition = limit_condition(limit)
        with self._transaction():
            self._db.execute("DELETE FROM settled; DELETE FROM todo; DELETE FROM ready")
            self._db.execute(
                f"INSERT INTO settled SELECT position, slot, state = 'answered' FROM slot_states "
                f"WHERE state IN ('answered', 'failed') AND {condition}"
            )
            self._db.execute(
                "INSERT INTO todo "
                "SELECT row_number() OVER (PARTITION BY model ORDER BY position, slot), model, position, slot "
                f"FROM slot_states WHERE state IN ('pending', 'later') AND {condition}"
            )
            self._db.execute(
                f"INSERT INTO ready SELECT row_number() OVER (ORDER BY position), position "
                f"FROM (SELECT DISTINCT position FROM needed WHERE state IN ('pending', 'later') AND {condition})"
            )

    def add_judgeable(self, positions: Sequence[int], per_prompt: int, min_completions: int) -> None:
        """Add to table `ready` those of the prompts at `positions` (in the selection) that can now be judged.

        per_prompt: number of slots (planned completions) of a prompt. All of them must be answered or failed.
        min_completions: the fewest slots that must be answered.
        """
        with translated_errors(self.path):
            self._db.register("touched", pa.table({"position": pa.array(positions, pa.int64())}))
            self._db.execute(
                "INSERT INTO ready "
                "SELECT (SELECT coalesce(max(seq), 0) FROM ready) + row_number() OVER (ORDER BY position), position "
                "FROM settled WHERE position IN (SELECT position FROM touched) AND position BETWEEN ? AND ? "
                "GROUP BY position HAVING count(*) = ? AND count(*) FILTER (answered) >= ?",
                [min(positions), max(positions), per_prompt, min_completions],
            )
            self._db.unregister("touched")

    def replace_outcomes(self, parts: Iterable[Mapping[str, pa.Table]], policy: str) -> None:
        """Replace the tables of outcomes, pairs and scores. Each part maps names of these tables to rows. `policy`
        (JSON) is the pair policy that made them, stored with them."""
        with self._transaction():
            self._db.execute(
                "DELETE FROM outcomes; DELETE FROM preferences; DELETE FROM scores; DELETE FROM judge_scores"
            )
            for part in parts:
                for name, rows in part.items():
                    self.insert(name, rows)
            self.set_mark("pairs", policy)


def _create(path: Path) -> None:
    """Create an empty store under a temporary name, and rename it once it is complete. If a kill or a full disk left an
    incomplete file under the final name, and no journal beside it, aif would take the file for another program's."""
    new = path.with_name(path.name + ".new")
    for file in (*store_files(new), *store_files(path)):
        file.unlink(missing_ok=True)
    with translated_errors(path):
        db = connect(new)
        try:
            db.begin()
            db.execute(shipped("data", "schemas", "store.sql").read_text(encoding="utf-8"))
            db.execute("INSERT INTO about VALUES (?, 1, 0, 0)", [SCHEMA_VERSION])
            db.commit()
            db.execute("CHECKPOINT")
        finally:
            db.close()
    new.rename(path)
