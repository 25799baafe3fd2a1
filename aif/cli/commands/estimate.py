"""`aif estimate`: what a run would cost, optionally measured on a few prompts."""

from typing import Annotated

import typer

from aif.cli.common import File, Sets, Yes, arguments, load_unlocked
from aif.cli.console import err, out, print_message
from aif.cli.ending import exit_if_cut_short


def estimate(
    pipeline: File,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N prompts.")] = None,
    probe: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Run the first N prompts to measure them; their results are stored."),
    ] = None,
    yes: Yes = False,
    sets: Sets = None,
) -> None:
    """Estimate what a run would cost: calls, tokens, dollars, time. Calls no model without --probe."""
    loaded = load_unlocked(pipeline, sets)
    from aif.cli.views.estimate import print_estimate
    from aif.engine.workload import prepare_and_estimate

    if probe is not None:
        from aif.cli.confirm import confirm_probe
        from aif.cli.views.progress import Terminal
        from aif.core.formatting import counted
        from aif.engine.run import run_pipeline

        first = min(probe, limit or probe)
        probe_cost = prepare_and_estimate(loaded, first, print_message)
        name = f"probe of the first {counted(first, 'prompt')}"
        if probe_cost.calls:
            confirm_probe(name, probe_cost, yes=yes)
            ended = run_pipeline(loaded, Terminal(err), limit=first)
            exit_if_cut_short(f"aif estimate {arguments(pipeline, sets)} --probe {first}", ended.calling)
        else:
            print_message(f"{name}: nothing to call")
    print_estimate(out, prepare_and_estimate(loaded, limit, print_message))
