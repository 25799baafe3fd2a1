"""The `aif` command: its commands, and how an error becomes a line and an exit code."""

import asyncio
import gc
import io
import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from aif.cli.commands import rubric
from aif.cli.commands.doctor import doctor
from aif.cli.commands.estimate import estimate
from aif.cli.commands.export import export
from aif.cli.commands.failures import failures
from aif.cli.commands.init import init
from aif.cli.commands.pairs import pairs
from aif.cli.commands.publish import publish
from aif.cli.commands.rebuild import rebuild, reparse
from aif.cli.commands.run import run
from aif.cli.commands.show import show
from aif.cli.commands.simulate import simulate
from aif.cli.commands.status import status
from aif.cli.common import err, out
from aif.core.errors import FULL, AifError, Exit
from aif.core.file_permissions import PRIVATE

# Python looks for cycles each 700 objects unless told otherwise, and each time through more that came to stay. Looked
# for so seldom, and what was there before a run left out of it (see engine/run.py), a call takes a quarter less CPU.
SELDOM = 20_000, 20, 20


class _Commands(TyperGroup):
    """Tells of Ctrl-C, SIGTERM and SIGHUP wherever no command has an answer of its own to them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is closed; Python at its end would die of another
            err.print("\naif: stopped; what was there before is kept, and the same command goes on", soft_wrap=True)
            raise typer.Exit(Exit.INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    name="aif",
    help="Prompts in, a preference dataset that trains out: completions, ratings by a judge, chosen and rejected.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    run, estimate, status, failures, doctor, show, pairs, export, publish, rebuild, reparse, simulate, init,
):  # fmt: skip
    app.command()(command)
app.add_typer(rubric.app, name="rubric")


def _version(asked: bool) -> None:
    if asked:
        from aif import __version__

        out.print(f"aif {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Tell the version.")
    ] = False,
) -> None:
    """Prompts in, a preference dataset that trains out: completions, ratings by a judge, chosen and rejected."""


def _leaf(error: BaseException) -> BaseException:
    """The first error inside a group of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> None:
    """The entry point: every error a person can mend is one line and an exit code."""
    gc.set_threshold(*SELDOM)
    os.umask(PRIVATE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal can't show is replaced
            stream.reconfigure(errors="replace")
    for one in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(one) is signal.SIG_DFL:  # else by nohup
            signal.signal(one, signal.default_int_handler)
    try:
        app()
    except Exception as raised:
        sys.exit(_code(_leaf(raised)))
    except asyncio.CancelledError:
        err.print("aif: left at once; what was answered is kept, and the same command goes on", soft_wrap=True)
        sys.exit(Exit.INTERRUPTED)


def _code(error: BaseException) -> int:
    if isinstance(error, AifError):
        err.print(f"aif: {error}", markup=False, soft_wrap=True)
        return int(error.exit)
    if isinstance(error, OSError) and error.strerror:
        full = error.errno in FULL
        then = "; make room, and the same command goes on" if full else ""
        where = f"{error.filename}: " if error.filename else ""
        err.print(f"aif: {where}{error.strerror}; what was answered before is kept{then}", markup=False, soft_wrap=True)
        return int(Exit.DISK if full else Exit.BUG)
    raise error


if __name__ == "__main__":
    main()
