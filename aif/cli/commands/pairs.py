"""`aif pairs`: preview the pairs a policy would make."""

from typing import Annotated, Optional

import typer

from aif.cli.common import File, Sets, load, out
from aif.cli.open_store import open_store


def pairs(
    pipeline: File,
    sets: Sets = None,
    versus: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--versus", metavar="KEY=VALUE", help="Compare with this key changed, such as pairs.policy=all."),
    ] = None,
) -> None:
    """What a policy makes of the ratings there are, beside another. Nothing is written, no model is called."""
    from aif.cli.views.pairs import outlook, print_preview
    from aif.store.results import Results

    one = load(pipeline, sets)
    other = load(pipeline, [*(sets or []), *versus]) if versus else None
    with open_store(Results, one, pipeline, sets) as reader:
        seen = outlook(one, reader)
        beside = outlook(other, reader) if other else None
    print_preview(out, seen, beside, versus or [])
