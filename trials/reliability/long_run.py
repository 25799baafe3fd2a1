"""16. An hour with every fault at a low rate: the process's memory, files and speed at the beginning and at the end."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, mean
from threading import Lock
from typing import Any

from aif.core.errors import Exit
from aif.simulator import Call, Fault, Faults
from trials.common import environ
from trials.reliability import Figures
from trials.reliability.simulated_run import pipeline, served

NUMBER = 16
PROMISE = (
    "A long run stays healthy: in an hour with every fault at a low rate memory, files and tasks don't grow, and the "
    "last ten minutes are as fast as the first."
)
RATE = 0.002  # of each fault: about 3 % of the calls in total; two kinds take up a call's whole timeout
LASTING = {Fault.QUOTA, Fault.UNAUTHORIZED, Fault.FORBIDDEN, Fault.UNKNOWN_MODEL}  # these stop a provider, not a call
LATENCY_S, TIMEOUT_S = 0.4, 3.0
MB_PER_HOUR = 24.0
SLOWER = 0.10


@dataclass(frozen=True, slots=True)
class Length:
    """The length of a run, in seconds: in total, between samples, and of the windows in which speed is compared.

    The first window begins after `warm_s`; growth is measured from `settled_s` on. `rate` is the share of each fault.
    """

    all_s: float
    every_s: float
    warm_s: float
    window_s: float
    settled_s: float
    rate: float
    prompts: int


FULL = Length(3600, 10, 60, 600, 600, RATE, 24_000)
SHORT = Length(6, 0.25, 2, 2, 2, 4 * RATE, 200)


def trial(folder: Path, full: bool) -> Figures:
    return measure(folder, FULL if full else SHORT)


def measure(folder: Path, length: Length) -> Figures:
    faults = Faults({fault: length.rate for fault in Fault if fault not in LASTING}, seed=16)
    counter = CallCounter()
    with served(counter, latency_s=LATENCY_S, faults=faults) as sample:
        path = pipeline(
            folder,
            sample.base_url,
            length.prompts,
            models={"timeout_s": TIMEOUT_S, "concurrency": 2},
            judges={"timeout_s": TIMEOUT_S, "concurrency": 4, "price": {"input": 0, "output": 0}},
        )
        code = _run_for(length.all_s, path, folder / "samples", length.every_s, counter)
    if len((folder / "samples").read_text().splitlines()) * length.every_s < length.settled_s:
        raise RuntimeError(f"the run ended early, with exit code {code}: {(folder / 'said').read_text()[-2000:]}")
    samples = [json.loads(line) for line in (folder / "samples").read_text().splitlines()]
    since, until = counter.began + length.settled_s, counter.began + length.all_s
    for sample in samples:
        sample["own_mb"] = sample["mb"] - sample["duckdb_mb"]
    settled = [sample for sample in samples if since <= sample["at"] <= until]
    cpu_s = settled[-1]["cpu_s"] - settled[0]["cpu_s"]
    return {
        "code": code,
        "seconds": length.all_s,
        "calls": counter.calls,
        "faults": dict(sorted(counter.faults.items())),
        "first_per_s": round(counter.rate(length.warm_s, length.warm_s + length.window_s), 2),
        "last_per_s": round(counter.rate(length.all_s - length.window_s, length.all_s), 2),
        "grew_mb_per_hour": round(_per_hour(settled, "own_mb"), 1),
        **{
            quantity: [round(sample[quantity], 1) for sample in (settled[0], settled[-1])]
            for quantity in ("own_mb", "duckdb_mb")
        },
        **{quantity: _thirds(settled, quantity) for quantity in ("files", "threads", "tasks", "blocks")},
        "cpu": round(cpu_s / (settled[-1]["at"] - settled[0]["at"]), 2),
        "samples": len(settled),
    }


def violations(figures: Figures) -> list[str]:
    problems, full = [], figures["seconds"] >= FULL.all_s
    if figures["code"] != Exit.INTERRUPTED:
        problems.append(f"it ended with exit code {figures['code']}")
    if full and figures["grew_mb_per_hour"] > MB_PER_HOUR:
        problems.append(f"memory grew by {figures['grew_mb_per_hour']} MB an hour")
    # one leaked block a call would be 70,000 in an hour, a tenth of all blocks
    for quantity, factor in (("files", 1.1), ("threads", 1.1), ("tasks", 1.1), ("blocks", 1.02)):
        first, _, last = figures[quantity]
        if last > first * factor + 4:
            problems.append(f"{quantity} grew from {first} to {last}")
    if figures["last_per_s"] < figures["first_per_s"] * (1 - (SLOWER if full else 0.75)):
        problems.append(f"replies a second fell from {figures['first_per_s']} to {figures['last_per_s']}")
    if len(figures["faults"]) < (len(Fault) - len(LASTING) if full else 5):
        problems.append(f"only these faults occurred: {', '.join(figures['faults'])}")
    return problems


def summary(figures: Figures) -> str:
    befell = sum(figures["faults"].values())
    files, tasks = figures["files"], figures["tasks"]
    own, duckdb = figures["own_mb"], figures["duckdb_mb"]
    return (
        f"{figures['calls']:,} calls in {figures['seconds'] / 60:.0f} min, {befell:,} of them with one of "
        f"{len(figures['faults'])} faults: memory {own[0]:.0f} to {own[1]:.0f} MB "
        f"({figures['grew_mb_per_hour']:+.1f} MB an hour), in addition to DuckDB's tables "
        f"({duckdb[0]:.0f} to {duckdb[1]:.0f}); open files {files[0]:.0f} to {files[2]:.0f}, "
        f"tasks {tasks[0]:.0f} to {tasks[2]:.0f}; {figures['first_per_s']} replies a second at first, "
        f"{figures['last_per_s']} at last."
    )


class CallCounter:
    """Counts calls, faults, and complete replies by tenths of a second of the server's monotonic clock.

    It keeps nothing else of a call, so that an hour of calls takes no memory.
    """

    def __init__(self) -> None:
        self._by_tenth: Counter[int] = Counter()
        self._lock = Lock()
        self.began = 0.0
        self.calls = 0
        self.faults: Counter[str] = Counter()

    def __call__(self, call: Call) -> None:
        with self._lock:
            self.began = self.began or call.began
            self.calls += 1
            self.faults.update([str(call.fault)] if call.fault else [])
            if call.sent and call.usage is not None:
                self._by_tenth[int(10 * (call.ended - self.began))] += 1

    def rate(self, since: float, until: float) -> float:
        """Return the replies per second between two times, in seconds after the first call."""
        with self._lock:
            replies = sum(n for tenth, n in self._by_tenth.items() if since <= tenth / 10 < until)
        return replies / (until - since)


def _run_for(seconds: float, path: Path, samples: Path, every_s: float, counter: CallCounter) -> int:
    """Run `aif run`, send it SIGTERM `seconds` after its first call, and return its exit code."""
    command = [
        sys.executable,
        "-m",
        "trials.reliability.sampled_run",
        str(samples),
        str(every_s),
        "run",
        str(path),
        "--yes",
    ]
    with (path.parent / "said").open("w") as output:
        process = subprocess.Popen(command, env=environ(), stdout=output, stderr=output, start_new_session=True)
        try:
            while process.poll() is None and not (counter.began and time.monotonic() - counter.began > seconds):
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            return process.wait(60)
        finally:
            process.kill()
            process.wait()


def _per_hour(samples: Sequence[dict[str, Any]], quantity: str) -> float:
    line = linear_regression([sample["at"] for sample in samples], [sample[quantity] for sample in samples])
    return line.slope * 3600


def _thirds(samples: Sequence[dict[str, Any]], quantity: str) -> list[float]:
    """Return the mean of a quantity in the first, the middle and the last third of the samples."""
    size = max(1, len(samples) // 3)
    parts = (samples[:size], samples[size : 2 * size], samples[-size:])
    return [round(mean(sample[quantity] for sample in part), 1) for part in parts]
