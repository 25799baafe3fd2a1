"""Shared by trials that interrupt runs: an undisturbed run to compare with, the journal, and the replies sent."""

import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import StringIO
from os import kill
from pathlib import Path
from subprocess import Popen
from time import monotonic, sleep
from typing import Any

import orjson
from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.config.pipeline import load
from aif.engine.prepare import prepare, rubric_of
from aif.engine.run import run_pipeline
from aif.export.dataset import export
from aif.providers.retry import RetryPolicy
from aif.simulator import Call
from aif.store.journal import Damage, replay
from aif.store.journaled_store import JournaledStore
from aif.store.paths import StorePaths
from tests.support.serving import Served
from trials.common import digests
from trials.reliability.simulated_run import pipeline

SHOWN_DIGITS = 24  # digits of a body's digest that the simulator puts into its reply's id
FORMATS = {"formats": ["trl", "h4", "ultrafeedback", "kto", "sft"], "test_size": 3}


def undisturbed_digests(folder: Path, base_url: str, prompts: int, **changes: Any) -> dict[str, str]:
    """Run a pipeline to its end without faults; return the digests of its exported data files, by file."""
    path = pipeline(folder, base_url, prompts, export=FORMATS, **changes)
    run_to_end(path)
    return export_digests(path, folder / "dataset")


def run_to_end(path: Path, limit: int | None = None) -> str:
    """Run a pipeline to its end in this process, with short waits between retries; return the output."""
    output = StringIO()
    quick = RetryPolicy(first_wait_s=0.01, longest_wait_s=0.1)
    ended = run_pipeline(load(path), Terminal(Console(file=output, width=500)), limit=limit, policy=quick)
    assert not ended.incomplete, output.getvalue()
    return output.getvalue()


def export_digests(path: Path, out: Path) -> dict[str, str]:
    """Export a pipeline's dataset in this process; return the digests of its data files, by file."""
    pipeline_read = load(path)
    rubric = rubric_of(pipeline_read)

    def write(journaled: JournaledStore) -> None:
        prepare(pipeline_read, journaled, rubric, _ignore, reread=False)
        export(pipeline_read, rubric, journaled, out, _ignore)

    JournaledStore.use(pipeline_read.store, _ignore, rubric, write)
    return digests(out)


def _ignore(words: str) -> None:
    pass


def journal_records(store: Path) -> list[dict[str, Any]]:
    """Return the journal's records, without damaged lines."""
    return [entry for _, entry in replay(StorePaths(store).journal) if not isinstance(entry, Damage)]


def journaled_bodies(store: Path) -> set[str]:
    """Return the digests, SHOWN_DIGITS long, of the request bodies whose replies are in the journal."""
    return {
        record["served"]["id"].partition("-")[2]
        for record in journal_records(store)
        if record["t"] == "call" and record["verdict"] == "answered"
    }


def bodies_sent(calls: Iterable[Call], before: float) -> set[str]:
    """Return the digests, SHOWN_DIGITS long, of the bodies whose replies were complete by `before` (monotonic
    seconds)."""
    return {shown_digest(call) for call in calls if call.sent and call.usage is not None and call.ended < before}


def shown_digest(call: Call) -> str:
    return call.key[:SHOWN_DIGITS]


def kill_run(process: Popen[str], store: Path, traced: bool = False) -> float:
    """Kill a run with SIGKILL and return the time of the kill (monotonic seconds).

    A traced run is a child of strace: the process to kill is the one that holds the store's lock, if it still does.
    """
    note = StorePaths(store).lock.read_bytes() if traced else b""
    at = monotonic()
    if note or not traced:
        with suppress(ProcessLookupError):
            kill(orjson.loads(note)["pid"] if note else process.pid, signal.SIGKILL)
    process.communicate()
    return at


def wait_until_idle(server: Served) -> None:
    """Wait until the server has finished all requests of a killed client."""
    while server.stats()["in_flight"]:
        sleep(0.05)


def wait_until(process: Popen[str], until: Callable[[], bool], within_s: float = 60.0) -> bool:
    """Wait until `until` returns true or the process has ended; return whether the process is still running."""
    deadline = monotonic() + within_s
    while process.poll() is None and not until():
        assert monotonic() < deadline, "timed out"
        sleep(0.003)
    return process.poll() is None
