"""Arguments that several commands share (`--set`, `--yes`), loading a pipeline file, quoting a command to copy."""

import re
import shlex
import sys
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from aif.core.errors import BadInput, StoreLocked

if TYPE_CHECKING:
    from aif.config.pipeline import Pipeline

File = Annotated[Path, typer.Argument(metavar="PIPELINE", help="The pipeline file.")]
Sets = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this annotation at run time
    typer.Option("--set", metavar="KEY=VALUE", help="Override a pipeline key, such as models.a.concurrency=8."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Spend without asking for confirmation.")]


def load(file: Path, sets: list[str] | None) -> "Pipeline":
    """Load a pipeline file with the values of `--set` (`sets`). Raises BadInput if the file or a value is invalid.

    If the only store is where earlier versions of aif put it, it raises BadInput, or StoreLocked if a process
    writes to that store.
    """
    from aif.config import pipeline
    from aif.store.paths import check_old_location

    loaded = pipeline.load(file, sets or [])
    check_old_location(loaded.store, loaded.declared_store)
    return loaded


def load_unlocked(file: Path, sets: list[str] | None) -> "Pipeline":
    """Load a pipeline file with its overrides. Raises StoreLocked if another process holds its store.

    A command calls this before its slow imports, so that a locked store is reported at once.
    """
    from aif.store.lock import busy_message, holder_text, is_held
    from aif.store.paths import StorePaths

    pipeline = load(file, sets)
    lock = StorePaths(pipeline.store).lock
    if is_held(lock):
        raise StoreLocked(busy_message(pipeline.store, holder_text(lock)))
    return pipeline


def arguments(file: Path, sets: list[str] | None) -> str:
    """Return a pipeline file and its `--set` overrides as quoted shell words, for commands that aif prints."""
    return shlex.join([str(file), *repeated("--set", sets)])


def repeated(option: str, values: list[str] | None) -> list[str]:
    """Return an option once before each of its values: ["--set", "a=1", "--set", "b=2"]."""
    return [word for value in values or [] for word in (option, value)]


def command_name() -> str:
    """Return the program's name for commands that the user can copy: `aif`, or a path to the running `aif`.

    It is a path if PATH has no `aif`, or a different one.
    """
    program = Path(sys.argv[0])
    return "aif" if which("aif") == str(program.absolute()) or program.name != "aif" else str(program)


def new_name(folder: Path) -> str:
    """Return the name of the pipeline or rubric to create in `folder`: the folder's name, with - for special
    characters. Raises BadInput if the folder isn't empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} is not empty; name a new folder")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.") or "demo"
