"""`aif rebuild` and `aif reparse`: the store made again from the journal."""

from typing import TYPE_CHECKING

from aif.cli.common import File, Sets, load_unlocked, out, print_message

if TYPE_CHECKING:
    from aif.config.pipeline import Pipeline


def rebuild(pipeline: File, sets: Sets = None) -> None:
    """Make the store again from the journal. The old one goes once nothing is left that only it holds."""
    _rebuild(load_unlocked(pipeline, sets), "made again from")


def reparse(pipeline: File, sets: Sets = None) -> None:
    """Read every kept reply again with today's reader. No model is called."""
    _rebuild(load_unlocked(pipeline, sets), "made again by today's reader from")


def _rebuild(pipeline: "Pipeline", done: str) -> None:
    from aif.engine.rebuild import again

    told = again(pipeline, print_message)
    out.print(f"the store is {done} {told.calls:,} kept calls in {told.seconds:.1f} s; no model was called")
    if not told.alike + told.changed + told.lost:
        out.print(f"judgements: {told.gained:,} read; no earlier reading was there to compare them with")
        return
    out.print(
        f"judgements: {told.alike:,} read as before, {told.changed:,} otherwise, "
        f"{told.gained:,} only now, {told.lost:,} no longer"
    )
