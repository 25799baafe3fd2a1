"""Shared by trials: a simulator and its call log, a pipeline that talks to it, and `aif` as a process."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from aif.simulator import Call, SimulatedModels
from tests.support.serving import Served, serving
from trials import common

POOL = {"able": 0.9, "fair": 0.6, "plain": 0.4, "poor": 0.1}
JUDGE = "strict"
TIMEOUT_S = 60.0  # a command still running after this time is killed, and the trial fails


class CallLog:
    """The calls that the simulator has finished, in order. It is called by one thread; any thread may read it."""

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
        """Return how often each request body got a complete reply, by the body's digest."""
        return Counter(call.key for call in self.calls if call.sent and call.usage is not None)


@contextmanager
def served(record: Callable[[Call], None] | None = None, **options: Any) -> Iterator[Served]:
    """Run a simulator of the pool and the judge in a thread of this process."""
    with serving(SimulatedModels(POOL, {JUDGE: 0.1}, 7), on_call=record, **options) as server:
        yield server


def pipeline(folder: Path, base_url: str, prompts: int, **changes: Any) -> Path:
    """Write a pipeline with `prompts` prompts: the pool through vLLM's client, the judge through OpenAI's.

    `changes` are those of `trials.common.pipeline`.
    """
    pool = {"provider": "vllm", "base_url": base_url, "concurrency": 8}
    base = {
        "name": "chaos",
        "completions": {"per_prompt": 4, "max_tokens": 256},
        "models": dict.fromkeys(POOL, pool),
        "judges": {JUDGE: {"provider": "openai", "base_url": base_url, "concurrency": 8}},
    }
    return common.pipeline(
        folder, (f"What follows from {n} when it is doubled?" for n in range(prompts)), base, changes
    )


def start(
    *arguments: object, under: Sequence[str] = (), environ: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Start `aif` in a process and session of its own, its output piped as text; `under` is a command that runs it."""
    command = [*under, sys.executable, "-m", "aif", *map(str, arguments)]
    given = {**common.environ(), **(environ or {})}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    return subprocess.Popen(command, env=given, start_new_session=True, **pipes)


def aif(*arguments: object, within_s: float = TIMEOUT_S, **options: Any) -> tuple[int, str]:
    """Run `aif` to its end; return its exit code and its output."""
    process = start(*arguments, **options)
    try:
        output, _ = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, output or ""


def exported_by_command(pipeline: Path, out: Path) -> dict[str, str]:
    """Run `aif export`; return the digests of the data files it wrote, by file."""
    code, output = aif("export", pipeline, "--out", out)
    assert code == 0, output
    return common.digests(out)
