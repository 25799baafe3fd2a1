"""A run within the trial's process and event loop, so that one clock, also a faster one, drives it and its server."""

from pathlib import Path

from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.config.pipeline import load
from aif.engine.feedback import Person, flow
from aif.engine.prepare import prepare, rubric_of
from aif.providers.retry import RetryPolicy
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from aif.store.report_queries import Tally

Key = tuple[str, str]  # stage and name of a model or judge


def _silent(words: str) -> None:
    pass


async def run(path: Path) -> tuple[dict[str, str], dict[Key, Tally]]:
    """`aif run` of a pipeline file: who was refused and why, and how everybody's items stand."""
    pipeline = load(path)
    rubric = rubric_of(pipeline)
    with JournaledStore.open(pipeline.store, _silent, rubric) as ledger:
        prepare(pipeline, ledger, rubric, _silent)
        asked = await flow(
            pipeline, ledger, rubric, Terminal(Console(quiet=True)), _silent, None, RetryPolicy(), Person()
        )
        with Reader.of(ledger.store) as reader:
            return asked.refused, reader.tallies()


def unanswered(path: Path) -> dict[str, int]:
    """What has no answer after a run: how many items, by kind and verdict."""
    with Reader.open(load(path).store) as reader:
        rows = reader._query(
            "SELECT kind || ' ' || verdict AS what, count(*) AS n FROM failed GROUP BY ALL ORDER BY what"
        )
        pending = sum(tally.pending for tally in reader.tallies().values())
    return {row["what"]: row["n"] for row in rows} | ({"pending": pending} if pending else {})
