"""What is seen while a run goes on: counts, rates and what is left, by an injected clock."""

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
from aif.core import words
from aif.core.types import Failing, Spent
from aif.engine import progress
from aif.engine.progress import Board
from aif.providers.endpoint import Endpoint
from aif.providers.rate_limits import Pace
from aif.providers.vllm import VllmChat
from aif.store.ingest import Entry
from aif.store.reader import Tally


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def endpoint(name: str, stage: Any) -> Endpoint:
    client = VllmChat((), name, timeout_s=1, limit=1)
    return Endpoint(name, stage, name, client, 4, lambda *used: 0.0, lambda request: 0.0, Pace(None, None))


def kept(endpoint: str, verdict: str, n: int = 1, usd: float | None = 0.01, **more: Any) -> list[Entry]:
    stage = "judgement" if endpoint == "judge" else "completion"
    usage = {"input": 100, "output": 20, "cached": 0, "reasoning": 0} if verdict == "answered" else None
    record = {"stage": stage, "endpoint": endpoint, "verdict": verdict, "usage": usage, "usd": usd, "key": "k"}
    record |= {"kind": "empty", "message": "it said nothing", "prompt_id": "p"} | more
    return [Entry({**record, "key": f"k{i}"} if "key" not in more else record) for i in range(n)]


FAILED_BEFORE = [
    Failing("completion", "large", "blocked", "failed", 3, "its filter", "p"),
    Failing("completion", "large", "timeout", "later", 5, "too long", "p"),
    Failing("judgement", "judge", "unauthorized", "refused", 2, "no key", "p"),
]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    endpoints = [endpoint("large", "completion"), endpoint("judge", "judgement")]
    had = {
        ("completion", "large"): Tally(wanted=100, answered=20, failed=0, later=5),
        ("judgement", "judge"): Tally(wanted=100, answered=0, failed=0, later=0),
    }
    return Board(endpoints, had, FAILED_BEFORE, clock)


def test_what_was_there_before_counts_as_done_and_what_is_pending_does_not(board: Board) -> None:
    large, judge = board.snapshot().lines

    assert (large.answered, large.left, judge.answered, judge.left) == (20, 80, 0, 100)


def test_rates_are_of_the_last_seconds_and_give_what_is_left(board: Board, clock: Clock) -> None:
    for _ in range(20):
        clock.now += 1
        board.kept(kept("large", "answered", 2) + kept("judge", "answered"))
    large, judge = board.snapshot().lines

    assert large.rate == pytest.approx(2.0, rel=0.1)
    assert judge.rate == pytest.approx(1.0, rel=0.1)
    assert board.snapshot().eta_s == pytest.approx(80, rel=0.1)  # the judge, with 80 left, is the slower one
    clock.now += 60
    assert board.snapshot().lines[0].rate == 0
    assert board.snapshot().eta_s is None


def test_an_attempt_that_is_made_again_is_no_end_and_a_failure_is(board: Board) -> None:
    board.kept(kept("large", "again", 3) + kept("large", "failed", 2) + kept("large", "later", 4))
    large = board.snapshot().lines[0]

    assert (large.answered, large.failed, large.later) == (20, 2, 4)
    assert large.left == 74


def test_spend_is_unknown_as_soon_as_one_price_is(board: Board) -> None:
    board.kept(kept("large", "answered", 3))
    assert board.snapshot().lines[0].usd == pytest.approx(0.03)
    board.kept(kept("large", "answered", usd=None))
    assert board.snapshot().lines[0].usd is None
    assert "unknown" in progress_line(board.snapshot())


def test_spend_is_unknown_where_no_usage_was_told_either(board: Board) -> None:
    board.kept(kept("large", "later", usd=None, bound=0.5))  # as much is told as unknown elsewhere
    assert board.snapshot().lines[0].usd == 0
    board.kept(kept("large", "answered", usd=None, usage=None))
    assert board.snapshot().lines[0].usd is None


def test_what_failed_is_counted_by_kind_with_what_had_failed_for_good(board: Board) -> None:
    """What was only pending, or refused, is asked again by this run, and so is nothing yet."""
    board.kept(kept("large", "failed", 2, kind="blocked", message="filtered"))
    board.kept(kept("judge", "later", 4, kind="server_error", message="x" * 9000) + kept("judge", "again", 7))
    first, second, third = board.snapshot().failures

    assert (first.kind, first.verdict, first.items, first.example) == ("blocked", "failed", 5, "its filter")
    assert (third.verdict, third.items) == ("again", 7)  # why it is slow; not what has no answer
    assert (second.endpoint, second.kind, second.items) == ("judge", "server_error", 4)
    assert len(second.example) == progress.EXAMPLE


def test_a_line_says_all_in_a_line(board: Board, clock: Clock) -> None:
    clock.now += 3725
    board.kept(kept("judge", "failed"))
    said = progress_line(board.snapshot())

    assert said.startswith("elapsed 1:02:05, ETA ? · 20 of 200 (10.0%) · completions 20/100 (")
    assert "judgements 0/100 (0.0/s, 1 failed)" in said


def test_what_servers_do_instead_of_answering_is_said(board: Board) -> None:
    large, judge = board._endpoints
    large.doing, judge.doing = "starting", "waiting"
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(progress_table(board.snapshot(), 80))

    assert progress_line(board.snapshot()).endswith(" · large: starting · judge: waiting")
    assert "starting" in console.export_text()
    judge.doing = "starting"
    assert progress_line(board.snapshot()).endswith(" · large, judge: starting")
    large.refuse("no room")
    assert progress_line(board.snapshot()).endswith(" · judge: starting · large: refused")


def test_the_file_says_what_the_screen_says_and_goes_when_the_run_ends(board: Board, tmp_path: Path) -> None:
    file = tmp_path / "p.json"

    async def watch() -> None:
        ended = asyncio.Event()
        shown = asyncio.create_task(progress.show(board, progress.Nobody(), file, ended))
        await asyncio.sleep(0)  # the file is written before the first wait
        found = progress.read(file)
        assert found is not None
        now = board.snapshot()
        assert replace(found, updated=now.updated) == now
        ended.set()
        await shown

    asyncio.run(watch())
    assert not file.exists()
    assert progress.read(file) is None


@pytest.mark.parametrize("torn", ["", "{", "[]", "7", '{"pid": 4}', '{"lines": [], "failures": [{}]}', '{"lines": 3}'])
def test_a_torn_file_tells_nothing(tmp_path: Path, torn: str) -> None:
    file = tmp_path / "p.json"
    file.write_text(torn)
    assert progress.read(file) is None


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, _: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_where_nobody_reads_on_the_file_does_and_a_line_ends_nothing(board: Board, tmp_path: Path) -> None:
    file, console = tmp_path / "p.json", Console(file=Gone(), force_terminal=True)
    print_text(console, "starting it again")

    async def watch() -> None:
        ended = asyncio.Event()
        shown = asyncio.create_task(progress.show(board, Terminal(console), file, ended))
        await asyncio.sleep(0)
        assert progress.read(file) is not None
        ended.set()
        await shown

    asyncio.run(watch())
    assert not file.exists()


def test_the_table_fits_80_columns(board: Board) -> None:
    board.kept(kept("large", "answered", 50))
    console = Console(width=80, record=True, quiet=False, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(progress_table(board.snapshot(), 80))
    said = console.export_text()
    console.file.close()

    assert "70/100" in said
    assert "…" not in said


@pytest.mark.parametrize("width", [80, 140])
def test_no_name_and_no_message_takes_the_room_of_the_figures(clock: Clock, width: int) -> None:
    name = "a-model-of-a-very-long-name-" + 3 * "and-more-of-it-"
    first, second = endpoint(name, "completion"), endpoint("judge", "judgement")
    all_of_it = Tally(64_000, 0, 0, 0)
    board = Board([first, second], {("completion", name): all_of_it, ("judgement", "judge"): all_of_it}, clock=clock)
    second.refuse("HTTP 401: " + 20 * "what the provider had to say of it, ")
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(progress_table(board.snapshot(), width))
    lines = console.export_text().splitlines()

    heads = ("done", "per s", "in flight", "failed", "USD", *(("in", "out") if width == 140 else ()))
    assert all(f" {head} " in lines[2] for head in heads)
    assert lines[0].startswith(" 0 of 128,000 (0.0%) ")
    assert lines[0].rstrip().endswith(" elapsed 0:00, ETA ?")
    assert "────────" in next(line for line in lines if "0/64,000" in line), "bars also at 80 columns"
    assert sum("0/64,000" in line for line in lines) == 2
    assert lines[-1].startswith(" judge: refused: HTTP 401: what the provider")
    assert all(len(line) <= width for line in lines)


def test_what_others_wrote_moves_no_cursor() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_text(console, "red\x1b[31m [bold]as it is[/bold]\x07\x9b2J\n\ttabs and lines stay")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "red␛[31m [bold]as it is[/bold]␇�2J\n        tabs and lines stay\n"


def test_what_the_store_has_spent_is_told_where_there_is_a_budget_or_not_all_is_known(
    clock: Clock, tmp_path: Path
) -> None:
    board = Board([endpoint("large", "completion")], {}, (), clock, Spent(1.0, 0.5), budget=5.0)
    board.kept(kept("large", "answered", 2, usd=0.25) + kept("large", "again", usd=None, bound=0.125))
    snapshot = board.snapshot()
    progress._write(tmp_path / "progress.json", snapshot)

    assert progress.read(tmp_path / "progress.json") == snapshot
    told = "$2.12 spent in all, of which up to $0.6250 unknown; $2.88 of the budget of $5.00 left"
    assert told in progress_line(snapshot)
    assert words.spending(Spent(1.0), None) == ""
    assert words.spending(Spent(1.0), 0.5) == "$1.00 spent in all; $0.00 of the budget of $0.5000 left"
    assert words.spending(Spent(1.0, 2.0), None) == "$3.00 spent in all, of which up to $2.00 unknown"
