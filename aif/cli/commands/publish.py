"""`aif publish`: upload the exported dataset to the Hub."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from aif.cli.common import File, Sets, arguments, load_unlocked, repeated
from aif.cli.console import can_redraw, err, out, print_message
from aif.cli.open_store import with_prepared_store
from aif.core.errors import Exit


def publish(
    pipeline: File,
    repo: Annotated[str, typer.Option(metavar="ORG/NAME", help="Dataset on the Hub; created if missing.")],
    public: Annotated[bool, typer.Option("--public", help="Visible to everyone; private by default.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without asking for confirmation.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="The exported folder. Default: `dataset` beside the store.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Upload the exported dataset to the Hub in one commit, after showing what will be sent. Safe to repeat."""
    loaded = load_unlocked(pipeline, sets)
    from aif.cli.confirm import confirm_upload
    from aif.cli.views.export import print_plan, print_published, question
    from aif.export.publish import load_export, plan_publish, send_plan

    place = folder or loaded.store.parent / "dataset"
    out_option = ["--out", str(folder)] if folder else []
    export = shlex.join(["aif", "export", str(pipeline), *out_option, *repeated("--set", sets)])
    current = with_prepared_store(
        loaded,
        arguments(pipeline, sets),
        lambda rubric, journaled: load_export(loaded, rubric, journaled, place, export),
    )
    plan = plan_publish(loaded, place, current, repo, public)
    print_plan(out, plan)
    if plan.head and not plan.sent and not plan.removed:
        out.print("\nnothing to send: the Hub already has this dataset")
        print_published(out, plan, plan.head)
        return
    if not confirm_upload(question(plan), yes=yes):
        err.print("nothing was sent")
        raise typer.Exit(Exit.INTERRUPTED)
    print_published(out, plan, send_plan(plan, print_message, bars=can_redraw(err)))
