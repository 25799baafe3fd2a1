"""Trials: modules that measure a documented promise, and the page in docs/ that is written from their results.

A *trial* is a module with

    NUMBER, PROMISE                      the promise's number, and the promise in one line
    trial(folder, full) -> Figures       run the trial in an empty folder; return the measurements, as JSON values
    violations(figures) -> list[str]     how the measurements break the promise; empty where it is kept
    summary(figures) -> str              the measurements in a sentence or two

`trials/reliability/` measures the promises of docs/reliability.md, `trials/performance/` those of docs/performance.md.
AIF_TRIALS_DIR names the folder in which trials make their temporary folders; the system's by default.
"""

import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol, cast

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
# A result's commit is marked `+changes` where git shows uncommitted changes in one of these folders.
_MEASURED_FOLDERS = ("aif", "data", "prompts", "tests", "trials")

Figures = Mapping[str, Any]


class Trial(Protocol):
    """The interface of a trial's module; see the top of this file."""

    __name__: str
    NUMBER: int
    PROMISE: str

    def trial(self, folder: Path, full: bool) -> Figures: ...
    def violations(self, figures: Figures) -> list[str]: ...
    def summary(self, figures: Figures) -> str: ...


@dataclass(frozen=True, slots=True)
class Page:
    """A page of docs/ and its trials, the modules of `package`. Raw results are in a folder of the page's name.

    `kept_word` is the head of the page's last column: what a promise is that was measured to hold.
    """

    package: str
    name: str
    kept_word: str

    @property
    def path(self) -> Path:
        return ROOT / "docs" / f"{self.name}.md"

    @property
    def results(self) -> Path:
        return ROOT / "docs" / self.name

    def trials(self) -> list[Trial]:
        """Return all trials of the page, ordered by number."""
        return sorted(_trials(self.package), key=lambda trial: trial.NUMBER)

    def rendered(self) -> str:
        """Return the page's text: the prose that is there, with a table made from the raw results."""
        before, _, results = self.path.read_text(encoding="utf-8").partition(BEGIN)
        after = results.partition(END)[2]
        return f"{before}{BEGIN}\n\n{self._table()}\n{END}{after}"

    def write(self) -> None:
        self.path.write_text(self.rendered(), encoding="utf-8")

    def main(self, words: Sequence[str]) -> int:
        """Run the command line `words`: `page` writes the page alone; numbers select trials; nothing runs all of them.

        Return the exit code.
        """
        if list(words) == ["page"]:
            self.write()
            return 0
        return self.run([int(number) for number in words])

    def run(self, numbers: Collection[int] = ()) -> int:
        """Run all trials, or those of these numbers, at full length, and write results and page.

        Return the exit code: 0 where every promise was kept, else 1.
        """
        outcomes = [self._run(trial) for trial in self.trials() if not numbers or trial.NUMBER in numbers]
        self.write()
        return 0 if all(outcomes) else 1

    def _run(self, trial: Trial) -> bool:
        print(f"{trial.NUMBER:2} {trial.PROMISE} …", flush=True)
        commit, began = _commit(), time.monotonic()
        with tempfile.TemporaryDirectory(prefix="aif-trial-", dir=os.environ.get("AIF_TRIALS_DIR")) as folder:
            figures = trial.trial(Path(folder), full=True)
        result = {
            "promise": trial.NUMBER,
            "commit": commit,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": machine(),
            "seconds": round(time.monotonic() - began, 1),
            "figures": figures,
        }
        self.results.mkdir(exist_ok=True)
        (self.results / f"{trial.NUMBER:02}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        problems = trial.violations(figures)
        verdict = f"NOT {self.kept_word}: " + "; ".join(problems) if problems else self.kept_word
        print(f"   {trial.summary(figures)}\n   {verdict}", flush=True)
        return not problems

    def _table(self) -> str:
        results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.results.glob("*.json"))]
        by_number = {result["promise"]: result for result in results}
        lines = [f"| | promise | measured | {self.kept_word} |", "|---|---|---|---|"]
        lines += [_row(trial, by_number.get(trial.NUMBER)) for trial in self.trials()]
        runs = sorted({(result["date"], result["commit"], result["machine"]) for result in results})
        listed = [f"- commit `{commit}`, {date}: {machine}" for date, commit, machine in runs]
        return "\n".join([*lines, "", "Measured at", "", *(listed or ["- (nothing yet)"])]) + "\n"


def _trials(package: str) -> Iterator[Trial]:
    for info in iter_modules(import_module(package).__path__):
        module = None if info.name.startswith("_") else import_module(f"{package}.{info.name}")
        if hasattr(module, "PROMISE"):
            yield cast(Trial, module)


def _row(trial: Trial, result: Mapping[str, Any] | None) -> str:
    if result is None:
        return f"| {trial.NUMBER} | {trial.PROMISE} | not measured yet | |"
    problems = trial.violations(result["figures"])
    measured = f"{trial.summary(result['figures'])} ({result['seconds']:,.0f} s, `{result['commit']}`)"
    return f"| {trial.NUMBER} | {trial.PROMISE} | {measured} | {'no: ' + '; '.join(problems) if problems else 'yes'} |"


def machine() -> str:
    """Describe this machine: cores, memory, system, Python version."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.machine()}"
    return f"{cores} cores, {memory:.0f} GB, {system}, Python {platform.python_version()}"


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", *_MEASURED_FOLDERS)
    return git("rev-parse", "--short=9", "HEAD") + ("+changes" if changed else "")
