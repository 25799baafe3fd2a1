"""Stopping a run in each of its phases, at real terminals and pipes; its limit of open files."""

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
from tests.support.processes import until
from tests.support.serving import Served

Serve = Callable[..., Served]
ASKED = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def started(path: Path, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "aif", "run", str(path), "--yes"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, text=True, start_new_session=True, **pipes)


def asked(served: Served) -> bool:
    return bool(served.stats()["calls"] >= 8)


def finished(path: Path, served: Served) -> None:
    """Run to the end; earlier calls are not repeated, and all others are made."""
    _, ended = run(path)
    assert not ended.incomplete
    assert served.stats()["requests"] == {"distinct": 60, "repeated": 0}


@pytest.mark.parametrize("number", ASKED)
def test_the_first_ctrl_c_finishes_calls_in_flight(tmp_path: Path, serve: Serve, number: signal.Signals) -> None:
    served = serve(latency_s=0.3)
    path = write(tmp_path, served)
    process = started(path)
    until(lambda: asked(served), "the first calls")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert process.returncode == Exit.INTERRUPTED, err
    assert f"`aif run {path}` resumes" in err
    assert {row["verdict"] for row in ask(load(path), "SELECT verdict FROM calls")} == {"answered"}
    finished(path, served)


@pytest.mark.parametrize("number", ASKED)
def test_ctrl_c_while_reading_prompts_leaves_at_once_with_a_message(
    tmp_path: Path, serve: Serve, number: signal.Signals
) -> None:
    path = write(tmp_path, serve())
    (tmp_path / "prompts.jsonl").unlink()
    os.mkfifo(tmp_path / "prompts.jsonl")  # opening it blocks until somebody writes
    process = started(path)
    lock = StorePaths(load(path).store).lock
    until(lambda: lock.exists() and lock.stat().st_size, "the store")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert process.returncode == Exit.INTERRUPTED, err
    assert err.endswith("aif: interrupted; nothing stored was lost, and the same command resumes\n")
    assert "Traceback" not in err


def test_if_ctrl_c_ends_the_reader_of_stdout_stderr_still_gets_the_message(tmp_path: Path, serve: Serve) -> None:
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
    assert f"stopped; all answers are stored; `aif run {path}` resumes" in err


def test_a_terminal_that_closes_finishes_calls_in_flight(tmp_path: Path, serve: Serve) -> None:
    served = serve(latency_s=0.3)
    path = write(tmp_path, served)
    mine, theirs = pty.openpty()
    process = started(path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    until(lambda: asked(served), "the first calls")
    os.close(mine)
    process.send_signal(signal.SIGHUP)  # the system sends it only if the terminal is this process's own

    assert process.wait(60) == Exit.INTERRUPTED
    finished(path, served)


def test_the_limit_of_open_files_is_raised_for_all_connections(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(latency_s=0.3), 40)
    command = [sys.executable, "-m", "aif", "run", str(path)]
    few = subprocess.run(
        ["sh", "-c", 'ulimit -S -n 80; exec "$@"', "sh", *command], capture_output=True, text=True, timeout=60
    )

    assert few.returncode == Exit.DONE, few.stderr
    assert ask(load(path), "SELECT count(*) AS n FROM calls WHERE kind IS NOT NULL") == [{"n": 0}]


def test_a_low_hard_limit_of_open_files_is_reported(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(), 1)
    command = [sys.executable, "-m", "aif", "run", str(path)]
    few = subprocess.run(["sh", "-c", 'ulimit -n 300; exec "$@"', "sh", *command], capture_output=True, text=True)

    assert few.returncode == Exit.DONE, few.stderr
    assert "this process may open 300 files (ulimit -n), and needs up to " in few.stderr
