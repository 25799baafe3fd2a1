"""18. Journal and store are two copies of what was paid for: what either holds after damage is lost by no command.

One run is had in three states, as backups have it, each with a journal in several segments and a store, closed or left
by a kill. A case takes a state of each of the two, does harm to them, and gives them to a command. Where that refuses,
what it says is typed, and the command given again. What they hold then is read by the trial's own reading: lines by
their checksum, rows by DuckDB.
"""

import os
import re
import shutil
import subprocess
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from random import Random
from time import sleep
from typing import Any

import duckdb
import orjson
import yaml
from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.config.pipeline import load
from aif.core.errors import BadInput, JournalDamaged
from aif.engine.feedback import feedback
from aif.engine.rebuild import again
from aif.providers.retry import RetryPolicy
from aif.simulator.faults import Fault, Faults
from aif.store.journal import Journal, segments
from aif.store.journaled_store import JournaledStore
from aif.store.paths import StorePaths
from chaos import Figures
from chaos.house import Record, pipeline, served, start
from chaos.keeping import SHOWN, finish, records, shown, written

NUMBER = 18
PROMISE = (
    "What journal or store holds after any damage is lost by no command: it goes back into the other, nothing of it is "
    "asked again, the bill grows no smaller"
)

CASES, FEW = 300, 8
STATES = (0.35, 0.7, 1.0)  # of the run's records
SEGMENT_BYTES = 24_000
PRICE = {"price": {"input": 1, "output": 2}}
OFTEN = 5  # a command may refuse, until it goes on by what it said
COMMANDS = ("run", "rebuild", "export")  # `reparse` is `rebuild` by another name


@dataclass
class Held:
    """What is there: answers by key, each with its texts; what calls cost; the bodies whose replies these are."""

    answers: dict[str, set[str]] = field(default_factory=dict)
    usd: dict[str, float] = field(default_factory=dict)
    bodies: set[str] = field(default_factory=set)

    def answer(self, key: str, text: str, served: str = "{}") -> None:
        self.answers.setdefault(key, set()).add(text)
        if (said := (orjson.loads(served) or {}).get("id", "")).count("-"):
            self.bodies.add(said.partition("-")[2][:SHOWN])

    def lost_by(self, other: "Held") -> int:
        """How many answers the other has, and this has not, or in other words."""
        return sum(not texts & self.answers.get(key, set()) for key, texts in other.answers.items())


@dataclass(frozen=True, slots=True)
class Case:
    """What was done, and what came of it: answers lost or asked again, dollars less; how often what a refusal said was
    typed, and how many answers were held where a command went on refusing."""

    command: str
    harms: list[str]
    lost: int
    again: int
    less: float
    refused: int
    stuck: int


def trial(folder: Path, full: bool) -> Figures:
    random, record = Random(18), Record()
    faults = Faults({Fault.SERVER_ERROR: 0.05, Fault.EMPTY: 0.05}, seed=18)
    with served(record, faults=faults) as server:
        made = partial(_pipeline, base_url=server.base_url, prompts=8 if full else 3)
        states = _states(folder, made)
        found = [_case(folder / f"{n}", made, states, record, random, n) for n in range(CASES if full else FEW)]
    return {"cases": [{name: getattr(one, name) for name in Case.__slots__} for one in found]}


def _pipeline(folder: Path, base_url: str, prompts: int) -> Path:
    """Some prompts bring their completions."""
    folder.mkdir(parents=True)
    answers = [{"model": name, "text": f"{name} says that it follows."} for name in ("ann", "ben")]
    rows = [{"prompt": f"What goes before {n}?", "answers": answers} for n in range(2)]
    (folder / "brought.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    brought = {"file": str(folder / "brought.jsonl"), "completions": {"field": "answers"}}
    path = pipeline(folder, base_url, prompts, models=PRICE, judges=PRICE)
    said = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(said | {"prompts": [brought, *said["prompts"]]}))
    return path


def _store(path: Path) -> Path:
    return path.parent / "store" / "feedback.duckdb"


def _states(folder: Path, made: Callable[[Path], Path]) -> list[Path]:
    """The run in each state: folders with a journal, and stores, closed and as a kill leaves them."""
    path = made(folder / "whole")
    finish(path)
    every, found = records(_store(path)), []
    for share in STATES:
        place = folder / f"state-{share}" / "feedback.duckdb"
        place.parent.mkdir()
        journal, _ = Journal.open(StorePaths(place).journal, SEGMENT_BYTES)
        for one in every[: int(share * len(every))]:
            journal.append([one])
        journal.close()
        with JournaledStore.open(place, _unheard):
            shutil.copytree(place.parent, folder / f"state-{share}-killed")
        found.append(place.parent)
    return found


# --- harm -------------------------------------------------------------------------------------------------------------

Harm = Callable[[Random, StorePaths, list[Path]], None]


def _lines(places: StorePaths) -> Iterator[tuple[Path, list[bytes]]]:
    for n in segments(places.journal):
        path = places.journal / f"{n:06d}.jsonl"
        yield path, path.read_bytes().splitlines(keepends=True)


def _flips(share: float, random: Random, places: StorePaths, states: list[Path]) -> None:
    for path, lines in list(_lines(places)):
        for n, line in enumerate(lines):
            if random.random() < share:
                at = random.randrange(len(line))
                lines[n] = line[:at] + bytes([line[at] ^ random.choice([1, 0x20, 0xFF])]) + line[at + 1 :]
        path.write_bytes(b"".join(lines))


def _newlines(end: bytes, random: Random, places: StorePaths, states: list[Path]) -> None:
    for path, lines in list(_lines(places)):
        path.write_bytes(b"".join(line[:-1] + end for line in lines))


def _mixed_up(change: Callable[[Random, list[bytes]], list[bytes]], random: Random, places: StorePaths, _: Any) -> None:
    if found := list(_lines(places)):
        path, lines = random.choice(found)
        path.write_bytes(b"".join(change(random, lines)))


def _some_twice(random: Random, lines: list[bytes]) -> list[bytes]:
    return [again for line in lines for again in [line] * random.choice([1, 1, 2])]


def _some_gone(random: Random, lines: list[bytes]) -> list[bytes]:
    return [line for line in lines if random.random() < 0.7]


def _cut(random: Random, places: StorePaths, states: list[Path]) -> None:
    if numbers := segments(places.journal):
        path = places.journal / f"{random.choice(numbers):06d}.jsonl"
        os.truncate(path, random.randint(0, path.stat().st_size))


def _segment_gone(random: Random, places: StorePaths, states: list[Path]) -> None:
    if numbers := segments(places.journal):
        (places.journal / f"{random.choice(numbers):06d}.jsonl").unlink()


def _segment_older(random: Random, places: StorePaths, states: list[Path]) -> None:
    if older := sorted((states[0] / "feedback.journal").iterdir()):
        path = random.choice(older)
        shutil.copy(path, places.journal / path.name)


def _journal_gone(random: Random, places: StorePaths, states: list[Path]) -> None:
    shutil.rmtree(places.journal)


def _store_gone(random: Random, places: StorePaths, states: list[Path]) -> None:
    places.store.unlink()


def _store_cut(random: Random, places: StorePaths, states: list[Path]) -> None:
    os.truncate(places.store, random.randint(0, places.store.stat().st_size))


def _store_flipped(random: Random, places: StorePaths, states: list[Path]) -> None:
    content = bytearray(places.store.read_bytes())
    for _ in range(random.choice([1, 1, 3, 30])):
        content[random.randrange(len(content))] ^= 0x20
    places.store.write_bytes(content)


def _log_gone(random: Random, places: StorePaths, states: list[Path]) -> None:
    places.store.with_name(places.store.name + ".wal").unlink(missing_ok=True)


def _log_flipped(random: Random, places: StorePaths, states: list[Path]) -> None:
    log = places.store.with_name(places.store.name + ".wal")
    content = bytearray(log.read_bytes())
    content[random.randrange(len(content))] ^= 0x20
    log.write_bytes(content)


def _store_aside(random: Random, places: StorePaths, states: list[Path]) -> None:
    """An earlier mending was killed: beside this store lies another."""
    shutil.copy(random.choice(states) / "feedback.duckdb", places.store.with_name("feedback.duckdb.aside"))


HARMS: dict[str, Harm] = {
    "few lines flipped": partial(_flips, 0.04),
    "half the lines flipped": partial(_flips, 0.5),
    "all lines flipped": partial(_flips, 1.0),
    "newlines of Windows": partial(_newlines, b"\r\n"),
    "newlines of old": partial(_newlines, b"\r"),
    "no newlines": partial(_newlines, b""),
    "lines doubled": partial(_mixed_up, _some_twice),
    "lines gone": partial(_mixed_up, _some_gone),
    "lines in another order": partial(_mixed_up, lambda random, lines: random.sample(lines, len(lines))),
    "segment cut": _cut,
    "segment gone": _segment_gone,
    "segment of a backup": _segment_older,
    "journal gone": _journal_gone,
    "store gone": _store_gone,
    "store cut": _store_cut,
    "store flipped": _store_flipped,
    "log gone": _log_gone,
    "log flipped": _log_flipped,
    "store set aside": _store_aside,
}


# --- what is there ----------------------------------------------------------------------------------------------------


def _by_journal(places: StorePaths) -> Held:
    into = Held()
    for path in places.journal.glob("*.jsonl"):
        for part in re.split(rb'[\r\n]+|(?=[0-9a-f]{8} \{")', path.read_bytes()):
            line = part[: part.rfind(b"}") + 1]
            if line[8:9] == b" " and line[:8] == b"%08x" % zlib.crc32(line[9:]):
                _in_record(orjson.loads(line[9:]), into)
    return into


def _in_record(one: dict[str, Any], into: Held) -> None:
    if one["t"] == "call":
        into.usd[one["id"]] = one["usd"] or one.get("bound") or 0.0
    if one["t"] == "carried":
        into.answer(one["key"], one["text"])
    elif one["t"] == "call" and one["verdict"] == "answered" and one["text"] is not None:
        into.answer(one["key"], one["text"], orjson.dumps(one["served"]).decode())


def _in_store(path: Path, into: Held) -> None:
    """What DuckDB gives; of a table it can't read, nothing."""
    with suppress(duckdb.Error), duckdb.connect(str(path), read_only=True) as db:
        for table in ("completions", "judgements"):
            with suppress(duckdb.Error):
                rows = db.execute(f"SELECT t.key, text, c.served FROM {table} t LEFT JOIN calls c ON call_id = id "
                                  "WHERE text IS NOT NULL").fetchall()  # fmt: skip
                for key, text, said in rows:
                    into.answer(key, text, said or "{}")
        with suppress(duckdb.Error):
            into.usd |= dict(db.execute("SELECT id, coalesce(usd, bound, 0) FROM calls").fetchall())


def _by_store(places: StorePaths) -> Held:
    into = Held()
    _in_store(places.store, into)
    return into


def _held(places: StorePaths) -> Held:
    """By the journal, the store, and stores set aside."""
    held = _by_journal(places)
    for path in places.store.parent.glob("feedback.duckdb*"):
        if not path.name.endswith(".wal") and path.stat().st_size:
            _in_store(path, held)
    return held


# --- a case -----------------------------------------------------------------------------------------------------------


def _case(
    folder: Path, made: Callable[[Path], Path], states: list[Path], record: Record, random: Random, n: int
) -> Case:
    path = made(folder)
    places = StorePaths(_store(path))
    places.store.parent.mkdir()
    journal, store = (random.choice([*states, states[-1]]) for _ in range(2))
    shutil.copytree(journal / "feedback.journal", places.journal)
    store = store.with_name(store.name + random.choice(["", "-killed"]))
    for one in store.glob("feedback.duckdb*"):
        shutil.copy(one, places.store.parent / one.name)
    harms = random.sample(sorted(HARMS), random.choice([1, 1, 2, 2, 3]))
    for harm in harms:
        with suppress(FileNotFoundError):  # what an earlier one has taken away
            HARMS[harm](random, places, states)
    before, calls, command = _held(places), len(record.calls), random.choice(COMMANDS)
    if n % 10 == 0:
        process = start("rebuild", path)
        sleep(random.uniform(0.3, 1.5))
        process.kill()
        process.communicate()
    given = [_given(command, path)]
    after = [_held(places)]  # a block that no command has read yet may still be damaged in one of the two
    given += [_given(one, path) for one in ("rebuild", "run")]
    asked = {shown(one) for one in record.calls[calls:]}
    if goes_on := all(went for _, went in given):  # then each by itself has all
        after += [_by_journal(places), _by_store(places)]
    billed = sum(before.usd.values())
    return Case(
        command,
        [f"{journal.name}, {store.name}", *harms],
        max(held.lost_by(before) for held in after),
        len(asked & before.bodies),
        round(max(0.0, *(billed - sum(held.usd.values()) for held in after)), 9),
        sum(times for times, _ in given),
        0 if goes_on else len(before.answers),
    )


def _given(command: str, path: Path) -> tuple[int, bool]:
    """Gives a command, and types what it says where it refuses, until it goes on or says nothing to type. How often it
    did, and whether it went on in the end."""
    for times in range(OFTEN):
        said = _refusal(command, path)
        typed = [line for line in said.splitlines() if line.startswith("  ")]
        for line in typed:
            subprocess.run(["sh", "-ec", line], check=True)
        if not typed:
            return times, not said
    return OFTEN, False


def _refusal(command: str, path: Path) -> str:
    """What a command says that ends, before it asks for anything, since something is damaged; nothing where it goes
    on."""
    one, quick = load(path), RetryPolicy(first_wait_s=0.01, longest_wait_s=0.1)
    try:
        if command == "run":
            feedback(one, Terminal(Console(file=StringIO())), policy=quick)
        elif command == "rebuild":
            again(one, _unheard)
        else:
            written(path, path.parent / "dataset")
    except JournalDamaged as error:
        return str(error)
    except BadInput as error:  # a store that can't be read, with no journal; or nothing is there to export yet
        return "" if "nothing to export" in str(error) else str(error)
    return ""


def _unheard(words: str) -> None:
    pass


# --- what is said of it -----------------------------------------------------------------------------------------------


def broken(figures: Figures) -> list[str]:
    wrong = []
    for n, one in enumerate(figures["cases"]):
        what = f"case {n} ({one['command']}; {', '.join(one['harms'])})"
        wrong += [f"{what} lost {one['lost']} answers"] if one["lost"] else []
        wrong += [f"{what} asked for {one['again']} again"] if one["again"] else []
        wrong += [f"{what} lost {one['less']} dollars of the bill"] if one["less"] > 1e-6 else []
        wrong += [f"{what} went on refusing, with {one['stuck']} answers there"] if one["stuck"] else []
    refused = sum(one["refused"] > 0 for one in figures["cases"])
    return wrong + ([f"{refused} refused"] if 2 * refused > len(figures["cases"]) else [])


def told(figures: Figures) -> str:
    cases = figures["cases"]
    kinds = Counter(harm for one in cases for harm in one["harms"][1:])
    lost, asked, refused = (sum(one[name] for one in cases) for name in ("lost", "again", "refused"))
    return (
        f"{len(cases)} cases of {len(kinds)} kinds of harm to either, or both: {lost} answers lost, {asked} asked for "
        f"again. {refused} times a command refused, since what was damaged is nowhere else, and went on as it said."
    )
