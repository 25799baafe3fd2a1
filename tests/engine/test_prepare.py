"""Before the first call: which prompts there are, each once, and what is planned for them."""

import json
from pathlib import Path

import pytest

from aif.config.pipeline import Pipeline, parse
from aif.core import paging
from aif.core.errors import BadInput
from aif.engine import prepare as intake
from aif.engine.prepare import prepare, rubric_of
from aif.store import connection, records
from aif.store.connection import SETTINGS
from aif.store.journal import replay
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from aif.store.run_queries import PendingSlot

PIPELINE = """
name: intake
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


def taken_in(pipeline: Pipeline) -> tuple[list[tuple[str, str]], dict[str, int], list[str], int]:
    """Selected prompts with their source, rows by reason, what was told, and how many records the journal grew by."""
    told: list[str] = []
    with JournaledStore.open(pipeline.store, print) as ledger:
        before = ledger.journal.position
        prepare(pipeline, ledger, rubric_of(pipeline), told.append)
        grown = ledger.journal.position.offset - before.offset
        with Reader.of(ledger.store) as reader:
            selected = [(p.messages[0].content, p.source) for page in reader.selected_prompts() for _, p in page]
            return selected, reader.prompt_counts().intake, told, grown


def test_each_prompt_is_there_once_in_file_order_with_its_first_source(pipeline: Pipeline) -> None:
    selected, intake, _, _ = taken_in(pipeline)

    assert selected == [("one", "first"), ("two", "first"), ("three", "second")]
    assert intake == {"selected": 3, "duplicate": 2, "empty": 1, "too_long": 1}


def test_sources_that_have_not_changed_are_not_read_again(pipeline: Pipeline) -> None:
    assert taken_in(pipeline)[2] == ["reading prompts"]
    _, _, told, grown = taken_in(pipeline)

    assert told == []
    assert grown == 0


def test_a_source_that_grows_or_shrinks_is_followed(pipeline: Pipeline, tmp_path: Path) -> None:
    taken_in(pipeline)
    rows(tmp_path / "a.jsonl", "one", "four")
    selected, intake, _, _ = taken_in(pipeline)

    assert [text for text, _ in selected] == ["one", "four", "two", "three"]
    assert dict(selected)["two"] == "second"
    assert intake["selected"] == 4


def test_reading_that_was_interrupted_starts_anew(pipeline: Pipeline) -> None:
    with JournaledStore.open(pipeline.store, print) as ledger:
        ledger.keep([records.page(0, [("0" * 64, "gone")]), records.page(1, [("1" * 64, "gone")])])
    selected, intake, _, _ = taken_in(pipeline)

    assert [text for text, _ in selected] == ["one", "two", "three"]
    assert intake["duplicate"] == 2


def test_pages_join_without_losing_or_doubling_a_prompt(pipeline: Pipeline, tmp_path: Path) -> None:
    """A page holds 500 rows; the same prompts come again pages later."""
    texts = [f"prompt {n}" for n in range(1203)]
    rows(tmp_path / "a.jsonl", *texts, *texts[::7])
    rows(tmp_path / "b.jsonl", "three")
    selected, intake, _, _ = taken_in(pipeline)

    assert [text for text, _ in selected] == [*texts, "three"]
    assert intake == {"selected": 1204, "duplicate": 172}


def test_only_the_keys_of_changed_principles_change(pipeline: Pipeline, tmp_path: Path) -> None:
    def keys() -> set[str]:
        with JournaledStore.open(pipeline.store, print) as ledger:
            prepare(pipeline, ledger, rubric_of(pipeline), lambda _: None)
            with Reader.of(ledger.store) as reader:
                return {row["key"] for row in reader._query("SELECT key FROM slots")}

    rows(tmp_path / "a.jsonl", *(f"prompt {n}" for n in range(200)))
    own = {"pools": {"a": ["Be brief.", "Be kind."]}, "default": {"a": 1.0}}
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    pipeline = parse(PIPELINE.format(folder=tmp_path).replace("ultrafeedback", f"{tmp_path}/own"), tmp_path / "p.yaml")
    before = keys()
    own["pools"]["a"].append("Be exact.")  # type: ignore[index]
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    after = keys()

    assert 0.2 < len(before - after) / len(before) < 0.47  # one in three is drawn anew


def test_rows_that_cannot_be_used_are_named_up_to_a_few_and_counted(pipeline: Pipeline, tmp_path: Path) -> None:
    bad = [{"prompt": [{"role": "robot", "content": "hi"}]}] * 7
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"prompt": "one"}, *bad]))
    _, intake, told, _ = taken_in(pipeline)

    assert intake["bad_row"] == 7
    named = [line for line in told if "left out" in line]
    assert len(named) == 5
    assert "a.jsonl:2: left out" in named[0]


def test_a_completion_without_a_text_is_counted_but_is_no_row(pipeline: Pipeline, tmp_path: Path) -> None:
    answers = [{"text": "So.", "model": "m"}, {"text": " ", "model": "n"}, {"text": None, "model": "o"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "one", "answers": answers}) + "\n")
    text = PIPELINE.format(folder=tmp_path).replace("source: first", "completions: {field: answers}, source: first")
    pipeline = parse(text, tmp_path / "p.yaml")
    _, intake, _, _ = taken_in(pipeline)

    assert intake == {"selected": 3, "too_long": 1}
    with Reader.open(pipeline.store) as reader:
        assert reader.prompt_counts().empty == 2


def test_sources_without_rows_are_bad_input(pipeline: Pipeline, tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl")
    rows(tmp_path / "b.jsonl")
    with pytest.raises(BadInput, match="the sources hold no rows"):
        taken_in(pipeline)


def test_sources_of_which_every_row_is_left_out_are_bad_input(pipeline: Pipeline, tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", " ", ["one", "two"])
    rows(tmp_path / "b.jsonl", "")
    with pytest.raises(BadInput, match=r"every row was left out \(bad row 1, empty 2\)"):
        taken_in(pipeline)


MIXED = [10, 900, 5, 5, 5, 3000, 20, 400, 400, 400, 1, 1]  # characters, where a page is 1,000 bytes


def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int] = MIXED) -> Pipeline:
    monkeypatch.setattr(paging, "PAGE_BYTES", 1000)
    rows(tmp_path / "a.jsonl", *(f"{n} {'x' * size}" for n, size in enumerate(sizes)))
    rows(tmp_path / "b.jsonl")
    return parse(PIPELINE.format(folder=tmp_path), tmp_path / "p.yaml")


def sound(pages: list[list[int]]) -> bool:
    """Whether each is within the bound, or alone; by the bytes of the rows."""
    return all(page and (len(page) == 1 or sum(page) <= 1000) for page in pages)


def test_pages_are_cut_by_bytes_wherever_prompts_are_read_or_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = mixed(tmp_path, monkeypatch)
    wanted = [f"{n} {'x' * size}" for n, size in enumerate(MIXED)]

    with JournaledStore.open(pipeline.store, print) as ledger:
        prepare(pipeline, ledger, rubric_of(pipeline), print)
        kept = [record["rows"] for _, record in replay(ledger.paths.journal) if record["t"] == "page"]  # type: ignore[index]
        sizes = dict(Reader.of(ledger.store)._rows("SELECT prompt_id, bytes FROM prompts"))
        assert sound([[sizes[prompt_id] for prompt_id, _ in page] for page in kept])

        with Reader.of(ledger.store) as reader:
            selected = [[prompt for _, prompt in page] for page in reader.selected_prompts()]
            ledger.store.list_pending(None)
            asked: list[list[PendingSlot]] = []
            while page := reader.pending_slots("m", asked[-1][-1].seq if asked else 0, 512):
                asked.append(page)

    assert [prompt.messages[0].content for page in selected for prompt in page] == wanted
    assert sound([[sizes[prompt.prompt_id] for prompt in page] for page in selected])
    assert [todo.seq for page in asked for todo in page] == list(range(1, 2 * len(MIXED) + 1))
    assert sound([[sizes[todo.slot.prompt_id] for todo in page] for page in asked])


def test_long_prompts_find_room_where_one_page_of_rows_would_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,200 prompts of 50,000 characters are 60 MB: kept, planned and read in 48 MB of DuckDB's."""
    monkeypatch.setitem(SETTINGS, "memory_limit", "48MB")
    monkeypatch.setattr(connection, "MOST_MEMORY", "48MB")
    monkeypatch.setattr(paging, "PAGE_BYTES", 2**20)
    rows(tmp_path / "a.jsonl", *(f"{n} {'word ' * 10_000}" for n in range(1200)))
    rows(tmp_path / "b.jsonl")
    pipeline = parse(PIPELINE.format(folder=tmp_path), tmp_path / "p.yaml")

    with JournaledStore.open(pipeline.store, print) as ledger:
        prepare(pipeline, ledger, rubric_of(pipeline), print)
        ledger.store.list_pending(None)
        with Reader.of(ledger.store) as reader:
            assert sum(len(page) for page in reader.selected_prompts()) == 1200
            assert len(reader.pending_slots("m", 0, 512)) == 20


def test_more_completions_of_one_prompt_than_can_be_numbered_are_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field that holds the same in every row gathers all of their completions."""
    monkeypatch.setattr(intake, "CARRIED_MOST", 5)
    monkeypatch.setattr(intake, "PAGE", 2)
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"prompt": "Answer.", "text": f"t{n}", "model": "m"}) + "\n" for n in range(9))
    )
    pipeline = parse(CARRIED.format(folder=tmp_path), tmp_path / "p.yaml")

    with pytest.raises(BadInput, match=r"a\.jsonl:6: with this row 6 completions .*'Answer\.'.* more than 5; correct"):
        taken_in(pipeline)


CARRIED = """
name: carried
store: {folder}/s.duckdb
prompts: [{{file: {folder}/a.jsonl, completions: {{field: text}}}}]
judges: {{j: {{provider: simulator}}}}
"""


@pytest.mark.parametrize("page", [1, 2000])
@pytest.mark.parametrize("swap", [False, True])
def test_a_text_that_is_the_turns_of_another_row_as_json_is_refused_with_both(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int, swap: bool
) -> None:
    """An id is of a text, or of turns as canonical JSON: these two have one."""
    monkeypatch.setattr(intake, "PAGE", page)
    turns = [{"content": "Be brief.", "role": "system"}, {"content": "Why?", "role": "user"}]
    text = [{"role": "user", "content": json.dumps(turns, separators=(",", ":"))}]
    first, second = (text, turns) if swap else (turns, text)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("one", first, "two", first, second)))
    with pytest.raises(BadInput) as raised:
        taken_in(pipeline)
    assert str(raised.value).startswith(f"{path}:5: one of this row and {path}:2 is a text that is the other's turns")
    assert str(raised.value).endswith("; take one out")

    path.write_text(json.dumps({"prompt": second}))
    selected, _, _, _ = taken_in(pipeline)
    assert selected[0][0] == second[0]["content"], "what the other row left in the store does not stand for this one"


def test_prompts_that_differ_in_form_alone_are_kept_and_named(pipeline: Pipeline, tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", "caf\u00e9", "tea", "cafe\u0301", "tea\n", "Tea", "tea")
    rows(tmp_path / "b.jsonl", *(" " * n + "tea" for n in range(1, 7)))
    selected, intake, told, _ = taken_in(pipeline)
    with Reader.open(pipeline.store) as reader:
        assert reader.prompt_counts().alike == 8

    assert [line.rpartition(": ")[2] for line in told[1:3]] == [f"{tmp_path}/a.jsonl:{n}" for n in (1, 2)]
    assert len(selected) == 11
    assert intake == {"selected": 11, "duplicate": 1}
    assert told[1].startswith(f"{tmp_path}/a.jsonl:3: kept, though an earlier prompt differs only in blanks")
    assert len([line for line in told if "kept, though" in line]) == 5
    form = "blanks at its ends or the Unicode form of its characters"
    assert told[-1] == f"8 prompts in all differ from an earlier one only in {form}"


@pytest.mark.parametrize("text", ["\U0001f600", "a\U0001f600b"])
def test_principles_as_json_writes_them(pipeline: Pipeline, tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(json.dumps({"pools": {text: [text]}, "default": {text: 1}}))
    own = PIPELINE.format(folder=tmp_path).replace("ultrafeedback", f"{tmp_path}/own.yaml")
    principles = intake.principles_of(parse(own, tmp_path / "p.yaml"))
    assert principles is not None
    assert principles.pools == {text: (text,)}
    taken_in(parse(own, tmp_path / "p.yaml"))
    (tmp_path / "own.yaml").write_text('default: {a: 1}\npools: {a: ["\\ud83d"]}')
    with pytest.raises(BadInput, match=r"own\.yaml:2: can't be read as YAML: half a character \(a lone surrogate\)"):
        intake.principles_of(parse(own, tmp_path / "p.yaml"))
