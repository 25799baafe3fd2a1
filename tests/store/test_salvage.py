"""Two copies of what was paid for: what only the store holds goes back into the journal, or a command refuses."""

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
from aif.store.database import set_aside
from aif.store.journal import Damage, Journal
from aif.store.ledger import FEW, Ledger
from aif.store.lock import Places
from aif.store.reader import Reader
from aif.store.set_aside import Former
from tests.end_to_end.test_carried import answered, bring, rows, scored
from tests.engine.test_orchestrator import ask, run, write
from tests.store.test_ledger import Kept
from tests.support.building import STARTED, Fate, build
from tests.support.serving import POOL, Served

Serve = Callable[..., Served]


@pytest.fixture
def kept(tmp_path: Path, serve: Serve) -> Kept:
    served = serve()
    return Kept(write(tmp_path, served, count=4), served)


def unrun(path: Path, served: Served) -> Kept:
    """As Kept, of a run that was."""
    kept = Kept.__new__(Kept)
    kept.path, kept.served, kept.pipeline = path, served, load(path)
    kept.places = Places(kept.pipeline.store)
    return kept


def segment(kept: Kept) -> Path:
    return kept.places.journal / "000001.jsonl"


def lines(kept: Kept) -> list[bytes]:
    return segment(kept).read_bytes().splitlines(keepends=True)


def damage(kept: Kept, which: Callable[[int, bytes], bool]) -> None:
    found = lines(kept)
    segment(kept).write_bytes(b"".join(b"?" * 20 + one[20:] if which(n, one) else one for n, one in enumerate(found)))


def records(kept: Kept) -> list[dict[str, Any]]:
    return [found for _, found in journals.replay(kept.places.journal) if not isinstance(found, Damage)]


def former(kept: Kept) -> list[str]:
    return sorted(path.name for path in kept.places.store.parent.glob("feedback.duckdb?*"))


def asked_no_more(kept: Kept) -> None:
    run(kept.path)
    assert kept.served.stats()["calls"] == 20


# --- the journal is damaged -------------------------------------------------------------------------------------------


def test_a_rebuild_over_a_journal_of_which_no_line_is_left_loses_nothing(kept: Kept) -> None:
    damage(kept, lambda n, line: True)
    told: list[str] = []
    found = rebuild(kept.pipeline, told.append)
    assert (found.calls, found.unchanged, found.no_longer_readable) == (20, 4, 0)
    assert kept.read() == kept.rows
    assert any("lacked" in line and "they are in it again" in line for line in told)
    assert former(kept) == []

    kept.places.store.unlink()
    kept.reopened()
    assert kept.read() == kept.rows, "the damage was made good: it is not asked about again"
    asked_no_more(kept)


def test_newlines_of_another_system_lose_nothing_even_without_a_store(kept: Kept) -> None:
    segment(kept).write_bytes(segment(kept).read_bytes().replace(b"\n", b"\r\n"))
    rebuild(kept.pipeline, lambda words: None)
    assert kept.read() == kept.rows
    kept.places.store.unlink()
    kept.reopened()
    assert kept.read() == kept.rows
    asked_no_more(kept)


def test_a_journal_of_an_older_backup_gets_back_what_the_store_has(kept: Kept) -> None:
    whole = lines(kept)
    for share in (0.0, 0.3, 0.9):
        segment(kept).write_bytes(b"".join(whole[: int(share * len(whole))]))
        asked_no_more(kept)
        assert kept.read() == kept.rows


def test_what_is_damaged_in_one_place_here_and_another_there_is_whole_together(kept: Kept) -> None:
    damage(kept, lambda n, line: n % 2 == 0 and b'"t":"call"' in line)
    left = {one["id"] for one in records(kept) if one["t"] == "call"}
    with duckdb.connect(str(kept.places.store)) as db:
        for table, key in (("completions", "call_id"), ("judgements", "call_id"), ("calls", "id")):
            db.execute(f"DELETE FROM {table} WHERE {key} IN (SELECT unnest(?))", [sorted(left)])
        db.execute("UPDATE about SET segment = 9")
    kept.reopened()
    assert kept.read() == kept.rows
    asked_no_more(kept)


def test_many_lines_lost_end_a_command_before_anything_is_asked(kept: Kept) -> None:
    """Whichever it is and however often, until the damaged file is moved away; what else was in there stays."""
    calls = [n for n, line in enumerate(lines(kept)) if b'"t":"call"' in line]
    damage(kept, lambda n, line: n in calls[: FEW + 1])
    kept.places.store.unlink()
    for command in (run, lambda path: rebuild(load(path), lambda words: None), run):
        with pytest.raises(JournalDamaged, match=f"{FEW + 1} lines are damaged") as told:
            command(kept.path)
        assert f"mv {segment(kept)} {segment(kept)}.damaged; touch {segment(kept)}" in str(told.value)
    assert kept.served.stats()["calls"] == 20

    segment(kept).rename(f"{segment(kept)}.damaged")
    segment(kept).touch()
    run(kept.path)
    assert kept.served.stats()["calls"] == 20 + FEW + 1
    assert {one["t"] for one in records(kept)} >= {"prompt", "call", "text", "page", "selected"}


def in_segments(kept: Kept) -> list[Path]:
    """Writes the journal again, in several segments, and the store with it."""
    found = records(kept)
    shutil.rmtree(kept.places.journal)
    journal, _ = Journal.open(kept.places.journal, 4000)
    for one in found:
        journal.append([one])
    journal.close()
    kept.places.store.unlink()
    kept.reopened()
    return [journals.segment(kept.places.journal, n) for n in journals.segments(kept.places.journal)]


def do_as_told(told: BaseException) -> None:
    """Types the commands that a message holds, each a line."""
    commands = [line for line in str(told).splitlines() if line.startswith("  ")]
    assert commands
    for command in commands:
        subprocess.run(["sh", "-ec", command], check=True)


def test_a_missing_segment_is_refused_and_what_the_store_has_of_it_is_put_back(kept: Kept) -> None:
    """By a run, too; so that the journal is enough by itself again."""
    gone = in_segments(kept)[1]
    gone.unlink()
    with pytest.raises(JournalDamaged, match=f"touch {gone}") as told:
        run(kept.path)
    do_as_told(told.value)
    asked_no_more(kept)
    assert kept.read() == kept.rows
    assert former(kept) == []
    kept.places.store.unlink()
    asked_no_more(kept)
    assert kept.read() == kept.rows
    assert kept.reopened() == [], "the store is compared once"


@pytest.mark.parametrize("which", [1, 2, -1])
def test_what_a_refusal_says_of_damaged_lines_leads_on(kept: Kept, which: int) -> None:
    """Whichever segment they are in; what else was in there goes back from the store."""
    found = [path for path in in_segments(kept) if path.read_bytes().count(b"\n") > FEW]
    broken = found[which]
    whole = broken.read_bytes()
    split = whole.splitlines(keepends=True)
    broken.write_bytes(b"".join(b"?" * 20 + one[20:] if n <= FEW else one for n, one in enumerate(split)))
    kept.places.store.unlink()
    for _ in range(2):
        with pytest.raises(JournalDamaged, match=f"{FEW + 1} lines are damaged") as told:
            run(kept.path)
    do_as_told(told.value)
    _, ended = run(kept.path)
    assert not ended.incomplete
    assert {one["id"] for one in kept.rows["calls"]} & {one["id"] for one in records(kept) if one["t"] == "call"} >= {
        one["id"] for one in map(journals.decode, split[FEW + 1 :]) if not isinstance(one, str) and one["t"] == "call"
    }
    calls = kept.served.stats()["calls"]
    assert calls <= 20 + FEW + 1
    run(kept.path)
    assert kept.served.stats()["calls"] == calls


def test_what_was_moved_away_is_not_written_over_by_what_is_next(kept: Kept) -> None:
    """It may still be mended by hand. The segment that was emptied counts as damaged, and is moved as well."""
    found = [path for path in in_segments(kept) if path.read_bytes().count(b"\n") > FEW]
    for broken in found[:2]:
        split = broken.read_bytes().splitlines(keepends=True)
        broken.write_bytes(b"".join(b"?" * 20 + one[20:] if n <= FEW else one for n, one in enumerate(split)))
        kept.places.store.unlink()
        with pytest.raises(JournalDamaged) as told:
            run(kept.path)
        before = {path.read_bytes() for path in kept.places.journal.glob("*.damaged*")}
        do_as_told(told.value)
        assert before <= {path.read_bytes() for path in kept.places.journal.glob("*.damaged*")}
        run(kept.path)


def test_lines_that_were_put_back_from_a_copy_are_read_again(kept: Kept) -> None:
    whole = segment(kept).read_bytes()
    damage(kept, lambda n, line: b'"t":"call"' in line)
    kept.places.store.unlink()
    with pytest.raises(JournalDamaged, match="put it back from a copy"):
        run(kept.path)
    segment(kept).write_bytes(whole)
    asked_no_more(kept)
    assert kept.read() == kept.rows


@pytest.mark.parametrize("number", [3, FEW + 1])
def test_a_mending_killed_before_it_puts_back_makes_no_damage_good(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The lines are in no store: that one is of before."""
    store, whole = kept.places.store, lines(kept)
    prompts = [n for n, line in enumerate(whole) if b'"t":"call"' in line][-number:]
    segment(kept).write_bytes(b"".join(whole[: prompts[0]]))
    store.unlink()
    kept.reopened()
    segment(kept).write_bytes(b"".join(whole))
    damage(kept, lambda n, line: n in prompts)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "_put_back", killed)
        with pytest.raises(KeyboardInterrupt):
            rebuild(kept.pipeline, lambda words: None)
    if number > FEW:
        with pytest.raises(JournalDamaged, match=f"{number} lines are damaged"):
            run(kept.path)
    else:
        Ledger.open(store, lambda words: None).close()
        with Reader.open(store) as reader:
            assert reader._query("SELECT damaged FROM about") == [{"damaged": number}]
    assert kept.served.stats()["calls"] == 20


# --- stores that were set aside ---------------------------------------------------------------------------------------


def test_a_store_set_aside_is_not_replaced_by_the_next_and_gives_what_it_has(kept: Kept) -> None:
    """As a mending that was killed left it, twice; then the journal is cut, and the store made from what is left."""
    store = kept.places.store
    for name in (".aside", ".aside2"):
        shutil.copy(store, f"{store}{name}")
    segment(kept).write_bytes(b"".join(lines(kept)[:8]))
    store.unlink()
    kept.reopened()
    assert kept.read() == kept.rows
    assert former(kept) == []
    asked_no_more(kept)


def renames(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A kill after so many files have been renamed."""
    rename, left = Path.rename, [number]

    def killed(path: Path, to: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", killed)


@pytest.mark.parametrize("renamed", [0, 1, 2])
@pytest.mark.parametrize("also", [(), (".aside",)])
def test_a_kill_while_a_store_is_set_aside_loses_nothing_that_its_log_holds(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, renamed: int, also: tuple[str, ...]
) -> None:
    """The log has all of it: the store was made and never closed. Another lies aside already, perhaps."""
    store, folder = kept.places.store, kept.path.parent
    store.unlink()
    with Ledger.open(store, lambda words: None):
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


def test_a_kill_while_one_set_aside_is_dropped_leaves_no_log_for_another(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, unlink = kept.places.store, Path.unlink
    with Ledger.open(store, pytest.fail) as ledger:
        ledger.keep([events.mended(0)])
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


def test_a_log_whose_store_somebody_took_away_is_kept(kept: Kept) -> None:
    """It is of another store than the one that is there."""
    store = kept.places.store
    other = kept.path.parent / "other"
    other.mkdir()
    with Ledger.open(other / "feedback.duckdb", lambda words: None) as ledger:
        ledger.keep([events.mended(0)])
        shutil.copy(other / "feedback.duckdb.wal", f"{store}.aside.wal")
    log = Path(f"{store}.aside.wal").read_bytes()
    for _ in range(2):
        told = kept.reopened()
        assert kept.read() == kept.rows
    assert told == []
    (left,) = former(kept)
    assert (kept.path.parent / left).read_bytes() == log


def test_what_cannot_be_read_is_kept_and_told_once(kept: Kept) -> None:
    store = kept.places.store
    for _ in range(2):
        store.write_bytes(b"no database")
        told = kept.reopened()
        assert "whether it holds anything that the journal lacks can't be told, so it is kept as" in told[1]
        assert kept.reopened() == []
    assert former(kept) == ["feedback.duckdb.unreadable", "feedback.duckdb.unreadable2"]
    assert (store.parent / "feedback.duckdb.unreadable").read_bytes() == b"no database"


def test_a_store_whose_log_cannot_be_read_gives_what_is_in_it_besides(kept: Kept) -> None:
    whole, log = lines(kept), kept.places.store.with_name("feedback.duckdb.wal")
    with Ledger.open(kept.places.store, pytest.fail) as ledger:
        ledger.keep([events.mended(0)])
        of_before = log.read_bytes()
    segment(kept).write_bytes(b"".join(whole[:8]))
    log.write_bytes(of_before)
    told = kept.reopened()
    assert any("feedback.duckdb.aside.wal.unreadable" in line for line in told)
    assert kept.read() == kept.rows
    assert former(kept) == ["feedback.duckdb.aside.wal.unreadable"]
    asked_no_more(kept)


@pytest.mark.parametrize("back", ["feedback.journal", "feedback.duckdb", None])
def test_a_journal_of_nothing_whole_and_no_store_end_a_command(kept: Kept, back: str | None) -> None:
    """As a disk leaves it that has lost all it held: a copy may be somewhere. What is to be done leads on."""
    folder = kept.path.parent
    shutil.copytree(kept.places.journal, folder / "copies" / "feedback.journal")
    shutil.move(kept.places.store, folder / "copies")
    segment(kept).write_bytes(b"\0" * segment(kept).stat().st_size)
    with pytest.raises(JournalDamaged, match="nothing whole was in it") as told:
        run(kept.path)
    assert kept.served.stats()["calls"] == 20
    assert "feedback.duckdb" in str(told.value)
    assert str(kept.places.journal) in str(told.value)
    if back:
        shutil.move(folder / "copies" / back, folder / back)
        asked_no_more(kept)
        assert kept.read() == kept.rows
    else:
        run(kept.path)
        assert kept.served.stats()["calls"] == 40


def test_a_store_of_another_journal_is_not_taken_in(kept: Kept, tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "other").mkdir()
    other = Kept(write(tmp_path / "other", serve(), count=6), kept.served)
    shutil.copy(other.places.store, kept.places.store)
    for _ in range(2):
        with pytest.raises(JournalDamaged, match=r"aside: holds 30 calls.*another pipeline's") as told:
            kept.reopened()
    assert len([one for one in records(kept) if one["t"] == "call"]) == 20

    aside = Path(str(told.value).partition(": holds")[0])
    aside.unlink()
    kept.reopened()
    assert kept.read() == kept.rows


def test_a_mending_that_is_broken_off_is_gone_on_with(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    segment(kept).write_bytes(b"".join(lines(kept)[:3]))
    keep, times = Ledger.keep, [0]

    def broken_off(ledger: Ledger, kept: list[dict[str, Any]]) -> None:
        times[0] += 1
        if times[0] % 3 == 0:
            raise KeyboardInterrupt
        keep(ledger, kept)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "keep", broken_off)
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
def test_a_disk_that_is_full_meanwhile_loses_nothing(kept: Kept) -> None:
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


def test_what_can_be_read_of_a_store_that_was_cut_comes_back_where_its_journal_is_gone(kept: Kept) -> None:
    """It is refused at first, since it may be somebody else's."""
    shutil.rmtree(kept.places.journal)
    whole = kept.places.store.stat().st_size
    os.truncate(kept.places.store, cut := whole - 300_000)
    with pytest.raises(BadInput, match="put the journal back from a copy") as told:
        run(kept.path)
    assert kept.places.store.stat().st_size == cut, "it stays as it is"
    do_as_told(told.value)
    _, ended = run(kept.path)
    assert not ended.incomplete


def test_answers_of_which_the_calls_cannot_be_read_are_put_back(kept: Kept) -> None:
    shutil.rmtree(kept.places.journal)
    with duckdb.connect(str(kept.places.store)) as db:
        db.execute("DELETE FROM calls")
    kept.reopened()
    now = kept.read()
    assert [now[table] for table in ("completions", "judgements")] == [
        kept.rows[table] for table in ("completions", "judgements")
    ]
    assert {row["usd"] for row in now["calls"]} == {None}, "what they cost is not known"
    asked_no_more(kept)


# --- what a store has of a journal ------------------------------------------------------------------------------------


def test_a_journal_from_a_store_makes_the_same_store(tmp_path: Path, serve: Serve) -> None:
    """Column by column: with calls that failed, for now or for good, some of which were tried again, completions that
    came with prompts, prices, a split."""
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
    with Ledger.open(load(path).store, print) as ledger:
        ledger.keep([events.split(0.1, 0.25)])
    kept = unrun(path, served)
    spent = "SELECT round(known, 9) AS known, round(unknown, 9) AS unknown, unpriced FROM spent"  # summed in any order
    more = "SELECT * FROM reserved ORDER BY ALL", spent, "FROM carried ORDER BY ALL"
    before = kept.read() | {query: ask(kept.pipeline, query) for query in more}
    shutil.rmtree(kept.places.journal)
    kept.reopened()
    kept.places.store.unlink()
    kept.reopened()
    after = kept.read() | {query: ask(kept.pipeline, query) for query in more}
    for name, rows_ in before.items():
        assert after[name] == rows_, name
    assert {row["verdict"] for row in before["calls"]} > {"answered", "again"}
    assert before["failed"]


def test_spend_is_counted_once(kept: Kept) -> None:
    with Reader.open(kept.places.store) as reader:
        before = reader.spent()
    for _ in range(2):
        damage(kept, lambda n, line: n % 3 == 0)
        rebuild(kept.pipeline, lambda words: None)
    with Reader.open(kept.places.store) as reader:
        assert reader.spent() == before != Spent(1)
    assert kept.read() == kept.rows


# --- how an item stands -----------------------------------------------------------------------------------------------

Words = list[str]


def says(ledger: Ledger, word: str, n: int) -> None:
    """The n-th word on an item: how a call ended, or `retry`."""
    with Reader.of(ledger.store) as reader:
        (slot,) = reader._query("SELECT * FROM slots ORDER BY slot LIMIT 1")
    details = {"sample": 0, "seed": slot["seed"], "principle": slot["principle"], "system": "role"}
    item = events.CallItem("completion", slot["key"], slot["prompt_id"], slot["model"], slot["identity"], details)
    if word == "retry":
        ledger.keep([events.retry(STARTED)])
        return
    started, error = STARTED + timedelta(minutes=n), CallError(Kind.TIMEOUT, f"word {n}")
    one = events.call(
        item, id=f"run{n}-1", n=1, started=started, seconds=1, verdict=word, reply=None, error=error, usd=None
    )
    ledger.keep([one])


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
def test_an_item_stands_by_the_last_word_on_it(tmp_path: Path, words: Words, seen: int, lost: list[int]) -> None:
    """The store that was set aside has seen so many of the words, and lines of the journal are lost: what is put back
    comes after what stands there, and may be older."""
    pipeline, _, ledger = build(tmp_path, 1, complete=lambda number, model: Fate.PENDING)
    ledger.close()
    store, stands = pipeline.store, "SELECT verdict, message, started FROM failed"
    path = Places(store).journal / "000001.jsonl"
    begun = path.read_bytes().count(b"\n")
    for n, word in enumerate(words):
        with Ledger.open(store, pytest.fail) as ledger:
            says(ledger, word, n)
        if n + 1 == seen:
            shutil.copy(store, tmp_path / "former")
    before = ask(pipeline, stands)
    every = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(b"?" * 20 + one[20:] if n - begun in lost else one for n, one in enumerate(every)))
    store.unlink()
    (tmp_path / "former").rename(f"{store}.aside")
    Ledger.open(store, lambda words: None).close()
    assert ask(pipeline, stands) == before
    store.unlink()
    Ledger.open(store, lambda words: None).close()
    assert ask(pipeline, stands) == before, "and by the journal alone"


# --- completions that came with their prompts -------------------------------------------------------------------------


def test_a_judge_whose_model_is_called_carried_keeps_what_it_said(tmp_path: Path, serve: Serve) -> None:
    served = serve(cast=SimulatedModels(POOL, {"carried": 0.1}, 7))
    judge = {"provider": "openai", "base_url": served.base_url, "model": "carried"}
    path = bring(tmp_path, served, *(answered(n) for n in range(4)), judges={"judge": judge})
    run(path)
    calls = served.stats()["calls"]
    rows(tmp_path, "prompts.jsonl", *(answered(n) for n in range(5)))
    run(path)
    assert calls == 4
    assert served.stats()["calls"] == 5


def test_scores_that_came_with_prompts_are_not_looked_for_among_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are judgements by no one: whole rows of them, read for nothing."""
    path = scored(tmp_path, *(answered(n, 3, 2, 1) for n in range(3)))
    pipeline, _ = run(path)
    asked, at = list[str](), Former.at

    def noted(former: Former, name: str, numbers: list[int]) -> list[dict[str, Any]]:
        asked.append(name)
        return at(former, name, numbers)

    monkeypatch.setattr(Former, "at", noted)
    shutil.rmtree(Places(pipeline.store).journal)
    Ledger.open(pipeline.store, lambda words: None).close()
    assert set(asked) == {"texts", "prompts", "completions"}


def test_a_prompt_of_which_a_completion_is_lost_is_not_whole(tmp_path: Path, serve: Serve) -> None:
    """It came with the prompt, and its source is gone, too."""
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
        balance = reader.balance()
        assert (balance.prompts, balance.whole) == (3, 2)
        assert balance.total("carried").pending == 1
    with pytest.raises(BadInput):
        run(path, "prompts.0.limit=2")

    source.write_bytes(whole)
    _, ended = run(path)
    assert not ended.incomplete
