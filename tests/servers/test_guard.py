"""No process of a guarded command is left, whichever process ends first and in any way."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aif.servers import guard
from tests.support.processes import alive, until

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what leaves the group is found by /proc")
PATH = str(Path(guard.__file__))


class Guarded:
    """A guard, and what the command it runs has written: the pids of its processes."""

    def __init__(self, folder: Path, script: str, grace_s: float = 10) -> None:
        self._out = folder / "out"
        with self._out.open("wb") as out:
            self.guard = subprocess.Popen(
                [sys.executable, "-I", "-S", PATH, str(grace_s), "sh", "-c", script],
                stdin=subprocess.PIPE,
                stdout=out,
                start_new_session=True,
            )

    def pids(self, count: int) -> list[int]:
        until(lambda: self._out.read_text().count("\n") >= count, "the command")
        return [int(word) for word in self._out.read_text().split()]

    def let_go(self) -> None:
        """Closes the pipe, as aif's end does."""
        assert self.guard.stdin is not None
        self.guard.stdin.close()


@pytest.fixture
def ended() -> Iterator[list[Guarded]]:
    """Guards to be ended after the test."""
    made: list[Guarded] = []
    yield made
    for one in made:
        one.let_go()
        one.guard.wait(30)


def test_all_processes_end_when_the_pipe_closes(tmp_path: Path, ended: list[Guarded]) -> None:
    one = Guarded(tmp_path, "sleep 600 & echo $!; echo $$; sleep 600")
    ended.append(one)
    pids = one.pids(2)
    assert all(alive(pid) for pid in pids)
    one.let_go()

    assert one.guard.wait(30) == 128 + signal.SIGTERM
    assert not any(alive(pid) for pid in pids)


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path, ended: list[Guarded]) -> None:
    one = Guarded(tmp_path, "trap '' TERM; sleep 600 & echo $!; echo $$; wait; sleep 600", grace_s=0.2)
    ended.append(one)
    pids = one.pids(2)
    one.let_go()

    assert one.guard.wait(30) == 128 + signal.SIGKILL
    assert not any(alive(pid) for pid in pids)


@LINUX
def test_a_process_that_left_the_group_and_its_parent_is_ended(tmp_path: Path, ended: list[Guarded]) -> None:
    one = Guarded(tmp_path, "(setsid sh -c 'trap \"\" TERM; echo $$; sleep 600' &) ; echo $$; sleep 600", grace_s=0.2)
    ended.append(one)
    pids = one.pids(2)
    one.let_go()
    one.guard.wait(30)

    assert not any(alive(pid) for pid in pids)


def test_when_the_command_ends_its_children_are_ended_and_its_exit_code_is_returned(
    tmp_path: Path, ended: list[Guarded]
) -> None:
    one = Guarded(tmp_path, "sleep 600 & echo $!; exit 7")
    ended.append(one)
    (pid,) = one.pids(1)

    assert one.guard.wait(30) == 7
    assert not alive(pid)


def test_when_the_server_is_killed_its_engine_ends(tmp_path: Path, ended: list[Guarded]) -> None:
    one = Guarded(tmp_path, "sleep 600 & echo $!; kill -9 $$")
    ended.append(one)
    (pid,) = one.pids(1)

    assert one.guard.wait(30) == 128 + signal.SIGKILL
    assert not alive(pid)


def test_when_the_guard_is_killed_all_processes_are_killed(tmp_path: Path, ended: list[Guarded]) -> None:
    one = Guarded(tmp_path, "trap '' TERM; sleep 600 & echo $!; echo $$; wait")
    ended.append(one)
    pids = one.pids(2)
    one.guard.kill()

    until(lambda: not any(alive(pid) for pid in pids), "their end")


@LINUX
def test_when_the_witness_is_killed_another_is_started(tmp_path: Path, ended: list[Guarded]) -> None:
    one = Guarded(tmp_path, "trap '' TERM; sleep 600 & echo $!; echo $$; wait")
    ended.append(one)
    pids = one.pids(2)
    (witness,) = children(one.guard.pid) - set(pids)
    os.kill(witness, signal.SIGKILL)
    until(lambda: len(children(one.guard.pid) - {witness, *pids}) == 1, "another witness")
    one.guard.kill()

    until(lambda: not any(alive(pid) for pid in pids), "their end")


def children(pid: int) -> set[int]:
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def test_sigterm_to_the_guard_ends_all(tmp_path: Path, ended: list[Guarded]) -> None:
    one = Guarded(tmp_path, "sleep 600 & echo $!; echo $$; wait")
    ended.append(one)
    pids = one.pids(2)
    one.guard.terminate()
    one.guard.wait(30)

    assert not any(alive(pid) for pid in pids)


def test_a_missing_command_is_reported() -> None:
    words = [sys.executable, "-I", "-S", PATH, "1", "/no/such/python", "-m", "vllm"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as guarded:
        assert guarded.wait(30) == 127
        assert guarded.stderr
        assert guarded.stderr.read() == "Error: /no/such/python: No such file or directory\n"
