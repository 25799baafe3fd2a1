"""The wall clock put forward and back all through a run, beside the same run undisturbed.

The clock of the process is stepped as Python tells it (`time.time`, `datetime.now`); what only goes forward
(`monotonic`, the event loop) goes on. Server and trial keep the time they have.
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
from aif.simulator.faults import Arrival, Fault, Faults, Mishap
from aif.store.reader import Reader
from chaos import Figures
from chaos.house import JUDGE, Record, aif, exported, pipeline, served
from measured.house import environ

NUMBER = 9
PROMISE = "Stepping the wall clock by an hour, a month, a year, forward and back, changes nothing"

EVERY_S = 0.05
# Seconds, one after the other: ahead of the time there is in the first run, behind it in the second.
AHEAD, BEHIND = (0, 3600, -60, 30 * 86400), (-3600, 0, -400 * 86400, -86400)

# Run by the interpreter before anything else. `now` goes into the dictionary of the class itself, since a class in its
# place is none to extensions that were built against it (pandas).
_SITE = f"""
import ctypes, datetime, gc, json, os, time
real, steps, began = time.time, json.loads(os.environ["AIF_CHAOS_STEPS"]), time.monotonic()
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
    plain = _Course(folder / "plain", prompts, _undisturbed)
    stepped = _Course(folder / "stepped", prompts, _stepped(folder / "clock"))
    plain.go()
    stepped.go()
    return {
        "prompts": prompts,
        "steps": int(stepped.seconds / EVERY_S),
        "went_back": stepped.went_back,
        "went_back_undisturbed": plain.went_back,
        "span_s": round(stepped.span_s),
        "answered_alike": plain.record.answered() == stepped.record.answered(),
        "answered_twice": sum(n > 1 for n in stepped.record.answered().values()),
        "pool_calls": [len(plain.pool_calls), len(stepped.pool_calls)],
        "calls": len(stepped.record.calls),
        "exported_alike": plain.exported == stepped.exported,
        "failures": [plain.failures, stepped.failures],
        "longest_wait_s": [round(plain.longest_wait_s, 1), round(stepped.longest_wait_s, 1)],
    }


def broken(figures: Figures) -> list[str]:
    wrong = []
    if not figures["went_back"] or figures["span_s"] < 3600:
        wrong.append("the clock of the run was not stepped, so nothing was tried")
    if not figures["answered_alike"] or figures["answered_twice"]:
        wrong.append("other requests were answered than in the undisturbed run, or some twice")
    if figures["pool_calls"][0] != figures["pool_calls"][1]:
        wrong.append("the pool was called {} times in place of {}".format(*reversed(figures["pool_calls"])))
    if not figures["exported_alike"]:
        wrong.append("the exported data differ")
    if figures["failures"] != [_TOLD, _TOLD]:
        wrong.append(f"failures were told as {figures['failures']}")
    if figures["longest_wait_s"][1] > figures["longest_wait_s"][0] + 30:  # a wait by the clock would be of a minute
        wrong.append(f"a call waited {figures['longest_wait_s'][1]:g} s")
    return wrong


def told(figures: Figures) -> str:
    days = figures["span_s"] / 86400
    return (
        f"{figures['steps']:,} steps over {days:,.0f} days in two runs about {figures['prompts']:,} prompts, "
        f"{figures['went_back']:,} of them back between two calls: {figures['calls']:,} calls, the pool's as without, "
        f"{figures['answered_twice']} answered twice, data files byte for byte the same; a refusal was told while it "
        "held, and no more once it was mended."
    )


_Run = Callable[[Path, Sequence[int]], None]
_TOLD = [["unauthorized"], []]  # kinds of failures after the first run and after the second


@dataclass
class _Befall:
    """Limits and server errors that pass; and while `refusing`, a judge's key that is no good."""

    refusing: bool = True
    passing: Faults = field(
        default_factory=lambda: Faults(
            {Fault.RATE_LIMITED: 0.05, Fault.SERVER_ERROR: 0.05}, retry_after=("0.1", "date:0", "date:1")
        )
    )

    def __call__(self, arrival: Arrival) -> Mishap | None:
        if self.refusing and arrival.model == JUDGE:
            return Mishap(Fault.UNAUTHORIZED)
        return self.passing(arrival)


class _Course:
    """A run in which the judge is refused, and a second one in which that is mended; what was seen of them."""

    def __init__(self, folder: Path, prompts: int, run: _Run) -> None:
        self.record = Record()
        self.failures: list[list[str]] = []
        self.seconds = 0.0
        self._folder, self._prompts, self._run = folder, prompts, run

    def go(self) -> None:
        befall = _Befall()
        with served(self.record, faults=befall) as server:
            path = pipeline(self._folder, server.base_url, self._prompts)
            for befall.refusing, steps in ((True, AHEAD), (False, BEHIND)):
                began = time.monotonic()
                self._run(path, steps)
                self.seconds += time.monotonic() - began
                self.failures.append(sorted({row["kind"] for row in _asked(path, "SELECT kind FROM failures")}))
        calls = _asked(path, "SELECT epoch(started) AS at, endpoint FROM calls ORDER BY rowid")
        at = [row["at"] for row in calls]
        self.went_back = sum(later < earlier - 60 for earlier, later in pairwise(at))
        self.span_s = max(at) - min(at)
        # how many calls a refused judge has in flight is chance, and so how its requests fare when they come again
        self.pool_calls = [call for call in self.record.calls if call.model != JUDGE]
        self.longest_wait_s = _longest(self.pool_calls)
        self.exported = exported(path, self._folder / "dataset")


def _longest(calls: Sequence[Call]) -> float:
    """The longest time between two calls of one key, by the server's clock."""
    last: dict[str, float] = {}
    longest = 0.0
    for call in sorted(calls, key=lambda call: call.began):
        longest = max(longest, call.began - last.get(call.key, call.began))
        last[call.key] = call.ended
    return longest


def _asked(path: Path, query: str) -> list[dict[str, Any]]:
    with Reader.open(load(path).store) as reader:
        return reader.sql(query)


def _undisturbed(path: Path, _: Sequence[int]) -> None:
    run_pipeline(load(path), Terminal(Console(file=StringIO())))


def _stepped(clock: Path) -> _Run:
    paths = os.pathsep.join([str(clock), environ()["PYTHONPATH"]])

    def run(path: Path, steps: Sequence[int]) -> None:
        stepping = {"PYTHONPATH": paths, "AIF_CHAOS_STEPS": json.dumps(steps)}
        code, said = aif("run", path, "--yes", environ=stepping, within_s=300.0)
        assert code in (0, 5), (code, said)

    return run
