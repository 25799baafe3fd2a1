"""Journal and store together: whatever happens to either, each stored record is there or is reported as lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.config.pipeline import Pipeline, load
from aif.core.errors import JournalDamaged, StoreDamaged, StoreLocked, StoreOutOfMemory
from aif.core.types import digest, fraction
from aif.engine.make_pairs import make_pairs
from aif.engine.orchestrator import Orchestrator
from aif.engine.rebuild import rebuild
from aif.engine.run import run_pipeline
from aif.judging.rubric import Rubric
from aif.store import journal
from aif.store import records as events
from aif.store.database import Store
from aif.store.ingest import RowBatch, Step
from aif.store.journal import Position
from aif.store.journal_batches import RECORDS, parse_record
from aif.store.journaled_store import JournaledStore
from aif.store.lock import Lock, holder_text, is_held
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from aif.store.result_queries import ResultReader
from tests.end_to_end.test_carried import answered, scored
from tests.engine.test_orchestrator import ask, run, write
from tests.support.serving import Served

TABLES = ("prompts", "selection", "intake", "texts", "completions", "judgements", "calls", "failed", "splits")


class Kept:
    """A finished run, its files, and the rows of its store."""

    def __init__(self, path: Path, served: Served) -> None:
        self.path, self.served = path, served
        self.pipeline, _ = run(path)
        self.paths = StorePaths(self.pipeline.store)
        self.rows = self.read()

    def read(self) -> dict[str, list[dict[str, Any]]]:
        with Reader.open(self.paths.store) as reader:
            return {table: reader._query(f"SELECT * FROM {table} ORDER BY ALL") for table in TABLES}

    def reopened(self) -> list[str]:
        """Open the store for writing and close it; return what was reported."""
        told: list[str] = []
        JournaledStore.open(self.paths.store, told.append).close()
        return told


@pytest.fixture
def kept(tmp_path: Path, serve: Callable[..., Served]) -> Kept:
    served = serve()
    return Kept(write(tmp_path, served, count=4), served)


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x20]))


def _delete(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _garble(path: Path) -> None:
    _flip(path, 4200)


def _replace(path: Path) -> None:
    path.write_text("this is no database")


@pytest.mark.parametrize("harm", [_delete, _truncate, _empty, _garble, _replace])
def test_a_lost_or_damaged_store_is_rebuilt_from_the_journal(kept: Kept, harm: Callable[[Path], None]) -> None:
    harm(kept.paths.store)
    told = kept.reopened()

    assert "rebuilding it from the journal" in told[0]
    assert all("so it was renamed to" in line for line in told[1:]), (
        "what can't be read may hold what nothing else does"
    )
    assert len(told) - 1 == len(list(kept.paths.store.parent.glob("*.unreadable"))) <= 1
    assert kept.read() == kept.rows
    assert kept.reopened() == []
    run(kept.path)
    assert kept.served.stats()["calls"] == 20


def test_a_store_without_its_write_ahead_log_catches_up(kept: Kept) -> None:
    """DuckDB opens a store whose log was deleted without an error, at an older state."""
    journaled = JournaledStore.open(kept.paths.store, print)
    older = journaled.store.position
    records = [r for _, r in journal.replay(kept.paths.journal) if isinstance(r, dict)]
    journaled.close()
    kept.paths.store.unlink()
    half = JournaledStore.open(kept.paths.store, lambda _: None)
    half.store._db.execute('UPDATE about SET segment = 1, "offset" = 0')
    half.close()

    (told,) = kept.reopened()
    assert "was behind its journal" in told
    assert kept.read() == kept.rows, "what was applied twice is there once"
    assert JournaledStore.open(kept.paths.store, print).store.position == older
    assert records


def test_a_replayed_segment_changes_nothing(kept: Kept) -> None:
    segment = kept.paths.journal / "000001.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    with segment.open("ab") as file:
        file.writelines(line for line in lines if b'"t":"call"' in line)

    assert kept.reopened() == []
    assert kept.read() == kept.rows


def test_records_that_the_store_lacks_are_added_before_new_ones(tmp_path: Path) -> None:
    """As an interrupted run leaves it."""
    texts = [events.text(digest(word), "principle", word) for word in ("one", "two", "three")]
    with JournaledStore.open(tmp_path / "s.duckdb", pytest.fail) as journaled:
        journaled.keep(texts[:1])
        journaled.journal.append(texts[1:2])
        journaled.keep(texts[2:])
        with Reader.of(journaled.store) as reader:
            assert sorted(reader.texts("principle").values()) == ["one", "three", "two"]


def test_an_incomplete_last_line_is_removed_reported_and_requested_again(kept: Kept) -> None:
    segment = kept.paths.journal / "000001.jsonl"
    os.truncate(segment, segment.stat().st_size - 10)
    kept.paths.store.unlink()
    told = kept.reopened()

    assert any("incomplete last line" in line for line in told)
    run(kept.path)
    assert kept.served.stats()["calls"] == 21
    assert len(kept.read()["judgements"]) == 4


def test_a_flipped_byte_in_the_journal_loses_exactly_that_reply(kept: Kept) -> None:
    segment = kept.paths.journal / "000001.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    calls = [n for n, line in enumerate(lines) if b'"t":"call"' in line and b'"stage":"completion"' in line]
    _flip(segment, sum(map(len, lines[: calls[3]])) + 50)
    kept.paths.store.unlink()
    told = kept.reopened()

    assert [line for line in told if "checksum" in line and "lost and requested again" in line]
    assert len(kept.read()["completions"]) == 15
    _, ended = run(kept.path)
    assert not ended.incomplete
    assert kept.served.stats()["calls"] == 21, "the judgement still holds: the same completion came back"


def test_a_missing_journal_is_written_again_from_the_store(kept: Kept) -> None:
    for segment in kept.paths.journal.iterdir():
        segment.unlink()
    told = kept.reopened()
    assert "the journal is missing; writing it again from the store" in told[0]
    assert kept.read() == kept.rows

    kept.paths.store.unlink()
    kept.reopened()
    assert kept.read() == kept.rows, "by the journal alone"
    run(kept.path)
    assert kept.served.stats()["calls"] == 20


def test_a_journal_of_a_later_version_is_refused(kept: Kept) -> None:
    segment = kept.paths.journal / "000001.jsonl"
    with segment.open("ab") as file:
        file.write(journal.encode({"t": "hologram", "v": 1}))

    with pytest.raises(JournalDamaged, match=r"hologram.*later version"):
        kept.reopened()
    assert not is_held(kept.paths.lock)


def test_a_run_waits_for_a_reader_of_the_store(kept: Kept) -> None:
    """`aif status`, or a user's DuckDB, which is named."""
    store = kept.paths.store
    program = "import duckdb, sys; db = duckdb.connect(sys.argv[1], read_only=True); print('open', flush=True); input()"
    words = [sys.executable, "-c", program, str(store)]
    reading = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reading.stdout is not None
    reading.stdout.readline()
    told: list[str] = []

    def leave(words: str) -> None:
        told.append(words)
        reading.communicate(b"\n")

    JournaledStore.open(store, leave).close()
    (said,) = told
    assert said.startswith(f"{store}: process {reading.pid} (python")
    assert "has it open; waiting up to 5 s" in said


def test_the_progress_file_of_a_killed_run_is_deleted_with_the_next_lock(kept: Kept) -> None:
    kept.paths.progress.write_text("of a run that was killed")
    with JournaledStore.open(kept.paths.store, print):
        assert not kept.paths.progress.exists()


def test_the_lock_names_its_holder_and_is_released(kept: Kept) -> None:
    with JournaledStore.open(kept.paths.store, print):
        assert is_held(kept.paths.lock)
        with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
            JournaledStore.open(kept.paths.store, print)
    assert not is_held(kept.paths.lock)


def test_checking_a_lock_refuses_no_run(kept: Kept) -> None:
    """`aif status` checks it just when a run starts."""
    looking = Thread(target=lambda: [is_held(kept.paths.lock) for _ in range(3000)])
    looking.start()
    while looking.is_alive():
        JournaledStore.open(kept.paths.store, pytest.fail).close()
    looking.join()


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_a_failed_open_leaves_nothing_open(kept: Kept) -> None:
    segment = kept.paths.journal / "000001.jsonl"
    whole = segment.read_bytes()
    segment.write_bytes(whole + journal.encode({"t": "hologram", "v": 1}))
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(JournalDamaged):
        kept.reopened()
    assert set(Path("/proc/self/fd").iterdir()) == before
    segment.write_bytes(whole)
    assert kept.reopened() == []


# --- damage that shows only during work -------------------------------------------------------------------------------


def test_damage_found_during_work_rebuilds_the_store_and_repeats_the_work(kept: Kept) -> None:
    told: list[str] = []
    tries: list[int] = []

    def work(journaled: JournaledStore) -> str:
        tries.append(len(tries))
        if len(tries) == 1:
            raise BaseExceptionGroup("two threads met it", [StoreDamaged("s: block 3"), StoreDamaged("s: block 4")])
        return "done"

    assert JournaledStore.use(kept.paths.store, told.append, None, work) == "done"
    assert told == ["s: block 3; rebuilding it from the journal"]
    assert kept.read() == kept.rows


def test_damage_found_twice_is_raised(kept: Kept) -> None:
    told: list[str] = []

    def work(journaled: JournaledStore) -> None:
        raise StoreDamaged("s: block 3")

    with pytest.raises(StoreDamaged, match="block 3"):
        JournaledStore.use(kept.paths.store, told.append, None, work)
    assert len(told) == 1


@pytest.mark.parametrize("other", [ValueError("a bug"), KeyboardInterrupt()])
def test_other_errors_are_not_taken_for_damage(kept: Kept, other: BaseException) -> None:
    def work(journaled: JournaledStore) -> None:
        raise BaseExceptionGroup("", [StoreDamaged("s: block 3"), other])

    with pytest.raises(BaseExceptionGroup):
        JournaledStore.use(kept.paths.store, pytest.fail, None, work)


def _has_calls(steps: Sequence[Step]) -> bool:
    return any(isinstance(step, RowBatch) and "calls" in step.tables for step in steps)


def _fail_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first commit of calls fail while others are in flight, as on a failing disk."""
    sound, failed = Store.apply, list[str]()

    def apply(store: Store, steps: Sequence[Step], position: Position, damaged: int = 0) -> None:
        if not failed and _has_calls(steps):
            failed.append(f"{store.path}: block 7")
            raise StoreDamaged(failed[0])
        sound(store, steps, position, damaged)

    monkeypatch.setattr(Store, "apply", apply)


def test_a_run_whose_store_fails_loses_no_reply_and_continues(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, said = serve(latency_s=0.05), StringIO()
    path = write(tmp_path, served, count=8)
    _fail_a_commit(monkeypatch)
    ended = run_pipeline(load(path), Terminal(Console(file=said, width=200)))
    assert not ended.incomplete
    assert served.stats()["calls"] == 40
    assert said.getvalue().count("rebuilding it") == 1


def test_a_stopped_run_stays_stopped_on_a_rebuilt_store(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, and then pairing finds damage in the store."""
    served = serve(latency_s=0.05)
    path = write(tmp_path, served, count=8)
    sound, pairs, asked, stopped = Store.apply, make_pairs, [0], [0]

    def apply(store: Store, steps: Sequence[Step], position: Position, damaged: int = 0) -> None:
        sound(store, steps, position, damaged)
        if not stopped[0] and _has_calls(steps):
            stopped[0] = os.getpid()
            os.kill(stopped[0], signal.SIGINT)

    def damaged_pairs(pipeline: Pipeline, rubric: Rubric, store: Store) -> dict[str, int]:
        if not asked[0]:
            asked[0] = served.stats()["calls"]
            raise StoreDamaged(f"{store.path}: block 7")
        return pairs(pipeline, rubric, store)

    monkeypatch.setattr(Store, "apply", apply)
    monkeypatch.setattr("aif.engine.run.make_pairs", damaged_pairs)
    ended = run_pipeline(load(path), Terminal(Console(file=StringIO(), width=200)))
    assert ended.calling.stopped
    assert 0 < asked[0] < 40
    assert served.stats()["calls"] == asked[0]


def test_ctrl_c_after_a_run_stops_by_itself_still_waits_for_calls_in_flight(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(latency_s=0.05)
    path = write(tmp_path, served, count=8)
    stop, times = Orchestrator.stop, [0]

    def stopping(run: Orchestrator) -> None:
        stop(run)
        times[0] += 1
        if times[0] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    _fail_a_commit(monkeypatch)
    monkeypatch.setattr(Orchestrator, "stop", stopping)
    ended = run_pipeline(load(path), Terminal(Console(file=StringIO(), width=200)))
    assert ended.calling.stopped
    assert ask(load(path), "SELECT count(*) AS n FROM calls") == [{"n": served.stats()["calls"]}]


def test_a_flipped_byte_never_ends_a_run(kept: Kept) -> None:
    """Wherever it is: the run meets and fixes it, or nothing reads it."""
    whole, mended = kept.paths.store.read_bytes(), 0
    for n in range(10):
        kept.paths.store.write_bytes(whole)
        _flip(kept.paths.store, int(fraction("flip", n) * len(whole)))
        said = StringIO()
        run_pipeline(kept.pipeline, Terminal(Console(file=said, width=300)))
        mended += said.getvalue().count("rebuilding it from the journal")
    assert mended
    assert kept.served.stats()["calls"] == 20


def test_an_unparseable_reply_is_stored_and_a_fixed_parser_parses_it(kept: Kept) -> None:
    """An unparseable reply becomes a judgement once the current parser can parse it."""
    record = next(
        r for _, r in journal.replay(kept.paths.journal) if isinstance(r, dict) and r.get("stage") == "judgement"
    )
    rubrics = JournaledStore.open(kept.paths.store, print)
    refused = {**record, "verdict": "failed", "kind": "unreadable", "message": "an older reader could not read it"}
    assert len(parse_record(refused, rubrics.rubrics).ratings or ()) == 16
    assert parse_record({**refused, "text": record["text"][:-5]}, rubrics.rubrics).ratings is None
    assert parse_record({**refused, "kind": "truncated"}, rubrics.rubrics).ratings is None
    rubrics.close()


def test_the_store_is_readable_by_duckdb_1_5(kept: Kept) -> None:
    """By the storage version in its header: 64 to 67 are 1.x, 69 is 2.0."""
    assert ask(load(kept.path), "SELECT tags['storage_version'] AS v FROM duckdb_databases() WHERE NOT internal")[0][
        "v"
    ].startswith("v1.5")


@pytest.mark.parametrize("kind", [b'"t":"prompt"', b'"t":"page"', b'"kind":"rubric"', b'"kind":"principle"'])
def test_a_damaged_line_of_any_kind_is_recovered_by_the_next_run(kept: Kept, kind: bytes) -> None:
    segment = kept.paths.journal / "000001.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    (first, *_) = (n for n, line in enumerate(lines) if kind in line)
    _flip(segment, sum(map(len, lines[:first])) + 60)
    kept.paths.store.unlink()
    calls = kept.served.stats()["calls"]
    _, ended = run(kept.path)
    after = kept.read()

    assert not ended.incomplete
    assert kept.served.stats()["calls"] == calls
    assert after["prompts"] == kept.rows["prompts"]
    assert after["selection"] == kept.rows["selection"]
    assert after["judgements"] == kept.rows["judgements"]


def test_a_rubric_that_this_version_refuses_stops_no_other_record(kept: Kept) -> None:
    record = {"t": "text", "v": 1, "digest": "f" * 64, "kind": "rubric", "content": {"rubric.yaml": "name: former"}}
    calls = [r for _, r in journal.replay(kept.paths.journal) if isinstance(r, dict) and r["t"] == "call"]
    call = next(call for call in calls if call["stage"] == "judgement")
    other = call | {"id": "former", "key": "0" * 32, "item": call["item"] | {"rubric": "f" * 64, "spec": "0" * 32}}
    with JournaledStore.open(kept.paths.store, pytest.fail) as journaled:
        journaled.journal.append([record, other])
    told = kept.reopened()
    assert len(told) == 2
    assert "was behind its journal; 2 records were added" in told[0]
    assert "rubric ffffffffffff is missing, or this version can't use it" in told[1]
    assert kept.read()["judgements"] == kept.rows["judgements"]


def test_without_its_source_a_store_is_rebuilt_and_a_run_continues(kept: Kept) -> None:
    before = ask(kept.pipeline, "FROM pairs ORDER BY prompt_id")
    (kept.path.parent / "prompts.jsonl").unlink()
    told: list[str] = []
    rebuild(kept.pipeline, told.append)
    assert ask(kept.pipeline, "FROM pairs ORDER BY prompt_id") == before

    _, ended = run(kept.path)
    assert not ended.incomplete
    assert ask(kept.pipeline, "FROM pairs ORDER BY prompt_id") == before


@pytest.mark.parametrize("kind", [b'"t":"prompt"', b'"t":"carried"', b'"t":"page"'])
def test_a_page_lost_in_an_earlier_batch_is_read_again(tmp_path: Path, kind: bytes) -> None:
    """The store reads the journal in batches: the end of the sources' pages is in a later one than the lost page."""
    path = scored(tmp_path, *(answered(n, n % 3, 2, 1) for n in range(RECORDS // 4 + 1)))
    pipeline, _ = run(path)
    tables = ("prompts", "selection", "carried", "outcomes")
    held = [ask(pipeline, f"SELECT * FROM {table} ORDER BY ALL") for table in tables]
    segment = StorePaths(pipeline.store).journal / "000001.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if kind in line[:40])
    _flip(segment, sum(map(len, lines[:first])) + 60)

    for _ in range(2):
        rebuild(pipeline, lambda _: None)
        assert [ask(pipeline, f"SELECT * FROM {table} ORDER BY ALL") for table in tables] == held
    told = JournaledStore.open(pipeline.store, pytest.fail)
    assert not told.store.damaged_lines
    told.close()


def test_without_its_source_a_damaged_journal_still_makes_a_store(kept: Kept) -> None:
    """The lost prompt is pending, since it can't be read again; all others are unchanged."""
    segment = kept.paths.journal / "000001.jsonl"
    _flip(segment, segment.read_bytes().index(b'"t":"prompt"') + 60)
    source = kept.path.parent / "prompts.jsonl"
    rows = source.read_bytes()
    source.unlink()
    kept.paths.store.unlink()
    told: list[str] = []
    rebuild(kept.pipeline, told.append)
    assert "using the prompts that were read before" in told[-1]
    with JournaledStore.open(kept.paths.store, pytest.fail) as journaled, ResultReader.of(journaled.store) as reader:
        assert reader.prompt_counts().outcomes["pending"] == 1
        assert reader.selected_ids().num_rows == 3

    source.write_bytes(rows)
    _, ended = run(kept.path)
    assert not ended.incomplete
    assert kept.read()["selection"] == kept.rows["selection"]


def test_random_flips_in_the_store_are_reported_and_fixed_by_a_rebuild(kept: Kept) -> None:
    """Whatever block they hit: nothing read it, or it is damage; a number never changes."""
    size = kept.paths.store.stat().st_size
    whole = kept.paths.store.read_bytes()
    for n in range(12):
        kept.paths.store.write_bytes(whole)
        _flip(kept.paths.store, int(fraction("flip", n) * size))
        try:
            seen = kept.read()
        except StoreDamaged:
            rebuild(kept.pipeline, lambda _: None)
            seen = kept.read()
            whole = kept.paths.store.read_bytes()
        assert seen == kept.rows


def test_the_lock_shows_the_command_without_the_values_it_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["/bin/aif", "run", "p.yaml", "--set", "models.a.terms=sk-in-the\nwrong-place", "--yes"]
    )
    lock = Lock(tmp_path / "feedback.lock")
    said = holder_text(tmp_path / "feedback.lock")
    lock.release()

    assert "(aif run p.yaml --set models.a.terms=… --yes)" in said
    assert "sk-in" not in said
    assert "wrong" not in said


def test_work_that_runs_out_of_memory_is_repeated_with_more(kept: Kept) -> None:
    """A transaction that runs out of memory may leave a connection that fails every query."""
    told: list[str] = []
    limits: list[str] = []

    def work(journaled: JournaledStore) -> str:
        limits.append(str(journaled.store.cursor().execute("SELECT current_setting('memory_limit')").fetchall()[0][0]))
        if len(limits) == 1:
            raise ExceptionGroup("", [StoreOutOfMemory("no room")])
        return "done"

    assert JournaledStore.use(kept.paths.store, told.append, None, work) == "done"
    assert limits[0] != limits[1]
    assert any("trying again with" in words for words in told)
    with JournaledStore.open(kept.paths.store, print) as journaled:  # the next one has the usual limit
        work(journaled)
    assert limits[2] == limits[0]
