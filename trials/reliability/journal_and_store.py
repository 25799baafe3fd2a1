"""18. Journal and store are two copies of what was paid for: no command loses what either still holds after damage.

One run is kept in three states, like backups, each with a journal in several segments and a store, closed or left by a
kill. A case takes a journal and a store from any of the states, damages them, and runs a command. If the command
refuses, the fix that it prints is applied, and the command repeated. The trial then reads both copies with code of its
own: lines by their checksum, rows with DuckDB.
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
from aif.engine.rebuild import rebuild
from aif.engine.run import run_pipeline
from aif.providers.retry import RetryPolicy
from aif.simulator.faults import Fault, Faults
from aif.store.journal import Journal, segments
from aif.store.journaled_store import JournaledStore
from aif.store.paths import StorePaths
from trials.reliability import Figures
from trials.reliability.interrupted_run import SHOWN_DIGITS, export_digests, journal_records, run_to_end, shown_digest
from trials.reliability.simulated_run import CallLog, pipeline, served, start

NUMBER = 18
PROMISE = (
    "No command loses what journal or store holds after damage: it is copied into the other, nothing of it is "
    "requested again, and the bill doesn't shrink"
)

CASES, FEW = 300, 8
STATES = (0.35, 0.7, 1.0)  # shares of the run's records
SEGMENT_BYTES = 24_000
PRICE = {"price": {"input": 1, "output": 2}}
OFTEN = 5  # how often a command may refuse before its printed fixes must have helped
COMMANDS = ("run", "rebuild", "export")  # `reparse` is another name of `rebuild`


@dataclass
class Contents:
    """What journal or store holds: the texts of answers by key, the cost of calls, the bodies that were answered."""

    answers: dict[str, set[str]] = field(default_factory=dict)
    usd: dict[str, float] = field(default_factory=dict)
    bodies: set[str] = field(default_factory=set)

    def answer(self, key: str, text: str, served: str = "{}") -> None:
        self.answers.setdefault(key, set()).add(text)
        if (reply_id := (orjson.loads(served) or {}).get("id", "")).count("-"):
            self.bodies.add(reply_id.partition("-")[2][:SHOWN_DIGITS])

    def lost_by(self, other: "Contents") -> int:
        """Return how many answers of `other` are missing here or have another text."""
        return sum(not texts & self.answers.get(key, set()) for key, texts in other.answers.items())


@dataclass(frozen=True, slots=True)
class Case:
    """A case and its outcome: answers lost or requested again, USD missing from the bill.

    `refused` counts the refusals whose fix was applied; `stuck` the answers held if a command kept refusing.
    """

    command: str
    harms: list[str]
    lost: int
    again: int
    less: float
    refused: int
    stuck: int


def trial(folder: Path, full: bool) -> Figures:
    random, call_log = Random(18), CallLog()
    faults = Faults({Fault.SERVER_ERROR: 0.05, Fault.EMPTY: 0.05}, seed=18)
    with served(call_log, faults=faults) as server:
        new_run = partial(_pipeline, base_url=server.base_url, prompts=8 if full else 3)
        states = _states(folder, new_run)
        cases = [_case(folder / f"{n}", new_run, states, call_log, random, n) for n in range(CASES if full else FEW)]
    return {"cases": [{name: getattr(case, name) for name in Case.__slots__} for case in cases]}


def _pipeline(folder: Path, base_url: str, prompts: int) -> Path:
    """Write a pipeline in which some prompts have completions of their own."""
    folder.mkdir(parents=True)
    completions = [{"model": name, "text": f"{name} says that it follows."} for name in ("ann", "ben")]
    rows = [{"prompt": f"What goes before {n}?", "answers": completions} for n in range(2)]
    (folder / "brought.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    provided = {"file": str(folder / "brought.jsonl"), "completions": {"field": "answers"}}
    path = pipeline(folder, base_url, prompts, models=PRICE, judges=PRICE)
    data = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(data | {"prompts": [provided, *data["prompts"]]}))
    return path


def _store(path: Path) -> Path:
    return path.parent / "store" / "feedback.duckdb"


def _states(folder: Path, new_run: Callable[[Path], Path]) -> list[Path]:
    """Run once; return a folder for each state, with journal and store; beside each is one as a kill leaves it."""
    path = new_run(folder / "whole")
    run_to_end(path)
    all_records, states = journal_records(_store(path)), []
    for share in STATES:
        place = folder / f"state-{share}" / "feedback.duckdb"
        place.parent.mkdir()
        journal, _ = Journal.open(StorePaths(place).journal, SEGMENT_BYTES)
        for record in all_records[: int(share * len(all_records))]:
            journal.append([record])
        journal.close()
        with JournaledStore.open(place, _ignore):
            shutil.copytree(place.parent, folder / f"state-{share}-killed")
        states.append(place.parent)
    return states


# --- damage -----------------------------------------------------------------------------------------------------------

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


def _change_segment(
    change: Callable[[Random, list[bytes]], list[bytes]], random: Random, places: StorePaths, _: Any
) -> None:
    if segments_lines := list(_lines(places)):
        path, lines = random.choice(segments_lines)
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
    """Put another store beside this one, as a killed repair leaves it."""
    shutil.copy(random.choice(states) / "feedback.duckdb", places.store.with_name("feedback.duckdb.aside"))


HARMS: dict[str, Harm] = {
    "few lines flipped": partial(_flips, 0.04),
    "half the lines flipped": partial(_flips, 0.5),
    "all lines flipped": partial(_flips, 1.0),
    "newlines of Windows": partial(_newlines, b"\r\n"),
    "newlines of old": partial(_newlines, b"\r"),
    "no newlines": partial(_newlines, b""),
    "lines doubled": partial(_change_segment, _some_twice),
    "lines gone": partial(_change_segment, _some_gone),
    "lines in another order": partial(_change_segment, lambda random, lines: random.sample(lines, len(lines))),
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


# --- reading both copies ----------------------------------------------------------------------------------------------


def _journal_contents(places: StorePaths) -> Contents:
    into = Contents()
    for path in places.journal.glob("*.jsonl"):
        for part in re.split(rb'[\r\n]+|(?=[0-9a-f]{8} \{")', path.read_bytes()):
            line = part[: part.rfind(b"}") + 1]
            if line[8:9] == b" " and line[:8] == b"%08x" % zlib.crc32(line[9:]):
                _add_record(orjson.loads(line[9:]), into)
    return into


def _add_record(record: dict[str, Any], into: Contents) -> None:
    if record["t"] == "call":
        into.usd[record["id"]] = record["usd"] or record.get("bound") or 0.0
    if record["t"] == "carried":
        into.answer(record["key"], record["text"])
    elif record["t"] == "call" and record["verdict"] == "answered" and record["text"] is not None:
        into.answer(record["key"], record["text"], orjson.dumps(record["served"]).decode())


def _add_store(path: Path, into: Contents) -> None:
    """Add what DuckDB can read of a store; nothing of a table that it can't read."""
    with suppress(duckdb.Error), duckdb.connect(str(path), read_only=True) as db:
        for table in ("completions", "judgements"):
            with suppress(duckdb.Error):
                rows = db.execute(f"SELECT t.key, text, c.served FROM {table} t LEFT JOIN calls c ON call_id = id "
                                  "WHERE text IS NOT NULL").fetchall()  # fmt: skip
                for key, text, reply_json in rows:
                    into.answer(key, text, reply_json or "{}")
        with suppress(duckdb.Error):
            into.usd |= dict(db.execute("SELECT id, coalesce(usd, bound, 0) FROM calls").fetchall())


def _store_contents(places: StorePaths) -> Contents:
    into = Contents()
    _add_store(places.store, into)
    return into


def _contents(places: StorePaths) -> Contents:
    """Return what journal, store and stores set aside hold together."""
    contents = _journal_contents(places)
    for path in places.store.parent.glob("feedback.duckdb*"):
        if not path.name.endswith(".wal") and path.stat().st_size:
            _add_store(path, contents)
    return contents


# --- a case -----------------------------------------------------------------------------------------------------------


def _case(
    folder: Path, new_run: Callable[[Path], Path], states: list[Path], call_log: CallLog, random: Random, n: int
) -> Case:
    path = new_run(folder)
    places = StorePaths(_store(path))
    places.store.parent.mkdir()
    journal, store = (random.choice([*states, states[-1]]) for _ in range(2))
    shutil.copytree(journal / "feedback.journal", places.journal)
    store = store.with_name(store.name + random.choice(["", "-killed"]))
    for file in store.glob("feedback.duckdb*"):
        shutil.copy(file, places.store.parent / file.name)
    harms = random.sample(sorted(HARMS), random.choice([1, 1, 2, 2, 3]))
    for harm in harms:
        with suppress(FileNotFoundError):  # an earlier damage has removed the file
            HARMS[harm](random, places, states)
    before, calls, command = _contents(places), len(call_log.calls), random.choice(COMMANDS)
    if n % 10 == 0:
        process = start("rebuild", path)
        sleep(random.uniform(0.3, 1.5))
        process.kill()
        process.communicate()
    results = [_follow_refusals(command, path)]
    after = [_contents(places)]  # a block that no command has read yet may still be damaged in one of the copies
    results += [_follow_refusals(command_given, path) for command_given in ("rebuild", "run")]
    asked = {shown_digest(call) for call in call_log.calls[calls:]}
    if all_accepted := all(accepted for _, accepted in results):  # then each copy alone must hold everything
        after += [_journal_contents(places), _store_contents(places)]
    billed = sum(before.usd.values())
    return Case(
        command,
        [f"{journal.name}, {store.name}", *harms],
        max(contents.lost_by(before) for contents in after),
        len(asked & before.bodies),
        round(max(0.0, *(billed - sum(contents.usd.values()) for contents in after)), 9),
        sum(times for times, _ in results),
        0 if all_accepted else len(before.answers),
    )


def _follow_refusals(command: str, path: Path) -> tuple[int, bool]:
    """Run a command, applying the fix it prints each time it refuses.

    Return how often it refused with a fix, and whether it succeeded in the end.
    """
    for times in range(OFTEN):
        message = _refusal(command, path)
        commands = [line for line in message.splitlines() if line.startswith("  ")]
        for line in commands:
            subprocess.run(["sh", "-ec", line], check=True)
        if not commands:
            return times, not message
    return OFTEN, False


def _refusal(command: str, path: Path) -> str:
    """Run a command; return its message if it refuses because of damage, or an empty text if it succeeds."""
    pipeline_read, policy = load(path), RetryPolicy(first_wait_s=0.01, longest_wait_s=0.1)
    try:
        if command == "run":
            run_pipeline(pipeline_read, Terminal(Console(file=StringIO())), policy=policy)
        elif command == "rebuild":
            rebuild(pipeline_read, _ignore)
        else:
            export_digests(path, path.parent / "dataset")
    except JournalDamaged as error:
        return str(error)
    except BadInput as error:  # the store is unreadable and there is no journal, or there is nothing to export yet
        return "" if "nothing to export" in str(error) else str(error)
    return ""


def _ignore(words: str) -> None:
    pass


# --- results ----------------------------------------------------------------------------------------------------------


def violations(figures: Figures) -> list[str]:
    problems = []
    for n, case in enumerate(figures["cases"]):
        name = f"case {n} ({case['command']}; {', '.join(case['harms'])})"
        problems += [f"{name} lost {case['lost']} answers"] if case["lost"] else []
        problems += [f"{name} requested {case['again']} again"] if case["again"] else []
        problems += [f"{name} lost {case['less']} USD of the bill"] if case["less"] > 1e-6 else []
        problems += [f"{name} kept refusing, with {case['stuck']} answers held"] if case["stuck"] else []
    refused = sum(case["refused"] > 0 for case in figures["cases"])
    return problems + ([f"{refused} refused"] if 2 * refused > len(figures["cases"]) else [])


def summary(figures: Figures) -> str:
    cases = figures["cases"]
    kinds = Counter(harm for case in cases for harm in case["harms"][1:])
    lost, asked, refused = (sum(case[name] for case in cases) for name in ("lost", "again", "refused"))
    return (
        f"{len(cases)} cases of {len(kinds)} kinds of damage to either or both: {lost} answers lost, {asked} requested "
        f"again. {refused} times a command refused, since the damaged data is nowhere else, and resumed after its fix."
    )
