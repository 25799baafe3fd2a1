"""`aif show`: everything about one prompt."""

from typing import Annotated

import typer

from aif.cli.common import File, Sets, arguments, load, out
from aif.cli.open_store import open_store, print_if_another


def show(
    pipeline: File,
    prompt_id: Annotated[str, typer.Argument(help="The id of a prompt, or its first digits.")],
    sets: Sets = None,
) -> None:
    """From a published row back to everything: messages, order, raw replies, ratings, why these two."""
    from aif.cli.views.show import print_prompt
    from aif.store.reader import Reader

    one = load(pipeline, sets)
    with open_store(Reader, one, pipeline, sets) as reader:
        print_if_another(one, reader, arguments(pipeline, sets))
        print_prompt(out, reader, prompt_id)
