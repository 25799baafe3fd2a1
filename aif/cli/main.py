"""The `aif` program: it registers the commands, and turns an error into a one-line message and an exit code."""

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
from aif.cli.console import NEAREST, out, print_message
from aif.core.errors import DISK_FULL, AifError, Exit
from aif.core.file_permissions import PRIVATE_UMASK

# With Python's own threshold of 700 the collector scans hundreds of thousands of long-lived objects again and again.
# These thresholds, with what exists before a run excluded (see engine/orchestrator.py), save a quarter of a call's CPU.
GC_THRESHOLDS = 20_000, 20, 20


class _Commands(TyperGroup):
    """The group of all commands. It prints a message and exits if Ctrl-C, SIGTERM or SIGHUP interrupts a command that
    doesn't handle this itself."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would end Python's shutdown with a traceback
            happened = str(interrupt) or "interrupted; nothing stored was lost, and the same command resumes"
            print_message(f"\naif: {happened}")
            raise typer.Exit(Exit.INTERRUPTED) from None


_HELP = (
    "Turn prompts into a preference dataset: completions from several models, ratings by a judge, chosen and rejected."
)

app = typer.Typer(
    cls=_Commands,
    name="aif",
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(version: bool) -> None:
    if version:
        from aif import __version__

        out.print(f"aif {__version__}")
        raise typer.Exit


@app.callback(help=_HELP)
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for command in (
    run, estimate, status, failures, doctor, show, pairs, export, publish, rebuild, reparse, simulate, init,
):  # fmt: skip
    app.command()(command)
app.add_typer(rubric.app, name="rubric")


def main() -> None:
    """Run the `aif` command. An error that the user can fix becomes one line and an exit code."""
    gc.set_threshold(*GC_THRESHOLDS)
    os.umask(PRIVATE_UMASK)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that the terminal can't show are replaced
            stream.reconfigure(errors=NEAREST)
    for stop in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stop) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(stop, signal.default_int_handler)
    try:
        app()
    except Exception as raised:
        sys.exit(_exit_code(_first_in_groups(raised)))
    except asyncio.CancelledError:
        print_message("aif: stopped at once; the answers so far are stored, and the same command resumes")
        sys.exit(Exit.INTERRUPTED)


def _first_in_groups(error: BaseException) -> BaseException:
    """Return the first error in an exception group, which may be nested; any other error as it is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _exit_code(error: BaseException) -> int:
    """Print an error that the user can fix and return its exit code. Raise any other error again: it is a bug."""
    if isinstance(error, AifError):
        print_message(f"aif: {error}")
        return int(error.exit)
    if isinstance(error, OSError) and error.strerror:
        full = error.errno in DISK_FULL
        fix = "; free some space, and the same command resumes" if full else ""
        where = f"{error.filename}: " if error.filename else ""
        print_message(f"aif: {where}{error.strerror}; the answers so far are stored{fix}")
        return int(Exit.DISK if full else Exit.BUG)
    raise error


if __name__ == "__main__":
    main()
