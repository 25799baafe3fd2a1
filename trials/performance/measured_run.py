"""Shared by trials of performance: the server, a pipeline of four models and a judge, the cost of a process tree."""

import json
import os
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trials import common
from trials.harness import ROOT

MODELS = ("m1", "m2", "m3", "m4")


@dataclass(frozen=True, slots=True)
class Served:
    """A running server of trials/performance/server.py."""

    base_url: str

    def stats(self) -> dict[str, Any]:
        return self._get("/stats")

    def reset(self) -> None:
        self._get("/reset")

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.base_url.removesuffix("/v1") + path) as reply:
            counts: dict[str, Any] = json.load(reply)
            return counts


@contextmanager
def serving(generate_ms: float, judge_ms: float) -> Iterator[Served]:
    """Run the server in a process of its own, with these latencies of models and judges."""
    command = [
        sys.executable,
        "-m",
        "trials.performance.server",
        f"--generate-ms={generate_ms}",
        f"--judge-ms={judge_ms}",
    ]
    process = subprocess.Popen(command, cwd=ROOT, env=common.environ(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as pipe:
        try:
            yield Served(pipe.readline().strip())
        finally:
            process.terminate()
            process.wait()


def pipeline(folder: Path, base_url: str, prompts: int, in_flight: int, **changes: Any) -> Path:
    """Write a pipeline: four models through vLLM's client, a judge through OpenAI's, `in_flight` calls to each side.

    `changes` are those of `trials.common.pipeline`.
    """
    question = "Question {}: please explain how number {} relates to the tides, in two paragraphs."
    model = {"provider": "vllm", "base_url": base_url, "concurrency": in_flight // len(MODELS)}
    base = {
        "name": "benchmark",
        "completions": {"per_prompt": 4, "max_tokens": 512},
        "models": dict.fromkeys(MODELS, model),
        "judges": {"judge": {"provider": "openai", "base_url": base_url, "concurrency": in_flight}},
    }
    return common.pipeline(folder, (question.format(n, n) for n in range(prompts)), base, changes)


def span_s(sides: Mapping[str, Any]) -> float:
    """Return the seconds from the first call to the last reply, by the server's `stats`."""
    first, last = (
        extreme(float(side[event]) for side in sides.values()) for extreme, event in ((min, "first"), (max, "last"))
    )
    return round(last - first, 2)


# The same by the calls in a store, in SQL.
SPAN_S = "epoch(max(started::TIMESTAMP + to_seconds(seconds)) - min(started::TIMESTAMP))"


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a process and its children: wall time and CPU time (user + system) in seconds, peak memory in MB."""

    wall_s: float
    cpu_s: float
    rss_mb: float


def cost(command: Sequence[object], **options: Any) -> Cost:
    """Run a command to its end and return its cost. Raises CalledProcessError, with the output, if it fails."""
    began = time.monotonic()
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert process.stdout is not None
    with process.stdout as pipe:
        output = pipe.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    if process.returncode:
        error = subprocess.CalledProcessError(process.returncode, process.args, output)
        error.add_note(output)
        raise error
    return Cost(wall, usage.ru_utime + usage.ru_stime, _peak_mb(usage))


def aif(*arguments: object) -> Cost:
    """Run `aif` to its end and return its cost."""
    return cost([sys.executable, "-m", "aif", *arguments], env=common.environ(), cwd=ROOT)


def _peak_mb(used: resource.struct_rusage) -> float:
    return used.ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
