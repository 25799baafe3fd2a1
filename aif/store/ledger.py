"""Journal and store as one: what is kept goes into the journal first, and the store follows.

Opening takes the lock, cuts off what a crash left torn, and lets the store catch up. A store that is lost, damaged, of
another version, or not what its journal makes is set aside, and another made from the journal. What only the former one
holds goes back into the journal then; it is deleted when nothing is left that only it holds.
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
from aif.store import journal as journals
from aif.store import records as events
from aif.store import salvage
from aif.store.catch_up import follow
from aif.store.connection import AMPLE, roomier
from aif.store.database import Store, asides, drop_aside, free, moving, set_aside
from aif.store.journal import START, Damage, Journal, Position
from aif.store.journal_batches import Rubrics
from aif.store.lock import Lock, Places
from aif.store.reader import Reader
from aif.store.records import Record
from aif.store.set_aside import Former

PATIENT_S = 5  # for readers of the store
FEW = 5  # damaged lines that are asked again without a question

T = TypeVar("T")

Told = Callable[[str], None]


class Ledger:
    """An open store with its journal, for one writing process."""

    def __init__(self, places: Places, journal: Journal, store: Store, rubrics: Rubrics, held: ExitStack) -> None:
        self.places = places
        self.journal = journal
        self.store = store
        self.rubrics = rubrics
        self._held = held

    @classmethod
    def open(
        cls,
        path: Path,
        tell: Told,
        rubric: Rubric | None = None,
        anew: bool = False,
        tags: Mapping[str, Tags] = MappingProxyType({}),
    ) -> Self:
        """Opens for writing. `tell` gets a line for each thing that was not as it should be. `rubric` is today's: it
        stands in where the journal has lost it. `tags` are the marks around reasoning (`Pipeline.tags`): where they are
        others than those that the store was read with, it is made again."""
        places = Places(path)
        with ExitStack() as held:
            held.callback(Lock(places.lock).release)
            places.progress.unlink(missing_ok=True)  # of a run that was killed: from here on it is this process's
            journal, torn = Journal.open(places.journal)
            held.callback(journal.close)
            if torn:
                tell(f"{torn}; what it held is asked again, unless the store holds it")
                if journal.position == START and not places.store.exists() and not asides(path):
                    raise JournalDamaged(
                        f"{places.journal}: nothing whole was in it, and there is no {path.name} beside it: put one of "
                        "the two back from a copy. Without, the same command begins anew, and asks and pays for all of "
                        "it again"
                    )
            rubrics, end = Rubrics(), journal.position
            store, known = _sound_store(places, journal, tell, anew)
            if others := _others(store, tags):
                with Reader.of(store) as reader:
                    before, rubrics.tags = _replies(reader, others), reasoning.merge_tags(store.marked("tags"), tags)
                if before:
                    store.close()
                    set_aside(path)
                    store, known = Store.open(path), False
                store.mark("tags", orjson.dumps(rubrics.tags).decode())
            rubrics.tags = reasoning.merge_tags(store.marked("tags"), {})
            held.callback(store.close)
            journal.hold_place()
            formers = asides(path)
            with Reader.of(store) as reader:
                rubrics.files.update(reader.texts("rubric"))
            for former in formers:
                rubrics.files |= _rubrics(former)
            if rubric:
                rubrics.files.setdefault(rubric.digest, dict(rubric.files))
            taken_in, damaged = follow(store, places.journal, rubrics)
            if formers and store.damaged > len(damaged):  # a mending was killed behind the reading of them
                damaged = _damages(places.journal)
            if known and taken_in:
                tell(f"{path}: was behind its journal, and has taken in what it lacked ({taken_in:,} records)")
            ledger = cls(places, journal, store, rubrics, held)
            for former in formers:
                ledger._put_back(former, end, damaged, tell)
            ledger._tell_lost(damaged, bool(formers), tell)
            store.compare_texts()
            if others and before:
                with Reader.of(store) as reader:
                    after = _replies(reader, others)
                otherwise = sum(before.get(key) != after.get(key) for key in before.keys() | after.keys())
                who = ", ".join(sorted({name.partition("/")[2] for name in others}))
                tell(
                    f"reasoning_tags of {who} are others now: {len(before):,} replies are read again, {otherwise:,} "
                    "otherwise than before"
                )
            ledger._held = held.pop_all()
            return ledger

    @classmethod
    def use(
        cls,
        path: Path,
        tell: Told,
        rubric: Rubric | None,
        work: Callable[[Self], T],
        anew: bool = False,
        tags: Mapping[str, Tags] = MappingProxyType({}),
    ) -> T:
        """What `work` makes of a ledger that is open meanwhile.

        A store may show only on the way, in whichever thread, that it is damaged: a block is checked when it is read.
        Then it is set aside and made again from the journal, and `work` is done once more: it goes by what the ledger
        holds. What is damaged again is raised. So it is, with more memory, where DuckDB finds no room.
        """
        try:
            with cls.open(path, tell, rubric, anew, tags) as ledger:
                return work(ledger)
        except (StoreDamaged, StoreOutOfMemory, BaseExceptionGroup) as error:
            if (trouble := _trouble(error)) is None:
                raise
        if isinstance(trouble, StoreOutOfMemory):
            tell(f"{path}: the store asks for more memory than it has; it gets {AMPLE}")
            with roomier(), cls.open(path, tell, rubric, anew, tags) as ledger:
                return work(ledger)
        tell(f"{trouble}; it is made again from the journal")
        with cls.open(path, tell, rubric, anew=True, tags=tags) as ledger:
            return work(ledger)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._held.close()

    def _put_back(self, aside: Path, end: Position, damaged: Sequence[Damage], tell: Told) -> None:
        """Keeps what a store that was set aside holds and the journal, up to its end, lacks. Deletes that store when
        nothing is left that only it holds."""
        kept = 0
        try:
            former = Former.open(aside)
        except StoreDamaged as error:
            log = aside.with_name(aside.name + ".wal")
            tell(f"{error}; {_left(log if log.exists() else aside)}")
            if aside.exists():  # without its log it may be read, as it was at the last checkpoint
                self._put_back(aside, end, damaged, tell)
            return
        with former, Reader.of(self.store) as reader:
            if calls := _of_others(former, reader, len(damaged)):
                raise JournalDamaged(
                    f"{aside}: holds {calls:,} calls, and none of any run that {self.places.journal} knows: one of the "
                    "two is another pipeline's; move it to where it belongs"
                )
            about = former.rows('SELECT segment, "offset", damaged FROM about')
            *place, lacking = about[0].values() if about else (1, 0, 1)
            reached = Position(*place)
            for records in filter(None, salvage.missing(former, reader, self._retried(reached))):
                self.keep(records)
                kept += len(records)
            if former.torn or lacking:
                reached = START
            mended = self.store.damaged
            if self.store.marked("sources") is None or (reached >= end and (kept or mended)):
                for records in salvage.selection(former):
                    self.keep(records)
            if reached < max((Position(int(one.path.stem), one.offset + 1) for one in damaged), default=START):
                mended = min(kept, mended - 1)
            elif reached < end or former.torn:
                mended -= 1  # which prompts there are: the sources are read again for that
            if mended > 0:
                self.keep([events.mended(mended)])
        if kept:
            tell(f"{self.places.journal}: lacked {kept:,} records that the store holds; they are in it again")
        if former.torn:
            tell(f"{aside}: part of it can't be read; {_left(aside)}")
        else:
            drop_aside(aside)

    def _retried(self, since: Position) -> bool:
        """Whether failures for good were told to be asked again, behind that place."""
        found = journals.replay(self.journal.folder, since)
        return any(isinstance(one, dict) and one["t"] == "retry" for _, one in found)

    def _tell_lost(self, damaged: Sequence[Damage], in_part: bool, tell: Told) -> None:
        """Tells of damaged lines. Raises JournalDamaged where they are many, and no store has what they held."""
        then = "is there again, or asked again" if in_part else "is lost and asked again"
        for damage in damaged[:FEW]:
            tell(f"{damage}; what it held {then}")
        for digest in sorted(self.rubrics.lost):
            tell(
                f"{self.places.journal}: rubric {digest[:12]} is lost, or this version can't use it; what was rated by "
                "it is asked again if wanted"
            )
        if (lost := self.store.damaged) > FEW:
            broken = sorted({one.path for one in _damages(self.places.journal)})
            moves = [(shlex.quote(str(path)), shlex.quote(str(free(path, ".damaged")))) for path in broken]
            files = "\n".join(f"  mv {path} {away}; touch {path}" for path, away in moves)
            raise JournalDamaged(
                f"{self.places.journal}: {lost:,} lines are damaged, and what they held is nowhere else: put it back "
                f"from a copy. To go on without, and ask and pay for that again:\n{files}\nWhat else is in there the "
                "store has, and puts back."
            )

    def made_good(self) -> None:
        """Remembers that what came in is all there again."""
        if lost := self.store.damaged:
            self.keep([events.mended(lost)])

    def keep(self, records: Sequence[Record]) -> None:
        """Journal, then store, at once: for what is kept outside the flow of a run. The store takes in besides what it
        lacks: a run that was left at once, or an interrupt between the two, puts the journal ahead of it."""
        self.journal.append(records)
        follow(self.store, self.places.journal, self.rubrics, far=math.inf)


def _trouble(error: BaseException) -> StoreDamaged | StoreOutOfMemory | None:
    """What is wrong with the store, where nothing else went wrong."""
    while isinstance(error, BaseExceptionGroup):
        if error.split((StoreDamaged, StoreOutOfMemory))[1] is not None:
            return None
        error = error.exceptions[0]
    return error if isinstance(error, (StoreDamaged, StoreOutOfMemory)) else None


def _others(store: Store, tags: Mapping[str, Tags]) -> list[str]:
    """Who is to be read with other marks than the store was."""
    had = store.marked("tags")
    then, now = reasoning.merge_tags(had, {}), reasoning.merge_tags(had, tags)
    return [name for name in then.keys() | now.keys() if then.get(name) != now.get(name)]


def _replies(reader: Reader, who: Sequence[str]) -> dict[str, str]:
    """How what these said reads, by key: a digest."""
    rows = reader._query(
        "SELECT key, said FROM (SELECT key, text_id AS said, 'completion' AS stage, identity FROM completions "
        "UNION ALL SELECT key, sha256(to_json(ratings)::VARCHAR), 'judgement', identity FROM judgements UNION ALL "
        "SELECT key, kind, stage, identity FROM failed WHERE kind IN ('empty', 'unreadable')) "
        "WHERE stage || '/' || split_part(identity, $2, 1) IN (SELECT unnest($1))",
        [list(who), DIGEST_SUFFIX],
    )
    return {row["key"]: row["said"] for row in rows}


def _damages(folder: Path) -> list[Damage]:
    return [one for _, one in journals.replay(folder) if isinstance(one, Damage)]


def _rubrics(aside: Path) -> dict[str, dict[str, str]]:
    try:
        with Former.open(aside) as former:
            found = former.rows("SELECT digest, content FROM texts WHERE kind = 'rubric'")
    except StoreDamaged:
        return {}
    return {row["digest"]: orjson.loads(row["content"]) for row in found}


def _of_others(former: Former, reader: Reader, damaged: int) -> int:
    """How many calls a store holds, if they are of no run that the other knows, and not since those lines are damaged:
    what others paid would enter this one's bill."""
    runs = "SELECT run, count(*) AS n FROM calls GROUP BY run"
    theirs, ours = ({row["run"]: row["n"] for row in rows} for rows in (former.rows(runs), reader._query(runs)))
    calls: int = sum(theirs.values())
    return calls if ours and calls > damaged and not theirs.keys() & ours.keys() else 0


def _left(aside: Path) -> str:
    kept = set_aside(aside, ".unreadable")
    return f"whether it holds anything that the journal lacks can't be told, so it is kept as {kept}"


def _sound_store(places: Places, journal: Journal, tell: Told, anew: bool) -> tuple[Store, bool]:
    """The store there is, or an empty one that will follow the journal from its start; and whether it is the former.

    Only a store of ours is ever set aside: what can't be read, with no journal, may be somebody else's.
    """
    path, empty = places.store, journal.position == START
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name a file that ends with .duckdb as `store`")
    gone = not path.exists() or path.stat().st_size == 0
    if gone and not empty and not anew:
        tell(f"{path}: the store is gone; it is made again from the journal")
    try:
        store = _opened(path, tell)
    except StoreDamaged as error:
        if empty:
            moves = "\n".join(
                f"  mv {shlex.quote(str(a))} {shlex.quote(str(b))}" for a, b in moving(path) if a.exists()
            )
            raise BadInput(
                f"{error}; there is no journal beside it to make it from: name another `store`, or put the journal "
                "back from a copy. Where it is this pipeline's, what can be read of it comes back, and the rest is "
                f"asked and paid for again, after\n{moves}"
            ) from error
        if not anew:
            tell(f"{error}; it is made again from the journal")
    else:
        reached = store.position
        fits = reached <= journal.position and journals.ends_at(journal.folder, reached)
        fits = fits and (reached == START or not journal.emptied)  # what was in there the store may have
        lacking = store.damaged > FEW  # a command refused; they may be back since, or moved away
        if fits and not lacking and not anew:
            return store, not gone
        store.close()
        if fits and lacking and not anew:
            tell(f"{path}: lacks what damaged lines of its journal held; it is made again, to see whether it is back")
        elif empty and reached != START:
            tell(f"{places.journal}: the journal is gone; it is written again from the store")
        elif not fits:
            tell(f"{path}: the store knows another state of its journal, or a longer; it is made again from both")
    set_aside(path)
    return Store.open(path), False


def _opened(path: Path, tell: Told) -> Store:
    """The store, once whoever reads it has left: that may be an `aif status` of this very moment."""

    def told(tried: RetryCallState) -> None:
        if tried.attempt_number == 1 and tried.outcome is not None:
            tell(f"{tried.outcome.exception()}; waiting up to {PATIENT_S} s for it")

    patient = Retrying(
        retry=retry_if_exception_type(StoreLocked),
        wait=wait_fixed(0.1),
        stop=stop_after_delay(PATIENT_S),
        before_sleep=told,
        reraise=True,
    )
    return patient(Store.open, path)
