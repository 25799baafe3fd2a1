"""A pipeline's store as the commands open it: to read, also while a run holds it, or prepared for an export."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from aif.cli.common import arguments, err, out, print_message
from aif.core.errors import BadInput, StoreDamaged, StoreLocked

if TYPE_CHECKING:
    from rich.console import Console

    from aif.config.pipeline import Pipeline
    from aif.judging.rubric import Rubric
    from aif.store.ledger import Ledger
    from aif.store.reader import Reader

T = TypeVar("T")
AnyReader = TypeVar("AnyReader", bound="Reader")


@contextmanager
def open_store(of: "type[AnyReader]", one: "Pipeline", file: Path, sets: list[str] | None) -> "Iterator[AnyReader]":
    """The store of a pipeline, where no run holds it. What to do is said where it is broken."""
    from aif.store.lock import Places

    try:
        with of.open(one.store) as reader:
            yield reader
    except StoreDamaged as error:
        typed = arguments(file, sets)
        if Places(one.store).journal.exists():
            mend = f"`aif rebuild {typed}` makes it again from the journal beside it, and so does the next `aif run`"
        else:
            mend = "there is no journal beside it to make it from: name another `store`"
        raise StoreDamaged(f"{error}; {mend}") from error


@contextmanager
def reading(
    one: "Pipeline", file: Path, sets: list[str] | None, held: "Callable[[Console, Path], bool]"
) -> "Iterator[Reader | None]":
    """The store of a pipeline; None where a run holds it, of which `held` has told."""
    if held(out, one.store):
        yield None
        return
    from aif.store.reader import Reader

    with ExitStack() as stack:
        try:
            reader = stack.enter_context(open_store(Reader, one, file, sets))
        except StoreLocked:  # a run has begun this moment
            if not held(out, one.store):
                raise
            yield None
            return
        print_if_another(one, reader, arguments(file, sets))
        yield reader


def print_if_behind(one: "Pipeline", reader: "Reader") -> bool:
    """Whether the journal holds more than a store tells, which is said: a run was killed, or its disk was full."""
    from aif.store.journal import Damage, Position, replay
    from aif.store.lock import Places

    (at,) = reader.sql('SELECT segment, "offset" FROM about')
    beyond = replay(Places(one.store).journal, Position(at["segment"], at["offset"]))
    if behind := any(not isinstance(found, Damage) for _, found in beyond):
        print_message(
            f"{one.store}: is behind its journal, which has more answers; the next run or export takes them in"
        )
    return behind


def print_if_another(one: "Pipeline", reader: "Reader", typed: str) -> None:
    """Says so where what a store tells is of another pipeline: this one edited since, or a trial that was killed."""
    from aif.engine.prepare import is_prepared, rubric_of

    if reader.marked("sources") is None:
        print_message(f"the store holds no prompts yet: `aif run {typed}` begins with reading them")
        return
    try:
        prepared = is_prepared(one, rubric_of(one), reader)
    except BadInput:  # its rubric or principles can't be read now: then they are not what the store has, either
        prepared = False
    if not prepared:
        err.print(
            f"the store is as another state of {one.path} left it, or an `aif rubric try` that was killed; "
            f"`aif export {typed}` brings it to what the file says now and calls no model",
            soft_wrap=True, markup=False, highlight=False,
        )  # fmt: skip


def with_prepared_store(one: "Pipeline", typed: str, work: "Callable[[Rubric, Ledger], T]") -> "T":
    """What `work` makes of a store that a run has made, brought to what the pipeline says now; its prompts are those it
    has."""
    from aif.engine.prepare import prepare, rubric_of
    from aif.store.ledger import Ledger
    from aif.store.lock import Places

    if not Places(one.store).any:
        raise BadInput(f"{one.store}: no store here yet; `aif run {typed}` makes it")
    rubric = rubric_of(one)

    def prepared(ledger: Ledger) -> "T":
        prepare(one, ledger, rubric, print_message, reread=False)
        return work(rubric, ledger)

    return Ledger.use(one.store, print_message, rubric, prepared, tags=one.tags)
