"""What the commands share: where they print, the arguments they take alike, and how they call themselves."""

import errno
import os
import re
import sys
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console

from aif.core.errors import BadInput

if TYPE_CHECKING:
    from aif.config.pipeline import Pipeline


class SafeConsole(Console):
    """Where a person reads. Once nobody does (the terminal was closed; Ctrl-C ended the `tee` behind it as well) what
    is said goes nowhere, so that whatever goes on comes to its own end and exit code. rich would end the program at a
    broken pipe, and knows nothing of a terminal that was closed. Of what a server or a file said, control characters
    are shown, not obeyed."""

    def print(self, *objects: Any, **how: Any) -> None:
        from aif.core.words import visible

        super().print(*(visible(one) if isinstance(one, str) else one for one in objects), **how)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # Python flushes what is left at its end
        os.close(nowhere)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.on_broken_pipe()


out = SafeConsole(highlight=False)
err = SafeConsole(stderr=True, highlight=False)

File = Annotated[Path, typer.Argument(metavar="PIPELINE", help="The pipeline file.")]
Sets = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this annotation at run time
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the pipeline, such as models.a.concurrency=8."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Spend without asking first.")]


def load(file: Path, sets: list[str] | None) -> "Pipeline":
    """The pipeline in a file, with what was set. Raises BadInput where its store lies elsewhere (see `place_of`)."""
    from aif.config import pipeline
    from aif.store.paths import check_old_location

    one = pipeline.load(file, sets or [])
    check_old_location(one.store, one.named_store)
    return one


def tell(words: str) -> None:
    """A line beside the output."""
    err.print(words, markup=False, soft_wrap=True)


def me() -> str:
    """How this command was called, so that what is told can be typed."""
    typed = Path(sys.argv[0])
    return "aif" if which("aif") == str(typed.absolute()) or typed.name != "aif" else str(typed)


def new_name(folder: Path) -> str:
    """A name made of a new folder's. Raises BadInput where something stands there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} is not empty; name a new folder")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.") or "demo"
