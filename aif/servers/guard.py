"""The guard of one server: starts a command, and sees to it that nothing of it is left, however aif ends.

Run by path with `python -I -S`, so that neither PYTHONPATH nor a module of ours can come in its way; standard library
only. Arguments: seconds of grace, then the command. Its stdin is a pipe that aif holds. When the pipe closes (aif
ended, crashed, was killed), on SIGTERM, or when the command itself ends, everything the command started is asked to
end, and after the grace killed. The exit code is the command's, as a shell tells it (128 + signal).

vLLM needs this: its engine and workers live on when the server they belong to is killed. Four things hold them:
- the command's process group, which vLLM's processes stay in;
- on Linux the guard is their subreaper: what leaves the group and loses its parent becomes the guard's own child, so
  that /proc shows all that is left. Elsewhere the group has to do;
- a witness, a fork of the guard, kills the group should the guard itself be killed; another takes its place should it
  be killed first;
- and on Linux the command has a parent-death signal, for the moment before there is a witness.
"""

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress

ALONE_S = 2.0  # what a server leaves behind that has ended by itself has nothing more to finish
LAST_S = 20.0  # after SIGKILL; a process that hangs in a driver can't be waited for without end
STEP_S = 0.05
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LINUX = sys.platform == "linux"


def main(grace_s: float, command: list[str]) -> int:
    """Runs `command` to its end or to the pipe's, and returns the exit code."""
    if LINUX:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
    group = _start(command)
    witness = _witness(group)
    wake, waker = os.pipe()
    for end in (wake, waker):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    asked: list[int] = []
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, lambda number, _: asked.append(number))
    ended: dict[int, int] = {}
    while group not in _reaped(ended) and not asked:
        if ended.pop(witness[0], None) is not None:
            os.close(witness[1])
            witness = _witness(group)
        if 0 in select.select([0, wake], [], [])[0]:
            break  # aif writes nothing: the pipe has closed
        os.read(wake, 4096)
    _end(group, witness, ended, min(grace_s, ALONE_S) if group in ended else grace_s)
    return _shell_code(ended.get(group))


def _start(command: list[str]) -> int:
    """The command's pid, which is its group's number."""
    guard, pid = os.getpid(), os.fork()
    if not pid:
        os.setpgid(0, 0)
        if LINUX:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard:  # which was killed before it could take the command along
                os._exit(127)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        try:
            os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
        except OSError as error:
            os.write(2, f"Error: {command[0]}: {error.strerror}\n".encode())
        os._exit(127)
    with suppress(OSError):  # here as well, so that the group is there at once; the command may run already, in it
        os.setpgid(pid, pid)
    return pid


def _witness(group: int) -> tuple[int, int]:
    """A process that kills the group when the guard is gone without having said so: its pid, and the end of the pipe
    that the guard holds."""
    hear, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(hear)
        return pid, tell
    os.setsid()
    os.close(tell)
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    if not os.read(hear, 1):
        _signal_group(group, signal.SIGKILL)
    os._exit(0)


def _end(group: int, witness: tuple[int, int], ended: dict[int, int], grace_s: float) -> None:
    """Everything of the command ended: asked, then killed."""
    pid, tell = witness
    _signal_group(group, signal.SIGTERM)
    if not _gone(group, pid, ended, time.monotonic() + grace_s):
        deadline = time.monotonic() + LAST_S
        while not _gone(group, pid, ended, time.monotonic() + STEP_S) and time.monotonic() < deadline:
            _signal_group(group, signal.SIGKILL)
            for one in _descendants() - {pid}:
                _kill(one)
    with suppress(BrokenPipeError):  # killed a moment ago
        os.write(tell, b".")


def _gone(group: int, witness: int, ended: dict[int, int], deadline: float) -> bool:
    """Whether nothing is left of the command by the deadline."""
    while True:
        _reaped(ended)
        if not (_descendants() - {witness}) and not _signal_group(group, 0):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(STEP_S)


def _reaped(ended: dict[int, int]) -> dict[int, int]:
    """The exit states of all children that have ended so far, orphans that were taken in too."""
    with suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            ended[child[0]] = child[1]
    return ended


def _descendants() -> set[int]:
    """All processes below this one, as /proc tells; none where there is no /proc."""
    if not LINUX:
        return set()
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib would cost a guard its quick start
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    state = file.read()
            except OSError:
                continue  # ended meanwhile
            parent = int(state.rpartition(b")")[2].split()[1])  # a name in brackets goes before, with any character
            children.setdefault(parent, []).append(int(name))
    below, left = set(), [os.getpid()]
    while left:
        found = children.get(left.pop(), [])
        below.update(found)
        left.extend(found)
    return below


def _signal_group(group: int, number: int) -> bool:
    """Whether there is anybody in the group to signal."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        return False
    return True


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _shell_code(status: int | None) -> int:
    if status is None:
        return 0
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
