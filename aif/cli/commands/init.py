"""`aif init`: create a folder with an example pipeline and prompts."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from aif.cli.common import command_name, new_name
from aif.cli.console import out
from aif.core.file_permissions import user_umask


def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")]) -> None:
    """Create a folder to start from: a pipeline file that explains every choice, and a few prompts."""
    from shutil import copytree

    from aif.core.resources import shipped

    name, file = new_name(folder), folder / "pipeline.yaml"
    with user_umask():
        copytree(shipped("data", "starter"), folder, dirs_exist_ok=True)
    file.write_text(file.read_text(encoding="utf-8").replace("name: demo", f'name: "{name}"', 1), encoding="utf-8")
    out.print(f"created {file} and {folder / 'prompts.jsonl'}. Next:", soft_wrap=True)
    out.print(f"  {command_name()} run {shlex.quote(str(file))}", soft_wrap=True, markup=False)
