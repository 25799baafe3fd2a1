"""The progress of a run: frozen snapshots, given to a display and written to a small file beside the store.

`aif status` reads the file, since no second process can open a store that a run holds.
"""

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

from aif.core.types import UNSPENT, FailureGroup, Spent

if TYPE_CHECKING:  # `aif status` reads the file without DuckDB and the providers' SDKs: 0.3 s instead of 0.6
    from aif.providers.endpoint import Endpoint
    from aif.store.ingest import Entry
    from aif.store.report_queries import Tally

WINDOW_S = 30.0  # seconds over which rates are measured
FILE_EVERY_S = 1.0
EXAMPLE = 500  # characters of an error message that the file has
# What a display raises if nobody reads its output (`| head`); rich raises SystemExit for a broken pipe.
DISPLAY_CLOSED = (OSError, SystemExit)


@dataclass(frozen=True, slots=True)
class EndpointState:
    """Progress of one model or judge. An item is one of its completions or judgements.

    wanted: items in all; a judge's number assumes that all pending completions succeed.
    answered: items with a usable reply, those of earlier runs included.
    failed: items that failed permanently, in this run or an earlier one.
    later: items that this run gave up and the next run retries.
    in_flight: calls in flight.
    rate: items finished per second, over the last WINDOW_S seconds.
    input_tokens: tokens of this run's requests.
    output_tokens: tokens of this run's replies.
    usd: the known cost of this run's calls; None if the price is unknown.
    refused: why the model or judge takes no more calls in this run; None if it takes them.
    doing: why it answers nothing at the moment, such as starting or a rate limit; None if there is no such reason.
    """

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
    doing: str | None

    @property
    def left(self) -> int:
        """Number of items still to finish in this run."""
        return max(0, self.wanted - self.answered - self.failed - self.later)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a running run.

    pid: the process that runs it.
    host: the name of that process's machine.
    started: ISO time (UTC) at which the run started.
    updated: ISO time (UTC) of this snapshot.
    elapsed_s: seconds since the start.
    eta_s: seconds left; None if nothing is left, or if a model or judge that isn't stopped has items left and no rate
        yet.
    spent: the store's spend in USD, all runs together.
    budget: the limit of the store's spend, in USD; None without a limit.
    lines: one entry per model and judge.
    failures: numbers of this run's failed calls, retried ones included, and of items that failed permanently before it.
    """

    pid: int
    host: str
    started: str
    updated: str
    elapsed_s: float
    eta_s: float | None
    spent: Spent
    budget: float | None
    lines: tuple[EndpointState, ...]
    failures: tuple[FailureGroup, ...]


class ProgressTracker:
    """Counts a run's calls by model and judge, and makes snapshots of its progress. It is the Observer of an
    orchestrator.

    tallies: by (stage, name), the numbers of completions or judgements by state when the run starts.
    failures: the failures in the store when the run starts.
    clock: returns the time in seconds.
    spent: the store's spend when the run starts.
    budget: the limit of the store's spend, in USD; None without a limit.
    """

    def __init__(
        self,
        endpoints: "Sequence[Endpoint]",
        tallies: "Mapping[tuple[str, str], Tally]",
        failures: Sequence[FailureGroup] = (),
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
        # this run requests all unanswered items but these, which need --retry-failed
        self._failures = {_group(failing): failing for failing in failures if failing.verdict == "failed"}

    def on_calls(self, entries: "Sequence[Entry]") -> None:
        now, known, unknown = self._clock(), self._spent.known, self._spent.unknown
        for entry in entries:
            # an item that is replaced by parts is not missing
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
        fields = {name: record[name] for name in ("stage", "endpoint", "kind", "verdict", "prompt_id")}
        failing = FailureGroup(**fields, items=1, example=(record["message"] or "")[:EXAMPLE])
        previous = self._failures.get(_group(failing))
        self._failures[_group(failing)] = replace(previous, items=previous.items + 1) if previous else failing

    def snapshot(self) -> Snapshot:
        """Return the progress as of now."""
        now = self._clock()
        lines = tuple(self._line(endpoint, now) for endpoint in self._endpoints)
        working = [line for line, e in zip(lines, self._endpoints, strict=True) if line.left and not e.halt.is_set()]
        etas = [line.left / line.rate if line.rate else None for line in working]
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
            tuple(sorted(self._failures.values(), key=lambda f: (f.verdict == "again", -f.items, f.endpoint))),
        )

    def _line(self, endpoint: "Endpoint", now: float) -> EndpointState:
        row = self._rows[endpoint.stage, endpoint.name]
        return EndpointState(
            endpoint.name, endpoint.stage, row.wanted, row.answered, row.failed, row.later, endpoint.in_flight,
            row.rate(now, self._began), row.input, row.output, row.usd, endpoint.refused, endpoint.waiting_text(),
        )  # fmt: skip


def _group(failing: FailureGroup) -> tuple[str, str, str, str]:
    return failing.stage, failing.endpoint, failing.kind, failing.verdict


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
                self.later += 1  # final in this run
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
        """Return the items finished per second in the last WINDOW_S seconds, or since `began` if that is shorter. `now`
        and `began` are times of the same clock, in seconds."""
        while self._recent and now - self._recent[0][0] > WINDOW_S:
            self._recent.popleft()
        return sum(n for _, n in self._recent) / max(0.5, min(WINDOW_S, now - began))


class Display(Protocol):
    """Shows the progress of a run, in a terminal or a notebook; given a snapshot every `every_s` seconds."""

    every_s: float

    def print_line(self, text: str) -> None:
        """Show a line of text."""

    def drawing(self) -> AbstractContextManager[Callable[[Snapshot], None]]:
        """Return a context manager that yields a function which draws a snapshot. May raise OSError or SystemExit if
        the output is closed."""


class NoDisplay:
    """A display that shows nothing."""

    every_s = math.inf

    def print_line(self, text: str) -> None:
        pass

    def drawing(self) -> AbstractContextManager[Callable[[Snapshot], None]]:
        return nullcontext(lambda snapshot: None)


async def show_progress(tracker: ProgressTracker, display: Display, file: Path, ended: asyncio.Event) -> None:
    """Update display and progress file until `ended` is set, then remove the file. If the display is closed, update
    the file alone."""
    try:
        with display.drawing() as draw:
            await _tick(lambda: draw(tracker.snapshot()), display.every_s, tracker, file, ended)
    except DISPLAY_CLOSED:
        await _tick(lambda: None, FILE_EVERY_S, tracker, file, ended)
        await ended.wait()
    file.unlink(missing_ok=True)


async def _tick(
    draw: Callable[[], None], every_s: float, tracker: ProgressTracker, file: Path, ended: asyncio.Event
) -> None:
    loop = asyncio.get_running_loop()
    drawn = written = loop.time()
    _write(file, tracker.snapshot())
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
                _write(file, tracker.snapshot())


def _write(file: Path, snapshot: Snapshot) -> None:
    aside = file.with_suffix(".tmp")
    try:
        aside.write_text(json.dumps(asdict(snapshot)), encoding="utf-8")
        aside.replace(file)
    except OSError:  # a full disk ends the run elsewhere
        aside.unlink(missing_ok=True)


def read_snapshot(file: Path) -> Snapshot | None:
    """Return the last snapshot in a progress file; None if it is missing, incomplete, or of another version."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        lines, failures = (tuple(part(**fields) for fields in data.pop(name)) for name, part in _PARTS.items())
        spent = Spent(**data.pop("spent"))
        return Snapshot(**data, spent=spent, lines=lines, failures=failures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


_PARTS: dict[str, Callable[..., Any]] = {"lines": EndpointState, "failures": FailureGroup}
