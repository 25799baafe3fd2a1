"""`aif doctor`: one real request to every model and judge."""

import asyncio

import typer

from aif.cli.common import File, Sets, load
from aif.cli.console import out
from aif.core.errors import Exit


def doctor(pipeline: File, sets: Sets = None) -> None:
    """Send one real request to every model and judge: check key, access, template, schema and disk, with fixes."""
    from aif.cli.views.doctor import print_finding
    from aif.engine.doctor import run_checks

    loaded = load(pipeline, sets)

    async def check() -> bool:
        fine = True
        async for finding in run_checks(loaded):
            fine &= finding.ok
            print_finding(out, finding)
        return fine

    if not asyncio.run(check()):
        raise typer.Exit(Exit.BAD_INPUT)
