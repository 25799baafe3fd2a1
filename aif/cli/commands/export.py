"""`aif export`: write the pairs as a dataset with its card."""

from pathlib import Path
from typing import Annotated

import typer

from aif.cli.common import File, Sets, arguments, load_unlocked, out, print_message
from aif.cli.open_store import with_prepared_store


def export(
    pipeline: File,
    to: Annotated[Path | None, typer.Option("--out", help="The folder to make; beside the store if left out.")] = None,
    sets: Sets = None,
) -> None:
    """Pairs by the pipeline's policy, as a dataset with its card. No model is called."""
    one = load_unlocked(pipeline, sets)
    from aif.cli.views.export import print_exported
    from aif.export.dataset import export as write

    place = to or one.store.parent / "dataset"
    exported = with_prepared_store(
        one, arguments(pipeline, sets), lambda rubric, ledger: write(one, rubric, ledger, place, print_message)
    )
    print_exported(out, exported)
