"""`aif rubric`: list, show, render, copy, lint and try rubrics."""

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aif.cli.common import File, Sets, Yes, command_name, load, new_name, repeated
from aif.cli.console import err, out, print_text
from aif.cli.ending import exit_if_cut_short
from aif.core.errors import BadInput, Exit
from aif.core.file_permissions import user_umask

if TYPE_CHECKING:
    from aif.engine.rubric_trial import TrialCost
    from aif.judging.rubric import Rubric

app = typer.Typer(help="Work with rubrics: what a judge is asked.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """List the rubrics that aif ships."""
    from aif.core.resources import shipped
    from aif.judging.rubric import load

    for folder in sorted(shipped("prompts", "rubrics").iterdir()):
        rubric = load(folder)
        print_text(out, rubric.sheet.description, "bold", label=f"{rubric.sheet.name}  ")


Name = Annotated[str, typer.Argument(metavar="RUBRIC", help="A shipped rubric's name, or a folder.")]


@app.command("show")
def show(name: Name) -> None:
    """Show a rubric's aspects, scales, weights and requests."""
    from aif.cli.views.rubric import print_rubric

    print_rubric(out, _rubric(name))


@app.command("render")
def render(
    name: Name,
    form: Annotated[str, typer.Option(help="How the reply is requested: schema or text.")] = "schema",
    pipeline: Annotated[
        Path | None, typer.Option(help="Use a prompt and its completions from this pipeline's store.")
    ] = None,
    prompt_id: Annotated[str | None, typer.Option(help="With --pipeline: the prompt's id.")] = None,
) -> None:
    """Print exactly what a judge sees, for every request of a rubric."""
    from aif.cli.views.rubric import print_rendered

    if form not in ("schema", "text"):
        raise BadInput(f"--form {form}: expected schema or text")
    if (pipeline is None) != (prompt_id is None):
        raise BadInput("--pipeline and --prompt-id go together")
    print_rendered(
        out,
        _rubric(name),
        "text" if form == "text" else "schema",
        load(pipeline, None).store if pipeline else None,
        prompt_id,
    )


@app.command("copy")
def copy(name: Name, folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")]) -> None:
    """Copy a rubric to a new folder, to edit."""
    rubric, new = _rubric(name), new_name(folder)
    with user_umask():
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in rubric.files.items():
            if file == "rubric.yaml":
                text = re.sub(r"(?m)^name:.*$", f'name: "{new}"', text, count=1)
            (folder / file).write_text(text, encoding="utf-8")
    out.print(
        f"{folder} is a copy of {rubric.sheet.name}, named {new}. Next:\n"
        f"  edit {folder / 'rubric.yaml'} and the templates it names\n"
        f"  {command_name()} rubric lint {folder}    lists errors and warnings\n"
        f"  {command_name()} rubric render {folder}  prints what a judge sees\n"
        f"  {command_name()} rubric try {folder} PIPELINE  rates stored completions with it, beside their ratings\n"
        f"then write `rubric: {folder}` into the pipeline file",
        soft_wrap=True, markup=False,
    )  # fmt: skip


@app.command("lint")
def lint(name: Name) -> None:
    """List a rubric's errors and warnings, and the tokens its requests cost."""
    from aif.cli.views.rubric import print_lint
    from aif.judging.lint import lint

    findings, rubric = lint(_rubric_folder(name))
    print_lint(out, findings, rubric)
    if rubric is None:
        raise typer.Exit(Exit.BAD_INPUT)


@app.command("try")
def try_(
    name: Name,
    pipeline: File,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, help="Only the first N prompts that have all completions.")
    ] = 20,
    judge: Annotated[
        str | None, typer.Option(metavar="NAME", help="One of the pipeline's judges. Default: all.")
    ] = None,
    yes: Yes = False,
    sets: Sets = None,
) -> None:
    """Rate a pipeline's completions with another rubric and compare with its ratings. The results are stored."""
    from aif.cli.confirm import confirm_trial
    from aif.cli.views.progress import Terminal
    from aif.cli.views.rubric import print_trial
    from aif.engine.rubric_trial import cost_text, try_rubric

    def agreed(bill: "TrialCost") -> bool:
        return confirm_trial(cost_text(bill), free=bill.usd == 0, yes=yes)

    tried = try_rubric(load(pipeline, sets), _rubric(name), Terminal(err), agreed, limit=limit, judge=judge)
    if tried is None:
        err.print("no model was called")
        return
    print_trial(out, tried)
    options = ["--limit", str(limit), *(["--judge", judge] if judge else []), *repeated("--set", sets)]
    exit_if_cut_short(shlex.join(["aif", "rubric", "try", name, str(pipeline), *options]), tried.calling)
    if tried.failures:
        raise typer.Exit(Exit.FAILURES)
    print_text(
        out, f"to rate with it from now on, set `rubric: {name}` in {pipeline}; these ratings are not paid for again"
    )


def _rubric(name: str) -> "Rubric":
    from aif.judging.rubric import load

    return load(_rubric_folder(name))


def _rubric_folder(name: str) -> Path:
    from aif.core.resources import find_resource

    return find_resource(name, None, "prompts/rubrics", "rubric")
