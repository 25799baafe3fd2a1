"""`aif export`: update the store from the journal and the pipeline file, make pairs, write a dataset with its card."""

from pathlib import Path
from typing import Annotated

import typer

from aif.cli.common import File, Sets, arguments, load_unlocked
from aif.cli.console import out, print_message
from aif.cli.open_store import with_prepared_store


def export(
    pipeline: File,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder to write. Default: `dataset` beside the store.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Write the pairs as a dataset with its card. Calls no model."""
    loaded = load_unlocked(pipeline, sets)
    from aif.cli.views.export import print_exported
    from aif.export import dataset

    folder = to or loaded.store.parent / "dataset"
    exported = with_prepared_store(
        loaded,
        arguments(pipeline, sets),
        lambda rubric, journaled: dataset.export(loaded, rubric, journaled, folder, print_message),
    )
    print_exported(out, exported)
