"""One writer: the named holder is right or none is named, and status checks refuse no run."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from aif.core.errors import BadInput, StoreLocked
from aif.store.lock import Lock, LockNote, busy_message, holder_text, is_held, read_note
from aif.store.paths import StorePaths, check_old_location

ME = LockNote(os.getpid(), socket.gethostname(), "2026-03-01T12:00:00+00:00", "aif run p.yaml")


@pytest.fixture(scope="module")
def gone() -> int:
    """The id of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@contextmanager
def taken(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock without a note."""
    with path.open("a+b") as file:
        fcntl.flock(file, how | fcntl.LOCK_NB)
        yield


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "feedback.lock"
    path.touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    for asked in (Lock, is_held):
        with pytest.raises(
            BadInput, match=r"feedback\.lock: its file system does not support locks .*local disk: store: "
        ):
            asked(path)


def test_the_holder_is_named_by_process_host_time_and_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/aif", "run", "two words.yaml"])
    path = tmp_path / "feedback.lock"
    lock = Lock(path)
    note = read_note(path)
    assert note is not None
    assert (note.pid, note.host, note.command) == (os.getpid(), socket.gethostname(), "aif run 'two words.yaml'")
    with pytest.raises(StoreLocked) as refused:
        Lock(path)
    said = str(refused.value)
    assert f"held by process {os.getpid()} on {socket.gethostname()} since {note.since} (aif run" in said
    assert str(tmp_path / "feedback.duckdb") in said
    lock.release()
    assert not is_held(path)
    Lock(path).release()


@pytest.mark.parametrize("torn", ["", '{"pid": 4', "null", "7", '{"pid": "four"}', '{"pid": 4, "host": "here"}'])
def test_an_incomplete_note_names_no_holder(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "feedback.lock"
    path.write_text(torn)
    with taken(path):
        assert is_held(path)
        assert holder_text(path) == "held by another process, which left no note of its name"
        with pytest.raises(StoreLocked, match="left no note"):
            Lock(path)


def test_the_note_of_an_ended_process_is_not_used(tmp_path: Path, gone: int) -> None:
    path = tmp_path / "feedback.lock"
    path.write_text(json.dumps(asdict(ME) | {"pid": gone}))
    with taken(path):
        assert "left no note" in holder_text(path)


def test_the_note_of_another_host_is_used(tmp_path: Path, gone: int) -> None:
    path = tmp_path / "feedback.lock"
    path.write_text(json.dumps(asdict(ME) | {"pid": gone, "host": "elsewhere"}))
    with taken(path):
        assert f"held by process {gone} on elsewhere since" in holder_text(path)


def test_a_killed_holder_leaves_no_lock_behind(tmp_path: Path) -> None:
    path = tmp_path / "feedback.lock"
    program = "import os, pathlib, sys, aif.store.lock as l; l.Lock(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", program, path]).returncode == -9
    assert path.read_text()
    assert not is_held(path)
    Lock(path).release()


def test_a_status_check_refuses_no_run(tmp_path: Path) -> None:
    """`aif status` takes the lock for a moment to check it."""
    path = tmp_path / "feedback.lock"
    look, seen = taken(path, fcntl.LOCK_SH), threading.Event()

    def leave() -> None:
        seen.wait()
        look.__exit__(None, None, None)

    path.touch()
    look.__enter__()
    leaving = threading.Thread(target=leave)
    leaving.start()
    threading.Timer(0.02, seen.set).start()
    Lock(path).release()
    leaving.join()


def test_two_status_checks_do_not_see_each_other_as_holders(tmp_path: Path) -> None:
    path = tmp_path / "feedback.lock"
    path.touch()
    with taken(path, fcntl.LOCK_SH):
        assert not is_held(path)
    assert not is_held(tmp_path / "none.lock")


def test_a_busy_message_names_the_commands_that_work(tmp_path: Path) -> None:
    assert "`aif status` and `aif failures` work meanwhile" in busy_message(tmp_path / "feedback.duckdb", "held")


# a store where earlier versions put it


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "it's here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.mark.parametrize(
    ("named", "files", "left"),
    [
        ("runs/p/feedback.duckdb", ["feedback.journal/000001.jsonl", "dataset/run.json", "weights/1"], ["weights"]),
        ("runs/p/feedback.duckdb", ["feedback.duckdb"], []),
        ("kept/my s.duckdb", ["my s.duckdb", "my s.journal/1", "dataset/run.json", "other.duckdb"], ["other.duckdb"]),
        ("s.duckdb", ["s.duckdb", "s.logs/a-1.log", "dataset/of-mine", "p.yaml"], ["dataset", "p.yaml"]),
        (
            "s.duckdb",
            [
                *("s.duckdb.wal", "s.duckdb.aside2", "s.duckdb.aside.wal.unreadable", "s.lock", "s.journal/1"),
                *("s.progress.json", "s.jsonl", "s.yaml", "s.duckdb.bak", "s"),
            ],
            ["s", "s.duckdb.bak", "s.jsonl", "s.yaml"],
        ),
    ],
)
def test_a_store_in_the_working_directory_is_reported_with_the_command_that_moves_it(
    tmp_path: Path, here: Path, named: str, files: list[str], left: list[str]
) -> None:
    """Other files with the same names stay, and nothing is overwritten."""
    store, former = tmp_path / "the file's" / named, (here / named).parent
    fill(former, *files)
    fill(store.parent, "s.yaml", "s.lock")
    (store.parent / "s.lock").write_text("mine")
    with pytest.raises(BadInput) as told:
        check_old_location(store, Path(named))
    said = str(told.value)
    assert str(former) in said
    assert str(store) in said
    command = next(line for line in said.splitlines() if line.startswith("  mkdir"))
    subprocess.run(["sh", "-c", command], cwd="/")

    check_old_location(store, Path(named))
    mine = {"s.lock"} & {*files}
    assert sorted(path.name for path in former.iterdir()) == sorted({*left} | mine)
    ours = [name for name in files if name.split("/")[0] not in {*left} | mine]
    assert all((store.parent / name).read_text() == name for name in ours)
    assert (store.parent / "s.lock").read_text() == "mine"
    assert (store.parent / "s.yaml").read_text() == "s.yaml"


def test_nothing_is_reported_if_both_places_have_a_store_or_the_path_is_absolute(tmp_path: Path, here: Path) -> None:
    named, store = Path("runs/p/feedback.duckdb"), tmp_path / "p/runs/p/feedback.duckdb"
    check_old_location(store, named)
    fill(here, str(named))
    check_old_location(store, store)
    check_old_location(here / named, named)
    fill(store.parent, "feedback.journal/000001.jsonl")
    check_old_location(store, named)


def test_a_store_in_use_is_not_to_be_moved(tmp_path: Path, here: Path) -> None:
    named = Path("runs/p/feedback.duckdb")
    fill(here, str(named))
    lock = Lock(StorePaths(here / named).lock)
    with pytest.raises(StoreLocked, match=f"held by process {os.getpid()}"):
        check_old_location(tmp_path / "p" / named, named)
    lock.release()


def test_a_folder_that_cant_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("no folder")
    with pytest.raises(
        BadInput, match=r"runs/p: can't be written to: .*; fix its permissions, or set `store:` to another path"
    ):
        Lock(tmp_path / "runs/p/feedback.lock")
