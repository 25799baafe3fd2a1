"""17. Long rows: the peak memory of a run, a resumed run, an export and a rebuild, each in a process of its own."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import orjson
import yaml

from aif.store.paths import StorePaths
from trials.performance.measured_run import aif
from trials.reliability import Figures
from trials.reliability.simulated_run import CallLog, pipeline, served

NUMBER = 17
PROMISE = (
    "Long rows cost no memory: with prompts, columns and completions of any size and any number of pairs, a run, a "
    "resumed run, an export and a rebuild take 1.2 GB at most each, and so does a run whose journal is gone."
)
MB = 1200
ASKED, MORE = 5, 60  # `--limit` of the first run and of the next
FORMATS = ("trl", "h4", "ultrafeedback", "kto", "sft", "reward")
CHINESE = "".join(map(chr, range(0x4E00, 0x6E00)))
ENGLISH = "The moon draws the sea, and the sea keeps what it is given. "

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """Input data: `prompts` prompts of `characters` characters. If it has completions, they have scores: no call."""

    name: str
    prompts: int
    characters: int
    text: str = ENGLISH
    columns: int = 0  # of 3,800 characters
    completions: int = 0
    each: int = 0  # characters of a completion
    pairs: Mapping[str, Any] = field(default_factory=dict)
    formats: Sequence[str] = FORMATS
    loses: bool = False  # whether its journal is deleted in the end

    def rows(self) -> Iterator[Row]:
        random, source = Random(17), self.text * (2 * max(self.characters, self.each, 3800) // len(self.text) + 1)

        def text(length: int) -> str:
            """Return a text that no other row has."""
            at = random.randrange(len(source) - length)
            return f"{random.random()} {source[at : at + length]}"

        for _ in range(self.prompts):
            row: Row = {"prompt": text(self.characters)} | {f"column{n}": text(3800) for n in range(self.columns)}
            if self.completions:
                row["completions"] = [
                    {"model": f"m{n % 8}", "text": text(self.each), "score": random.random()}
                    for n in range(self.completions)
                ]
            yield row


FULL = (
    Workload("2,000 prompts of 100,000 characters", 2000, 99_900, loses=True),
    Workload("4,000 prompts of 95,000", 4000, 95_000),
    Workload("2,100 Chinese prompts of 22,500", 2100, 22_500, CHINESE),
    Workload("2,100 short ones with 20 columns of 3.8 kB", 2100, 50, columns=20),
    Workload("300 of 400,000", 300, 400_000),
    Workload("1,200 with 2 completions of 200 kB", 1200, 50, completions=2, each=200_000),
    Workload(
        "5,000 with all pairs of 32 completions",
        5000,
        50,
        completions=32,
        each=50,
        pairs={"policy": "all"},
        formats=["trl"],
    ),
    Workload(
        "5,000 with a cap on the pairs of 32",
        5000,
        50,
        completions=32,
        each=50,
        pairs={"policy": "all", "max_per_model": 1000},
        formats=["trl"],
    ),
    Workload("one with 8,000 completions", 1, 50, completions=8000, each=50),
)
SHORT = (
    Workload("40 prompts of 40,000 with 2 completions of 40,000", 40, 40_000, completions=2, each=40_000),
    Workload("40 prompts of 40,000", 40, 40_000, formats=["trl"], loses=True),
)


def trial(folder: Path, full: bool) -> Figures:
    return {
        "worlds": {
            workload.name: _measured(folder / f"{n}", workload) for n, workload in enumerate(FULL if full else SHORT)
        }
    }


def _measured(folder: Path, workload: Workload) -> dict[str, float | str]:
    """Return the peak memory in MB of each command, or the last line of its output if it failed."""
    call_log = CallLog()
    with served(call_log, max_model_len=10**6) as server:
        path = _pipeline(folder, server.base_url, workload)
        asked = [("run", path, "--yes", "--limit", ASKED), ("run", path, "--yes", "--limit", MORE)]
        commands = {
            **dict(zip(("run", "resumed"), asked, strict=True)),
            "export": ("export", path, "--out", folder / "one"),
            "rebuild": ("rebuild", path),
            "export again": ("export", path, "--out", folder / "two"),
        }
        peaks = {name: _peak(*words) for name, words in commands.items()}
        if workload.loses:
            shutil.rmtree(StorePaths(folder / "store" / "feedback.duckdb").journal)
            before = len(call_log.calls)
            peaks["journal gone"] = _peak(*asked[-1])
            if more := len(call_log.calls) - before:
                peaks["journal gone"] = f"{more:,} calls were made again"
        return peaks


def _pipeline(folder: Path, base_url: str, workload: Workload) -> Path:
    sizes = {"per_prompt": 2, "max_tokens": 64}
    path = pipeline(
        folder, base_url, 0, completions=sizes, export={"formats": list(workload.formats)}, pairs=dict(workload.pairs)
    )
    data = yaml.safe_load(path.read_text())
    data["prompts"][0]["max_chars"] = 1_000_000
    if workload.completions:  # neither completions nor ratings are requested
        data["prompts"][0]["completions"] = {"field": "completions", "score": "score"}
        data = {key: data[key] for key in data.keys() - {"models", "judges", "completions"}}
    path.write_text(yaml.safe_dump(data))
    with (folder / "prompts.jsonl").open("wb") as file:
        file.writelines(orjson.dumps(row) + b"\n" for row in workload.rows())
    return path


def _peak(*words: object) -> float | str:
    try:
        return round(aif(*words).rss_mb)
    except subprocess.CalledProcessError as error:
        return str(error.output).strip().splitlines()[-1]


def violations(figures: Figures) -> list[str]:
    return [
        f"{workload}: {command}: {peak}{' MB' if isinstance(peak, float | int) else ''}"
        for workload, peaks in figures["worlds"].items()
        for command, peak in peaks.items()
        if isinstance(peak, str) or peak > MB
    ]


def summary(figures: Figures) -> str:
    def highest(peaks: Mapping[str, float | str]) -> str:
        return f"{max((peak for peak in peaks.values() if not isinstance(peak, str)), default=0):,.0f}"

    return "Peak memory in MB: " + "; ".join(f"{name} {highest(peaks)}" for name, peaks in figures["worlds"].items())
