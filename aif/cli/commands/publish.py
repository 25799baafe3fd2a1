"""`aif publish`: upload the exported dataset to the Hub."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from aif.cli.common import File, Sets, arguments, err, load_unlocked, out, print_message, repeated
from aif.cli.open_store import with_prepared_store
from aif.core.errors import BadInput, Exit


def publish(
    pipeline: File,
    repo: Annotated[str, typer.Option(metavar="ORG/NAME", help="The dataset on the Hub; made if it isn't there.")],
    public: Annotated[bool, typer.Option("--public", help="For everyone to see; private if left out.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Send without asking.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="The folder that was exported; beside the store if left out.")
    ] = None,
    sets: Sets = None,
) -> None:
    """The exported dataset to the Hub, in one commit, after showing what will be sent. Safe to repeat."""
    one = load_unlocked(pipeline, sets)
    from aif.cli.views.export import print_plan, print_published, question
    from aif.export.publish import exported, send, survey

    place = folder or one.store.parent / "dataset"
    mend = shlex.join(
        ["aif", "export", str(pipeline), *(["--out", str(folder)] if folder else []), *repeated("--set", sets)]
    )
    found = with_prepared_store(
        one, arguments(pipeline, sets), lambda rubric, ledger: exported(one, rubric, ledger, place, mend)
    )
    plan = survey(one, place, found, repo, public)
    print_plan(out, plan)
    if plan.head and not plan.sent and not plan.removed:
        out.print("\nnothing to send: this is what stands there")
        print_published(out, plan, plan.head)
        return
    if not yes and not _agreed(question(plan)):
        err.print("nothing was sent")
        raise typer.Exit(Exit.INTERRUPTED)
    print_published(out, plan, send(plan, print_message, bars=err.is_terminal))


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise BadInput("nothing was sent: there is no terminal to ask at; --yes sends it unasked")
    return typer.confirm(f"\n{question}")
