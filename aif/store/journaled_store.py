"""The store with its journal, opened for writing: every record goes to the journal first, then into the store.

A store that is *set aside* is renamed and kept for the time being. After a kill or a crash, the next command that opens
the store recovers:

1. It takes the lock and removes an incomplete last line of the journal.
2. A store that is missing, damaged, of another version, or made from another journal is set aside; an empty store
   replaces it.
3. It inserts the records that the store lacks (catch_up.py).
4. It writes the records that only the old store has back to the journal (salvage.py), then deletes the old store.
"""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar

import orjson
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from aif.core import reasoning
from aif.core.errors import BadInput, JournalDamaged, StoreDamaged, StoreLocked, StoreOutOfMemory
from aif.core.reasoning import Tags
from aif.core.types import DIGEST_SUFFIX
from aif.judging.rubric import Rubric
from aif.store import journal, records, salvage
from aif.store.catch_up import catch_up
from aif.store.connection import MOST_MEMORY, larger_memory_limit
from aif.store.database import Store
from aif.store.journal import START, Damage, Journal, Position
from aif.store.journal_batches import Rubrics
from aif.store.lock import Lock
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from aif.store.records import Record
from aif.store.set_aside import SetAsideStore, asides, delete_aside, free_path, planned_renames, set_aside

READER_WAIT_S = 5  # how long to wait for a process that reads the store
FEW_DAMAGED = 5  # with at most this many damaged lines, what they held is just requested again

T = TypeVar("T")

Notify = Callable[[str], None]


class JournaledStore:
    """A store and its journal, open for writing by this process, which holds their lock. Close it to release both.

    Method `keep` writes records to both. Attribute `rubrics` holds the rubrics and reasoning tags with which replies in
    the journal are parsed.
    """

    def __init__(
        self, paths: StorePaths, journal: Journal, store: Store, rubrics: Rubrics, resources: ExitStack
    ) -> None:
        self.paths = paths
        self.journal = journal
        self.store = store
        self.rubrics = rubrics
        self._resources = resources

    @classmethod
    def open(
        cls,
        path: Path,
        notify: Notify,
        rubric: Rubric | None = None,
        rebuild: bool = False,
        tags: Mapping[str, Tags] = MappingProxyType({}),
    ) -> Self:
        """Open the store at `path` for writing, and recover from crashes and damage.

        notify: gets a line for each problem found.
        rubric: the pipeline's rubric, used if the journal lost it.
        rebuild: build a new store from the journal in any case.
        tags: the pipeline's reasoning tags by `stage/identity`. If they changed since replies were parsed, the store is
            rebuilt with the new ones.

        Raises StoreLocked if another process has the lock, JournalDamaged if records are lost that the user should
        restore first, BadInput if `path` can't be a store.
        """
        paths = StorePaths(path)
        with ExitStack() as resources:
            resources.callback(Lock(paths.lock).release)
            paths.progress.unlink(missing_ok=True)  # of a killed run; from here on this process writes it
            opened, torn = Journal.open(paths.journal)
            resources.callback(opened.close)
            if torn:
                notify(f"{torn}; what it held is requested again, unless the store has it")
                if opened.position == START and not paths.store.exists() and not asides(path):
                    raise JournalDamaged(
                        f"{paths.journal}: has no complete record, and {path.name} is not beside it: restore one of "
                        "the two from a backup. Without them, the same command starts from nothing, requests and pays "
                        "for everything again"
                    )
            rubrics, end = Rubrics(), opened.position
            store, reused = _usable_store(paths, opened, notify, rebuild)
            if changed := _changed_tags(store, tags):
                with Reader.of(store) as reader:
                    before, rubrics.tags = (
                        _reply_digests(reader, changed),
                        reasoning.merge_tags(store.get_mark("tags"), tags),
                    )
                if before:
                    store.close()
                    set_aside(path)
                    store, reused = Store.open(path), False
                store.set_mark("tags", orjson.dumps(rubrics.tags).decode())
            rubrics.tags = reasoning.merge_tags(store.get_mark("tags"), {})
            resources.callback(store.close)
            opened.mark_emptied()
            old_stores = asides(path)
            with Reader.of(store) as reader:
                rubrics.files.update(reader.texts("rubric"))
            for old_store in old_stores:
                rubrics.files |= _rubric_files(old_store)
            if rubric:
                rubrics.files.setdefault(rubric.digest, dict(rubric.files))
            inserted, damaged = catch_up(store, paths.journal, rubrics)
            if old_stores and store.damaged_lines > len(damaged):  # killed earlier, after these lines were read
                damaged = _damaged_lines(paths.journal)
            if reused and inserted:
                notify(f"{path}: was behind its journal; {inserted:,} records were added")
            journaled = cls(paths, opened, store, rubrics, resources)
            for old_store in old_stores:
                journaled._write_back(old_store, end, damaged, notify)
            journaled._report_damage(damaged, bool(old_stores), notify)
            store.compare_texts()
            if changed and before:
                with Reader.of(store) as reader:
                    after = _reply_digests(reader, changed)
                differing = sum(before.get(key) != after.get(key) for key in before.keys() | after.keys())
                names = ", ".join(sorted({name.partition("/")[2] for name in changed}))
                notify(
                    f"reasoning_tags of {names} changed: {len(before):,} replies were split again, {differing:,} with "
                    "another result"
                )
            journaled._resources = resources.pop_all()
            return journaled

    @classmethod
    def use(
        cls,
        path: Path,
        notify: Notify,
        rubric: Rubric | None,
        work: Callable[[Self], T],
        rebuild: bool = False,
        tags: Mapping[str, Tags] = MappingProxyType({}),
    ) -> T:
        """Open the store and return `work(journaled_store)`. The other arguments are those of `open`.

        - If the store is damaged, it is rebuilt and `work` runs once more. Damage in a store file shows only when the
          damaged block is read, in any thread.
        - If DuckDB ran out of memory, `work` runs once more, with a larger memory limit.
        - The second `work` finds what the first one stored. A second failure is raised.
        """
        try:
            with cls.open(path, notify, rubric, rebuild, tags) as journaled:
                return work(journaled)
        except (StoreDamaged, StoreOutOfMemory, BaseExceptionGroup) as error:
            if (trouble := _store_error(error)) is None:
                raise
        if isinstance(trouble, StoreOutOfMemory):
            notify(f"{path}: the store needs more memory than its limit; trying again with {MOST_MEMORY}")
            with larger_memory_limit(), cls.open(path, notify, rubric, rebuild, tags) as journaled:
                return work(journaled)
        notify(f"{trouble}; rebuilding it from the journal")
        with cls.open(path, notify, rubric, rebuild=True, tags=tags) as journaled:
            return work(journaled)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._resources.close()

    def _write_back(self, aside: Path, end: Position, damaged: Sequence[Damage], notify: Notify) -> None:
        """Write to the journal the records that only a set-aside store has. Delete that store if all of it could be
        read. Raises JournalDamaged if the store belongs to another pipeline.

        aside: the path of the set-aside store.
        end: the journal's end when the journal was opened.
        damaged: the journal's damaged lines.
        """
        written = 0
        try:
            old_store = SetAsideStore.open(aside)
        except StoreDamaged as error:
            log = aside.with_name(aside.name + ".wal")
            notify(f"{error}; {_rename_unreadable(log if log.exists() else aside)}")
            if aside.exists():  # without its log it may be readable, as of the last checkpoint
                self._write_back(aside, end, damaged, notify)
            return
        with old_store, Reader.of(self.store) as reader:
            if calls := _calls_of_other_pipeline(old_store, reader, len(damaged)):
                raise JournalDamaged(
                    f"{aside}: holds {calls:,} calls, and no run of them is in {self.paths.journal}: one of the two "
                    "belongs to another pipeline; move it there"
                )
            about = old_store.rows('SELECT segment, "offset", damaged FROM about')
            *position, lacking = about[0].values() if about else (1, 0, 1)
            reached = Position(*position)
            for batch in filter(None, salvage.missing_records(old_store, reader, self._retried(reached))):
                self.keep(batch)
                written += len(batch)
            if old_store.torn or lacking:
                reached = START
            recovered = self.store.damaged_lines
            if self.store.get_mark("sources") is None or (reached >= end and (written or recovered)):
                for batch in salvage.selection_records(old_store):
                    self.keep(batch)
            if reached < max((Position(int(line.path.stem), line.offset + 1) for line in damaged), default=START):
                recovered = min(written, recovered - 1)
            elif reached < end or old_store.torn:
                recovered -= 1  # one stays: the selection is not recovered, so the next run reads the sources
            if recovered > 0:
                self.keep([records.mended(recovered)])
        if written:
            notify(f"{self.paths.journal}: lacked {written:,} records that the store has; they were written back")
        if old_store.torn:
            notify(f"{aside}: part of it can't be read; {_rename_unreadable(aside)}")
        else:
            delete_aside(aside)

    def _retried(self, since: Position) -> bool:
        """Return whether `--retry-failed` was used after this position of the journal."""
        replayed = journal.replay(self.journal.folder, since)
        return any(isinstance(record, dict) and record["t"] == "retry" for _, record in replayed)

    def _report_damage(self, damaged: Sequence[Damage], some_written_back: bool, notify: Notify) -> None:
        """Report damaged lines and missing rubrics. `some_written_back` says whether there were old stores, from which
        records may have been recovered. Raises JournalDamaged if the records of more than FEW_DAMAGED (5) lines were
        not recovered."""
        result = "was recovered or is requested again" if some_written_back else "is lost and requested again"
        for line in damaged[:FEW_DAMAGED]:
            notify(f"{line}; what it held {result}")
        for digest in sorted(self.rubrics.lost):
            notify(
                f"{self.paths.journal}: rubric {digest[:12]} is missing, or this version can't use it; judgements made "
                "with it are requested again if the pipeline wants them"
            )
        if (lost := self.store.damaged_lines) > FEW_DAMAGED:
            broken = sorted({line.path for line in _damaged_lines(self.paths.journal)})
            moves = [(shlex.quote(str(path)), shlex.quote(str(free_path(path, ".damaged")))) for path in broken]
            commands = "\n".join(f"  mv {path} {new_path}; touch {path}" for path, new_path in moves)
            raise JournalDamaged(
                f"{self.paths.journal}: {lost:,} lines are damaged, and no other file has what they held: restore the "
                f"journal from a backup. To continue without them, and request and pay for that again:\n{commands}\n"
                "The other records of these files are written back from the store."
            )

    def clear_damage(self) -> None:
        """Set the count of damaged lines to 0. It is called when the sources were read completely, so that no prompt is
        missing."""
        if lost := self.store.damaged_lines:
            self.keep([records.mended(lost)])

    def keep(self, records: Sequence[Record]) -> None:
        """Append records to the journal, then insert into the store every journal record that the store lacks. After an
        interruption it may lack earlier records too. (The calls of a run are stored by its writer instead.)"""
        self.journal.append(records)
        catch_up(self.store, self.paths.journal, self.rubrics, other_process_bytes=math.inf)


def _store_error(error: BaseException) -> StoreDamaged | StoreOutOfMemory | None:
    """Return `error` if it is StoreDamaged or StoreOutOfMemory. If it is an exception group that holds nothing but
    these, return the first; else None."""
    while isinstance(error, BaseExceptionGroup):
        if error.split((StoreDamaged, StoreOutOfMemory))[1] is not None:
            return None
        error = error.exceptions[0]
    return error if isinstance(error, (StoreDamaged, StoreOutOfMemory)) else None


def _changed_tags(store: Store, tags: Mapping[str, Tags]) -> list[str]:
    """Return the models and judges, as `stage/identity`, whose reasoning tags changed since the replies were parsed."""
    stored = store.get_mark("tags")
    old, new = reasoning.merge_tags(stored, {}), reasoning.merge_tags(stored, tags)
    return [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]


def _reply_digests(reader: Reader, names: Sequence[str]) -> dict[str, str]:
    """Return a digest of each parsed reply of these models and judges, by key of the completion or judgement. `names`
    are `stage/identity`. The digest is of the text or ratings; a reply that couldn't be used has its kind of failure
    instead."""
    rows = reader._query(
        "SELECT key, digest FROM (SELECT key, text_id AS digest, 'completion' AS stage, identity FROM completions "
        "UNION ALL SELECT key, sha256(to_json(ratings)::VARCHAR), 'judgement', identity FROM judgements UNION ALL "
        "SELECT key, kind, stage, identity FROM failed WHERE kind IN ('empty', 'unreadable')) "
        "WHERE stage || '/' || split_part(identity, $2, 1) IN (SELECT unnest($1))",
        [list(names), DIGEST_SUFFIX],
    )
    return {row["key"]: row["digest"] for row in rows}


def _damaged_lines(folder: Path) -> list[Damage]:
    return [record for _, record in journal.replay(folder) if isinstance(record, Damage)]


def _rubric_files(aside: Path) -> dict[str, dict[str, str]]:
    """Return the files of the rubrics in a set-aside store, by rubric digest; empty if the store can't be read."""
    try:
        with SetAsideStore.open(aside) as old_store:
            rows = old_store.rows("SELECT digest, content FROM texts WHERE kind = 'rubric'")
    except StoreDamaged:
        return {}
    return {row["digest"]: orjson.loads(row["content"]) for row in rows}


def _calls_of_other_pipeline(old_store: SetAsideStore, reader: Reader, damaged: int) -> int:
    """Return the number of calls in a set-aside store if it belongs to another pipeline, else 0. The cost of another
    pipeline's calls must not be counted here.

    The old store belongs to another pipeline if the reader's store has runs, the two stores have no run in common, and
    the old store has more calls than the journal has damaged lines (`damaged`).
    """
    runs = "SELECT run, count(*) AS n FROM calls GROUP BY run"
    theirs, ours = ({row["run"]: row["n"] for row in rows} for rows in (old_store.rows(runs), reader._query(runs)))
    calls: int = sum(theirs.values())
    return calls if ours and calls > damaged and not theirs.keys() & ours.keys() else 0


def _rename_unreadable(aside: Path) -> str:
    """Rename a store that can't be read, so that it is kept; return the words that report the new name, as the end of a
    message."""
    renamed = set_aside(aside, ".unreadable")
    return f"it may hold records that the journal lacks, so it was renamed to {renamed}"


def _usable_store(paths: StorePaths, opened: Journal, notify: Notify, rebuild: bool) -> tuple[Store, bool]:
    """Return (an open store, whether it is the existing one).

    - The existing store is used if it fits the journal (`opened`) and lacks few records of damaged lines.
    - Otherwise, or with `rebuild`, the existing store is set aside. The open store is empty, to be filled from the
      journal.

    Raises BadInput if the store's path is a folder, or an unreadable file without a journal: it may be another
    program's.
    """
    path, empty = paths.store, opened.position == START
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; set `store` to a file name that ends with .duckdb")
    missing = not path.exists() or path.stat().st_size == 0
    if missing and not empty and not rebuild:
        notify(f"{path}: the store is missing; rebuilding it from the journal")
    try:
        store = _open_store(path, notify)
    except StoreDamaged as error:
        if empty:
            moves = "\n".join(
                f"  mv {shlex.quote(str(a))} {shlex.quote(str(b))}" for a, b in planned_renames(path) if a.exists()
            )
            raise BadInput(
                f"{error}; there is no journal beside it to rebuild it from: set `store` to another path, or restore "
                "the journal from a backup. If it is this pipeline's store, this recovers what can be read of it, and "
                f"the next command requests and pays for the rest again:\n{moves}"
            ) from error
        if not rebuild:
            notify(f"{error}; rebuilding it from the journal")
    else:
        reached = store.position
        fits = reached <= opened.position and journal.ends_at(opened.folder, reached)
        fits = fits and (reached == START or not opened.emptied)  # the store may have what was in emptied segments
        lacking = store.damaged_lines > FEW_DAMAGED  # a command refused to continue; the segments may be restored now
        if fits and not lacking and not rebuild:
            return store, not missing
        store.close()
        if fits and lacking and not rebuild:
            notify(f"{path}: lacks records of damaged journal lines; rebuilding it, in case they were restored")
        elif empty and reached != START:
            notify(f"{paths.journal}: the journal is missing; writing it again from the store")
        elif not fits:
            notify(f"{path}: was made from another version of its journal; rebuilding it from both")
    set_aside(path)
    return Store.open(path), False


def _open_store(path: Path, notify: Notify) -> Store:
    """Open the store. If another process has it open, such as `aif status`, wait for it up to READER_WAIT_S seconds."""

    def notify_once(attempt: RetryCallState) -> None:
        if attempt.attempt_number == 1 and attempt.outcome is not None:
            notify(f"{attempt.outcome.exception()}; waiting up to {READER_WAIT_S} s for it")

    retrying = Retrying(
        retry=retry_if_exception_type(StoreLocked),
        wait=wait_fixed(0.1),
        stop=stop_after_delay(READER_WAIT_S),
        before_sleep=notify_once,
        reraise=True,
    )
    return retrying(Store.open, path)
