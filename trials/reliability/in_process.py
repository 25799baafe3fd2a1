"""Run a pipeline in the trial's own event loop, so that one clock, which may be faster, drives client and server."""

from pathlib import Path

from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.config.pipeline import load
from aif.engine.prepare import prepare, rubric_of
from aif.engine.run import StopRequest, call_endpoints
from aif.providers.retry import RetryPolicy
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from aif.store.report_queries import Tally

Key = tuple[str, str]  # stage and name of a model or judge


def _ignore(words: str) -> None:
    pass


async def run(path: Path) -> tuple[dict[str, str], dict[Key, Tally]]:
    """Run a pipeline as `aif run` does; return why endpoints were refused, by name, and the item counts by endpoint."""
    pipeline = load(path)
    rubric = rubric_of(pipeline)
    with JournaledStore.open(pipeline.store, _ignore, rubric) as journaled:
        prepare(pipeline, journaled, rubric, _ignore)
        flow_result = await call_endpoints(
            pipeline, journaled, rubric, Terminal(Console(quiet=True)), _ignore, None, RetryPolicy(), StopRequest()
        )
        with Reader.of(journaled.store) as reader:
            return flow_result.refused, reader.tallies()


def unanswered(path: Path) -> dict[str, int]:
    """Return how many items have no answer after a run, by kind of failure and verdict, and how many are pending."""
    with Reader.open(load(path).store) as reader:
        rows = reader._query(
            "SELECT kind || ' ' || verdict AS what, count(*) AS n FROM failed GROUP BY ALL ORDER BY what"
        )
        pending = sum(tally.pending for tally in reader.tallies().values())
    return {row["what"]: row["n"] for row in rows} | ({"pending": pending} if pending else {})
