"""What a person sees while a run goes on: a live table in a terminal, a line now and then elsewhere, and a small file
beside the store from which `aif status` answers, since no second process can open a store that a run holds."""

import asyncio
import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aif.core.types import UNSPENT, Failing, Spent
from aif.core.words import clock, compact, dollars, spending, visible

if TYPE_CHECKING:  # `aif status` reads the file of a run without DuckDB and the providers' SDKs: 0.3 s instead of 0.6
    from aif.providers.endpoint import Endpoint
    from aif.store.ingest import Entry
    from aif.store.reader import Tally

WINDOW_S = 30.0  # rates are of the last so many seconds
LINE_EVERY_S = 10.0
WIDE = 100  # columns
FILE_EVERY_S = 1.0
EXAMPLE = 500  # characters of a failure's message that are kept in the file
GONE = (OSError, SystemExit)  # of a screen that nobody reads on (`| head`): for a broken pipe rich ends the program


@dataclass(frozen=True, slots=True)
class Line:
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
    lines: tuple[Line, ...]
    failures: tuple[Failing, ...]


class Board:
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

    def _line(self, endpoint: "Endpoint", now: float) -> Line:
        row = self._rows[endpoint.stage, endpoint.name]
        return Line(
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


def say(console: Console, words: str, style: str | None = None) -> None:
    """Words to a person, as they are, whoever wrote them. Where nobody reads them any more, what goes on goes on."""
    with suppress(*GONE):
        console.print(visible(words), highlight=False, markup=False, soft_wrap=True, style=style)


async def show(board: Board, console: Console, file: Path, ended: asyncio.Event) -> None:
    """Keeps the screen and the file up to date until `ended` is set; the file alone where the screen is gone."""
    try:
        await _show(board, console, file, ended)
    except GONE:
        await _tick(lambda: None, FILE_EVERY_S, board, file, ended)
        await ended.wait()
    file.unlink(missing_ok=True)


async def _show(board: Board, console: Console, file: Path, ended: asyncio.Event) -> None:
    if console.is_terminal:

        def drawn() -> Group:
            return table(board.snapshot(), wide=console.width >= WIDE)

        with Live(drawn(), console=console, refresh_per_second=4, transient=True) as live:
            await _tick(lambda: live.update(drawn()), 0.25, board, file, ended)
    else:
        await _tick(
            lambda: console.print(line(board.snapshot()), soft_wrap=True, markup=False),
            LINE_EVERY_S,
            board,
            file,
            ended,
        )


async def _tick(draw: Callable[[], None], every_s: float, board: Board, file: Path, ended: asyncio.Event) -> None:
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


def read(file: Path) -> Snapshot | None:
    """The snapshot a run last left; None where there is none, or one that was torn or is another version's."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        lines, failures = (tuple(of(**one) for one in data.pop(name)) for name, of in _PARTS.items())
        spent = Spent(**data.pop("spent"))
        return Snapshot(**data, spent=spent, lines=lines, failures=failures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


_PARTS: dict[str, Callable[..., Any]] = {"lines": Line, "failures": Failing}


def line(snapshot: Snapshot) -> str:
    """A snapshot in one line, for logs."""
    parts = []
    for stage, word in (("completion", "completions"), ("judgement", "judgements")):
        lines = [one for one in snapshot.lines if one.stage == stage]
        done, wanted = sum(one.answered for one in lines), sum(one.wanted for one in lines)
        failed = sum(one.failed + one.later for one in lines)
        rate = sum(one.rate for one in lines)
        parts.append(f"{word} {done:,}/{wanted:,} ({rate:.1f}/s{f', {failed:,} failed' if failed else ''})")
    refused = "".join(f" · {one.name} refused" for one in snapshot.lines if one.refused)
    busy: dict[str, list[str]] = {}
    for one in snapshot.lines:
        if one.doing and not one.refused:
            busy.setdefault(one.doing, []).append(one.name)
    doing = "".join(f" · {', '.join(names)} {what}" for what, names in busy.items())
    state = " · ".join([*parts, dollars(_usd(snapshot)), f"ETA {clock(snapshot.eta_s)}"])
    said = f" · {told}" if (told := spending(snapshot.spent, snapshot.budget)) else ""
    return f"{clock(snapshot.elapsed_s)} {state}{said}{doing}{refused}"


def table(snapshot: Snapshot, wide: bool) -> Group:
    """A snapshot as a table, for eyes; with bars where the terminal is wide. What endpoints do instead of answering
    stands below it, so that no message, however long, takes the room of the figures."""
    grid = Table(box=None, padding=(0, 1), title_justify="left", title_style="bold")
    grid.title = f"{clock(snapshot.elapsed_s)} gone, {clock(snapshot.eta_s)} to go, {dollars(_usd(snapshot))} spent"
    heads = ("", "", "done", "per s", "open", "failed", "in", "out", "USD")
    for n, head in enumerate(heads):
        # only a column that may wrap is narrowed where the room is short: the name's
        grid.add_column(head, justify="left" if n < 2 else "right", no_wrap=n > 0)
    told = spending(snapshot.spent, snapshot.budget)
    notes = [Text(f" {told}", "dim")] if told else []
    for one in snapshot.lines:
        failed = one.failed + one.later
        grid.add_row(
            Text(one.name, "cyan" if one.stage == "completion" else "magenta", no_wrap=True, overflow="ellipsis"),
            bar(one.answered + one.failed + one.later, one.wanted) if wide else "",
            f"{one.answered:,}/{one.wanted:,}",
            f"{one.rate:.1f}",
            str(one.in_flight),
            Text(f"{failed:,}", style="red" if failed else "dim"),
            compact(one.input_tokens),
            compact(one.output_tokens),
            dollars(one.usd),
        )
        if one.refused:
            notes.append(Text(f" {one.name} refused: {one.refused}", "red", no_wrap=True, overflow="ellipsis"))
        elif one.doing:
            notes.append(Text(f" {one.name} {one.doing}", "yellow", no_wrap=True, overflow="ellipsis"))
    return Group(grid, *notes)


def bar(done: int, wanted: int) -> ProgressBar:
    return ProgressBar(total=max(1, wanted), completed=done, width=16)


def _usd(snapshot: Snapshot) -> float | None:
    known = [one.usd for one in snapshot.lines]
    return None if None in known else sum(usd for usd in known if usd is not None)
