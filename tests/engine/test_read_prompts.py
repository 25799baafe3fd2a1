"""Prompts are read from their sources once each, in order, however often and however large."""

import json
from pathlib import Path

import pytest

from aif.config.pipeline import Pipeline, parse
from aif.core import batching
from aif.core.errors import BadInput
from aif.engine.prepare import prepare, rubric_of
from aif.store import connection, records
from aif.store.connection import SETTINGS
from aif.store.journal import replay
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from aif.store.run_queries import PendingSlot

PIPELINE = """
name: prompts
store: {folder}/s.duckdb
prompts:
  - {{file: {folder}/a.jsonl, source: first}}
  - {{file: {folder}/b.jsonl, source: second, max_chars: 50}}
principles: ultrafeedback
completions: {{per_prompt: 2}}
models: {{m: {{provider: simulator, samples: 2}}}}
judges: {{j: {{provider: simulator}}}}
"""


def rows(path: Path, *prompts: str | list[str]) -> None:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    rows(tmp_path / "a.jsonl", "one", "two", "one", "  ")
    rows(tmp_path / "b.jsonl", "two", "three", "x" * 51)
    return parse(PIPELINE.format(folder=tmp_path), tmp_path / "p.yaml")


def read(pipeline: Pipeline) -> tuple[list[tuple[str, str]], dict[str, int], list[str], int]:
    """Return selected prompts with their source, rows by reason, messages, and the bytes that the journal grew by."""
    messages: list[str] = []
    with JournaledStore.open(pipeline.store, print) as journaled:
        before = journaled.journal.position
        prepare(pipeline, journaled, rubric_of(pipeline), messages.append)
        grown = journaled.journal.position.offset - before.offset
        with Reader.of(journaled.store) as reader:
            selected = [(p.messages[0].content, p.source) for page in reader.selected_prompts() for _, p in page]
            return selected, reader.prompt_counts().intake, messages, grown


def test_each_prompt_is_selected_once_in_file_order_with_its_first_source(pipeline: Pipeline) -> None:
    selected, intake, _, _ = read(pipeline)

    assert selected == [("one", "first"), ("two", "first"), ("three", "second")]
    assert intake == {"selected": 3, "duplicate": 2, "empty": 1, "too_long": 1}


def test_unchanged_sources_are_not_read_again(pipeline: Pipeline) -> None:
    assert read(pipeline)[2] == ["reading prompts"]
    _, _, messages, grown = read(pipeline)

    assert messages == []
    assert grown == 0


def test_a_source_that_grows_or_shrinks_is_read_again(pipeline: Pipeline, tmp_path: Path) -> None:
    read(pipeline)
    rows(tmp_path / "a.jsonl", "one", "four")
    selected, intake, _, _ = read(pipeline)

    assert [text for text, _ in selected] == ["one", "four", "two", "three"]
    assert dict(selected)["two"] == "second"
    assert intake["selected"] == 4


def test_interrupted_reading_starts_over(pipeline: Pipeline) -> None:
    with JournaledStore.open(pipeline.store, print) as journaled:
        journaled.keep([records.page(0, [("0" * 64, "old")]), records.page(1, [("1" * 64, "old")])])
    selected, intake, _, _ = read(pipeline)

    assert [text for text, _ in selected] == ["one", "two", "three"]
    assert intake["duplicate"] == 2


def test_pages_join_without_losing_or_doubling_a_prompt(pipeline: Pipeline, tmp_path: Path) -> None:
    """A page holds 500 rows; the same prompts come again pages later."""
    texts = [f"prompt {n}" for n in range(1203)]
    rows(tmp_path / "a.jsonl", *texts, *texts[::7])
    rows(tmp_path / "b.jsonl", "three")
    selected, intake, _, _ = read(pipeline)

    assert [text for text, _ in selected] == [*texts, "three"]
    assert intake == {"selected": 1204, "duplicate": 172}


def test_bad_rows_are_counted_and_the_first_few_are_reported(pipeline: Pipeline, tmp_path: Path) -> None:
    bad = [{"prompt": [{"role": "robot", "content": "hi"}]}] * 7
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"prompt": "one"}, *bad]))
    _, intake, messages, _ = read(pipeline)

    assert intake["bad_row"] == 7
    reported = [line for line in messages if "left out" in line]
    assert len(reported) == 5
    assert "a.jsonl:2: left out" in reported[0]


def test_a_completion_without_text_is_counted_but_not_as_a_row(pipeline: Pipeline, tmp_path: Path) -> None:
    answers = [{"text": "So.", "model": "m"}, {"text": " ", "model": "n"}, {"text": None, "model": "o"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "one", "answers": answers}) + "\n")
    text = PIPELINE.format(folder=tmp_path).replace("source: first", "completions: {field: answers}, source: first")
    pipeline = parse(text, tmp_path / "p.yaml")
    _, intake, _, _ = read(pipeline)

    assert intake == {"selected": 3, "too_long": 1}
    with Reader.open(pipeline.store) as reader:
        assert reader.prompt_counts().empty == 2


def test_sources_without_rows_are_bad_input(pipeline: Pipeline, tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl")
    rows(tmp_path / "b.jsonl")
    with pytest.raises(BadInput, match="the sources hold no rows"):
        read(pipeline)


def test_sources_whose_rows_are_all_left_out_are_bad_input(pipeline: Pipeline, tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", " ", ["one", "two"])
    rows(tmp_path / "b.jsonl", "")
    with pytest.raises(BadInput, match=r"every row was left out \(bad row 1, empty 2\)"):
        read(pipeline)


MIXED = [10, 900, 5, 5, 5, 3000, 20, 400, 400, 400, 1, 1]  # characters, where a page is 1,000 bytes


def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int] = MIXED) -> Pipeline:
    monkeypatch.setattr(batching, "MAX_BATCH_BYTES", 1000)
    rows(tmp_path / "a.jsonl", *(f"{n} {'x' * size}" for n, size in enumerate(sizes)))
    rows(tmp_path / "b.jsonl")
    return parse(PIPELINE.format(folder=tmp_path), tmp_path / "p.yaml")


def within_bound(pages: list[list[int]]) -> bool:
    """Return whether each page, given by the bytes of its rows, is within 1,000 bytes or has a single row."""
    return all(page and (len(page) == 1 or sum(page) <= 1000) for page in pages)


def test_pages_are_cut_by_bytes_wherever_prompts_are_read_or_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = mixed(tmp_path, monkeypatch)
    wanted = [f"{n} {'x' * size}" for n, size in enumerate(MIXED)]

    with JournaledStore.open(pipeline.store, print) as journaled:
        prepare(pipeline, journaled, rubric_of(pipeline), print)
        stored = [record["rows"] for _, record in replay(journaled.paths.journal) if record["t"] == "page"]  # type: ignore[index]
        sizes = dict(Reader.of(journaled.store)._rows("SELECT prompt_id, bytes FROM prompts"))
        assert within_bound([[sizes[prompt_id] for prompt_id, _ in page] for page in stored])

        with Reader.of(journaled.store) as reader:
            selected = [[prompt for _, prompt in page] for page in reader.selected_prompts()]
            journaled.store.list_pending(None)
            pending: list[list[PendingSlot]] = []
            while page := reader.pending_slots("m", pending[-1][-1].seq if pending else 0, 512):
                pending.append(page)

    assert [prompt.messages[0].content for page in selected for prompt in page] == wanted
    assert within_bound([[sizes[prompt.prompt_id] for prompt in page] for page in selected])
    assert [todo.seq for page in pending for todo in page] == list(range(1, 2 * len(MIXED) + 1))
    assert within_bound([[sizes[todo.slot.prompt_id] for todo in page] for page in pending])


def test_long_prompts_are_paged_to_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,200 prompts of 50,000 characters are 60 MB: stored, planned and read with 48 MB for DuckDB."""
    monkeypatch.setitem(SETTINGS, "memory_limit", "48MB")
    monkeypatch.setattr(connection, "MOST_MEMORY", "48MB")
    monkeypatch.setattr(batching, "MAX_BATCH_BYTES", 2**20)
    rows(tmp_path / "a.jsonl", *(f"{n} {'word ' * 10_000}" for n in range(1200)))
    rows(tmp_path / "b.jsonl")
    pipeline = parse(PIPELINE.format(folder=tmp_path), tmp_path / "p.yaml")

    with JournaledStore.open(pipeline.store, print) as journaled:
        prepare(pipeline, journaled, rubric_of(pipeline), print)
        journaled.store.list_pending(None)
        with Reader.of(journaled.store) as reader:
            assert sum(len(page) for page in reader.selected_prompts()) == 1200
            assert len(reader.pending_slots("m", 0, 512)) == 20


def test_too_many_completions_of_one_prompt_are_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field with the same value in every row gathers all of their completions."""
    monkeypatch.setattr("aif.engine.read_prompts.MAX_CARRIED", 5)
    monkeypatch.setattr("aif.engine.read_prompts.PAGE", 2)
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"prompt": "Answer.", "text": f"t{n}", "model": "m"}) + "\n" for n in range(9))
    )
    pipeline = parse(CARRIED.format(folder=tmp_path), tmp_path / "p.yaml")

    with pytest.raises(BadInput, match=r"a\.jsonl:6: with this row 6 completions .*'Answer\.'.* more than 5; correct"):
        read(pipeline)


CARRIED = """
name: carried
store: {folder}/s.duckdb
prompts: [{{file: {folder}/a.jsonl, completions: {{field: text}}}}]
judges: {{j: {{provider: simulator}}}}
"""


@pytest.mark.parametrize("page", [1, 2000])
@pytest.mark.parametrize("swap", [False, True])
def test_a_text_equal_to_the_turns_of_another_row_as_json_is_refused(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int, swap: bool
) -> None:
    """An id is the digest of a text, or of turns as canonical JSON: these two are equal."""
    monkeypatch.setattr("aif.engine.read_prompts.PAGE", page)
    turns = [{"content": "Be brief.", "role": "system"}, {"content": "Why?", "role": "user"}]
    text = [{"role": "user", "content": json.dumps(turns, separators=(",", ":"))}]
    first, second = (text, turns) if swap else (turns, text)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("one", first, "two", first, second)))
    with pytest.raises(BadInput) as raised:
        read(pipeline)
    assert str(raised.value).startswith(f"{path}:5: this row and {path}:2 have the same id ")
    assert str(raised.value).endswith("the text of one is the other's turns as JSON; remove one of them")

    path.write_text(json.dumps({"prompt": second}))
    selected, _, _, _ = read(pipeline)
    assert selected[0][0] == second[0]["content"], "the other row is in the store, and is not used for this one"


def test_prompts_that_differ_only_in_form_are_kept_and_reported(pipeline: Pipeline, tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", "caf\u00e9", "tea", "cafe\u0301", "tea\n", "Tea", "tea")
    rows(tmp_path / "b.jsonl", *(" " * n + "tea" for n in range(1, 7)))
    selected, intake, messages, _ = read(pipeline)
    with Reader.open(pipeline.store) as reader:
        assert reader.prompt_counts().alike == 8

    assert [line.rpartition(": ")[2] for line in messages[1:3]] == [f"{tmp_path}/a.jsonl:{n}" for n in (1, 2)]
    assert len(selected) == 11
    assert intake == {"selected": 11, "duplicate": 1}
    assert messages[1].startswith(f"{tmp_path}/a.jsonl:3: kept, though an earlier prompt differs only in whitespace")
    assert len([line for line in messages if "kept, though" in line]) == 5
    form = "whitespace at its ends or the Unicode form of its characters"
    assert messages[-1] == f"8 prompts in all differ from an earlier prompt only in {form}"
