"""How a run goes: frozen snapshots, given to a screen and to a small file beside the store, from which `aif status`
answers, since no second process can open a store that a run holds."""

import asyncio
import json
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aif.core.types import UNSPENT, Failing, Spent

if TYPE_CHECKING:  # `aif status` reads the file of a run without DuckDB and the providers' SDKs: 0.3 s instead of 0.6
    from aif.providers.endpoint import Endpoint
    from aif.store.ingest import Entry
    from aif.store.reader import Tally

WINDOW_S = 30.0  # rates are of the last so many seconds
FILE_EVERY_S = 1.0
EXAMPLE = 500  # characters of a failure's message that are kept in the file
DISPLAY_CLOSED = (
    OSError,
    SystemExit,
)  # of a screen that nobody reads on (`| head`): for a broken pipe rich ends the program


@dataclass(frozen=True, slots=True)
class EndpointState:
    """How one model or judge stands. `wanted` of a judge counts prompts still in the making as if all came through."""

    name: str
    stage: str
    wanted: int
    answered: int
    failed: int
    later: int
    in_flight: int
    rate: float
    input_tokens: int
    output_tokens: int
    usd: float | None
    refused: str | None
    doing: str | None  # instead of answering: starting, or resting for a limit

    @property
    def left(self) -> int:
        return max(0, self.wanted - self.answered - self.failed - self.later)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is said of a run that goes on. Seconds; `eta_s` is None while there is no rate. `spent` is by the store,
    ever; `budget` in USD. `failures` are those of this run, also of calls that were then made again, and what had
    failed for good before it."""

    pid: int
    host: str
    started: str
    updated: str
    elapsed_s: float
    eta_s: float | None
    spent: Spent
    budget: float | None
    lines: tuple[EndpointState, ...]
    failures: tuple[Failing, ...]


class ProgressTracker:
    """Counts what a run keeps, by endpoint, and what the store has `spent`. An Observer of the run."""

    def __init__(
        self,
        endpoints: "Sequence[Endpoint]",
        tallies: "Mapping[tuple[str, str], Tally]",
        failures: Sequence[Failing] = (),
        clock: Callable[[], float] = time.monotonic,
        spent: Spent = UNSPENT,
        budget: float | None = None,
    ) -> None:
        self._spent, self._budget = spent, budget
        self._endpoints = endpoints
        self._clock = clock
        self._began = clock()
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._rows = {(e.stage, e.name): _Row() for e in endpoints}
        for place, tally in tallies.items():
            if place in self._rows:
                row = self._rows[place]
                row.wanted, row.answered, row.failed = tally.wanted, tally.answered, tally.failed
        # what waits for --retry-failed is not asked by this run; all else that had no answer is
        self._failures = {_place(one): one for one in failures if one.verdict == "failed"}

    def kept(self, entries: "Sequence[Entry]") -> None:
        now, known, unknown = self._clock(), self._spent.known, self._spent.unknown
        for entry in entries:
            # what is asked in parts is not missed
            record = entry.record if entry.parts is None else entry.record | {"verdict": "again"}
            row = self._rows[record["stage"], record["endpoint"]]
            row.note(record, now)
            row.wanted += 0 if entry.parts is None else entry.parts - 1
            known += record["usd"] or 0.0
            unknown += record.get("bound") or 0.0
            if record["verdict"] != "answered":
                self._fail(record)
        self._spent = replace(self._spent, known=known, unknown=unknown)

    def _fail(self, record: Mapping[str, Any]) -> None:
        said = {name: record[name] for name in ("stage", "endpoint", "kind", "verdict", "prompt_id")}
        one = Failing(**said, items=1, example=(record["message"] or "")[:EXAMPLE])
        had = self._failures.get(_place(one))
        self._failures[_place(one)] = replace(had, items=had.items + 1) if had else one

    def snapshot(self) -> Snapshot:
        now = self._clock()
        lines = tuple(self._line(endpoint, now) for endpoint in self._endpoints)
        asked = [line for line, one in zip(lines, self._endpoints, strict=True) if line.left and not one.halt.is_set()]
        etas = [line.left / line.rate if line.rate else None for line in asked]
        known = [eta for eta in etas if eta is not None]
        return Snapshot(
            os.getpid(),
            socket.gethostname(),
            self._started,
            datetime.now(UTC).isoformat(timespec="seconds"),
            now - self._began,
            max(known) if known and len(known) == len(etas) else None,
            self._spent,
            self._budget,
            lines,
            tuple(sorted(self._failures.values(), key=lambda one: (one.verdict == "again", -one.items, one.endpoint))),
        )

    def _line(self, endpoint: "Endpoint", now: float) -> EndpointState:
        row = self._rows[endpoint.stage, endpoint.name]
        return EndpointState(
            endpoint.name, endpoint.stage, row.wanted, row.answered, row.failed, row.later, endpoint.in_flight,
            row.rate(now, self._began), row.input, row.output, row.usd, endpoint.refused, endpoint.instead(),
        )  # fmt: skip


def _place(one: Failing) -> tuple[str, str, str, str]:
    return one.stage, one.endpoint, one.kind, one.verdict


class _Row:
    def __init__(self) -> None:
        self.wanted = self.answered = self.failed = self.later = self.input = self.output = 0
        self.usd: float | None = 0.0
        self._recent: deque[tuple[float, int]] = deque()

    def note(self, record: Mapping[str, object], now: float) -> None:
        match record["verdict"]:
            case "answered":
                self.answered += 1
            case "failed":
                self.failed += 1
            case "later":
                self.later += 1  # an item's last word in a run
        usage = record["usage"]
        if isinstance(usage, dict):
            self.input += usage["input"]
            self.output += usage["output"]
        usd = record["usd"]
        if usd is None and record.get("bound") is None:
            self.usd = None  # no price
        elif self.usd is not None and isinstance(usd, (int, float)):
            self.usd += usd
        if record["verdict"] != "again":
            if self._recent and now - self._recent[-1][0] < 0.25:
                self._recent[-1] = (self._recent[-1][0], self._recent[-1][1] + 1)
            else:
                self._recent.append((now, 1))

    def rate(self, now: float, began: float) -> float:
        """Items ended a second."""
        while self._recent and now - self._recent[0][0] > WINDOW_S:
            self._recent.popleft()
        return sum(n for _, n in self._recent) / max(0.5, min(WINDOW_S, now - began))


class Display(Protocol):
    """Whom a run tells how it goes: a terminal, a notebook, nobody. Draws a snapshot each `every_s` seconds."""

    every_s: float

    def say(self, words: str) -> None:
        """A line of text."""

    def drawing(self) -> AbstractContextManager[Callable[[Snapshot], None]]:
        """What draws a snapshot, as long as the context is open. May raise OSError or SystemExit: nobody reads on."""


class NoDisplay:
    """A screen that shows nothing."""

    every_s = math.inf

    def say(self, words: str) -> None:
        pass

    def drawing(self) -> AbstractContextManager[Callable[[Snapshot], None]]:
        return nullcontext(lambda snapshot: None)


async def show_progress(board: ProgressTracker, screen: Display, file: Path, ended: asyncio.Event) -> None:
    """Keeps the screen and the file up to date until `ended` is set; the file alone where the screen is gone."""
    try:
        with screen.drawing() as draw:
            await _tick(lambda: draw(board.snapshot()), screen.every_s, board, file, ended)
    except DISPLAY_CLOSED:
        await _tick(lambda: None, FILE_EVERY_S, board, file, ended)
        await ended.wait()
    file.unlink(missing_ok=True)


async def _tick(
    draw: Callable[[], None], every_s: float, board: ProgressTracker, file: Path, ended: asyncio.Event
) -> None:
    loop = asyncio.get_running_loop()
    drawn = written = loop.time()
    _write(file, board.snapshot())
    while not ended.is_set():
        try:
            async with asyncio.timeout(min(every_s, FILE_EVERY_S)):
                await ended.wait()
        except TimeoutError:
            if loop.time() - drawn >= every_s:
                drawn = loop.time()
                draw()
            if loop.time() - written >= FILE_EVERY_S:
                written = loop.time()
                _write(file, board.snapshot())


def _write(file: Path, snapshot: Snapshot) -> None:
    aside = file.with_suffix(".tmp")
    try:
        aside.write_text(json.dumps(asdict(snapshot)), encoding="utf-8")
        aside.replace(file)
    except OSError:  # the disk is full: the run ends for that, not for this
        aside.unlink(missing_ok=True)


def read_snapshot(file: Path) -> Snapshot | None:
    """The snapshot a run last left; None where there is none, or one that was torn or is another version's."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        lines, failures = (tuple(of(**one) for one in data.pop(name)) for name, of in _PARTS.items())
        spent = Spent(**data.pop("spent"))
        return Snapshot(**data, spent=spent, lines=lines, failures=failures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


_PARTS: dict[str, Callable[..., Any]] = {"lines": EndpointState, "failures": Failing}
