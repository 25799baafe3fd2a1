"""`aif run`: generate, judge and pair what is pending, then print a summary."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from aif.cli.common import File, Sets, Yes, arguments, command_name, err, load_unlocked, out
from aif.cli.ending import leave

if TYPE_CHECKING:
    from collections.abc import Callable

    from aif.config.pipeline import Pipeline
    from aif.engine.feedback import Ended
    from aif.judging.rubric import Rubric
    from aif.store.ledger import Ledger


def run(
    pipeline: File,
    limit: Annotated[int | None, typer.Option(min=1, help="Work on the first so many prompts only.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed for good.")] = False,
    yes: Yes = False,
    sets: Sets = None,
) -> None:
    """Complete, judge and pair what is pending. The same command goes on after any stop."""
    one = load_unlocked(pipeline, sets)
    from aif.cli.views.progress import Terminal
    from aif.cli.views.summary import print_files, print_summary
    from aif.engine.feedback import feedback
    from aif.store.reader import Reader

    consent = _consent(one, limit, retry_failed, yes)
    ended = feedback(one, Terminal(err), limit=limit, retry_failed=retry_failed, consent=consent)
    with Reader.open(one.store) as reader:
        print_summary(out, reader, ended.seconds, one.budget_usd)
        example = reader.example()
    print_files(out, one.store)
    typed = arguments(pipeline, sets)
    _print_next_steps(typed, ended, example)
    leave(typed, ended)


def _consent(
    pipeline: "Pipeline", limit: int | None, retry_failed: bool, yes: bool
) -> "Callable[[Ledger, Rubric], None]":
    """Tells and asks about what a run is going to spend, where anything can be spent."""

    def consent(ledger: "Ledger", rubric: "Rubric") -> None:
        if all(one.free for one in (*pipeline.models.values(), *pipeline.judges.values())):
            return
        from aif.cli.views.estimate import ask
        from aif.engine.workload import estimated
        from aif.store.forecast import Forecast

        with Forecast.of(ledger.store) as outlook, outlook.retried() if retry_failed else nullcontext():
            estimate = estimated(pipeline, rubric, outlook, limit)
        if estimate.calls:
            ask(err, estimate, pipeline.confirm_usd, yes=yes)

    return consent


def _print_next_steps(typed: str, ended: "Ended", example: str) -> None:
    """What to do next. `typed` is the pipeline file and what was set, as the other commands take them."""
    steps = []
    if any(tally.pending for tally in ended.tallies.values()):
        steps.append(("run", typed, "goes on with what is pending"))
    if any(tally.failed or tally.pending for tally in ended.tallies.values()):
        steps.append(("failures", typed, "what has no answer, why, and what to do"))
    if example:
        steps.append(("export", typed, "pairs and a dataset with its card; no model is called"))
        steps.append(("show", f"{typed} {example}", "how a pair came to be"))
    if steps:
        out.print("\n[bold]Next[/bold]")
    for command, words, meaning in steps:
        out.print(f"  {command_name()} {command} {words}", soft_wrap=True, markup=False)
        out.print(f"      {meaning}", style="dim")
