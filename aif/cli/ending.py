"""How a run ended, as a message and an exit code."""

import re
from typing import TYPE_CHECKING

import typer

from aif.cli.console import print_message
from aif.core.errors import BudgetReached, Exit, ProviderRefused

if TYPE_CHECKING:
    from aif.engine.run import CallingResult, RunResult


def exit_with_outcome(arguments: str, ended: "RunResult") -> None:
    """Print how a run ended and exit with the code for it. Return if every item has an answer.

    `arguments` are the pipeline file and overrides as the user typed them, for the commands in the messages.
    """
    from aif.core.formatting import duration

    exit_if_cut_short(f"aif run {arguments}", ended.calling)
    if ended.incomplete:
        tallies = ended.tallies.values()
        wanted, answered = sum(tally.wanted for tally in tallies), sum(tally.answered for tally in tallies)
        pauses = "".join(
            f"; {name} asked for a pause of {duration(s)}" for name, s in ended.calling.retry_after_s.items()
        )
        print_message(
            f"finished with failures: {wanted - answered:,} of {wanted:,} unanswered; see `aif failures {arguments}`"
            f"{pauses}"
        )
        raise typer.Exit(Exit.FAILURES)


def exit_if_cut_short(command: str, calling: "CallingResult") -> None:
    """Print why a run ended early and exit with a code: the budget was reached, a provider refuses all calls, or a
    person stopped it. Return if none of these happened. `command` is the one that resumes the run."""
    from aif.cli.views.grouping import grouped
    from aif.engine.outcome_text import budget_reached_text

    if calling.budget_shortfall:
        message = budget_reached_text(calling.budget_shortfall, re.sub("budget_usd=[^ ]*", "budget_usd=…", command))
        if not calling.refused:
            raise BudgetReached(message)
        print_message(message)
    if calling.refused:
        causes = "\n".join(
            f"  {', '.join(names)}: {'for example: ' if len(names) > 1 else ''}{cause}"
            for cause, names in grouped(calling.refused.items()).items()
        )
        raise ProviderRefused(f"stopped; fix this and rerun `{command}`:\n{causes}")
    if calling.stopped:
        print_message(f"stopped; all answers are stored; `{command}` resumes")
        raise typer.Exit(Exit.INTERRUPTED)
