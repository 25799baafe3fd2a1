"""How a run ended, as a message and an exit code."""

import re
from typing import TYPE_CHECKING

import typer

from aif.cli.console import print_message
from aif.core.errors import BudgetReached, Exit, ProviderRefused

if TYPE_CHECKING:
    from aif.engine.feedback import Asked, Ended


def exit_with_outcome(arguments: str, ended: "Ended") -> None:
    """Print how a run ended and exit with its exit code; return if every item has an answer. `arguments` are the
    pipeline file and overrides as the user typed them, for the commands in the messages."""
    from aif.core.words import clock

    exit_if_cut_short(f"aif run {arguments}", ended.asked)
    if ended.incomplete:
        tallies = ended.tallies.values()
        wanted, answered = sum(tally.wanted for tally in tallies), sum(tally.answered for tally in tallies)
        pauses = "".join(f"; {name} asked for a pause of {clock(s)}" for name, s in ended.asked.waits.items())
        print_message(
            f"finished with failures: {wanted - answered:,} of {wanted:,} unanswered; see `aif failures {arguments}`"
            f"{pauses}"
        )
        raise typer.Exit(Exit.FAILURES)


def exit_if_cut_short(command: str, asked: "Asked") -> None:
    """Exit with a message and code if the budget was reached, a provider refuses all calls, or a person stopped the
    run; return otherwise. `command` is the one that resumes it."""
    from aif.engine.outcome_text import reached

    if asked.short:
        message = reached(asked.short, re.sub("budget_usd=[^ ]*", "budget_usd=…", command))
        if not asked.refused:
            raise BudgetReached(message)
        print_message(message)
    if asked.refused:
        causes = "\n".join(f"  {name}: {cause}" for name, cause in asked.refused.items())
        raise ProviderRefused(f"stopped; fix this and rerun `{command}`:\n{causes}")
    if asked.stopped:
        print_message(f"stopped; all answers are stored; `{command}` resumes")
        raise typer.Exit(Exit.INTERRUPTED)
