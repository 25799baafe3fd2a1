"""11. One writer: a second command that would write is told who holds the store; `aif status` works during a run."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from aif.core.errors import Exit
from aif.engine.progress import Snapshot, read_snapshot
from aif.simulator.faults import Fault, Faults
from aif.store.lock import read_note
from aif.store.paths import StorePaths
from trials.reliability import Figures
from trials.reliability.simulated_run import CallLog, pipeline, served, start

NUMBER = 11
PROMISE = "One writer: a second run names the store's holder and exits; `aif status` takes under a second during a run"
WITHIN_S = 1.0
PATIENCE_S = 30.0


def trial(folder: Path, full: bool) -> Figures:
    """Start a run, run `aif status` and competing commands beside it, then kill it and run `aif status` again."""
    call_log = CallLog()
    with served(call_log, latency_s=0.25, faults=Faults({Fault.REFUSAL: 0.05}, lasting=True)) as server:
        path = pipeline(folder, server.base_url, 3000 if full else 400)
        places = StorePaths(folder / "store" / "feedback.duckdb")
        run = start("run", path, stdout=subprocess.DEVNULL)
        try:
            _until(lambda: _has_everything(read_snapshot(places.progress)))
            status_calls = [_status_errors(path, run.pid, call_log) for _ in range(60 if full else 1)]
            failures = [_failures_shown(path) for _ in range(5 if full else 0)]
            turned_away = [
                _refusal(command, path, run.pid)
                for command in (("run", "export", "rebuild") if full else ("run",)) * (3 if full else 1)
            ]
            alive = run.poll() is None
        finally:
            run.send_signal(signal.SIGKILL)
            run.wait()
    left = read_note(places.lock)
    code, output, _, _ = _timed("status", path)
    return {
        "full": full,
        "asked": len(status_calls),
        "wall_s": [round(wall, 3) for *_, wall, _ in status_calls],
        "cpu_s": [round(cpu, 3) for *_, cpu in status_calls],
        "untrue": [words for words, *_ in status_calls if words],
        "failures": failures,
        "turned_away": turned_away,
        "went_on": alive,
        "killed": [code, "it was killed" in output, "held by" in output, left is not None],
    }


def _has_everything(snapshot: Snapshot | None) -> bool:
    """Return whether the run has failures and an ETA, so that status can show all its parts."""
    return snapshot is not None and bool(snapshot.failures) and snapshot.eta_s is not None


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "timed out waiting for the run to begin"
        time.sleep(0.05)


def _timed(*words: object) -> tuple[int, str, float, float]:
    """Run `aif` in a process of its own; return exit code, output, and seconds of wall time and of CPU."""
    began = time.monotonic()
    process = start(*words)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    return process.returncode, output, time.monotonic() - began, usage.ru_utime + usage.ru_stime


def _status_errors(path: Path, pid: int, call_log: CallLog) -> tuple[str, float, float]:
    """Run `aif status`; return what it omitted or reported wrongly, and its seconds of wall time and of CPU."""
    code, output, wall_s, cpu_s = _timed("status", path)
    answered = sum(call_log.answered().values())
    done = [int(n.replace(",", "")) for n in re.findall(r" ([\d,]+)/[\d,]+ ", output)]
    untrue = [
        words
        for words, true in {
            f"exit code {code}": code == Exit.DONE,
            "who runs": f"held by process {pid} on {os.uname().nodename} since" in output,
            "progress of each": len(done) == 5 and 0 < sum(done) <= answered,
            "rate, spend": "per s" in output and "spent" in output,
            "ETA": re.search(r"ETA [\d:]+", output),
            "failures with an example and what to do": re.search(r"blocked: .*\n +\S.*\n +\S.*\n +→ ", output),
        }.items()
        if not true
    ]
    return ", ".join(untrue), wall_s, cpu_s


def _failures_shown(path: Path) -> bool:
    code, output, *_ = _timed("failures", path)
    return code == Exit.DONE and bool(re.search(r"blocked: [\d,]+ \(waits with --retry-failed\)", output))


def _refusal(command: str, path: Path, pid: int) -> list[object]:
    """Run a command beside the run; return its name, exit code, whether it named the holder, and its seconds."""
    code, output, wall_s, _ = _timed(command, path)
    return [command, code, f"held by process {pid} on {os.uname().nodename} since" in output, round(wall_s, 3)]


def violations(figures: Figures) -> list[str]:
    """Return the broken parts. A short run may share the machine with tests, so it is held to CPU time alone."""
    slowest = max(figures["wall_s" if figures["full"] else "cpu_s"])
    problems = [f"status omitted or reported wrongly: {words}" for words in figures["untrue"]]
    if slowest >= WITHIN_S:
        problems.append(f"status took {slowest:.2f} s")
    if not all(figures["failures"]):
        problems.append("`aif failures` did not list what had failed")
    for command, code, named, _ in figures["turned_away"]:
        if code != Exit.LOCKED or not named:
            problems.append(
                f"`aif {command}` beside a run exited with {code}" + ("" if named else " and named no holder")
            )
    if not figures["went_on"]:
        problems.append("the first run ended")
    if figures["killed"] != [Exit.DONE, True, False, False]:
        problems.append("after kill -9 status reported a running run")
    return problems


def summary(figures: Figures) -> str:
    walls = sorted(figures["wall_s"])
    return (
        f"`aif status` in a process of its own, {figures['asked']} times during a run: median "
        f"{walls[len(walls) // 2]:.2f} s, slowest {walls[-1]:.2f} s; {len(figures['turned_away'])} commands that would "
        f"write exited with code {int(Exit.LOCKED)} and the holder's name, the slowest in "
        f"{max(refusal[3] for refusal in figures['turned_away']):.2f} s."
    )
