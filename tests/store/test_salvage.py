"""Two copies of what was paid for: records that only the store holds are written back to the journal, or a command
refuses to continue."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import duckdb
import pytest
from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.config.pipeline import load
from aif.core.errors import BadInput, JournalDamaged
from aif.core.types import Spent
from aif.engine.rebuild import rebuild
from aif.engine.run import run_pipeline
from aif.providers.base import CallError, Kind
from aif.providers.retry import RetryPolicy
from aif.simulator import SimulatedModels
from aif.simulator.faults import Fault, Faults
from aif.store import journal as journals
from aif.store import records as events
from aif.store.journal import Damage, Journal
from aif.store.journaled_store import FEW_DAMAGED, JournaledStore
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from aif.store.set_aside import SetAsideStore, set_aside
from tests.end_to_end.test_carried import answered, bring, rows, scored
from tests.engine.test_orchestrator import ask, run, write
from tests.store.test_journaled_store import Kept
from tests.support.building import STARTED, Fate, build
from tests.support.serving import POOL, Served

Serve = Callable[..., Served]


@pytest.fixture
def kept(tmp_path: Path, serve: Serve) -> Kept:
    served = serve()
    return Kept(write(tmp_path, served, count=4), served)


def unrun(path: Path, served: Served) -> Kept:
    """A `Kept` for an existing run."""
    kept = Kept.__new__(Kept)
    kept.path, kept.served, kept.pipeline = path, served, load(path)
    kept.paths = StorePaths(kept.pipeline.store)
    return kept


def segment(kept: Kept) -> Path:
    return kept.paths.journal / "000001.jsonl"


def lines(kept: Kept) -> list[bytes]:
    return segment(kept).read_bytes().splitlines(keepends=True)


def damage(kept: Kept, which: Callable[[int, bytes], bool]) -> None:
    found = lines(kept)
    segment(kept).write_bytes(b"".join(b"?" * 20 + one[20:] if which(n, one) else one for n, one in enumerate(found)))


def records(kept: Kept) -> list[dict[str, Any]]:
    return [found for _, found in journals.replay(kept.paths.journal) if not isinstance(found, Damage)]


def former(kept: Kept) -> list[str]:
    return sorted(path.name for path in kept.paths.store.parent.glob("feedback.duckdb?*"))


def asked_no_more(kept: Kept) -> None:
    run(kept.path)
    assert kept.served.stats()["calls"] == 20


# --- the journal is damaged -------------------------------------------------------------------------------------------


def test_a_rebuild_over_a_journal_without_a_valid_line_loses_nothing(kept: Kept) -> None:
    damage(kept, lambda n, line: True)
    told: list[str] = []
    found = rebuild(kept.pipeline, told.append)
    assert (found.calls, found.unchanged, found.no_longer_readable) == (20, 4, 0)
    assert kept.read() == kept.rows
    assert any("lacked" in line and "they were written back" in line for line in told)
    assert former(kept) == []

    kept.paths.store.unlink()
    kept.reopened()
    assert kept.read() == kept.rows, "the damage was made good: it is not asked about again"
    asked_no_more(kept)


def test_other_newlines_lose_nothing_even_without_a_store(kept: Kept) -> None:
    segment(kept).write_bytes(segment(kept).read_bytes().replace(b"\n", b"\r\n"))
    rebuild(kept.pipeline, lambda words: None)
    assert kept.read() == kept.rows
    kept.paths.store.unlink()
    kept.reopened()
    assert kept.read() == kept.rows
    asked_no_more(kept)


def test_records_that_an_older_backup_lacks_are_written_back_from_the_store(kept: Kept) -> None:
    whole = lines(kept)
    for share in (0.0, 0.3, 0.9):
        segment(kept).write_bytes(b"".join(whole[: int(share * len(whole))]))
        asked_no_more(kept)
        assert kept.read() == kept.rows


def test_journal_and_store_with_different_damage_are_complete_together(kept: Kept) -> None:
    damage(kept, lambda n, line: n % 2 == 0 and b'"t":"call"' in line)
    left = {one["id"] for one in records(kept) if one["t"] == "call"}
    with duckdb.connect(str(kept.paths.store)) as db:
        for table, key in (("completions", "call_id"), ("judgements", "call_id"), ("calls", "id")):
            db.execute(f"DELETE FROM {table} WHERE {key} IN (SELECT unnest(?))", [sorted(left)])
        db.execute("UPDATE about SET segment = 9")
    kept.reopened()
    assert kept.read() == kept.rows
    asked_no_more(kept)


def test_many_lost_lines_end_a_command_before_any_call(kept: Kept) -> None:
    """Any command, each time, until the damaged file is moved away; its other records are kept."""
    calls = [n for n, line in enumerate(lines(kept)) if b'"t":"call"' in line]
    damage(kept, lambda n, line: n in calls[: FEW_DAMAGED + 1])
    kept.paths.store.unlink()
    for command in (run, lambda path: rebuild(load(path), lambda words: None), run):
        with pytest.raises(JournalDamaged, match=f"{FEW_DAMAGED + 1} lines are damaged") as told:
            command(kept.path)
        assert f"mv {segment(kept)} {segment(kept)}.damaged; touch {segment(kept)}" in str(told.value)
    assert kept.served.stats()["calls"] == 20

    segment(kept).rename(f"{segment(kept)}.damaged")
    segment(kept).touch()
    run(kept.path)
    assert kept.served.stats()["calls"] == 20 + FEW_DAMAGED + 1
    assert {one["t"] for one in records(kept)} >= {"prompt", "call", "text", "page", "selected"}


def in_segments(kept: Kept) -> list[Path]:
    """Write the journal again in several segments, and rebuild the store."""
    found = records(kept)
    shutil.rmtree(kept.paths.journal)
    journal, _ = Journal.open(kept.paths.journal, 4000)
    for one in found:
        journal.append([one])
    journal.close()
    kept.paths.store.unlink()
    kept.reopened()
    return [journals.segment(kept.paths.journal, n) for n in journals.segments(kept.paths.journal)]


def do_as_told(told: BaseException) -> None:
    """Run the commands in a message, one a line."""
    commands = [line for line in str(told).splitlines() if line.startswith("  ")]
    assert commands
    for command in commands:
        subprocess.run(["sh", "-ec", command], check=True)


def test_a_missing_segment_is_refused_and_written_back_from_the_store(kept: Kept) -> None:
    """Also by a run; then the journal is complete again."""
    gone = in_segments(kept)[1]
    gone.unlink()
    with pytest.raises(JournalDamaged, match=f"touch {gone}") as told:
        run(kept.path)
    do_as_told(told.value)
    asked_no_more(kept)
    assert kept.read() == kept.rows
    assert former(kept) == []
    kept.paths.store.unlink()
    asked_no_more(kept)
    assert kept.read() == kept.rows
    assert kept.reopened() == [], "the store is compared once"


@pytest.mark.parametrize("which", [1, 2, -1])
def test_the_commands_in_a_refusal_of_damaged_lines_work(kept: Kept, which: int) -> None:
    """Whichever segment they are in; its other records are written back from the store."""
    found = [path for path in in_segments(kept) if path.read_bytes().count(b"\n") > FEW_DAMAGED]
    broken = found[which]
    whole = broken.read_bytes()
    split = whole.splitlines(keepends=True)
    broken.write_bytes(b"".join(b"?" * 20 + one[20:] if n <= FEW_DAMAGED else one for n, one in enumerate(split)))
    kept.paths.store.unlink()
    for _ in range(2):
        with pytest.raises(JournalDamaged, match=f"{FEW_DAMAGED + 1} lines are damaged") as told:
            run(kept.path)
    do_as_told(told.value)
    _, ended = run(kept.path)
    assert not ended.incomplete
    assert {one["id"] for one in kept.rows["calls"]} & {one["id"] for one in records(kept) if one["t"] == "call"} >= {
        one["id"]
        for one in map(journals.decode, split[FEW_DAMAGED + 1 :])
        if not isinstance(one, str) and one["t"] == "call"
    }
    calls = kept.served.stats()["calls"]
    assert calls <= 20 + FEW_DAMAGED + 1
    run(kept.path)
    assert kept.served.stats()["calls"] == calls


def test_a_damaged_segment_moved_away_is_not_overwritten_by_the_next(kept: Kept) -> None:
    """It may still be repaired by hand. The emptied segment counts as damaged, and is moved as well."""
    found = [path for path in in_segments(kept) if path.read_bytes().count(b"\n") > FEW_DAMAGED]
    for broken in found[:2]:
        split = broken.read_bytes().splitlines(keepends=True)
        broken.write_bytes(b"".join(b"?" * 20 + one[20:] if n <= FEW_DAMAGED else one for n, one in enumerate(split)))
        kept.paths.store.unlink()
        with pytest.raises(JournalDamaged) as told:
            run(kept.path)
        before = {path.read_bytes() for path in kept.paths.journal.glob("*.damaged*")}
        do_as_told(told.value)
        assert before <= {path.read_bytes() for path in kept.paths.journal.glob("*.damaged*")}
        run(kept.path)


def test_lines_restored_from_a_backup_are_read_again(kept: Kept) -> None:
    whole = segment(kept).read_bytes()
    damage(kept, lambda n, line: b'"t":"call"' in line)
    kept.paths.store.unlink()
    with pytest.raises(JournalDamaged, match="restore the journal from a backup"):
        run(kept.path)
    segment(kept).write_bytes(whole)
    asked_no_more(kept)
    assert kept.read() == kept.rows


@pytest.mark.parametrize("number", [3, FEW_DAMAGED + 1])
def test_a_kill_before_records_are_written_back_leaves_the_damage_counted(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The lines are in no store: the store is older."""
    store, whole = kept.paths.store, lines(kept)
    prompts = [n for n, line in enumerate(whole) if b'"t":"call"' in line][-number:]
    segment(kept).write_bytes(b"".join(whole[: prompts[0]]))
    store.unlink()
    kept.reopened()
    segment(kept).write_bytes(b"".join(whole))
    damage(kept, lambda n, line: n in prompts)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(JournaledStore, "_write_back", killed)
        with pytest.raises(KeyboardInterrupt):
            rebuild(kept.pipeline, lambda words: None)
    if number > FEW_DAMAGED:
        with pytest.raises(JournalDamaged, match=f"{number} lines are damaged"):
            run(kept.path)
    else:
        JournaledStore.open(store, lambda words: None).close()
        with Reader.open(store) as reader:
            assert reader._query("SELECT damaged FROM about") == [{"damaged": number}]
    assert kept.served.stats()["calls"] == 20


# --- stores that were set aside ---------------------------------------------------------------------------------------


def test_a_store_set_aside_is_not_overwritten_and_its_records_are_written_back(kept: Kept) -> None:
    """As two killed recoveries leave it; then the journal is cut, and the store rebuilt from the rest."""
    store = kept.paths.store
    for name in (".aside", ".aside2"):
        shutil.copy(store, f"{store}{name}")
    segment(kept).write_bytes(b"".join(lines(kept)[:8]))
    store.unlink()
    kept.reopened()
    assert kept.read() == kept.rows
    assert former(kept) == []
    asked_no_more(kept)


def renames(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Kill the process after `number` renames."""
    rename, left = Path.rename, [number]

    def killed(path: Path, to: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", killed)


@pytest.mark.parametrize("renamed", [0, 1, 2])
@pytest.mark.parametrize("also", [(), (".aside",)])
def test_a_kill_while_a_store_is_set_aside_loses_nothing_in_its_log(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, renamed: int, also: tuple[str, ...]
) -> None:
    """All rows are in the log: the store was never closed. There may be another set-aside store."""
    store, folder = kept.paths.store, kept.path.parent
    store.unlink()
    with JournaledStore.open(store, lambda words: None):
        for path in folder.glob("feedback.duckdb*"):
            shutil.copy(path, folder / f"left{path.suffix}")
    for name in also:
        shutil.copy(folder / "left.duckdb", f"{store}{name}")
    shutil.move(folder / "left.duckdb", store)
    shutil.move(folder / "left.wal", f"{store}.wal")
    segment(kept).write_bytes(b"".join(lines(kept)[:3]))
    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        renames(patched, renamed)
        set_aside(store)
    kept.reopened()
    assert kept.read() == kept.rows
    assert former(kept) == []
    asked_no_more(kept)


def test_a_kill_while_a_set_aside_store_is_deleted_leaves_no_log_for_another(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, unlink = kept.paths.store, Path.unlink
    with JournaledStore.open(store, pytest.fail) as journaled:
        journaled.keep([events.mended(0)])
        for path in kept.path.parent.glob("feedback.duckdb*"):
            shutil.copy(path, path.with_name(path.name.replace(".duckdb", ".duckdb.aside")))

    def killed(path: Path, missing_ok: bool = False) -> None:
        had = path.exists()
        unlink(path, missing_ok=missing_ok)
        if had and ".aside" in path.name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            kept.reopened()
    assert len(former(kept)) == 1
    assert kept.reopened() == []
    assert former(kept) == []
    assert kept.read()["calls"] == kept.rows["calls"]


def test_a_log_without_its_store_is_kept(kept: Kept) -> None:
    """It belongs to another store than the present one."""
    store = kept.paths.store
    other = kept.path.parent / "other"
    other.mkdir()
    with JournaledStore.open(other / "feedback.duckdb", lambda words: None) as journaled:
        journaled.keep([events.mended(0)])
        shutil.copy(other / "feedback.duckdb.wal", f"{store}.aside.wal")
    log = Path(f"{store}.aside.wal").read_bytes()
    for _ in range(2):
        told = kept.reopened()
        assert kept.read() == kept.rows
    assert told == []
    (left,) = former(kept)
    assert (kept.path.parent / left).read_bytes() == log


def test_an_unreadable_store_is_kept_and_reported_once(kept: Kept) -> None:
    store = kept.paths.store
    for _ in range(2):
        store.write_bytes(b"no database")
        told = kept.reopened()
        assert "it may hold records that the journal lacks, so it was renamed to" in told[1]
        assert kept.reopened() == []
    assert former(kept) == ["feedback.duckdb.unreadable", "feedback.duckdb.unreadable2"]
    assert (store.parent / "feedback.duckdb.unreadable").read_bytes() == b"no database"


def test_a_store_with_an_unreadable_log_gives_its_other_records(kept: Kept) -> None:
    whole, log = lines(kept), kept.paths.store.with_name("feedback.duckdb.wal")
    with JournaledStore.open(kept.paths.store, pytest.fail) as journaled:
        journaled.keep([events.mended(0)])
        of_before = log.read_bytes()
    segment(kept).write_bytes(b"".join(whole[:8]))
    log.write_bytes(of_before)
    told = kept.reopened()
    assert any("feedback.duckdb.aside.wal.unreadable" in line for line in told)
    assert kept.read() == kept.rows
    assert former(kept) == ["feedback.duckdb.aside.wal.unreadable"]
    asked_no_more(kept)


@pytest.mark.parametrize("back", ["feedback.journal", "feedback.duckdb", None])
def test_a_journal_without_a_complete_record_and_without_a_store_ends_a_command(kept: Kept, back: str | None) -> None:
    """As after the loss of a disk: there may be a backup. The commands in the message work."""
    folder = kept.path.parent
    shutil.copytree(kept.paths.journal, folder / "copies" / "feedback.journal")
    shutil.move(kept.paths.store, folder / "copies")
    segment(kept).write_bytes(b"\0" * segment(kept).stat().st_size)
    with pytest.raises(JournalDamaged, match="has no complete record") as told:
        run(kept.path)
    assert kept.served.stats()["calls"] == 20
    assert "feedback.duckdb" in str(told.value)
    assert str(kept.paths.journal) in str(told.value)
    if back:
        shutil.move(folder / "copies" / back, folder / back)
        asked_no_more(kept)
        assert kept.read() == kept.rows
    else:
        run(kept.path)
        assert kept.served.stats()["calls"] == 40


def test_a_store_of_another_pipeline_is_refused(kept: Kept, tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "other").mkdir()
    other = Kept(write(tmp_path / "other", serve(), count=6), kept.served)
    shutil.copy(other.paths.store, kept.paths.store)
    for _ in range(2):
        with pytest.raises(JournalDamaged, match=r"aside: holds 30 calls.*belongs to another pipeline") as told:
            kept.reopened()
    assert len([one for one in records(kept) if one["t"] == "call"]) == 20

    aside = Path(str(told.value).partition(": holds")[0])
    aside.unlink()
    kept.reopened()
    assert kept.read() == kept.rows


def test_an_interrupted_recovery_is_continued(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    segment(kept).write_bytes(b"".join(lines(kept)[:3]))
    keep, times = JournaledStore.keep, [0]

    def broken_off(journaled: JournaledStore, kept: list[dict[str, Any]]) -> None:
        times[0] += 1
        if times[0] % 3 == 0:
            raise KeyboardInterrupt
        keep(journaled, kept)

    with monkeypatch.context() as patched:
        patched.setattr(JournaledStore, "keep", broken_off)
        with pytest.raises(KeyboardInterrupt):
            kept.reopened()
        with pytest.raises(KeyboardInterrupt):
            rebuild(kept.pipeline, lambda words: None)
    kept.reopened()
    assert kept.read() == kept.rows
    assert former(kept) == []


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY, reason="files are limited here already"
)
def test_a_full_disk_during_recovery_loses_nothing(kept: Kept) -> None:
    segment(kept).write_bytes(b"".join(lines(kept)[:3]))
    had = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (20_000, 900_000, 2_000_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, had[1]))
        try:
            with suppress(OSError):
                kept.reopened()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, had)
    kept.reopened()
    assert kept.read() == kept.rows


def test_a_cut_store_without_its_journal_gives_what_can_be_read(kept: Kept) -> None:
    """It is refused at first, since it may belong to another program."""
    shutil.rmtree(kept.paths.journal)
    whole = kept.paths.store.stat().st_size
    os.truncate(kept.paths.store, cut := whole - 300_000)
    with pytest.raises(BadInput, match="restore the journal from a backup") as told:
        run(kept.path)
    assert kept.paths.store.stat().st_size == cut, "it stays as it is"
    do_as_told(told.value)
    _, ended = run(kept.path)
    assert not ended.incomplete


def test_answers_whose_calls_cannot_be_read_are_written_back(kept: Kept) -> None:
    shutil.rmtree(kept.paths.journal)
    with duckdb.connect(str(kept.paths.store)) as db:
        db.execute("DELETE FROM calls")
    kept.reopened()
    now = kept.read()
    assert [now[table] for table in ("completions", "judgements")] == [
        kept.rows[table] for table in ("completions", "judgements")
    ]
    assert {row["usd"] for row in now["calls"]} == {None}, "what they cost is not known"
    asked_no_more(kept)


# --- a journal written from a store -----------------------------------------------------------------------------------


def test_a_journal_written_from_a_store_makes_the_same_store(tmp_path: Path, serve: Serve) -> None:
    """Column by column: with temporary and permanent failures, some of them retried, provided completions, prices and a
    test split."""
    faults = Faults({Fault.SERVER_ERROR: 0.2, Fault.REFUSAL: 0.4, Fault.SAYS: 0.1, Fault.CUT: 0.1}, seed=3)
    priced = {"price": {"input": 1, "output": 2}}
    served = serve(faults=faults)
    path = write(
        tmp_path,
        served,
        count=6,
        models={name: {"provider": "vllm", "base_url": served.base_url, **priced} for name in ("large", "small")},
        judges={"judge": {"provider": "openai", "base_url": served.base_url, **priced}},
        completions={"max_tokens": 512, "per_prompt": 2},
        prompts=[{"file": "prompts.jsonl"}, {"file": "brought.jsonl", "completions": {"field": "answers"}}],
    )
    rows(tmp_path, "brought.jsonl", answered(0), answered(1))
    for retry in (False, True):
        quick = RetryPolicy(attempts=2, first_wait_s=0.01, longest_wait_s=0.02, silent_s=0.2)
        run_pipeline(load(path), Terminal(Console(file=StringIO())), policy=quick, retry_failed=retry)
    with JournaledStore.open(load(path).store, print) as journaled:
        journaled.keep([events.split(0.1, 0.25)])
    kept = unrun(path, served)
    spent = "SELECT round(known, 9) AS known, round(unknown, 9) AS unknown, unpriced FROM spent"  # summed in any order
    more = "SELECT * FROM reserved ORDER BY ALL", spent, "FROM carried ORDER BY ALL"
    before = kept.read() | {query: ask(kept.pipeline, query) for query in more}
    shutil.rmtree(kept.paths.journal)
    kept.reopened()
    kept.paths.store.unlink()
    kept.reopened()
    after = kept.read() | {query: ask(kept.pipeline, query) for query in more}
    for name, rows_ in before.items():
        assert after[name] == rows_, name
    assert {row["verdict"] for row in before["calls"]} > {"answered", "again"}
    assert before["failed"]


def test_spend_is_counted_once(kept: Kept) -> None:
    with Reader.open(kept.paths.store) as reader:
        before = reader.spent()
    for _ in range(2):
        damage(kept, lambda n, line: n % 3 == 0)
        rebuild(kept.pipeline, lambda words: None)
    with Reader.open(kept.paths.store) as reader:
        assert reader.spent() == before != Spent(1)
    assert kept.read() == kept.rows


# --- the state of an item ---------------------------------------------------------------------------------------------

Words = list[str]


def says(journaled: JournaledStore, word: str, n: int) -> None:
    """Store the n-th event of an item: the verdict of a call, or `retry`."""
    with Reader.of(journaled.store) as reader:
        (slot,) = reader._query("SELECT * FROM slots ORDER BY slot LIMIT 1")
    details = {"sample": 0, "seed": slot["seed"], "principle": slot["principle"], "system": "role"}
    item = events.CallItem("completion", slot["key"], slot["prompt_id"], slot["model"], slot["identity"], details)
    if word == "retry":
        journaled.keep([events.retry(STARTED)])
        return
    started, error = STARTED + timedelta(minutes=n), CallError(Kind.TIMEOUT, f"word {n}")
    one = events.call(
        item, id=f"run{n}-1", n=1, started=started, seconds=1, verdict=word, reply=None, error=error, usd=None
    )
    journaled.keep([one])


@pytest.mark.parametrize(
    ("words", "seen", "lost"),
    [
        (["failed"], 1, [0]),
        (["failed", "retry"], 2, [0]),
        (["failed", "retry"], 2, [0, 1]),
        (["failed", "retry"], 1, [0]),
        (["failed", "retry", "later"], 1, [0]),
        (["failed", "retry", "failed"], 1, [0]),
        (["later", "failed"], 1, [0]),
        (["later", "failed"], 2, [1]),
        (["failed", "retry", "later"], 3, [2]),
        (["failed", "retry", "later"], 3, [1, 2]),
        (["failed", "retry", "later"], 3, [0, 1, 2]),
    ],
)
def test_the_last_call_or_retry_decides_an_item(tmp_path: Path, words: Words, seen: int, lost: list[int]) -> None:
    """The set-aside store has seen the first events, and lines of the journal are lost: the records written back are
    after later ones, though they may be older."""
    pipeline, _, journaled = build(tmp_path, 1, complete=lambda number, model: Fate.PENDING)
    journaled.close()
    store, stands = pipeline.store, "SELECT verdict, message, started FROM failed"
    path = StorePaths(store).journal / "000001.jsonl"
    begun = path.read_bytes().count(b"\n")
    for n, word in enumerate(words):
        with JournaledStore.open(store, pytest.fail) as journaled:
            says(journaled, word, n)
        if n + 1 == seen:
            shutil.copy(store, tmp_path / "former")
    before = ask(pipeline, stands)
    every = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(b"?" * 20 + one[20:] if n - begun in lost else one for n, one in enumerate(every)))
    store.unlink()
    (tmp_path / "former").rename(f"{store}.aside")
    JournaledStore.open(store, lambda words: None).close()
    assert ask(pipeline, stands) == before
    store.unlink()
    JournaledStore.open(store, lambda words: None).close()
    assert ask(pipeline, stands) == before, "and by the journal alone"


# --- provided completions ---------------------------------------------------------------------------------------------


def test_a_judge_whose_model_is_called_carried_keeps_its_judgements(tmp_path: Path, serve: Serve) -> None:
    served = serve(cast=SimulatedModels(POOL, {"carried": 0.1}, 7))
    judge = {"provider": "openai", "base_url": served.base_url, "model": "carried"}
    path = bring(tmp_path, served, *(answered(n) for n in range(4)), judges={"judge": judge})
    run(path)
    calls = served.stats()["calls"]
    rows(tmp_path, "prompts.jsonl", *(answered(n) for n in range(5)))
    run(path)
    assert calls == 4
    assert served.stats()["calls"] == 5


def test_provided_scores_are_not_searched_among_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are judgements without calls: reading their whole rows would be wasted."""
    path = scored(tmp_path, *(answered(n, 3, 2, 1) for n in range(3)))
    pipeline, _ = run(path)
    asked, at = list[str](), SetAsideStore.rows_at

    def noted(former: SetAsideStore, name: str, numbers: list[int]) -> list[dict[str, Any]]:
        asked.append(name)
        return at(former, name, numbers)

    monkeypatch.setattr(SetAsideStore, "rows_at", noted)
    shutil.rmtree(StorePaths(pipeline.store).journal)
    JournaledStore.open(pipeline.store, lambda words: None).close()
    assert set(asked) == {"texts", "prompts", "completions"}


def test_a_prompt_that_lost_a_completion_is_not_complete(tmp_path: Path, serve: Serve) -> None:
    """It was provided with the prompt, and the source is missing too."""
    served = serve()
    path = bring(tmp_path, served, *(answered(n) for n in range(3)))
    pipeline, _ = run(path)
    kept = unrun(path, served)
    first = next(n for n, line in enumerate(lines(kept)) if b'"t":"carried"' in line)
    damage(kept, lambda n, line: n == first)
    pipeline.store.unlink()
    source = path.parent / "prompts.jsonl"
    whole = source.read_bytes()
    source.unlink()
    rebuild(pipeline, lambda words: None)
    with Reader.open(pipeline.store) as reader:
        balance = reader.item_counts()
        assert (balance.prompts, balance.complete) == (3, 2)
        assert balance.total("carried").pending == 1
    with pytest.raises(BadInput):
        run(path, "prompts.0.limit=2")

    source.write_bytes(whole)
    _, ended = run(path)
    assert not ended.incomplete
