"""Open a pipeline's store for a command.

- `open_store` opens it to read.
- `open_or_print_running` opens it to read, or prints the state of the process that holds the store.
- `with_prepared_store` updates the store to the current pipeline and opens it to write.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from aif.cli.console import out, print_message
from aif.core.errors import BadInput, StoreDamaged, StoreLocked

if TYPE_CHECKING:
    from rich.console import Console

    from aif.cli.running import RunningProcess
    from aif.config.pipeline import Pipeline
    from aif.judging.rubric import Rubric
    from aif.store.journaled_store import JournaledStore
    from aif.store.reader import Reader

T = TypeVar("T")
AnyReader = TypeVar("AnyReader", bound="Reader")


@contextmanager
def open_store(kind: "type[AnyReader]", pipeline: "Pipeline", arguments: str) -> "Iterator[AnyReader]":
    """Open a pipeline's store to read, and yield a reader of the store.

    kind: the class of the reader.
    arguments: the pipeline file and overrides, for the commands in messages.

    Raises BadInput if there is no store, StoreLocked if another process holds it, StoreDamaged if it is damaged.
    """
    from aif.store.paths import StorePaths

    _check_store_exists(pipeline, arguments)
    try:
        with kind.open(pipeline.store) as reader:
            yield reader
    except StoreDamaged as error:
        if StorePaths(pipeline.store).journal.exists():
            fix = f"`aif rebuild {arguments}` rebuilds it from the journal, and so does the next `aif run`"
        else:
            fix = "there is no journal to rebuild it from; set another `store`"
        raise StoreDamaged(f"{error}; {fix}") from error


@contextmanager
def open_or_print_running(
    pipeline: "Pipeline", arguments: str, print_running: "Callable[[Console, RunningProcess], None]"
) -> "Iterator[Reader | None]":
    """Yield a reader of the store; None if another process holds the store.

    arguments: the pipeline file and overrides, for the commands in messages.
    print_running: called with the console and the process that holds the store, if there is such a process.

    Prints a message if the store has no prompts, or was last updated with another version of the pipeline.
    """
    from aif.cli.running import running_process

    if running := running_process(pipeline.store):
        print_running(out, running)
        yield None
        return
    from aif.store.reader import Reader

    with ExitStack() as stack:
        try:
            reader = stack.enter_context(open_store(Reader, pipeline, arguments))
        except StoreLocked:  # a run has just begun
            if not (running := running_process(pipeline.store)):
                raise
            print_running(out, running)
            yield None
            return
        report_if_outdated(pipeline, reader, arguments)
        yield reader


def report_if_behind(pipeline: "Pipeline", reader: "Reader") -> bool:
    """Return whether the journal has answers that the store lacks, as after a killed run. If so, also print a
    message."""
    from aif.store.journal import Damage, replay
    from aif.store.paths import StorePaths

    newer = replay(StorePaths(pipeline.store).journal, reader.journal_position())
    if behind := any(not isinstance(item, Damage) for _, item in newer):
        print_message(
            f"{pipeline.store}: is behind its journal, which has more answers; the next run or export adds them"
        )
    return behind


def report_if_outdated(pipeline: "Pipeline", reader: "Reader", arguments: str) -> None:
    """Print a message if the store has no prompts yet, or was last updated with another version of the pipeline.

    The second happens after a killed `aif rubric try`, too: it updates the store with the tried rubric. `arguments`
    are the pipeline file and overrides, for the command in the message.
    """
    from aif.engine.prepare import is_prepared, rubric_of

    if reader.get_mark("sources") is None:
        print_message(f"the store has no prompts yet; `aif run {arguments}` reads them first")
        return
    try:
        prepared = is_prepared(pipeline, rubric_of(pipeline), reader)
    except BadInput:  # its rubric or principles can't be read now, so the store was made with others
        prepared = False
    if not prepared:
        print_message(
            f"the store was last updated with a different version of {pipeline.path}, or by an `aif rubric try` that "
            f"was killed; `aif export {arguments}` updates it and calls no model"
        )


def with_prepared_store(pipeline: "Pipeline", arguments: str, work: "Callable[[Rubric, JournaledStore], T]") -> "T":
    """Update the store to the current pipeline, then call `work` with the rubric and the store. Return what `work`
    returns.

    Prompts come from the store; the sources are not read again. Raises BadInput if there is no store yet. `arguments`
    are the pipeline file and overrides, for the command in that error's message.
    """
    from aif.engine.prepare import prepare, rubric_of
    from aif.store.journaled_store import JournaledStore

    _check_store_exists(pipeline, arguments)
    rubric = rubric_of(pipeline)

    def prepared(journaled: JournaledStore) -> "T":
        prepare(pipeline, journaled, rubric, print_message, reread=False)
        return work(rubric, journaled)

    return JournaledStore.use(pipeline.store, print_message, rubric, prepared, tags=pipeline.reasoning_tags)


def _check_store_exists(pipeline: "Pipeline", arguments: str) -> None:
    from aif.store.paths import StorePaths

    if not StorePaths(pipeline.store).any:
        raise BadInput(f"{pipeline.store}: no store here yet; `aif run {arguments}` makes it")
