"""Promises with figures: what tries each of them, the raw results, and the page in docs/ that is written from these.

A *trial* is a module with

    NUMBER, PROMISE                   which promise, and the promise in one line
    trial(folder, full) -> Figures    tries it in an empty folder; what was measured, as JSON values
    broken(figures) -> list[str]      what of the promise did not hold; empty where it was kept
    told(figures) -> str              the figures in a sentence or two

`trials/reliability/` has those of docs/reliability.md, `trials/performance/` those of docs/performance.md.
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
# A commit is said to be changed where one of these is: what is measured, and by what.
_MEASURED = ("aif", "data", "prompts", "tests", "trials")

Figures = Mapping[str, Any]


class Trial(Protocol):
    """What the module of a trial has."""

    __name__: str
    NUMBER: int
    PROMISE: str

    def trial(self, folder: Path, full: bool) -> Figures: ...
    def broken(self, figures: Figures) -> list[str]: ...
    def told(self, figures: Figures) -> str: ...


@dataclass(frozen=True, slots=True)
class Page:
    """A page of docs/ with its trials: a package's modules. Its raw results lie in a folder of its name beside it."""

    package: str
    name: str
    head: str

    @property
    def path(self) -> Path:
        return ROOT / "docs" / f"{self.name}.md"

    @property
    def results(self) -> Path:
        return ROOT / "docs" / self.name

    def trials(self) -> list[Trial]:
        """All of them, by number."""
        return sorted(_trials(self.package), key=lambda one: one.NUMBER)

    def rendered(self) -> str:
        """What is written by hand, and in it the table."""
        before, _, results = self.path.read_text(encoding="utf-8").partition(BEGIN)
        after = results.partition(END)[2]
        return f"{before}{BEGIN}\n\n{self._table()}\n{END}{after}"

    def write(self) -> None:
        self.path.write_text(self.rendered(), encoding="utf-8")

    def main(self, words: Sequence[str]) -> int:
        """Of a command's words: `page` writes the page alone, numbers try those, and none tries all. The exit code."""
        if list(words) == ["page"]:
            self.write()
            return 0
        return self.run([int(number) for number in words])

    def run(self, numbers: Collection[int] = ()) -> int:
        """Tries all, or those of these numbers, at full length, and writes results and page. The exit code: 0 where
        every promise was kept."""
        kept = [self._try(one) for one in self.trials() if not numbers or one.NUMBER in numbers]
        self.write()
        return 0 if all(kept) else 1

    def _try(self, one: Trial) -> bool:
        print(f"{one.NUMBER:2} {one.PROMISE} …", flush=True)
        commit, began = _commit(), time.monotonic()
        with tempfile.TemporaryDirectory(prefix="aif-measured-", dir=os.environ.get("AIF_MEASURED_DIR")) as folder:
            figures = one.trial(Path(folder), full=True)
        result = {
            "promise": one.NUMBER,
            "commit": commit,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": machine(),
            "seconds": round(time.monotonic() - began, 1),
            "figures": figures,
        }
        self.results.mkdir(exist_ok=True)
        (self.results / f"{one.NUMBER:02}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        wrong = one.broken(figures)
        print(
            f"   {one.told(figures)}\n   {f'NOT {self.head}: ' + '; '.join(wrong) if wrong else self.head}", flush=True
        )
        return not wrong

    def _table(self) -> str:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.results.glob("*.json"))]
        results = {one["promise"]: one for one in found}
        lines = [f"| | promise | measured | {self.head} |", "|---|---|---|---|"]
        lines += [_row(one, results.get(one.NUMBER)) for one in self.trials()]
        where = sorted({(one["date"], one["commit"], one["machine"]) for one in found})
        runs = [f"- commit `{commit}`, {date}: {machine}" for date, commit, machine in where]
        return "\n".join([*lines, "", "Measured at", "", *(runs or ["- (nothing yet)"])]) + "\n"


def _trials(package: str) -> Iterator[Trial]:
    for info in iter_modules(import_module(package).__path__):
        module = None if info.name.startswith("_") else import_module(f"{package}.{info.name}")
        if hasattr(module, "PROMISE"):
            yield cast(Trial, module)


def _row(one: Trial, result: Mapping[str, Any] | None) -> str:
    if result is None:
        return f"| {one.NUMBER} | {one.PROMISE} | not measured yet | |"
    wrong = one.broken(result["figures"])
    told = f"{one.told(result['figures'])} ({result['seconds']:,.0f} s, `{result['commit']}`)"
    return f"| {one.NUMBER} | {one.PROMISE} | {told} | {'no: ' + '; '.join(wrong) if wrong else 'yes'} |"


def machine() -> str:
    """The machine in words: cores, memory, system, Python."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.machine()}"
    return f"{cores} cores, {memory:.0f} GB, {system}, Python {platform.python_version()}"


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", *_MEASURED)
    return git("rev-parse", "--short=9", "HEAD") + ("+changes" if changed else "")
