"""What a process had synced, by the system calls it made (strace), or, without strace, by Python's own os.fsync.

A kill leaves the system's cache, so it tells nothing of a power cut: there a file may end where it was last synced.
"""

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from trials.harness import ROOT

TRACED = "trace=fsync,fdatasync,pwrite64,write,ftruncate"
SYNCS = ("fsync", "fdatasync")
_CALL = re.compile(r"(\d+) +(\w+)\((?:\d+)<([^>]+)>(.*)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")

WRAPPER = """\
import os
_fsync = os.fsync
def fsync(file):
    path, size = os.readlink(f"/proc/self/fd/{file}"), os.fstat(file).st_size
    _fsync(file)
    with open(os.environ["AIF_SYNCED"], "a") as log:
        log.write(f"{size} {path}\\n")
os.fsync = fsync
"""


class Trace:
    """Runs `aif` so that `synced` tells afterwards how much of each file was synced."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._log = folder / "log"
        self._log.touch()
        self._strace = shutil.which("strace")
        self.by = "strace" if self._strace else "a wrapper of os.fsync"
        self.environ: dict[str, str] = {}
        if not self._strace:
            (folder / "sitecustomize.py").write_text(WRAPPER)
            self.environ = {"AIF_SYNCED": str(self._log), "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}

    @property
    def before(self) -> list[str]:
        """What goes before the command."""
        traced = ["-f", "-y", "--seccomp-bpf", "-s", "0", "-e", TRACED, "-o", str(self._log)]
        return [self._strace, *traced] if self._strace else []

    def synced(self) -> Mapping[str, int]:
        """The length up to which each file was synced last, by path."""
        lines = self._log.read_text(errors="replace").splitlines()
        if self._strace:
            return synced(lines)
        return {path: int(size) for size, _, path in (line.partition(" ") for line in lines)}


def synced(lines: Iterable[str]) -> dict[str, int]:
    """Of what strace wrote: what had been written to each file when the last sync of it that came back had begun."""
    length: dict[str, int] = {}
    safe: dict[str, int] = {}
    begun: dict[str, tuple[str, int]] = {}  # syncs by thread: path, and length then
    for line in lines:
        if (found := _RESUMED.match(line)) and found[2] in SYNCS:
            path, at = begun.pop(found[1])
            safe[path] = at
        elif found := _CALL.match(line):
            thread, name, path, rest = found.groups()
            if name in SYNCS:
                begun[thread] = path, length.get(path, 0)
                if "unfinished" not in rest:
                    safe[path] = begun.pop(thread)[1]
            elif name == "ftruncate":
                length[path] = int(re.findall(r"\d+", rest)[0])  # unfinished or not
            elif numbers := re.findall(r"\d+", rest):
                size = int(numbers[0])
                at = int(numbers[1]) if name == "pwrite64" else length.get(path, 0)
                length[path] = max(length.get(path, 0), at + size)
    return safe
