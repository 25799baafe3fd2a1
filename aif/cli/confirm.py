"""Ask a person to confirm a cost or an upload before anything is spent or sent."""

import sys
from typing import TYPE_CHECKING

import typer

from aif.cli.console import err, print_message
from aif.core.errors import BadInput, NotStarted

if TYPE_CHECKING:
    from aif.engine.estimate import Estimate


def confirm_run(estimate: "Estimate", confirm_usd: float, *, yes: bool) -> None:
    """Print what a run would cost, and ask for confirmation if the cost is unknown or above `confirm_usd`.

    It doesn't ask with `yes`, nor without a terminal, so that batch jobs start. Raises NotStarted if the answer is no.
    """
    from aif.cli.views.estimate import print_estimate, print_estimate_line

    expensive = bool(estimate.unpriced) or estimate.usd.expected > confirm_usd
    if yes or not expensive or not _is_interactive():
        print_estimate_line(err, estimate)
        return
    print_estimate(err, estimate)
    _ask_to_start()


def confirm_probe(probe: str, estimate: "Estimate", *, yes: bool) -> None:
    """Print what a probe (a few prompts run to measure costs) would cost, and ask for confirmation unless it is free.

    `probe` is its name, printed first; `yes` skips the question. Raises NotStarted if the answer is no, BadInput if
    there is no terminal to ask on.
    """
    from aif.cli.views.estimate import print_estimate_line

    print_estimate_line(err, estimate, f"{probe}: ")
    if yes or not (estimate.unpriced or estimate.usd.most):
        return
    if not _is_interactive():
        raise BadInput("no terminal to confirm the cost of --probe; pass --yes")
    _ask_to_start()


def confirm_trial(cost: str, *, free: bool, yes: bool) -> bool:
    """Print `cost`, the text on what trying a rubric costs, and ask for confirmation. Return whether to start.

    It doesn't ask if the trial is `free` or with `yes`. Raises BadInput if there is no terminal to ask on.
    """
    print_message(cost)
    if yes or free:
        return True
    if not sys.stdin.isatty():
        raise BadInput("no terminal to confirm the cost; pass --yes")
    return _confirmed("Continue?", err=True)


def confirm_upload(question: str, *, yes: bool) -> bool:
    """Ask the user to confirm an upload, unless `yes`. Return whether to send it. Raises BadInput if there is no
    terminal to ask on."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise BadInput("nothing was sent: no terminal to confirm the upload; pass --yes")
    return _confirmed(f"\n{question}")


def _confirmed(question: str, *, err: bool = False) -> bool:
    try:
        return typer.confirm(question, err=err)
    except typer.Abort:  # Ctrl-C or the end of the input
        print_message("")
        return False


def _is_interactive() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask_to_start() -> None:
    """Ask whether to start. Raises NotStarted unless the answer is yes; at Ctrl-C, KeyboardInterrupt with a message
    that nothing was started."""
    try:
        answer = err.input("Continue? [y/N] ", markup=False)
    except EOFError:
        answer = ""
    except KeyboardInterrupt:
        raise KeyboardInterrupt("not started; no model was called") from None
    if answer.strip().lower() not in ("y", "yes"):
        raise NotStarted("not started; no model was called. --yes skips this question, --limit N runs fewer prompts")
