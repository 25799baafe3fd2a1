"""Rows of any length: what a run, its resumption, an export and a rebuild take of memory, each a process of its own."""

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
from benchmarks.house import aif
from chaos import Figures
from chaos.house import Record, pipeline, served

NUMBER = 17
PROMISE = (
    "The length of a row costs no memory: with prompts, columns and completions of any size, and any number of pairs, "
    "a run, its resumption, an export and a rebuild take 1.2 GB at most each, as does a run whose journal is gone."
)
MB = 1200
ASKED, MORE = 5, 60  # prompts about which the first run asks, and the next
FORMATS = ("trl", "h4", "ultrafeedback", "kto", "sft", "reward")
CHINESE = "".join(map(chr, range(0x4E00, 0x6E00)))
ENGLISH = "The moon draws the sea, and the sea keeps what it is given. "

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class World:
    """So many prompts of so many characters; with completions of so many, they are rated and nobody is asked."""

    name: str
    prompts: int
    characters: int
    text: str = ENGLISH
    columns: int = 0  # of 3,800 characters
    completions: int = 0
    each: int = 0  # characters of a completion
    pairs: Mapping[str, Any] = field(default_factory=dict)
    formats: Sequence[str] = FORMATS
    loses: bool = False  # its journal, in the end

    def rows(self) -> Iterator[Row]:
        random, much = Random(17), self.text * (2 * max(self.characters, self.each, 3800) // len(self.text) + 1)

        def said(length: int) -> str:
            """No two are alike."""
            at = random.randrange(len(much) - length)
            return f"{random.random()} {much[at : at + length]}"

        for _ in range(self.prompts):
            row: Row = {"prompt": said(self.characters)} | {f"column{n}": said(3800) for n in range(self.columns)}
            if self.completions:
                row["completions"] = [
                    {"model": f"m{n % 8}", "text": said(self.each), "score": random.random()}
                    for n in range(self.completions)
                ]
            yield row


FULL = (
    World("2,000 prompts of 100,000 characters", 2000, 99_900, loses=True),
    World("4,000 prompts of 95,000", 4000, 95_000),
    World("2,100 Chinese prompts of 22,500", 2100, 22_500, CHINESE),
    World("2,100 short ones with 20 columns of 3.8 kB", 2100, 50, columns=20),
    World("300 of 400,000", 300, 400_000),
    World("1,200 with 2 completions of 200 kB", 1200, 50, completions=2, each=200_000),
    World(
        "5,000 with all pairs of 32 completions",
        5000,
        50,
        completions=32,
        each=50,
        pairs={"policy": "all"},
        formats=["trl"],
    ),
    World(
        "5,000 with a cap on the pairs of 32",
        5000,
        50,
        completions=32,
        each=50,
        pairs={"policy": "all", "max_per_model": 1000},
        formats=["trl"],
    ),
    World("one with 8,000 completions", 1, 50, completions=8000, each=50),
)
SHORT = (
    World("40 prompts of 40,000 with 2 completions of 40,000", 40, 40_000, completions=2, each=40_000),
    World("40 prompts of 40,000", 40, 40_000, formats=["trl"], loses=True),
)


def trial(folder: Path, full: bool) -> Figures:
    return {"worlds": {one.name: _measured(folder / f"{n}", one) for n, one in enumerate(FULL if full else SHORT)}}


def _measured(folder: Path, world: World) -> dict[str, float | str]:
    """Peak memory in MB by command; of one that failed, its last words."""
    record = Record()
    with served(record, max_model_len=10**6) as server:
        path = _pipeline(folder, server.base_url, world)
        asked = [("run", path, "--yes", "--limit", ASKED), ("run", path, "--yes", "--limit", MORE)]
        commands = {
            **dict(zip(("run", "resumed"), asked, strict=True)),
            "export": ("export", path, "--out", folder / "one"),
            "rebuild": ("rebuild", path),
            "export again": ("export", path, "--out", folder / "two"),
        }
        peaks = {name: _peak(*words) for name, words in commands.items()}
        if world.loses:
            shutil.rmtree(StorePaths(folder / "store" / "feedback.duckdb").journal)
            before = len(record.calls)
            peaks["journal gone"] = _peak(*asked[-1])
            if more := len(record.calls) - before:
                peaks["journal gone"] = f"{more:,} calls were made again"
        return peaks


def _pipeline(folder: Path, base_url: str, world: World) -> Path:
    sizes = {"per_prompt": 2, "max_tokens": 64}
    path = pipeline(
        folder, base_url, 0, completions=sizes, export={"formats": list(world.formats)}, pairs=dict(world.pairs)
    )
    said = yaml.safe_load(path.read_text())
    said["prompts"][0]["max_chars"] = 1_000_000
    if world.completions:  # nobody is asked, for completions or for ratings
        said["prompts"][0]["completions"] = {"field": "completions", "score": "score"}
        said = {key: said[key] for key in said.keys() - {"models", "judges", "completions"}}
    path.write_text(yaml.safe_dump(said))
    with (folder / "prompts.jsonl").open("wb") as file:
        file.writelines(orjson.dumps(row) + b"\n" for row in world.rows())
    return path


def _peak(*words: object) -> float | str:
    try:
        return round(aif(*words).rss_mb)
    except subprocess.CalledProcessError as failed:
        return str(failed.output).strip().splitlines()[-1]


def broken(figures: Figures) -> list[str]:
    return [
        f"{world}: {command}: {peak}{' MB' if isinstance(peak, float | int) else ''}"
        for world, peaks in figures["worlds"].items()
        for command, peak in peaks.items()
        if isinstance(peak, str) or peak > MB
    ]


def told(figures: Figures) -> str:
    def most(peaks: Mapping[str, float | str]) -> str:
        return f"{max((one for one in peaks.values() if not isinstance(one, str)), default=0):,.0f}"

    return "Peak memory in MB: " + "; ".join(f"{name} {most(peaks)}" for name, peaks in figures["worlds"].items())
