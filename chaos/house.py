"""What trials share: a pipeline that talks to a simulator of ours, `aif` as a process, and what it leaves behind."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from aif.simulator import Call, SimulatedModels
from measured import house
from tests.serving import Served, serving

POOL = {"able": 0.9, "fair": 0.6, "plain": 0.4, "poor": 0.1}
JUDGE = "strict"
SAID_S = 60.0  # a command that takes longer than its trial allows for is ended, and the trial fails


class Record:
    """What the simulator's server saw: every call it was through with, in order. One thread writes."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._lock = Lock()

    def __call__(self, call: Call) -> None:
        with self._lock:
            self._calls.append(call)

    @property
    def calls(self) -> list[Call]:
        with self._lock:
            return list(self._calls)

    def answered(self) -> Counter[str]:
        """How often each body was answered with all of a reply, by its digest."""
        return Counter(call.key for call in self.calls if call.sent and call.usage is not None)


@contextmanager
def served(record: Callable[[Call], None] | None = None, **options: Any) -> Iterator[Served]:
    """A simulator of the pool and the judge, in a thread of this process."""
    with serving(SimulatedModels(POOL, {JUDGE: 0.1}, 7), on_call=record, **options) as one:
        yield one


def pipeline(folder: Path, base_url: str, prompts: int, **changes: Any) -> Path:
    """A pipeline of the pool over vLLM's client and the judge over OpenAI's, with so many prompts, in a folder.
    `changes` are as in `measured.house`."""
    pool = {"provider": "vllm", "base_url": base_url, "concurrency": 8}
    said = {
        "name": "chaos",
        "completions": {"per_prompt": 4, "max_tokens": 256},
        "models": dict.fromkeys(POOL, pool),
        "judges": {JUDGE: {"provider": "openai", "base_url": base_url, "concurrency": 8}},
    }
    return house.pipeline(folder, (f"What follows from {n} when it is doubled?" for n in range(prompts)), said, changes)


def start(
    *arguments: object, under: Sequence[str] = (), environ: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """`aif` as a process of its own, in a session of its own, its output read as text; `under` another command."""
    command = [*under, sys.executable, "-m", "aif", *map(str, arguments)]
    given = {**house.environ(), **(environ or {})}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    return subprocess.Popen(command, env=given, start_new_session=True, **pipes)


def aif(*arguments: object, within_s: float = SAID_S, **options: Any) -> tuple[int, str]:
    """`aif` to its end: its exit code and what it said."""
    process = start(*arguments, **options)
    try:
        said, _ = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, said or ""


def exported(pipeline: Path, out: Path) -> dict[str, str]:
    """The pipeline's dataset, written: its data files by name, with the digests of their bytes."""
    code, said = aif("export", pipeline, "--out", out)
    assert code == 0, said
    return house.digests(out)
