"""A run that is told to stop, in each of its phases, at real terminals and pipes."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aif.config.pipeline import load
from aif.core.errors import Exit
from aif.store.paths import StorePaths
from tests.engine.test_orchestrator import ask, run, write
from tests.processes import until
from tests.serving import Served

Serve = Callable[..., Served]
ASKED = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def started(path: Path, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "aif", "run", str(path), "--yes"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, text=True, start_new_session=True, **pipes)


def asked(served: Served) -> bool:
    return bool(served.stats()["calls"] >= 8)


def finished(path: Path, served: Served) -> None:
    """What was asked before is not asked again, and the rest is."""
    _, ended = run(path)
    assert not ended.incomplete
    assert served.stats()["requests"] == {"distinct": 60, "repeated": 0}


@pytest.mark.parametrize("one", ASKED)
def test_asked_to_stop_it_finishes_what_is_in_flight(tmp_path: Path, serve: Serve, one: signal.Signals) -> None:
    served = serve(latency_s=0.3)
    path = write(tmp_path, served)
    process = started(path)
    until(lambda: asked(served), "the first calls")
    process.send_signal(one)
    _, err = process.communicate(timeout=60)

    assert process.returncode == Exit.INTERRUPTED, err
    assert f"`aif run {path}` goes on" in err
    assert {row["verdict"] for row in ask(load(path), "SELECT verdict FROM calls")} == {"answered"}
    finished(path, served)


@pytest.mark.parametrize("one", ASKED)
def test_while_it_reads_it_leaves_at_once_and_says_so(tmp_path: Path, serve: Serve, one: signal.Signals) -> None:
    path = write(tmp_path, serve())
    (tmp_path / "prompts.jsonl").unlink()
    os.mkfifo(tmp_path / "prompts.jsonl")  # who opens it waits for somebody to write
    process = started(path)
    lock = StorePaths(load(path).store).lock
    until(lambda: lock.exists() and lock.stat().st_size, "the store")
    process.send_signal(one)
    _, err = process.communicate(timeout=60)

    assert process.returncode == Exit.INTERRUPTED, err
    assert err.endswith("aif: stopped; what was there before is kept, and the same command goes on\n")
    assert "Traceback" not in err


def test_a_reader_that_ctrl_c_ended_as_well_takes_no_word_from_who_still_hears(tmp_path: Path, serve: Serve) -> None:
    """`aif run … | tee log`: Ctrl-C ends tee at once."""
    served = serve(latency_s=0.3)
    path = write(tmp_path, served)
    read, written = os.pipe()
    process = started(path, stdout=written)
    os.close(written)
    until(lambda: asked(served), "the first calls")
    os.close(read)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert process.returncode == Exit.INTERRUPTED, err
    assert f"stopped; everything answered is kept. `aif run {path}` goes on" in err


def test_a_terminal_that_closes_stops_it_in_order(tmp_path: Path, serve: Serve) -> None:
    served = serve(latency_s=0.3)
    path = write(tmp_path, served)
    mine, theirs = pty.openpty()
    process = started(path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    until(lambda: asked(served), "the first calls")
    os.close(mine)
    process.send_signal(signal.SIGHUP)  # by the system only if the terminal were this process's own

    assert process.wait(60) == Exit.INTERRUPTED
    finished(path, served)


def test_every_call_has_its_connection_where_few_files_are_given(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(latency_s=0.3), 40)
    command = [sys.executable, "-m", "aif", "run", str(path)]
    few = subprocess.run(
        ["sh", "-c", 'ulimit -S -n 80; exec "$@"', "sh", *command], capture_output=True, text=True, timeout=60
    )

    assert few.returncode == Exit.DONE, few.stderr
    assert ask(load(path), "SELECT count(*) AS n FROM calls WHERE kind IS NOT NULL") == [{"n": 0}]


def test_where_the_system_allows_no_more_it_is_said(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(), 1)
    command = [sys.executable, "-m", "aif", "run", str(path)]
    few = subprocess.run(["sh", "-c", 'ulimit -n 300; exec "$@"', "sh", *command], capture_output=True, text=True)

    assert few.returncode == Exit.DONE, few.stderr
    assert "only 300 files may be open here (ulimit -n), and " in few.stderr
