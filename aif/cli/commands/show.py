"""`aif show`: everything about one prompt."""

from typing import Annotated

import typer

from aif.cli.common import File, Sets, arguments, load
from aif.cli.console import out
from aif.cli.open_store import open_store, report_if_outdated


def show(
    pipeline: File,
    prompt_id: Annotated[str, typer.Argument(help="A prompt's id (the dataset's prompt_id column), or how it starts.")],
    sets: Sets = None,
) -> None:
    """Show everything about one prompt: messages, order shown to judges, raw replies, ratings, why this pair."""
    from aif.cli.views.show import print_prompt
    from aif.store.reader import Reader

    loaded = load(pipeline, sets)
    with open_store(Reader, loaded, arguments(pipeline, sets)) as reader:
        report_if_outdated(loaded, reader, arguments(pipeline, sets))
        print_prompt(out, reader, prompt_id)
