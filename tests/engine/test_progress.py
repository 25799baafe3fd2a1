"""The progress of a run: counts, rates and time left, with an injected clock."""

import asyncio
import errno
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aif.cli.console import print_text
from aif.cli.views.progress import Terminal, progress_line, progress_table
from aif.core import formatting
from aif.core.types import FailureGroup, Spent
from aif.engine import progress
from aif.engine.progress import ProgressTracker
from aif.providers.endpoint import Endpoint
from aif.providers.rate_limits import RateLimiter
from aif.providers.vllm import VllmChat
from aif.store.ingest import Entry
from aif.store.report_queries import Tally


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def endpoint(name: str, stage: Any) -> Endpoint:
    client = VllmChat((), name, timeout_s=1, limit=1)
    return Endpoint(name, stage, name, client, 4, lambda *used: 0.0, lambda request: 0.0, RateLimiter(None, None))


def calls(endpoint: str, verdict: str, n: int = 1, usd: float | None = 0.01, **more: Any) -> list[Entry]:
    stage = "judgement" if endpoint == "judge" else "completion"
    usage = {"input": 100, "output": 20, "cached": 0, "reasoning": 0} if verdict == "answered" else None
    record = {"stage": stage, "endpoint": endpoint, "verdict": verdict, "usage": usage, "usd": usd, "key": "k"}
    record |= {"kind": "empty", "message": "the reply is empty", "prompt_id": "p"} | more
    return [Entry({**record, "key": f"k{i}"} if "key" not in more else record) for i in range(n)]


FAILED_BEFORE = [
    FailureGroup("completion", "large", "blocked", "failed", 3, "its filter", "p"),
    FailureGroup("completion", "large", "timeout", "later", 5, "too long", "p"),
    FailureGroup("judgement", "judge", "unauthorized", "refused", 2, "no key", "p"),
]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracker(clock: Clock) -> ProgressTracker:
    endpoints = [endpoint("large", "completion"), endpoint("judge", "judgement")]
    had = {
        ("completion", "large"): Tally(wanted=100, answered=20, failed=0, later=5),
        ("judgement", "judge"): Tally(wanted=100, answered=0, failed=0, later=0),
    }
    return ProgressTracker(endpoints, had, FAILED_BEFORE, clock)


def test_earlier_answers_count_as_done_and_pending_items_do_not(tracker: ProgressTracker) -> None:
    large, judge = tracker.snapshot().lines

    assert (large.answered, large.left, judge.answered, judge.left) == (20, 80, 0, 100)


def test_rates_are_of_the_last_seconds_and_give_the_time_left(tracker: ProgressTracker, clock: Clock) -> None:
    for _ in range(20):
        clock.now += 1
        tracker.on_calls(calls("large", "answered", 2) + calls("judge", "answered"))
    large, judge = tracker.snapshot().lines

    assert large.rate == pytest.approx(2.0, rel=0.1)
    assert judge.rate == pytest.approx(1.0, rel=0.1)
    assert tracker.snapshot().eta_s == pytest.approx(80, rel=0.1)  # the judge, with 80 left, is slower
    clock.now += 60
    assert tracker.snapshot().lines[0].rate == 0
    assert tracker.snapshot().eta_s is None


def test_a_retried_attempt_finishes_no_item_and_a_failure_does(tracker: ProgressTracker) -> None:
    tracker.on_calls(calls("large", "again", 3) + calls("large", "failed", 2) + calls("large", "later", 4))
    large = tracker.snapshot().lines[0]

    assert (large.answered, large.failed, large.later) == (20, 2, 4)
    assert large.left == 74


def test_spend_is_unknown_as_soon_as_one_price_is(tracker: ProgressTracker) -> None:
    tracker.on_calls(calls("large", "answered", 3))
    assert tracker.snapshot().lines[0].usd == pytest.approx(0.03)
    tracker.on_calls(calls("large", "answered", usd=None))
    assert tracker.snapshot().lines[0].usd is None
    assert "unknown" in progress_line(tracker.snapshot())


def test_spend_is_unknown_without_usage_too(tracker: ProgressTracker) -> None:
    tracker.on_calls(calls("large", "later", usd=None, bound=0.5))  # shown as unknown spend elsewhere
    assert tracker.snapshot().lines[0].usd == 0
    tracker.on_calls(calls("large", "answered", usd=None, usage=None))
    assert tracker.snapshot().lines[0].usd is None


def test_failures_are_counted_by_kind_with_earlier_permanent_failures(tracker: ProgressTracker) -> None:
    """Items that were pending or refused are requested again by this run, and don't count as failures yet."""
    tracker.on_calls(calls("large", "failed", 2, kind="blocked", message="filtered"))
    tracker.on_calls(calls("judge", "later", 4, kind="server_error", message="x" * 9000) + calls("judge", "again", 7))
    first, second, third = tracker.snapshot().failures

    assert (first.kind, first.verdict, first.items, first.example) == ("blocked", "failed", 5, "its filter")
    assert (third.verdict, third.items) == (
        "again",
        7,
    )  # it explains why the run is slow; the item may still be answered
    assert (second.endpoint, second.kind, second.items) == ("judge", "server_error", 4)
    assert len(second.example) == progress.EXAMPLE


def test_the_progress_line(tracker: ProgressTracker, clock: Clock) -> None:
    clock.now += 3725
    tracker.on_calls(calls("judge", "failed"))
    text = progress_line(tracker.snapshot())

    assert text.startswith("elapsed 1:02:05, ETA ? · 20 of 200 (10.0%) · completions 20/100 (")
    assert "judgements 0/100 (0.0/s, 1 failed)" in text


def test_starting_and_waiting_servers_are_shown(tracker: ProgressTracker) -> None:
    large, judge = tracker._endpoints
    large.server_status, judge.server_status = "starting", "waiting"
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(progress_table(tracker.snapshot(), 80))

    assert progress_line(tracker.snapshot()).endswith(" · large: starting · judge: waiting")
    assert "starting" in console.export_text()
    judge.server_status = "starting"
    assert progress_line(tracker.snapshot()).endswith(" · large, judge: starting")
    large.refuse("no room")
    assert progress_line(tracker.snapshot()).endswith(" · judge: starting · large: refused")


def test_the_file_has_the_displayed_snapshot_and_is_removed_when_the_run_ends(
    tracker: ProgressTracker, tmp_path: Path
) -> None:
    file = tmp_path / "p.json"

    async def watch() -> None:
        ended = asyncio.Event()
        shown = asyncio.create_task(progress.show_progress(tracker, progress.NoDisplay(), file, ended))
        await asyncio.sleep(0)  # the file is written before the first wait
        left = progress.read_snapshot(file)
        assert left is not None
        now = tracker.snapshot()
        assert replace(left, updated=now.updated) == now
        ended.set()
        await shown

    asyncio.run(watch())
    assert not file.exists()
    assert progress.read_snapshot(file) is None


@pytest.mark.parametrize("torn", ["", "{", "[]", "7", '{"pid": 4}', '{"lines": [], "failures": [{}]}', '{"lines": 3}'])
def test_a_torn_file_is_ignored(tmp_path: Path, torn: str) -> None:
    file = tmp_path / "p.json"
    file.write_text(torn)
    assert progress.read_snapshot(file) is None


class Closed(io.StringIO):
    """The output of a terminal that was closed."""

    def isatty(self) -> bool:
        return True

    def write(self, _: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_with_a_closed_terminal_the_file_is_updated_and_printing_does_not_fail(
    tracker: ProgressTracker, tmp_path: Path
) -> None:
    file, console = tmp_path / "p.json", Console(file=Closed(), force_terminal=True)
    print_text(console, "starting it again")

    async def watch() -> None:
        ended = asyncio.Event()
        shown = asyncio.create_task(progress.show_progress(tracker, Terminal(console), file, ended))
        await asyncio.sleep(0)
        assert progress.read_snapshot(file) is not None
        ended.set()
        await shown

    asyncio.run(watch())
    assert not file.exists()


def test_the_table_fits_80_columns(tracker: ProgressTracker) -> None:
    tracker.on_calls(calls("large", "answered", 50))
    console = Console(width=80, record=True, quiet=False, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(progress_table(tracker.snapshot(), 80))
    text = console.export_text()
    console.file.close()

    assert "70/100" in text
    assert "…" not in text


@pytest.mark.parametrize("width", [80, 140])
def test_long_names_and_messages_leave_room_for_the_figures(clock: Clock, width: int) -> None:
    name = "a-model-of-a-very-long-name-" + 3 * "and-more-of-it-"
    first, second = endpoint(name, "completion"), endpoint("judge", "judgement")
    all_of_it = Tally(64_000, 0, 0, 0)
    tracker = ProgressTracker(
        [first, second], {("completion", name): all_of_it, ("judgement", "judge"): all_of_it}, clock=clock
    )
    second.refuse("HTTP 401: " + 20 * "what the provider had to say of it, ")
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(progress_table(tracker.snapshot(), width))
    lines = console.export_text().splitlines()

    heads = ("done", "per s", "in flight", "failed", "USD", *(("in", "out") if width == 140 else ()))
    assert all(f" {head} " in lines[3] for head in heads)
    assert lines[0].startswith(" 0 of 128,000 (0.0%) ")
    assert lines[0].rstrip().endswith(" elapsed 0:00, ETA ?")
    assert "────────" in next(line for line in lines if "0/64,000" in line), "bars also at 80 columns"
    assert sum("0/64,000" in line for line in lines) == 2
    assert lines[2].startswith(" judge: refused: HTTP 401: what the provider"), "above what a low terminal cuts off"
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize("width", [60, 40, 30])
def test_a_narrow_terminal_shows_names_and_drops_figures(clock: Clock, width: int) -> None:
    names = [f"model-{n:02}" for n in range(12)]
    endpoints = [endpoint(name, "completion") for name in names]
    tracker = ProgressTracker(endpoints, {("completion", name): Tally(900, 0, 0, 0) for name in names}, clock=clock)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(progress_table(tracker.snapshot(), width))
    text = console.export_text()

    assert all(name in text for name in names)
    assert "0/900" in text
    assert "…" not in text
    assert ("in flight" in text) == (width == 60)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("file", "environ", "live"),
    [
        (Screen(), {"TERM": "xterm"}, True),
        (Screen(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)
def test_progress_is_redrawn_only_where_lines_can_be(
    tracker: ProgressTracker, file: io.StringIO, environ: dict[str, str], live: bool
) -> None:
    terminal = Terminal(Console(file=file, highlight=False, _environ=environ))
    with terminal.drawing() as draw:
        draw(tracker.snapshot())
    assert ("\x1b[?25l" in file.getvalue()) == live
    assert ("elapsed 0:00, ETA ? · 20 of 200 (10.0%) ·" in file.getvalue()) != live
    assert (terminal.every_s < 1) == live


def test_control_characters_in_messages_are_not_printed() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_text(console, "red\x1b[31m [bold]as it is[/bold]\x07\x9b2J\n\ttabs and lines stay")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "red␛[31m [bold]as it is[/bold]␇�2J\n        tabs and lines stay\n"


def test_total_spend_is_shown_with_a_budget_or_unknown_costs(clock: Clock, tmp_path: Path) -> None:
    tracker = ProgressTracker([endpoint("large", "completion")], {}, (), clock, Spent(1.0, 0.5), budget=5.0)
    tracker.on_calls(calls("large", "answered", 2, usd=0.25) + calls("large", "again", usd=None, bound=0.125))
    snapshot = tracker.snapshot()
    progress._write(tmp_path / "progress.json", snapshot)

    assert progress.read_snapshot(tmp_path / "progress.json") == snapshot
    spend = "$2.12 spent in all, of which up to $0.6250 unknown; $2.88 of the budget of $5.00 left"
    assert spend in progress_line(snapshot)
    assert formatting.describe_spending(Spent(1.0), None) == ""
    assert formatting.describe_spending(Spent(1.0), 0.5) == "$1.00 spent in all; $0.00 of the budget of $0.5000 left"
    assert formatting.describe_spending(Spent(1.0, 2.0), None) == "$3.00 spent in all, of which up to $2.00 unknown"
