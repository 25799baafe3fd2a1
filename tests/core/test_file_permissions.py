"""Who may read the files that aif writes. All files of a complete run are checked, so that new ones are covered."""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aif.core.file_permissions import PRIVATE_UMASK, USER_UMASK
from aif.export import hub
from aif.sources import load
from tests.servers.test_fleet import Fakes, aif, fakes, pipeline

__all__ = ["fakes"]  # the fixture


def found(folder: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield the path, permissions and kind (folder or not) of everything below a folder."""
    for path in folder.rglob("*"):
        try:
            state = path.lstat()
        except FileNotFoundError:  # a run goes on
            continue
        yield path.relative_to(folder).as_posix(), stat.S_IMODE(state.st_mode), stat.S_ISDIR(state.st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_files_of_a_run_are_private_and_exported_files_follow_the_umask(
    tmp_path: Path, fakes: Fakes, umask: int
) -> None:
    path = pipeline(tmp_path, {"a": fakes.launch(), "b": fakes.launch()}, fakes.launch(), count=16)
    given = {name for name, *_ in found(tmp_path)}
    modes: dict[str, tuple[int, bool]] = {}

    def typed(*words: str, end: str = "") -> None:
        """Run a command and watch its files until it ends; kill it once a file with this ending exists."""
        sets = ["store=runs/t/feedback.duckdb", *words[1:]]
        process = aif(words[0], path, *(word for one in sets for word in ("--set", one)), umask=umask)
        while process.poll() is None:
            modes.update({name: (mode, folder) for name, mode, folder in found(tmp_path) if name not in given})
            time.sleep(0.005)
            if end and any(name.endswith(end) for name in modes):
                process.kill()
        process.communicate()
        modes.update({name: (mode, folder) for name, mode, folder in found(tmp_path) if name not in given})

    typed("run", end=".wal")
    typed("run", "models.b.launch.env.FAKE_ENDS=1")
    for command in ("failures", "run", "export", "reparse"):
        typed(command)

    servers = [mode for name, (mode, folder) in modes.items() if name.startswith("started/") and not folder]
    assert {*servers} == {0o666 & ~umask}, "what a server writes is as ever"
    ours = {name.removeprefix("runs/t/"): one for name, one in modes.items() if not name.startswith("started/")}
    assert {"feedback.duckdb", "feedback.duckdb.wal", "feedback.lock", "feedback.progress.json", "dataset/run.json",
            "feedback.journal/000001.jsonl", "feedback.logs/a-1.log", "dataset/trl"} <= ours.keys()  # fmt: skip
    for name, (mode, folder) in ours.items():
        public = name in ("runs", "runs/t") or "dataset" in name
        assert mode == (0o777 if folder else 0o666) & ~(umask if public else PRIVATE_UMASK), (name, oct(mode))


def test_changed_permissions_of_a_file_stay(tmp_path: Path, fakes: Fakes) -> None:
    path = pipeline(tmp_path, {"a": fakes.launch()}, fakes.launch(), count=2)
    for _ in range(2):
        aif("run", path).communicate()
        for name in ("feedback.duckdb", "feedback.journal/000001.jsonl"):
            (tmp_path / name).chmod(0o640)
    aif("run", path).communicate()
    assert {name: oct(mode) for name, mode, _ in found(tmp_path) if name.endswith(("b", "1.jsonl"))} == {
        "feedback.duckdb": "0o640",
        "feedback.journal/000001.jsonl": "0o640",
    }


def test_files_from_the_hub_have_the_users_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    folder = tmp_path / "cache"
    folder.mkdir()
    before = os.umask(PRIVATE_UMASK)
    try:
        for n, doing in enumerate((load._hub_errors("org/name"), hub.hub_client("org/name"))):
            with doing:
                (folder / f"cached{n}").touch()
        (folder / "kept").touch()
    finally:
        os.umask(before)
    usual = 0o666 & ~USER_UMASK
    assert {name: mode for name, mode, _ in found(folder)} == {"cached0": usual, "cached1": usual, "kept": 0o600}
