"""Keys in the environment, a server that says them back in every way it can, and a search of every byte that is left.

A *bait* stands in a prompt, plain and in base64, and so in all that a run leaves: where the search does not find it, a
key would not be found, either.
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
from aif.simulator import Cast
from aif.simulator.faults import Arrival, Fault, Mishap
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from chaos import Figures
from chaos.house import JUDGE, POOL, Record, aif, pipeline
from tests.serving import serving

NUMBER = 14
PROMISE = "A key set in the environment is found nowhere after a run with errors"

OTHER = "lenient"  # a second judge, over Anthropic's API
KEYS = {
    "AIF_CHAOS_POOL_KEY": 'pool/7f3a+9c51"d2e8<b704',
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
    left = folder / "left"
    said = left / "said"
    said.mkdir(parents=True)
    record, befall = Record(), _Befall()
    with serving(Cast(POOL, {JUDGE: 0.1, OTHER: 0.2}, 7), on_call=record, faults=befall) as server:
        path = _pipeline(left, server.base_url, 60 if full else 4)
        store = load(path).store
        with _watched(StorePaths(store), left / "watched"):
            for n in range(2):  # the judge's key is refused, then taken
                befall.refusing = n == 0
                _tell(said, "run", path, "--yes")
        befall.refusing = True
        for command in ("export", *(("failures", "status", "doctor") if full else ())):
            _tell(said, command, path)
        _tell(said, "show", path, _baited(store))
    _dump(store, left)
    found = {name: _places(left, key) for name, key in KEYS.items()}
    return {
        "calls": len(record.calls),
        "said_back": sum(call.fault in _ECHOING for call in record.calls),
        "files": sum(1 for _ in _files(left)),
        "bytes": sum(file.stat().st_size for file in _files(left)),
        "watched": len(list((left / "watched").iterdir())),
        "found": {name: places for name, places in found.items() if places},
        "bait": sorted({place.partition("/")[0] for place in _places(left, BAIT)}),
        "marked": sum(file.read_bytes().count(b"[key]") for file in (left / "dumped").iterdir()),
    }


_BAITED = ["dumped", "prompts.jsonl", "said", "store"]  # a store's journal lies in its folder


def broken(figures: Figures) -> list[str]:
    wrong = [f"{name} was found in {', '.join(places)}" for name, places in figures["found"].items()]
    if missing := [place for place in _BAITED if place not in figures["bait"]]:
        wrong.append(f"the search is blind: what stands in a prompt was not found in {', '.join(missing)}")
    if not figures["said_back"] or not figures["marked"] or not figures["watched"]:
        wrong.append(
            "no server said a key back, or none was taken out, or the progress was not seen: nothing was tried"
        )
    return wrong


def told(figures: Figures) -> str:
    found = sum(map(len, figures["found"].values()))
    return (
        f"{figures['said_back']:,} of {figures['calls']:,} calls had the key said back (refusals, pages, completions, "
        f"ratings; plain, escaped, in base64): {len(KEYS)} keys found in {found} places of {figures['files']:,} files "
        f"with {figures['bytes'] / 1e6:,.1f} MB (store, journal, dataset, card, progress, lock, terminal); the bait in "
        f"{len(figures['bait'])}."
    )


def _tell(said: Path, *words: object) -> None:
    """A command with the keys in its environment; what it says is kept, whatever its end."""
    _, told = aif(*words, environ=KEYS, within_s=300.0)
    (said / f"{len(list(said.iterdir()))}-{words[0]}.txt").write_text(told)


@dataclass
class _Befall:
    """A share of calls fails, each in a way that says the key back; while `refusing`, the judge's key is no good."""

    refusing: bool = True

    def __call__(self, arrival: Arrival) -> Mishap | None:
        if self.refusing and arrival.model == JUDGE:
            return Mishap(Fault.UNAUTHORIZED)
        if arrival.nth > 1 or fraction("befalls", arrival.key) > 0.5:
            return None
        fault = _FAULTS[int(fraction("fault", arrival.key) * len(_FAULTS))]
        ways = _ways(
            KEYS[{JUDGE: "OPENAI_API_KEY", OTHER: "ANTHROPIC_API_KEY"}.get(arrival.model, "AIF_CHAOS_POOL_KEY")]
        )
        way = ways[int(fraction("way", arrival.key) * len(ways))]
        return Mishap(fault, "0.1", text=f"I was sent {way} and so I say it.")


def _ways(key: str) -> list[str]:
    """A key as a server may say it back."""
    return [
        key,
        json.dumps(key)[1:-1],
        "".join(f"\\u{ord(one):04x}" for one in key),
        quote(key, safe=""),
        *(base64.b64encode(f"{before}{key}".encode()).decode() for before in ("", ":", "me")),
    ]


def _looked_for(key: str) -> re.Pattern[bytes]:
    """What is looked for: a key as it is said back. Of base64, the letters that depend on nothing beside the key."""
    ways = [way[4:-4] if n > 3 else way for n, way in enumerate(_ways(key))]
    return re.compile(b"|".join(re.escape(way.encode()) for way in ways))


def _pipeline(folder: Path, url: str, prompts: int) -> Path:
    """The pool with a key of its own, judges over OpenAI's API and Anthropic's; the last prompt has the bait."""
    path = pipeline(folder, url, prompts, models={"api_key_env": "AIF_CHAOS_POOL_KEY"})
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
def _watched(places: StorePaths, into: Path) -> Iterator[None]:
    """Copies what is there during a run alone, again and again."""
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
    """Store and dataset as text: as files they are compressed, and a search of their bytes would tell nothing."""
    into = folder / "dumped"
    into.mkdir()
    with Reader.open(store) as reader:
        tables = [row["name"] for row in reader._query("SELECT table_name AS name FROM duckdb_tables()")]
        for table in tables:
            _write(into / f"{table}.jsonl", reader._query(f"SELECT * FROM {table}"))
    for file in (store.parent / "dataset").rglob("*.parquet"):
        _write(into / f"dataset-{file.parent.name}-{file.stem}.jsonl", pq.read_table(file).to_pylist())


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Every value as it is: JSON would escape a key's quotes."""
    path.write_text("\n".join(repr(row) + "\n" + "\n".join(_texts(row)) for row in rows))


def _texts(value: Any) -> Iterator[str]:
    match value:
        case dict():
            for one in value.values():
                yield from _texts(one)
        case list():
            for one in value:
                yield from _texts(one)
        case str():
            yield value


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file())


def _places(folder: Path, key: str) -> list[str]:
    """The files in which a key is found, in whichever way."""
    pattern = _looked_for(key)
    return [str(file.relative_to(folder)) for file in _files(folder) if pattern.search(file.read_bytes())]
