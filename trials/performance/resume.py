"""6. Resuming a store with a million recorded calls."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trials.common import environ
from trials.harness import ROOT, Figures
from trials.performance.filled_store import fill
from trials.performance.measured_run import MODELS, Served, aif, pipeline, serving

NUMBER = 6
PROMISE = (
    "Resume over 1,000,000 recorded calls: first new call within 5 s, status within 1 s, rebuilt at 20,000 a second"
)
FIRST_S, STATUS_S, REBUILT = 5.0, 1.0, 20_000
LEFT = 100  # prompts that the run had not begun


def trial(folder: Path, full: bool) -> Figures:
    prompts = 200_000 if full else 200
    with serving(200, 400) as server:
        path = pipeline(folder, server.base_url, prompts + LEFT, 256)
        fill(path, limit=prompts)
        status = aif("status", path)
        rebuilt = aif("rebuild", path)
        first_s = _first_call(path, server)
        run = aif("run", path)
        asked = server.stats()
    calls = prompts * (len(MODELS) + 1)
    return {
        "calls": calls,
        "first_call_s": round(first_s, 2),
        "status_s": round(status.wall_s, 2),
        "rebuild_s": round(rebuilt.wall_s, 1),
        "rebuilt_a_second": round(calls / rebuilt.wall_s),
        "rebuild_mb": round(rebuilt.rss_mb),
        "run_mb": round(run.rss_mb),
        "asked": asked["completion"]["calls"],
    }


def _first_call(path: Path, server: Served) -> float:
    """Return the seconds from starting `aif run` to its first call, as the server saw it; then stop the run."""
    server.reset()
    began = time.monotonic()
    command = [sys.executable, "-m", "aif", "run", str(path)]
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environ(), cwd=ROOT, **options)
    while not (first := server.stats()["completion"]["first"]):
        assert process.poll() is None, "the run ended without a call"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.wait()
    return float(first) - began


def measurement_errors(figures: Figures) -> list[str]:
    wanted = LEFT * len(MODELS)
    return [] if figures["asked"] == wanted else [f"{figures['asked']} completions were requested, not {wanted}"]


def violations(figures: Figures) -> list[str]:
    problems = measurement_errors(figures)
    if figures["first_call_s"] > FIRST_S:
        problems.append(f"the first call came after {figures['first_call_s']} s")
    if figures["status_s"] > STATUS_S:
        problems.append(f"status takes {figures['status_s']} s")
    if figures["rebuilt_a_second"] < REBUILT:
        problems.append(f"rebuilt at {figures['rebuilt_a_second']:,} a second")
    return problems


def summary(figures: Figures) -> str:
    return (
        f"over {figures['calls']:,} calls: first new call after {figures['first_call_s']} s, status in "
        f"{figures['status_s']} s, rebuilt in {figures['rebuild_s']} s ({figures['rebuilt_a_second']:,} a second, "
        f"{figures['rebuild_mb']} MB)"
    )
