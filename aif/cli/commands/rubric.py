"""The commands of `aif rubric`."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aif.cli.common import File, Sets, command_name, err, load, new_name, out
from aif.core.errors import BadInput, BudgetReached, Exit, ProviderRefused
from aif.core.file_permissions import shared

if TYPE_CHECKING:
    from aif.judging.rubric import Rubric

app = typer.Typer(help="What the judge is asked.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """The rubrics that aif ships."""
    from aif.core.resources import shipped
    from aif.judging.rubric import load

    for folder in sorted(shipped("prompts", "rubrics").iterdir()):
        rubric = load(folder)
        out.print(f"[bold]{rubric.sheet.name}[/bold]  {rubric.sheet.description}", soft_wrap=True)


Name = Annotated[str, typer.Argument(metavar="RUBRIC", help="A shipped rubric's name, or a folder.")]


@app.command("show")
def show(name: Name) -> None:
    """A rubric's aspects, scales, weights and requests."""
    from aif.cli.views.rubric import print_rubric

    print_rubric(out, _rubric(name))


@app.command("render")
def render(
    name: Name,
    form: Annotated[str, typer.Option(help="How the reply is asked for: schema or text.")] = "schema",
    pipeline: Annotated[
        Path | None, typer.Option(help="Take the prompt and its completions from this pipeline's store.")
    ] = None,
    prompt_id: Annotated[str | None, typer.Option(help="With --pipeline: which prompt.")] = None,
) -> None:
    """Exactly what a judge sees, for every request of a rubric."""
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
    """A rubric of your own, as a copy of another: a folder to edit."""
    rubric, called = _rubric(name), new_name(folder)
    with shared():
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in rubric.files.items():
            if file == "rubric.yaml":
                text = re.sub(r"(?m)^name:.*$", f'name: "{called}"', text, count=1)
            (folder / file).write_text(text, encoding="utf-8")
    out.print(
        f"{folder} is a copy of {rubric.sheet.name}, called {called}. Next:\n"
        f"  edit {folder / 'rubric.yaml'} and the templates it names\n"
        f"  {command_name()} rubric lint {folder}    what is wrong or unwise\n"
        f"  {command_name()} rubric render {folder}  what the judge sees\n"
        f"  {command_name()} rubric try {folder} PIPELINE  rates completions you have, beside the ratings you have\n"
        f"then write `rubric: {folder}` into the pipeline file",
        soft_wrap=True, markup=False,
    )  # fmt: skip


@app.command("lint")
def lint(name: Name) -> None:
    """All that is wrong with a rubric, what is legal but unwise, and what its requests cost."""
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
    limit: Annotated[int, typer.Option(min=1, help="On the first so many prompts that are completed.")] = 20,
    judge: Annotated[
        str | None, typer.Option(metavar="NAME", help="One of the pipeline's judges; all if left out.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before spending.")] = False,
    sets: Sets = None,
) -> None:
    """Rate completions that a pipeline has by another rubric, beside the ratings it has. What is asked is kept."""
    from aif.cli.views.progress import Terminal
    from aif.cli.views.rubric import print_trial
    from aif.engine.outcome_text import reached
    from aif.engine.rubric_trial import Bill, attempt, told

    def agreed(bill: Bill) -> bool:
        err.print(told(bill), soft_wrap=True)
        if yes or bill.usd == 0:
            return True
        if not sys.stdin.isatty():
            raise BadInput("nobody can be asked whether to spend that; --yes goes on unasked")
        try:
            return typer.confirm("Ask?", err=True)
        except typer.Abort:
            return False

    tried = attempt(load(pipeline, sets), _rubric(name), Terminal(err), agreed, limit=limit, judge=judge)
    if tried is None:
        err.print("nothing was asked")
        return
    print_trial(out, tried)
    if tried.asked.refused:
        lines = "\n".join(f"  {name}: {why}" for name, why in tried.asked.refused.items())
        raise ProviderRefused(f"given up until something is mended:\n{lines}\nthen the same command goes on")
    if tried.asked.short:
        raise BudgetReached(reached(tried.asked.short, "the same command"))
    if tried.asked.stopped:
        err.print("stopped; everything answered is kept, and the same command goes on", soft_wrap=True)
        raise typer.Exit(Exit.INTERRUPTED)
    if tried.failures:
        raise typer.Exit(Exit.FAILURES)
    next_ = f"to rate by it from now on: `rubric: {name}` in {pipeline}; what was asked here is not asked again"
    out.print(next_, soft_wrap=True, markup=False)


def _rubric(name: str) -> "Rubric":
    from aif.judging.rubric import load

    return load(_rubric_folder(name))


def _rubric_folder(name: str) -> Path:
    from aif.core.resources import find

    return find(name, None, "prompts/rubrics", "rubric")
