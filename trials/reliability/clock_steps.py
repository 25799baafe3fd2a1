"""9. The wall clock is stepped forward and back throughout a run, which is compared with an undisturbed one.

Only Python's wall clock in aif's process is stepped (`time.time`, `datetime.now`); the monotonic clock, which the event
loop uses, is not. Server and trial keep the real time.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.config.pipeline import load
from aif.engine.run import run_pipeline
from aif.simulator import Call
from aif.simulator.faults import Arrival, Fault, Faults, InjectedFault
from aif.store.reader import Reader
from trials.common import environ
from trials.reliability import Figures
from trials.reliability.simulated_run import JUDGE, CallLog, aif, exported_by_command, pipeline, served

NUMBER = 9
PROMISE = "Stepping the wall clock by an hour, a month or a year, forward or back, changes nothing"

EVERY_S = 0.05
# Offsets in seconds, used in turn: ahead of the real time in the first run, behind it in the second.
AHEAD, BEHIND = (0, 3600, -60, 30 * 86400), (-3600, 0, -400 * 86400, -86400)

# Python runs this before anything else. `now` is replaced in the dictionary of the class itself: extensions compiled
# against the class (pandas) reject another class in its place.
_SITE = f"""
import ctypes, datetime, gc, json, os, time
real, steps, began = time.time, json.loads(os.environ["AIF_TRIAL_STEPS"]), time.monotonic()
def stepped():
    return real() + steps[int((time.monotonic() - began) / {EVERY_S}) % len(steps)]
time.time, time.time_ns = stepped, lambda: int(stepped() * 1e9)
(methods,) = gc.get_referents(datetime.datetime.__dict__)
methods["now"] = classmethod(lambda kind, tz=None: kind.fromtimestamp(stepped(), tz))
ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
"""


def trial(folder: Path, full: bool) -> Figures:
    prompts = 200 if full else 10
    (folder / "clock").mkdir()
    (folder / "clock" / "sitecustomize.py").write_text(_SITE)
    plain = _TwoRuns(folder / "plain", prompts, _undisturbed)
    stepped = _TwoRuns(folder / "stepped", prompts, _stepped(folder / "clock"))
    plain.go()
    stepped.go()
    return {
        "prompts": prompts,
        "steps": int(stepped.seconds / EVERY_S),
        "went_back": stepped.went_back,
        "went_back_undisturbed": plain.went_back,
        "span_s": round(stepped.span_s),
        "answered_alike": plain.call_log.answered() == stepped.call_log.answered(),
        "answered_twice": sum(n > 1 for n in stepped.call_log.answered().values()),
        "pool_calls": [len(plain.pool_calls), len(stepped.pool_calls)],
        "calls": len(stepped.call_log.calls),
        "exported_alike": plain.exported == stepped.exported,
        "failures": [plain.failures, stepped.failures],
        "longest_wait_s": [round(plain.longest_wait_s, 1), round(stepped.longest_wait_s, 1)],
    }


def violations(figures: Figures) -> list[str]:
    problems = []
    if not figures["went_back"] or figures["span_s"] < 3600:
        problems.append("the clock of the run was not stepped, so the trial is void")
    if not figures["answered_alike"] or figures["answered_twice"]:
        problems.append("the answered requests differ from the undisturbed run's, or some were answered twice")
    if figures["pool_calls"][0] != figures["pool_calls"][1]:
        problems.append("the pool was called {} times instead of {}".format(*reversed(figures["pool_calls"])))
    if not figures["exported_alike"]:
        problems.append("the exported data differs")
    if figures["failures"] != [_EXPECTED_FAILURES, _EXPECTED_FAILURES]:
        problems.append(f"failures were reported as {figures['failures']}")
    if figures["longest_wait_s"][1] > figures["longest_wait_s"][0] + 30:  # a wait by the wall clock would take a minute
        problems.append(f"a call waited {figures['longest_wait_s'][1]:g} s")
    return problems


def summary(figures: Figures) -> str:
    days = figures["span_s"] / 86400
    return (
        f"{figures['steps']:,} steps over {days:,.0f} days in two runs of {figures['prompts']:,} prompts, "
        f"{figures['went_back']:,} of them back between two calls: {figures['calls']:,} calls, the pool's the same as "
        f"without steps, {figures['answered_twice']} answered twice, data files byte-identical; a refusal was reported "
        "while it lasted and no longer once it was fixed."
    )


_Run = Callable[[Path, Sequence[int]], None]
_EXPECTED_FAILURES = [["unauthorized"], []]  # kinds of failures after the first run and after the second


@dataclass
class _FaultPlan:
    """Passing rate limits and server errors; while `refusing` is set, the judge's API key is refused."""

    refusing: bool = True
    passing: Faults = field(
        default_factory=lambda: Faults(
            {Fault.RATE_LIMITED: 0.05, Fault.SERVER_ERROR: 0.05}, retry_after=("0.1", "date:0", "date:1")
        )
    )

    def __call__(self, arrival: Arrival) -> InjectedFault | None:
        if self.refusing and arrival.model == JUDGE:
            return InjectedFault(Fault.UNAUTHORIZED)
        return self.passing(arrival)


class _TwoRuns:
    """A run in which the judge is refused and a second one in which that is fixed, with the measurements of both."""

    def __init__(self, folder: Path, prompts: int, run: _Run) -> None:
        self.call_log = CallLog()
        self.failures: list[list[str]] = []
        self.seconds = 0.0
        self._folder, self._prompts, self._run = folder, prompts, run

    def go(self) -> None:
        plan = _FaultPlan()
        with served(self.call_log, faults=plan) as server:
            path = pipeline(self._folder, server.base_url, self._prompts)
            for plan.refusing, steps in ((True, AHEAD), (False, BEHIND)):
                began = time.monotonic()
                self._run(path, steps)
                self.seconds += time.monotonic() - began
                self.failures.append(sorted({row["kind"] for row in _query(path, "SELECT kind FROM failures")}))
        calls = _query(path, "SELECT epoch(started) AS at, endpoint FROM calls ORDER BY rowid")
        at = [row["at"] for row in calls]
        self.went_back = sum(later < earlier - 60 for earlier, later in pairwise(at))
        self.span_s = max(at) - min(at)
        # how many calls of the refused judge are in flight is random, so the faults of its later calls are, too
        self.pool_calls = [call for call in self.call_log.calls if call.model != JUDGE]
        self.longest_wait_s = _longest(self.pool_calls)
        self.exported = exported_by_command(path, self._folder / "dataset")


def _longest(calls: Sequence[Call]) -> float:
    """Return the longest time in seconds between two calls with one key, by the server's clock."""
    last: dict[str, float] = {}
    longest = 0.0
    for call in sorted(calls, key=lambda call: call.began):
        longest = max(longest, call.began - last.get(call.key, call.began))
        last[call.key] = call.ended
    return longest


def _query(path: Path, query: str) -> list[dict[str, Any]]:
    with Reader.open(load(path).store) as reader:
        return reader._query(query)


def _undisturbed(path: Path, _: Sequence[int]) -> None:
    run_pipeline(load(path), Terminal(Console(file=StringIO())))


def _stepped(clock: Path) -> _Run:
    paths = os.pathsep.join([str(clock), environ()["PYTHONPATH"]])

    def run(path: Path, steps: Sequence[int]) -> None:
        stepping = {"PYTHONPATH": paths, "AIF_TRIAL_STEPS": json.dumps(steps)}
        code, output = aif("run", path, "--yes", environ=stepping, within_s=300.0)
        assert code in (0, 5), (code, output)

    return run
