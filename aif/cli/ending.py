"""How a run ended, as a message and an exit code."""

import re
from typing import TYPE_CHECKING

import typer

from aif.cli.common import print_message
from aif.core.errors import BudgetReached, Exit, ProviderRefused

if TYPE_CHECKING:
    from aif.engine.feedback import Ended


def leave(typed: str, ended: "Ended") -> None:
    """The exit code of a run, said with its reason."""
    from aif.core.words import clock
    from aif.engine.outcome_text import reached

    asked = ended.asked
    if asked.short:
        said = reached(asked.short, f"aif run {re.sub('budget_usd=[^ ]*', 'budget_usd=…', typed)}")
        if not asked.refused:
            raise BudgetReached(said)
        print_message(said)
    if asked.refused:
        lines = "\n".join(f"  {name}: {why}" for name, why in asked.refused.items())
        raise ProviderRefused(f"given up until something is mended:\n{lines}\nthen `aif run {typed}` goes on")
    if asked.stopped:
        print_message(f"stopped; everything answered is kept. `aif run {typed}` goes on")
        raise typer.Exit(Exit.INTERRUPTED)
    if ended.incomplete:
        waits = "".join(f"; {name} asks to be left alone for {clock(wait_s)}" for name, wait_s in asked.waits.items())
        print_message(f"done, but not all was answered: `aif failures {typed}` says why{waits}")
        raise typer.Exit(Exit.FAILURES)
