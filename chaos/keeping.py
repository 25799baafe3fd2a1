"""What the trials of keeping share: an undisturbed run, what the journal holds, and what the server had sent."""

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
from aif.engine.feedback import feedback
from aif.engine.prepare import prepare, rubric_of
from aif.export.dataset import export
from aif.providers.retry import RetryPolicy
from aif.simulator import Call
from aif.store.journal import Damage, replay
from aif.store.journaled_store import JournaledStore
from aif.store.paths import StorePaths
from chaos.house import pipeline
from measured.house import digests
from tests.serving import Served

SHOWN = 24  # digits of a body's digest that the simulator puts into its reply's id
FORMATS = {"formats": ["trl", "h4", "ultrafeedback", "kto", "sft"], "test_size": 3}


def undisturbed(folder: Path, base_url: str, prompts: int, **changes: Any) -> dict[str, str]:
    """The data files, by name and digest, of a run that nothing disturbs."""
    path = pipeline(folder, base_url, prompts, export=FORMATS, **changes)
    finish(path)
    return written(path, folder / "dataset")


def finish(path: Path, limit: int | None = None) -> str:
    """A run to its end, in this process, without long waits. What it said."""
    said = StringIO()
    quick = RetryPolicy(first_wait_s=0.01, longest_wait_s=0.1)
    ended = feedback(load(path), Terminal(Console(file=said, width=500)), limit=limit, policy=quick)
    assert not ended.incomplete, said.getvalue()
    return said.getvalue()


def written(path: Path, out: Path) -> dict[str, str]:
    """The pipeline's dataset, written in this process: its data files by name and digest."""
    one = load(path)
    rubric = rubric_of(one)

    def whole(ledger: JournaledStore) -> None:
        prepare(one, ledger, rubric, _silent, reread=False)
        export(one, rubric, ledger, out, _silent)

    JournaledStore.use(one.store, _silent, rubric, whole)
    return digests(out)


def _silent(words: str) -> None:
    pass


def records(store: Path) -> list[dict[str, Any]]:
    """What the journal holds, but for damaged lines."""
    return [found for _, found in replay(StorePaths(store).journal) if not isinstance(found, Damage)]


def journalled(store: Path) -> set[str]:
    """The bodies of which the journal has the reply, by the digits that the reply shows."""
    return {
        record["served"]["id"].partition("-")[2]
        for record in records(store)
        if record["t"] == "call" and record["verdict"] == "answered"
    }


def sent(calls: Iterable[Call], before: float) -> set[str]:
    """The bodies of which all of a reply was sent before then (of the monotonic clock)."""
    return {shown(call) for call in calls if call.sent and call.usage is not None and call.ended < before}


def shown(call: Call) -> str:
    return call.key[:SHOWN]


def killed(process: Popen[str], store: Path, traced: bool = False) -> float:
    """Kills it (-9); where it is traced, the one within that holds the store, if it still does. Returns when."""
    note = StorePaths(store).lock.read_bytes() if traced else b""
    at = monotonic()
    if note or not traced:
        with suppress(ProcessLookupError):
            kill(orjson.loads(note)["pid"] if note else process.pid, signal.SIGKILL)
    process.communicate()
    return at


def settle(server: Served) -> None:
    """Waits until the server is through with what a killed client had sent."""
    while server.stats()["in_flight"]:
        sleep(0.05)


def wait(process: Popen[str], until: Callable[[], bool], within_s: float = 60.0) -> bool:
    """Waits until then, or until the process has ended; whether it goes on."""
    deadline = monotonic() + within_s
    while process.poll() is None and not until():
        assert monotonic() < deadline, "waited in vain"
        sleep(0.003)
    return process.poll() is None
