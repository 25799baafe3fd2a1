"""`aif doctor`: one real request to every model and judge."""

import asyncio

import typer

from aif.cli.common import File, Sets, load, out
from aif.core.errors import Exit


def doctor(pipeline: File, sets: Sets = None) -> None:
    """One real request to every model and judge: key, access, template, schema, disk, each with the way to mend it."""
    from aif.engine.doctor import examine

    one = load(pipeline, sets)

    async def print_message() -> bool:
        fine = True
        async for finding in examine(one):
            fine &= finding.fine
            mark = "[green]ok[/green]  " if finding.fine else "[red]mend[/red]"
            out.print(mark, end=" ")
            out.print(f"{finding.what}: {finding.words}", markup=False, soft_wrap=True)
        return fine

    if not asyncio.run(print_message()):
        raise typer.Exit(Exit.BAD_INPUT)
