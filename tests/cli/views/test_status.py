"""What is told of a run by others: what its holder keeps, how old that is, and never a dead run's figures as live."""

import io
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from aif.cli.running import RunningProcess, dead_run, running_process
from aif.cli.views.status import print_dead_run, print_running, print_running_failures
from aif.core.types import FailureGroup, Spent
from aif.engine.progress import EndpointState, Snapshot
from aif.store.lock import Lock
from aif.store.paths import StorePaths

NOW = datetime.now(UTC)
SNAPSHOT = Snapshot(
    os.getpid(),
    socket.gethostname(),
    NOW.isoformat(timespec="seconds"),
    NOW.isoformat(timespec="seconds"),
    61.0,
    125.0,
    Spent(1.75),
    None,
    (
        EndpointState("able", "completion", 100, 40, 1, 0, 8, 2.5, 1000, 900, 0.25, None, None),
        EndpointState("strict", "judgement", 100, 30, 0, 2, 4, 1.5, 9000, 800, 1.5, None, None),
    ),
    (
        FailureGroup("completion", "able", "blocked", "failed", 1, "the filter refused it", "p"),
        FailureGroup("judgement", "strict", "timeout", "later", 2, "nothing in 120 s", "p"),
    ),
)


def _now() -> Snapshot:
    """As a run that goes on has just written it."""
    return replace(SNAPSHOT, updated=datetime.now(UTC).isoformat(timespec="seconds"))


@pytest.fixture
def places(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "feedback.duckdb")


@pytest.fixture
def held(places: StorePaths) -> Iterator[StorePaths]:
    lock = Lock(places.lock)
    yield places
    lock.release()


def keep(places: StorePaths, snapshot: Snapshot) -> None:
    places.progress.write_text(json.dumps(asdict(snapshot)))


def printed(print_run: Callable[[Console, RunningProcess], None], places: StorePaths) -> str:
    """What is printed of the process that holds the store; nothing if nobody does."""
    screen = io.StringIO()
    if running := running_process(places.store):
        print_run(Console(width=100, file=screen), running)
    return screen.getvalue()


def printed_dead(places: StorePaths) -> str:
    screen = io.StringIO()
    if left := dead_run(places.store):
        print_dead_run(Console(width=100, file=screen), left, "a.yaml")
    return screen.getvalue()


def test_a_run_is_told_with_progress_rate_spend_eta_and_what_failed(held: StorePaths) -> None:
    keep(held, _now())
    said = printed(print_running, held)
    assert f"held by process {os.getpid()} on {socket.gethostname()} since" in said
    assert "70 of 200 (35.0%)" in said
    assert "elapsed 1:01, ETA 2:05" in said
    assert "$1.75 spent in this run; 10.0k tokens in, 1.7k out" in said
    assert said.count("$1.75") == 1
    for part in ("40/100", "2.5", "30/100", "$0.2500", "$1.50"):
        assert part in said
    assert "blocked: 1 (retry with --retry-failed)\n    able\n    the filter refused it\n    → " in said
    assert "timeout: 2 (retried by the next run)\n    strict\n    nothing in 120 s\n    → " in said
    failures = printed(print_running_failures, held)
    assert "blocked: 1 (retry with --retry-failed)\n    able\n" in failures
    assert "40/100" not in failures
    assert "last progress" not in said + failures
    made_again = FailureGroup("completion", "able", "rate_limited", "again", 3, "slow down", "p")
    keep(held, replace(_now(), failures=(made_again, *SNAPSHOT.failures)))
    without, again = printed(print_running_failures, held).split("Failed calls that were retried")
    assert "slow down" not in without, "its item may be answered by now"
    assert "rate_limited: 3 (retried in this run)\n    able\n" in again


def test_nothing_failed_is_said_of_a_run_that_has_nothing_left_to_answer(held: StorePaths) -> None:
    able, strict = SNAPSHOT.lines
    strict = replace(strict, refused="no such key")
    keep(held, replace(_now(), lines=(able, strict), failures=()))
    said = printed(print_running_failures, held)
    assert "unanswered so far: 127\n    able 59, strict 68\n" in said
    assert "no more calls to strict: no such key\n" in said
    assert "nothing failed" not in said
    keep(held, replace(_now(), lines=(replace(able, answered=99),), failures=()))
    assert "nothing failed so far" in printed(print_running_failures, held)


@pytest.mark.parametrize("torn", [None, "", '{"pid": 1', "{}"])
def test_a_holder_that_keeps_nothing_readable_is_named_and_no_more(held: StorePaths, torn: str | None) -> None:
    if torn is not None:
        held.progress.write_text(torn)
    said = printed(print_running, held)
    assert "held by process" in said
    assert "it calls no model now" in said
    assert "it calls no model now" in printed(print_running_failures, held)


@pytest.mark.parametrize("change", [{"pid": 1}, {"host": "elsewhere"}])
def test_what_another_process_kept_is_not_told_of_the_holder(held: StorePaths, change: dict[str, object]) -> None:
    keep(held, replace(_now(), **change))  # type: ignore[arg-type]
    assert "40/100" not in printed(print_running, held)
    assert "blocked" not in printed(print_running_failures, held)


@pytest.mark.parametrize(("ago_s", "said"), [(0, False), (5, False), (90, True), (-3600, False)])
def test_figures_that_are_old_are_said_to_be(held: StorePaths, ago_s: int, said: bool) -> None:
    """A clock that was set back says nothing."""
    keep(held, replace(SNAPSHOT, updated=(datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat(timespec="seconds")))
    assert ("its last progress is 1:3" in printed(print_running, held)) is said
    assert ("so are these figures" in printed(print_running_failures, held)) is said


def test_of_a_run_that_was_killed_is_said_just_that(places: StorePaths) -> None:
    assert printed_dead(places) == ""
    keep(places, _now())
    assert printed(print_running, places) == printed(print_running_failures, places) == ""
    said = printed_dead(places)
    assert f"(process {os.getpid()} on {socket.gethostname()}) last wrote its progress " in said
    assert "`aif run a.yaml` adds those that the store lacks" in said
    assert "with 70 answers" in said
    assert "it was killed" in said


def test_of_a_run_on_another_host_it_is_not_known_whether_it_goes_on(places: StorePaths) -> None:
    """A folder that is shared need not take locks across."""
    keep(places, replace(_now(), host="elsewhere"))
    said = printed_dead(places)
    assert "on elsewhere) last wrote its progress " in said
    assert "it was killed" not in said
    assert "may still be running there" in said
