"""What benchmarks share: the server, a pipeline of four models and a judge, and the cost of a process tree."""

import json
import os
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from measured import ROOT

MODELS = ("m1", "m2", "m3", "m4")


@dataclass(frozen=True, slots=True)
class Served:
    """A server that is up."""

    base_url: str

    def stats(self) -> dict[str, Any]:
        return self._get("/stats")

    def reset(self) -> None:
        self._get("/reset")

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.base_url.removesuffix("/v1") + path) as reply:
            found: dict[str, Any] = json.load(reply)
            return found


@contextmanager
def serving(generate_ms: float, judge_ms: float) -> Iterator[Served]:
    """The server in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.server", f"--generate-ms={generate_ms}", f"--judge-ms={judge_ms}"]
    process = subprocess.Popen(command, cwd=ROOT, env=environ(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as pipe:
        try:
            yield Served(pipe.readline().strip())
        finally:
            process.terminate()
            process.wait()


def environ() -> dict[str, str]:
    """The environment of a process of ours: the checkout first on its path, no network but loopback."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}


def pipeline(folder: Path, base_url: str, prompts: int, in_flight: int, **changes: Any) -> Path:
    """A pipeline file: four models over vLLM's client, a judge over OpenAI's, so many calls in flight to each side."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = "Question {}: please explain how number {} relates to the tides, in two paragraphs."
    rows = [{"prompt": asked.format(n, n)} for n in range(prompts)]
    (folder / "prompts.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    model, judge = changes.pop("models", {}), changes.pop("judges", {})
    said: dict[str, Any] = {
        "name": "benchmark",
        "seed": 7,
        "store": str(folder / "store" / "feedback.duckdb"),
        "prompts": [{"file": str(folder / "prompts.jsonl")}],
        "completions": {"per_prompt": 4, "max_tokens": 512},
        "models": {
            name: {"provider": "vllm", "base_url": base_url, "concurrency": in_flight // len(MODELS), **model}
            for name in MODELS
        },
        "judges": {"judge": {"provider": "openai", "base_url": base_url, "concurrency": in_flight, **judge}},
        "rubric": "unified",
        **changes,
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(said, sort_keys=False))
    return path


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process and all its children took: wall time, CPU (user and system) in seconds, peak memory in MB."""

    wall_s: float
    cpu_s: float
    rss_mb: float


def cost(command: Sequence[object], **options: Any) -> Cost:
    """Runs a command to its end. Raises CalledProcessError where it fails, with what it said."""
    began = time.monotonic()
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert process.stdout is not None
    with process.stdout as pipe:
        said = pipe.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, said)
    return Cost(wall, used.ru_utime + used.ru_stime, _peak_mb(used))


def aif(*arguments: object) -> Cost:
    """`aif` with these arguments, to its end."""
    return cost([sys.executable, "-m", "aif", *arguments], env=environ(), cwd=ROOT)


def _peak_mb(used: resource.struct_rusage) -> float:
    return used.ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
