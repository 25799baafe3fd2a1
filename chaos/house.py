"""What trials share: a pipeline that talks to a simulator of ours, `aif` as a process, and what it leaves behind."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import orjson
import yaml

from aif.simulator import Call, Cast
from tests.serving import Served, serving

ROOT = Path(__file__).resolve().parent.parent
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
    with serving(Cast(POOL, {JUDGE: 0.1}, 7), on_call=record, **options) as one:
        yield one


def pipeline(folder: Path, base_url: str, prompts: int, **changes: Any) -> Path:
    """A pipeline of the pool over vLLM's client and the judge over OpenAI's, with so many prompts, in a folder.

    `changes` replace top-level keys; `models` and `judges` given as mappings are laid over every entry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"What follows from {n} when it is doubled?"} for n in range(prompts)]
    (folder / "prompts.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    model, judge = changes.pop("models", {}), changes.pop("judges", {})
    said: dict[str, Any] = {
        "name": "chaos",
        "seed": 7,
        "store": str(folder / "store" / "feedback.duckdb"),
        "prompts": [{"file": str(folder / "prompts.jsonl")}],
        "completions": {"per_prompt": 4, "max_tokens": 256},
        "models": {name: {"provider": "vllm", "base_url": base_url, "concurrency": 8, **model} for name in POOL},
        "judges": {JUDGE: {"provider": "openai", "base_url": base_url, "concurrency": 8, **judge}},
        "rubric": "unified",
        **changes,
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(said, sort_keys=False))
    return path


def start(
    *arguments: object, under: Sequence[str] = (), environ: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """`aif` as a process of its own, in a session of its own, its output read as text; `under` another command."""
    command = [*under, sys.executable, "-m", "aif", *map(str, arguments)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    given = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", **(environ or {})}
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
    return digests(out)


def digests(dataset: Path) -> dict[str, str]:
    """The data files of a dataset by name, with the digests of their bytes."""
    files = sorted(path for path in dataset.rglob("*.parquet"))
    return {str(path.relative_to(dataset)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
