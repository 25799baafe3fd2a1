"""14. API keys are in the environment, a server echoes them in many ways, and all files left are searched for them.

A *bait* is in a prompt, plain and in base64, and so in everything that a run writes: where the search doesn't find the
bait, it would not find a key, either.
"""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import yaml

from aif.config.pipeline import load
from aif.core.types import fraction
from aif.simulator import SimulatedModels
from aif.simulator.faults import Arrival, Fault, InjectedFault
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from tests.support.serving import serving
from trials.reliability import Figures
from trials.reliability.simulated_run import JUDGE, POOL, CallLog, aif, pipeline

NUMBER = 14
PROMISE = "A key set in the environment is found nowhere after a run with errors"

OTHER = "lenient"  # a second judge, over Anthropic's API
KEYS = {
    "AIF_TRIAL_POOL_KEY": 'pool/7f3a+9c51"d2e8<b704',
    "OPENAI_API_KEY": "sk-proj-5be1_c07d/93aa+41f8",
    "ANTHROPIC_API_KEY": "sk-ant-api03-e2b9/70cc-148d",
    "HF_TOKEN": "hf_d81e6b2f90a7c354",
}
BAIT = "bait-b5d0/f6a3+27ce"

_FAULTS = (
    Fault.RATE_LIMITED, Fault.SERVER_ERROR, Fault.OVERLOADED, Fault.HTML, Fault.NO_CHOICES, Fault.BROKEN_JSON,
    Fault.REFUSAL, Fault.CONTROL, Fault.SAYS, Fault.SAYS, Fault.SAYS, Fault.SAYS,
)  # fmt: skip
_ECHOING = {Fault.RATE_LIMITED, Fault.SERVER_ERROR, Fault.OVERLOADED, Fault.UNAUTHORIZED, Fault.HTML, Fault.SAYS}


def trial(folder: Path, full: bool) -> Figures:
    folder_left = folder / "left"
    outputs = folder_left / "said"
    outputs.mkdir(parents=True)
    call_log, plan = CallLog(), _FaultPlan()
    with serving(SimulatedModels(POOL, {JUDGE: 0.1, OTHER: 0.2}, 7), on_call=call_log, faults=plan) as server:
        path = _pipeline(folder_left, server.base_url, 60 if full else 4)
        store = load(path).store
        with _copied_during_run(StorePaths(store), folder_left / "watched"):
            for n in range(2):  # the judge's key is refused first, and accepted in the second run
                plan.refusing = n == 0
                _run_command(outputs, "run", path, "--yes")
        plan.refusing = True
        for command in ("export", *(("failures", "status", "doctor") if full else ())):
            _run_command(outputs, command, path)
        _run_command(outputs, "show", path, _baited(store))
    _dump(store, folder_left)
    places_by_key = {name: _places(folder_left, key) for name, key in KEYS.items()}
    return {
        "calls": len(call_log.calls),
        "said_back": sum(call.fault in _ECHOING for call in call_log.calls),
        "files": sum(1 for _ in _files(folder_left)),
        "bytes": sum(file.stat().st_size for file in _files(folder_left)),
        "watched": len(list((folder_left / "watched").iterdir())),
        "found": {name: places for name, places in places_by_key.items() if places},
        "bait": sorted({place.partition("/")[0] for place in _places(folder_left, BAIT)}),
        "marked": sum(file.read_bytes().count(b"[key]") for file in (folder_left / "dumped").iterdir()),
    }


_BAITED = ["dumped", "prompts.jsonl", "said", "store"]  # a store's journal is in its folder


def violations(figures: Figures) -> list[str]:
    problems = [f"{name} was found in {', '.join(places)}" for name, places in figures["found"].items()]
    if missing := [place for place in _BAITED if place not in figures["bait"]]:
        problems.append(f"the search failed: text of a prompt was not found in {', '.join(missing)}")
    if not figures["said_back"] or not figures["marked"] or not figures["watched"]:
        problems.append("no key was echoed, none was redacted, or no progress file was copied, so the trial is void")
    return problems


def summary(figures: Figures) -> str:
    places = sum(map(len, figures["found"].values()))
    return (
        f"{figures['said_back']:,} of {figures['calls']:,} calls echoed a key (refusals, pages, completions, ratings; "
        f"plain, escaped, in base64): {len(KEYS)} keys found in {places} of {figures['files']:,} files with "
        f"{figures['bytes'] / 1e6:,.1f} MB (store, journal, dataset, card, progress, lock, terminal); the bait in "
        f"{len(figures['bait'])} places."
    )


def _run_command(outputs: Path, *words: object) -> None:
    """Run a command with the keys in its environment, and keep its output whatever its exit code."""
    _, output = aif(*words, environ=KEYS, within_s=300.0)
    (outputs / f"{len(list(outputs.iterdir()))}-{words[0]}.txt").write_text(output)


@dataclass
class _FaultPlan:
    """Half of the calls fail once, each echoing the key; while `refusing` is set, the judge's key is refused."""

    refusing: bool = True

    def __call__(self, arrival: Arrival) -> InjectedFault | None:
        if self.refusing and arrival.model == JUDGE:
            return InjectedFault(Fault.UNAUTHORIZED)
        if arrival.nth > 1 or fraction("befalls", arrival.key) > 0.5:
            return None
        fault = _FAULTS[int(fraction("fault", arrival.key) * len(_FAULTS))]
        ways = _spellings(
            KEYS[{JUDGE: "OPENAI_API_KEY", OTHER: "ANTHROPIC_API_KEY"}.get(arrival.model, "AIF_TRIAL_POOL_KEY")]
        )
        way = ways[int(fraction("way", arrival.key) * len(ways))]
        return InjectedFault(fault, "0.1", text=f"I was sent {way} and so I say it.")


def _spellings(key: str) -> list[str]:
    """Return a key in all the ways a server may echo it."""
    return [
        key,
        json.dumps(key)[1:-1],
        "".join(f"\\u{ord(character):04x}" for character in key),
        quote(key, safe=""),
        *(base64.b64encode(f"{before}{key}".encode()).decode() for before in ("", ":", "me")),
    ]


def _pattern(key: str) -> re.Pattern[bytes]:
    """Return a pattern for a key in all its spellings; of base64, only the part that depends on the key alone."""
    ways = [way[4:-4] if n > 3 else way for n, way in enumerate(_spellings(key))]
    return re.compile(b"|".join(re.escape(way.encode()) for way in ways))


def _pipeline(folder: Path, url: str, prompts: int) -> Path:
    """Write a pipeline with a key for each API: the pool's, OpenAI's and Anthropic's; add the bait prompt."""
    path = pipeline(folder, url, prompts, models={"api_key_env": "AIF_TRIAL_POOL_KEY"})
    with (folder / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": f"What is {BAIT}, or {base64.b64encode(BAIT.encode()).decode()}?"}) + "\n")
    data = yaml.safe_load(path.read_text())
    data["judges"][JUDGE]["api_key_env"] = "OPENAI_API_KEY"
    data["judges"]["other"] = {
        "provider": "anthropic", "base_url": url, "model": OTHER, "api_key_env": "ANTHROPIC_API_KEY",
    }  # fmt: skip
    data["pairs"] = {"policy": "all"}
    data["export"] = {"formats": ["trl", "h4", "ultrafeedback"]}
    path.write_text(yaml.safe_dump(data))
    return path


def _baited(store: Path) -> str:
    with Reader.open(store) as reader:
        (row,) = reader._query("SELECT prompt_id FROM prompts WHERE contains(messages[1].content, ?)", [BAIT])
    return str(row["prompt_id"])


@contextmanager
def _copied_during_run(places: StorePaths, into: Path) -> Iterator[None]:
    """Copy the files that exist only during a run (lock, progress) to `into`, ten times a second."""
    into.mkdir()
    over = threading.Event()

    def copy() -> None:
        n = 0
        while not over.wait(0.1):
            for file in (places.lock, places.progress):
                try:
                    text = file.read_bytes()
                except FileNotFoundError:
                    continue
                (into / f"{n}-{file.name}").write_bytes(text)
                n += 1

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _dump(store: Path, folder: Path) -> None:
    """Write store and dataset as text: their files are compressed, so a search of their bytes would find nothing."""
    into = folder / "dumped"
    into.mkdir()
    with Reader.open(store) as reader:
        tables = [row["name"] for row in reader._query("SELECT table_name AS name FROM duckdb_tables()")]
        for table in tables:
            _write(into / f"{table}.jsonl", reader._query(f"SELECT * FROM {table}"))
    for file in (store.parent / "dataset").rglob("*.parquet"):
        _write(into / f"dataset-{file.parent.name}-{file.stem}.jsonl", pq.read_table(file).to_pylist())


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows unescaped: JSON would escape the quotes in a key."""
    path.write_text("\n".join(repr(row) + "\n" + "\n".join(_texts(row)) for row in rows))


def _texts(value: Any) -> Iterator[str]:
    match value:
        case dict():
            for item in value.values():
                yield from _texts(item)
        case list():
            for item in value:
                yield from _texts(item)
        case str():
            yield value


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file())


def _places(folder: Path, key: str) -> list[str]:
    """Return the files that contain a key, in any spelling."""
    pattern = _pattern(key)
    return [str(file.relative_to(folder)) for file in _files(folder) if pattern.search(file.read_bytes())]
