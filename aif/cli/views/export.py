"""Print the dataset that `aif export` wrote, and the files that `aif publish` uploads."""

import glob

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from aif.cli.console import print_text
from aif.core.formatting import counted
from aif.export.card import default_config
from aif.export.dataset import ExportResult
from aif.export.hub import ENDPOINT
from aif.export.publish import PublishPlan, publish_warnings


def print_exported(console: Console, exported: ExportResult) -> None:
    """Print what was written and how to load it."""
    counts = exported.prompt_counts
    console.print(f"\n[bold]{counted(counts.pairs, 'pair')} of {counted(counts.selected, 'prompt')}[/bold]\n")
    width = max(5, *map(len, exported.rows))
    for config, splits in exported.rows.items():
        splits_text = ", ".join(f"{split} {rows:,}" for split, rows in splits.items())
        console.print(f"  {config:<{width}} {splits_text}", soft_wrap=True)
    if exported.shortfall:
        print_text(console, "\n" + "\n".join(exported.shortfall))
    console.print(f"\ndataset  {exported.path}", soft_wrap=True, markup=False)
    console.print(f"card     {exported.path / 'README.md'}", soft_wrap=True, markup=False)
    config = default_config(exported.rows)
    load, folder = f'"{exported.path}", "{config}"', str(exported.path / config)
    if folder != glob.escape(folder):  # datasets would read such a folder's name as a pattern
        files = {split: f"{glob.escape(folder)}/{split}-*.parquet" for split in exported.rows[config]}
        load = f'"parquet", data_files={files}'
    console.print(f"load     load_dataset({load})", soft_wrap=True, markup=False)


def print_plan(console: Console, plan: PublishPlan) -> None:
    """Print the target dataset on the Hub, the files that would be uploaded, and warnings."""
    kind = "public" if plan.public else "private"
    state = f"now at commit {plan.head[:12]}" if plan.head else "new"
    console.print(f"\n[bold]{escape(plan.repo)}[/bold]  {kind} dataset at {ENDPOINT}, {state}\n", soft_wrap=True)
    changed = [file for file in plan.files if file.change != "unchanged"]
    width = max((len(file.path) for file in changed), default=0)
    for file in changed:
        line = f"  {file.change:<8}  {file.path:<{width}}  {decimal(file.size):>10}"
        console.print(line, markup=False, soft_wrap=True)
    if unchanged := len(plan.files) - len(changed):
        console.print(f"  unchanged {unchanged} files", style="dim")
    console.print()
    for config, splits in plan.run.rows.items():
        console.print(f"  {config:<7}  {', '.join(f'{split} {n:,}' for split, n in splits.items())}", soft_wrap=True)
    console.print(f"  licence  {plan.pipeline.export.license or 'none'}", markup=False, soft_wrap=True)
    for concern in publish_warnings(plan):
        console.print(f"  [yellow]![/yellow] {escape(concern)}", soft_wrap=True)


def question(plan: PublishPlan) -> str:
    """Return the question that asks the user to confirm an upload."""
    size = decimal(sum(file.size for file in plan.sent))
    removed = f", remove {len(plan.removed)}" if plan.removed else ""
    kind = "public" if plan.public else "private"
    return f"Send {len(plan.sent)} files ({size}){removed}, in one commit to the {kind} dataset {plan.repo}?"


def print_published(console: Console, plan: PublishPlan, revision: str) -> None:
    """Print the commit on the Hub and how to load the dataset from it."""
    config = default_config(plan.run.rows)
    console.print(f"\nrevision  {revision}", soft_wrap=True, markup=False)
    console.print(f"page      {ENDPOINT}/datasets/{plan.repo}", soft_wrap=True, markup=False)
    load = f'load_dataset("{plan.repo}", "{config}", revision="{revision}")'
    console.print(f"load      {load}", soft_wrap=True, markup=False)
