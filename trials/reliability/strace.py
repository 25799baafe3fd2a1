"""Find out how much of each file a process has synced, from its system calls (strace) or from calls of os.fsync.

A killed process loses nothing that it wrote, since the system's cache survives; a power cut may lose what was not
synced.
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
    """Trace an `aif` command, so that `synced` can report afterwards how much of each file was synced."""

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
        """The words to put before the traced command."""
        traced = ["-f", "-y", "--seccomp-bpf", "-s", "0", "-e", TRACED, "-o", str(self._log)]
        return [self._strace, *traced] if self._strace else []

    def synced(self) -> Mapping[str, int]:
        """Return for each file, by path, the length that the last sync covered."""
        lines = self._log.read_text(errors="replace").splitlines()
        if self._strace:
            return synced(lines)
        return {path: int(size) for size, _, path in (line.partition(" ") for line in lines)}


def synced(lines: Iterable[str]) -> dict[str, int]:
    """Return for each file in strace's log, by path, the length it had when its last completed sync began."""
    length: dict[str, int] = {}
    safe: dict[str, int] = {}
    begun: dict[str, tuple[str, int]] = {}  # running syncs by thread: path, and its length when the sync began
    for line in lines:
        if (match := _RESUMED.match(line)) and match[2] in SYNCS:
            path, at = begun.pop(match[1])
            safe[path] = at
        elif match := _CALL.match(line):
            thread, name, path, rest = match.groups()
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
