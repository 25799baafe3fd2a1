"""`aif estimate`: what a run would cost, optionally measured on a few prompts."""

from typing import Annotated

import typer

from aif.cli.common import File, Sets, Yes, arguments, err, load_unlocked, out, print_message
from aif.cli.ending import leave


def estimate(
    pipeline: File,
    limit: Annotated[int | None, typer.Option(min=1, help="Estimate the first so many prompts only.")] = None,
    probe: Annotated[
        int | None, typer.Option(min=1, help="Ask about the first so many prompts for real, to measure; all is kept.")
    ] = None,
    yes: Yes = False,
    sets: Sets = None,
) -> None:
    """What a run would ask and what that comes to: calls, tokens, dollars, time. No model is called without --probe."""
    one = load_unlocked(pipeline, sets)
    from aif.cli.views.estimate import ask_for_probe, print_estimate
    from aif.engine.workload import foresee

    if probe is not None:
        from aif.cli.views.progress import Terminal
        from aif.core.words import counted
        from aif.engine.feedback import feedback

        first = min(probe, limit or probe)
        told = foresee(one, first, print_message)
        err.print(f"the probe, the first {counted(first, 'prompt')}: ", end="")
        if told.calls:
            ask_for_probe(err, told, yes=yes)
            ended = feedback(one, Terminal(err), limit=first)
            if ended.asked.stopped or ended.asked.refused or ended.asked.short:
                leave(arguments(pipeline, sets), ended)
        else:
            err.print("nothing to ask")
    print_estimate(out, foresee(one, limit, print_message))
