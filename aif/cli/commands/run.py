"""`aif run`: generate, judge and pair what is pending, then print a summary."""

from typing import TYPE_CHECKING, Annotated

import typer

from aif.cli.common import File, Sets, Yes, arguments, command_name, load_unlocked
from aif.cli.console import err, out
from aif.cli.ending import exit_with_outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from aif.config.pipeline import Pipeline
    from aif.judging.rubric import Rubric
    from aif.store.journaled_store import JournaledStore


def run(
    pipeline: File,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N prompts.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry permanent failures.")] = False,
    yes: Yes = False,
    sets: Sets = None,
) -> None:
    """Generate, judge and pair what is pending. Safe to interrupt: the same command resumes."""
    loaded = load_unlocked(pipeline, sets)
    from aif.cli.views.progress import Terminal
    from aif.cli.views.summary import print_files, print_next_steps, print_summary
    from aif.engine.run import run_pipeline
    from aif.store.reader import Reader

    consent = _consent(loaded, limit, retry_failed, yes)
    ended = run_pipeline(loaded, Terminal(err), limit=limit, retry_failed=retry_failed, consent=consent)
    with Reader.open(loaded.store) as reader:
        print_summary(out, reader, ended.seconds, loaded.budget_usd)
        example = reader.example_prompt_id()
    print_files(out, loaded.store)
    print_next_steps(out, command_name(), arguments(pipeline, sets), ended.tallies.values(), example)
    exit_with_outcome(arguments(pipeline, sets), ended)


def _consent(
    pipeline: "Pipeline", limit: int | None, retry_failed: bool, yes: bool
) -> "Callable[[JournaledStore, Rubric], None]":
    """Return a function that prints an estimate and may ask for confirmation. The run calls it before it spends money.

    The returned function does nothing if all models and judges are free or no call is pending. `yes` skips the
    question.
    """

    def consent(journaled: "JournaledStore", rubric: "Rubric") -> None:
        if all(endpoint.is_free for endpoint in (*pipeline.models.values(), *pipeline.judges.values())):
            return
        from aif.cli.confirm import confirm_run
        from aif.engine.workload import estimate_run
        from aif.store.estimate_queries import EstimateReader

        with EstimateReader.of(journaled.store, retry_failed) as outlook:
            estimate = estimate_run(pipeline, rubric, outlook, limit)
        if estimate.calls:
            confirm_run(estimate, pipeline.confirm_usd, yes=yes)

    return consent
