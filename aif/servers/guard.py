"""The guard: a process that runs a server and ends it with all its child processes if aif dies, even by kill -9.

It is run by path as `python -I -S guard.py GRACE_SECONDS COMMAND…` and uses the standard library only. So no PYTHONPATH
and no module of aif can affect it.

The guard ends all processes of the command in three cases:
- its stdin closes. Stdin is a pipe that aif holds open; it closes when aif ends, crashes or is killed;
- it gets SIGTERM, SIGINT or SIGHUP;
- the command ends by itself.

It sends SIGTERM, and after the grace period SIGKILL. Its exit code is the command's, as a shell reports it (128 +
signal).

vLLM's engine and worker processes survive a killed server. The guard reaches them in four ways:
- the command's process group, which vLLM's processes stay in;
- on Linux the guard is a child subreaper: a process that leaves the group and loses its parent becomes the guard's
  child, and is found in /proc. On other systems only the group is signalled;
- the witness, a fork of the guard that kills the group if the guard itself is killed. If the witness is killed first,
  the guard starts another;
- on Linux the command gets SIGKILL if the guard dies (PR_SET_PDEATHSIG), which matters until the witness runs.
"""

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress

ALONE_S = 2.0  # grace if the server ended by itself: its remaining processes have nothing left to finish
LAST_S = 20.0  # after SIGKILL; a process that hangs in a driver can't be waited for without a limit
STEP_S = 0.05
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LINUX = sys.platform == "linux"


def main(grace_s: float, command: list[str]) -> int:
    """Run `command` until it ends, the pipe on stdin closes or a stop signal comes. Then end all its processes (SIGKILL
    after at most `grace_s` seconds), and return its exit code."""
    if LINUX:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
    group = _start(command)
    witness = _start_witness(group)
    wake, waker = os.pipe()
    for end in (wake, waker):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    stops: list[int] = []
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: stops.append(number))
    ended: dict[int, int] = {}
    while group not in _reap(ended) and not stops:
        if ended.pop(witness[0], None) is not None:
            os.close(witness[1])
            witness = _start_witness(group)
        if 0 in select.select([0, wake], [], [])[0]:
            break  # aif never writes: stdin is readable when the pipe has closed
        os.read(wake, 4096)
    _end_all(group, witness, ended, min(grace_s, ALONE_S) if group in ended else grace_s)
    return _shell_code(ended.get(group))


def _start(command: list[str]) -> int:
    """Start the command in a process group of its own. Return its pid, which is the group's id."""
    guard, pid = os.getpid(), os.fork()
    if not pid:
        os.setpgid(0, 0)
        if LINUX:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard:  # the guard was killed before the parent-death signal was set
                os._exit(127)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        try:
            os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
        except OSError as error:
            os.write(2, f"Error: {command[0]}: {error.strerror}\n".encode())
        os._exit(127)
    with suppress(OSError):  # set in the parent too, so that the group exists now; fails if the child runs already
        os.setpgid(pid, pid)
    return pid


def _start_witness(group: int) -> tuple[int, int]:
    """Fork the witness: a process that kills the group (of the command) if the guard dies.

    It reads from a pipe to the guard: if the pipe closes before anything is written, the guard has died. Return the
    witness's pid and the guard's end of the pipe.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reader)
        return pid, writer
    os.setsid()
    os.close(writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not os.read(reader, 1):
        _signal_group(group, signal.SIGKILL)
    os._exit(0)


def _end_all(group: int, witness: tuple[int, int], ended: dict[int, int], grace_s: float) -> None:
    """End all processes of the command, by SIGTERM, and after `grace_s` seconds by SIGKILL. Then let the witness end.

    group: id of the command's process group.
    witness: the witness's pid, and the pipe to the witness.
    ended: wait statuses of ended child processes, by pid. Statuses collected here are added.

    If a process can't be ended, the function gives up LAST_S (20) seconds after it begins to send SIGKILL.
    """
    pid, writer = witness
    _signal_group(group, signal.SIGTERM)
    if not _all_ended(group, pid, ended, time.monotonic() + grace_s):
        deadline = time.monotonic() + LAST_S
        while not _all_ended(group, pid, ended, time.monotonic() + STEP_S) and time.monotonic() < deadline:
            _signal_group(group, signal.SIGKILL)
            for descendant in _descendants() - {pid}:
                _kill(descendant)
    with suppress(BrokenPipeError):  # the witness was killed a moment ago
        os.write(writer, b".")


def _all_ended(group: int, witness: int, ended: dict[int, int], deadline: float) -> bool:
    """Wait until all processes of the command have ended. Return True then, or False at the deadline.

    group: id of the command's process group.
    witness: pid of the witness, which isn't waited for.
    ended: wait statuses of ended child processes, by pid. Statuses collected here are added.
    deadline: by time.monotonic, in seconds.
    """
    while True:
        _reap(ended)
        if not (_descendants() - {witness}) and not _signal_group(group, 0):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(STEP_S)


def _reap(ended: dict[int, int]) -> dict[int, int]:
    """Collect the wait statuses of children that have ended, also of adopted orphans: add them to `ended` by pid, and
    return it. Doesn't wait."""
    with suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            ended[child[0]] = child[1]
    return ended


def _descendants() -> set[int]:
    """Return the pids of all descendants of this process, from /proc; none on systems other than Linux."""
    if not LINUX:
        return set()
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib would slow down the guard's start
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    state = file.read()
            except OSError:
                continue  # ended meanwhile
            parent = int(state.rpartition(b")")[2].split()[1])  # the name in brackets before it may hold any character
            children.setdefault(parent, []).append(int(name))
    descendants, left = set(), [os.getpid()]
    while left:
        pids = children.get(left.pop(), [])
        descendants.update(pids)
        left.extend(pids)
    return descendants


def _signal_group(group: int, number: int) -> bool:
    """Send the signal `number` to all processes of the group; 0 sends none. Return whether the group has any
    process."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS gives the latter for a group of zombies
        return False
    return True


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _shell_code(status: int | None) -> int:
    """Convert a wait status to an exit code as shells report it: 128 + the signal for a killed process. None, an
    unknown status, gives 0."""
    if status is None:
        return 0
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
