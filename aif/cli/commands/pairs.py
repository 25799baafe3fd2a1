"""`aif pairs`: preview the pairs a policy would make."""

from typing import Annotated, Optional

import typer

from aif.cli.common import File, Sets, arguments, load
from aif.cli.console import out
from aif.cli.open_store import open_store


def pairs(
    pipeline: File,
    sets: Sets = None,
    versus: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--versus", metavar="KEY=VALUE", help="Compare with this override, such as pairs.policy=all."),
    ] = None,
) -> None:
    """Preview the pairs a policy would make; compare two policies. Writes nothing and calls no model."""
    from aif.cli.views.pairs import print_preview
    from aif.engine.pair_preview import preview
    from aif.store.result_queries import ResultReader

    loaded = load(pipeline, sets)
    compared = load(pipeline, [*(sets or []), *versus]) if versus else None
    with open_store(ResultReader, loaded, arguments(pipeline, sets)) as reader:
        first = preview(loaded, reader)
        second = preview(compared, reader) if compared else None
    print_preview(out, first, second, versus or [])
