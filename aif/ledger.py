"""Journal and store as one: what is kept goes into the journal first, and the store follows.

Opening takes the lock, cuts off what a crash left torn, and lets the store catch up; a store that is lost, damaged, of
another version, or ahead of its journal is made anew from the journal.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from aif.database import AMPLE, roomier
from aif.errors import BadInput, JournalDamaged, StoreDamaged, StoreLocked, StoreStarved
from aif.events import Record
from aif.following import follow
from aif.journal import START, Journal
from aif.lock import Lock, Places
from aif.portions import Rubrics
from aif.queries import Reader
from aif.rubric import Rubric
from aif.store import Store, set_aside

PATIENT_S = 5  # for readers of the store

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
    def open(cls, path: Path, tell: Told, rubric: Rubric | None = None, anew: bool = False) -> Self:
        """Opens for writing. `tell` gets a line for each thing that was not as it should be. `rubric` is today's: it
        stands in where the journal has lost it."""
        places = Places(path)
        with ExitStack() as held:
            held.callback(Lock(places.lock).release)
            places.progress.unlink(missing_ok=True)  # of a run that was killed: from here on it is this process's
            journal, torn = Journal.open(places.journal)
            held.callback(journal.close)
            if torn:
                tell(f"{torn}; what it held is asked again")
            rubrics = Rubrics()
            store, known = _sound_store(places, journal, tell, anew)
            held.callback(store.close)
            with Reader.of(store) as reader:
                rubrics.files.update(reader.texts("rubric"))
            if rubric:
                rubrics.files.setdefault(rubric.digest, dict(rubric.files))
            taken_in, damaged = follow(store, places.journal, rubrics)
            if known and taken_in:
                tell(f"{path}: was behind its journal, and has taken in what it lacked ({taken_in:,} records)")
            for damage in damaged:
                tell(f"{damage}; what it held is lost and asked again")
            for digest in sorted(rubrics.lost):
                tell(
                    f"{places.journal}: rubric {digest[:12]} is lost, or this version can't use it; what was rated by "
                    "it is asked again if wanted"
                )
            return cls(places, journal, store, rubrics, held.pop_all())

    @classmethod
    def use(cls, path: Path, tell: Told, rubric: Rubric | None, work: Callable[[Self], T]) -> T:
        """What `work` makes of a ledger that is open meanwhile.

        A store may show only on the way, in whichever thread, that it is damaged: a block is checked when it is read.
        Then it is set aside and made again from the journal, and `work` is done once more: it goes by what the ledger
        holds. What is damaged again is raised. So it is, with more memory, where DuckDB finds no room.
        """
        try:
            with cls.open(path, tell, rubric) as ledger:
                return work(ledger)
        except (StoreDamaged, StoreStarved, BaseExceptionGroup) as error:
            if (trouble := _trouble(error)) is None:
                raise
        if isinstance(trouble, StoreStarved):
            tell(f"{path}: the store asks for more memory than it has; it gets {AMPLE}")
            with roomier(), cls.open(path, tell, rubric) as ledger:
                return work(ledger)
        tell(f"{trouble}; it is made again from the journal")
        with cls.open(path, tell, rubric, anew=True) as ledger:
            return work(ledger)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._held.close()

    def keep(self, records: Sequence[Record]) -> None:
        """Journal, then store, at once: for what is kept outside the flow of a run. The store takes in besides what it
        lacks: a run that was left at once, or an interrupt between the two, puts the journal ahead of it."""
        self.journal.append(records)
        follow(self.store, self.places.journal, self.rubrics, far=math.inf)


def _trouble(error: BaseException) -> StoreDamaged | StoreStarved | None:
    """What is wrong with the store, where nothing else went wrong."""
    while isinstance(error, BaseExceptionGroup):
        if error.split((StoreDamaged, StoreStarved))[1] is not None:
            return None
        error = error.exceptions[0]
    return error if isinstance(error, (StoreDamaged, StoreStarved)) else None


def _sound_store(places: Places, journal: Journal, tell: Told, anew: bool) -> tuple[Store, bool]:
    """The store there is, or an empty one that will follow the journal from its start; and whether it is the former.

    Only what the journal can make again is ever set aside: without one, whatever stands there is somebody else's.
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
            raise BadInput(f"{error}; there is no journal beside it to make it from: name another `store`") from error
        if not anew:
            tell(f"{error}; it is made again from the journal")
    else:
        if empty and store.position != START:
            store.close()
            raise JournalDamaged(f"{places.journal}: the journal is gone, the store is not; put it back from a copy")
        if store.position <= journal.position and not anew:
            return store, not gone
        store.close()
        if not anew:
            tell(f"{path}: the store knows more than its journal, which was cut; it is made again from the journal")
    set_aside(path)
    return Store.open(path), False


def _opened(path: Path, tell: Told) -> Store:
    """The store, once whoever reads it has left: that may be an `aif status` of this very moment."""
    for tried in range(PATIENT_S * 10):
        try:
            return Store.open(path)
        except StoreLocked as error:
            if not tried:
                tell(f"{error}; waiting up to {PATIENT_S} s for it")
            time.sleep(0.1)
    return Store.open(path)
