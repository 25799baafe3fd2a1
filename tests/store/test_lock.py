"""One writer: who holds a store is told truly or not at all, and whoever only looks keeps nobody out."""

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
from aif.store.lock import Lock, Note, Places, busy, holder, is_held, note_in, place_of

ME = Note(os.getpid(), socket.gethostname(), "2026-03-01T12:00:00+00:00", "aif run p.yaml")


@pytest.fixture(scope="module")
def gone() -> int:
    """The id of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@contextmanager
def taken(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """A lock that is held by somebody who has written nothing into it."""
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
        with pytest.raises(BadInput, match=r"feedback\.lock: its file system takes no locks .*local disk: store: "):
            asked(path)


def test_the_holder_is_named_by_process_host_time_and_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/aif", "run", "two words.yaml"])
    path = tmp_path / "feedback.lock"
    lock = Lock(path)
    note = note_in(path)
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
def test_a_torn_note_names_nobody(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "feedback.lock"
    path.write_text(torn)
    with taken(path):
        assert is_held(path)
        assert holder(path) == "held by another process, which left no word of who it is"
        with pytest.raises(StoreLocked, match="left no word"):
            Lock(path)


def test_what_a_process_that_is_gone_has_left_is_not_said_of_the_holder(tmp_path: Path, gone: int) -> None:
    path = tmp_path / "feedback.lock"
    path.write_text(json.dumps(asdict(ME) | {"pid": gone}))
    with taken(path):
        assert "left no word" in holder(path)


def test_of_another_host_the_note_is_believed_since_its_processes_are_not_known_here(tmp_path: Path, gone: int) -> None:
    path = tmp_path / "feedback.lock"
    path.write_text(json.dumps(asdict(ME) | {"pid": gone, "host": "elsewhere"}))
    with taken(path):
        assert f"held by process {gone} on elsewhere since" in holder(path)


def test_a_killed_holder_leaves_no_lock_behind(tmp_path: Path) -> None:
    path = tmp_path / "feedback.lock"
    program = "import os, pathlib, sys, aif.store.lock as l; l.Lock(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", program, path]).returncode == -9
    assert path.read_text()
    assert not is_held(path)
    Lock(path).release()


def test_whoever_looks_keeps_no_run_out(tmp_path: Path) -> None:
    """`aif status` takes the lock for a moment to see whether it is free."""
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


def test_two_that_look_see_no_holder_in_each_other(tmp_path: Path) -> None:
    path = tmp_path / "feedback.lock"
    path.touch()
    with taken(path, fcntl.LOCK_SH):
        assert not is_held(path)
    assert not is_held(tmp_path / "none.lock")


def test_what_answers_meanwhile_is_said(tmp_path: Path) -> None:
    assert "`aif status` and `aif failures` answer meanwhile" in busy(tmp_path / "feedback.duckdb", "held")


# a store that lies where it was looked for up to now


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
def test_a_store_of_the_working_folder_is_named_with_the_command_that_adopts_it(
    tmp_path: Path, here: Path, named: str, files: list[str], left: list[str]
) -> None:
    """And nothing else that is called so; what is there already is not written over."""
    store, former = tmp_path / "the file's" / named, (here / named).parent
    fill(former, *files)
    fill(store.parent, "s.yaml", "s.lock")
    (store.parent / "s.lock").write_text("mine")
    with pytest.raises(BadInput) as told:
        place_of(store, Path(named))
    said = str(told.value)
    assert str(former) in said
    assert str(store) in said
    command = next(line for line in said.splitlines() if line.startswith("  mkdir"))
    subprocess.run(["sh", "-c", command], cwd="/")

    place_of(store, Path(named))
    mine = {"s.lock"} & {*files}
    assert sorted(path.name for path in former.iterdir()) == sorted({*left} | mine)
    ours = [name for name in files if name.split("/")[0] not in {*left} | mine]
    assert all((store.parent / name).read_text() == name for name in ours)
    assert (store.parent / "s.lock").read_text() == "mine"
    assert (store.parent / "s.yaml").read_text() == "s.yaml"


def test_where_both_have_one_or_an_absolute_place_is_given_nothing_is_adopted(tmp_path: Path, here: Path) -> None:
    named, store = Path("runs/p/feedback.duckdb"), tmp_path / "p/runs/p/feedback.duckdb"
    place_of(store, named)
    fill(here, str(named))
    place_of(store, store)
    place_of(here / named, named)
    fill(store.parent, "feedback.journal/000001.jsonl")
    place_of(store, named)


def test_a_store_that_somebody_writes_to_is_not_moved_under_them(tmp_path: Path, here: Path) -> None:
    named = Path("runs/p/feedback.duckdb")
    fill(here, str(named))
    lock = Lock(Places(here / named).lock)
    with pytest.raises(StoreLocked, match=f"held by process {os.getpid()}"):
        place_of(tmp_path / "p" / named, named)
    lock.release()


def test_a_folder_that_cant_be_made_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("no folder")
    with pytest.raises(BadInput, match=r"runs/p: can't be written to: .*; correct its rights, .* by `store:`"):
        Lock(tmp_path / "runs/p/feedback.lock")
