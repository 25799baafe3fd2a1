"""A dataset as people get it: read back by `datasets`, the same to the byte, never torn, in nobody else's place."""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from aif.config import Pipeline, parse
from aif.errors import AifError, BadInput
from aif.export import Exported, export, tell_exported
from aif.formats import FORMATS, H4, H4_GEN, TRL, Layout
from aif.ledger import Ledger
from aif.queries import Pair, Reader
from aif.records import Message
from aif.rubric import Rubric
from tests.building import PIPELINE, Fate, build, complete, rate

Built = tuple[Pipeline, Rubric, Ledger]

LATER = datetime(2026, 5, 1, 9, 30, tzinfo=UTC)


def silent(words: str) -> None:
    pass


def with_sets(pipeline: Pipeline, *sets: str) -> Pipeline:
    return parse(PIPELINE, pipeline.path, [f"store={pipeline.store}", *sets])


def load(out: Path, config: str | None, cache: Path) -> datasets.DatasetDict:
    loaded = datasets.load_dataset(str(out), config, cache_dir=str(cache))
    assert isinstance(loaded, datasets.DatasetDict)
    return loaded


def ids(out: Path, split: str, config: str = "trl") -> list[str]:
    (path,) = (out / config).glob(f"{split}-00000-of-00001-*.parquet")
    found: list[str] = pq.read_table(path, columns=["prompt_id"]).column("prompt_id").to_pylist()
    return found


def digests(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*.parquet"))
    }


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_trl_loads_with_its_features_and_holds_what_was_asked_and_answered(tmp_path: Path) -> None:
    pipeline, rubric, ledger = build(tmp_path, sets=["export.test_size=3", "pairs.policy=best_vs_worst"])
    with ledger:
        exported = export(pipeline, rubric, ledger, tmp_path / "out", silent)
        with Reader.of(ledger.store) as reader:
            asked = {prompt.prompt_id: (n, prompt) for page in reader.selection() for n, prompt in page}
    assert exported == Exported(
        tmp_path / "out",
        {
            "trl": {"train": 9, "test": 3},
            "h4": {
                "train_prefs": 9, "test_prefs": 3, "train_sft": 9, "test_sft": 3, "train_gen": 9, "test_gen": 3,
            },
        },
        exported.books,
    )  # fmt: skip
    assert exported.books.selected == 12

    found = load(tmp_path / "out", "trl", tmp_path / "cache")
    turns = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    text, number = datasets.Value("string"), datasets.Value("float64")
    assert found["train"].features == found["test"].features
    assert found["train"].features == datasets.Features(
        prompt=turns, chosen=turns, rejected=turns, prompt_id=text, source=text, score_chosen=number,
        score_rejected=number, chosen_model=text, rejected_model=text,
    )  # fmt: skip
    assert {split: len(rows) for split, rows in found.items()} == {"train": 9, "test": 3}
    rows = [*found["train"], *found["test"]]
    assert {row["prompt_id"] for row in rows} == set(asked)
    for row in rows:
        position, prompt = asked[row["prompt_id"]]
        assert row == {
            "prompt": [{"role": m.role, "content": m.content} for m in prompt.messages],
            "chosen": [{"role": "assistant", "content": complete(position, "able")}],
            "rejected": [{"role": "assistant", "content": complete(position, "poor")}],
            "prompt_id": prompt.prompt_id,
            "source": f"s{position % 2}",
            "score_chosen": 5.0,
            "score_rejected": 1.0,
            "chosen_model": "able",
            "rejected_model": "poor",
        }
    assert sum(row["prompt"][0]["role"] == "system" for row in rows) == 4  # the user's own, of every third prompt


def test_h4_has_the_columns_and_splits_of_ultrafeedback_binarized(tmp_path: Path) -> None:
    pipeline, rubric, ledger = build(tmp_path, sets=["export.test_size=3"])
    with ledger:
        export(pipeline, rubric, ledger, tmp_path / "out", silent)
    found = load(tmp_path / "out", "h4", tmp_path / "cache")
    assert list(found) == ["train_prefs", "test_prefs", "train_sft", "test_sft", "train_gen", "test_gen"]
    turns = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    text, number = datasets.Value("string"), datasets.Value("float64")
    for split, rows in found.items():
        assert rows.features == datasets.Features(
            prompt=text, prompt_id=text, chosen=turns, rejected=turns, messages=turns, score_chosen=number,
            score_rejected=number,
        )  # fmt: skip
        for row in rows:
            assert row["prompt"] == next(turn["content"] for turn in row["chosen"] if turn["role"] == "user")
            assert row["chosen"][:-1] == row["rejected"][:-1]
            assert row["chosen"][-1]["role"] == row["rejected"][-1]["role"] == "assistant"
            assert row["messages"] == (row["chosen"][:-1] if split.endswith("gen") else row["chosen"])
            assert row["score_chosen"] > row["score_rejected"]
    assert found["train_prefs"][:] == found["train_sft"][:]
    assert found["train_gen"]["prompt_id"][:] == found["train_prefs"]["prompt_id"][:]
    three_turns = [row for row in found["train_prefs"] if len(row["chosen"]) == 5]
    assert three_turns
    assert three_turns[0]["prompt"].startswith("Start at")
    assert three_turns[0]["chosen"][0]["role"] == "system"


def test_the_first_config_is_the_one_that_loads_unasked_and_only_the_formats_asked_for_are_there(
    tmp_path: Path,
) -> None:
    pipeline, rubric, ledger = build(tmp_path, 4)
    with ledger:
        export(pipeline, rubric, ledger, tmp_path / "both", silent)
        only = with_sets(pipeline, "export.formats=[h4]")
        assert list(export(only, rubric, ledger, tmp_path / "one", silent).rows) == ["h4"]
    assert "chosen_model" in load(tmp_path / "both", None, tmp_path / "cache")["train"].features
    assert "messages" in load(tmp_path / "one", None, tmp_path / "cache")["train_prefs"].features
    assert not (tmp_path / "one" / "trl").exists()


def test_rows_stand_in_the_order_of_prompt_id(tmp_path: Path) -> None:
    pipeline, rubric, ledger = build(tmp_path, 30)
    with ledger:
        export(pipeline, rubric, ledger, tmp_path / "out", silent)
    found = ids(tmp_path / "out", "train")
    assert found == sorted(found)
    assert len(found) == 30


def test_run_json_holds_books_spend_and_pipeline(tmp_path: Path) -> None:
    pipeline, rubric, ledger = build(tmp_path, 8, rate=lambda n, model, aspect: 3 if n == 0 else rate(n, model, aspect))
    with ledger:
        export(pipeline, rubric, ledger, tmp_path / "out", silent, now=lambda: LATER)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["made_by"] == "aif"
    assert run["made"] == "2026-05-01T09:30:00+00:00"
    assert run["books"] == {"intake": {"selected": 8}, "outcomes": {"paired": 7, "tie": 1}, "pairs": 7, "empty": 0}
    assert run["rows"]["trl"] == {"train": 7}
    assert sum(row["calls"] for row in run["spend"]) == 8 * 5
    assert sum(row["usd"] for row in run["spend"]) == pytest.approx(0.04)
    assert run["calls"] == ["2026-03-01T12:00:00+00:00", "2026-03-01T12:00:07+00:00"]
    assert run["pipeline_yaml"] == pipeline.public == (tmp_path / "out" / "pipeline.yaml").read_text()


# --- splits -----------------------------------------------------------------------------------------------------------


def test_a_count_gives_exactly_so_many_and_growth_moves_no_test_prompt_into_train(tmp_path: Path) -> None:
    told: list[str] = []
    pipeline, rubric, ledger = build(tmp_path, 12, sets=["export.test_size=3"])
    with ledger:
        export(pipeline, rubric, ledger, tmp_path / "small", told.append)
    assert len(ids(tmp_path / "small", "test")) == 3
    assert "fixed at" in told[0]
    pipeline, rubric, ledger = build(tmp_path, 120, sets=["export.test_size=3"])
    with ledger:
        grown = export(pipeline, rubric, ledger, tmp_path / "grown", told.append)
    assert set(ids(tmp_path / "small", "test")) <= set(ids(tmp_path / "grown", "test"))
    assert set(ids(tmp_path / "small", "train")) <= set(ids(tmp_path / "grown", "train"))
    assert grown.rows["trl"]["test"] > 3
    assert f"holds {grown.rows['trl']['test']} prompts, not 3" in told[-1]


def test_the_fixed_bound_is_in_the_journal(tmp_path: Path) -> None:
    pipeline, rubric, ledger = build(tmp_path, 12, sets=["export.test_size=3"])
    with ledger:
        export(pipeline, rubric, ledger, tmp_path / "before", silent)
        with Reader.of(ledger.store) as reader:
            bound = reader.threshold(3)
    assert bound is not None
    with Ledger.open(pipeline.store, silent, anew=True) as anew, Reader.of(anew.store) as reader:
        assert reader.threshold(3) == bound
        assert reader.threshold(4) is None


def test_a_share_is_about_so_many_and_other_pairs_do_not_move_it(tmp_path: Path) -> None:
    pipeline, rubric, ledger = build(tmp_path, 200, sets=["export.test_size=0.25"])
    with ledger:
        export(pipeline, rubric, ledger, tmp_path / "out", silent)
    assert 30 <= len(ids(tmp_path / "out", "test")) <= 70
    assert set(ids(tmp_path / "out", "test")).isdisjoint(ids(tmp_path / "out", "train"))


def test_without_test_size_there_is_no_test_split(tmp_path: Path) -> None:
    pipeline, rubric, ledger = build(tmp_path, 4)
    with ledger:
        exported = export(pipeline, rubric, ledger, tmp_path / "out", silent)
    assert exported.rows == {"trl": {"train": 4}, "h4": {"train_prefs": 4, "train_sft": 4, "train_gen": 4}}
    assert not list((tmp_path / "out").rglob("test*"))


def test_a_share_that_no_pair_falls_into_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    pipeline, rubric, ledger = build(tmp_path, 4, sets=["export.test_size=0.0001"])
    with ledger:
        exported = export(pipeline, rubric, ledger, tmp_path / "out", told.append)
    assert exported.rows["trl"] == {"train": 4}
    assert "no test split" in told[0]


@pytest.mark.parametrize(
    ("size", "words"),
    [("4", "4 can't be held out of 4 prompts with pairs"), ("0.9999", "all 4 prompts with pairs fall into")],
)
def test_nothing_left_to_train_on_is_refused(tmp_path: Path, size: str, words: str) -> None:
    pipeline, rubric, ledger = build(tmp_path, 4, sets=[f"export.test_size={size}"])
    with ledger, pytest.raises(BadInput, match=words):
        export(pipeline, rubric, ledger, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


def test_no_pairs_is_refused_and_says_what_became_of_the_prompts(tmp_path: Path) -> None:
    pipeline, rubric, ledger = build(tmp_path, 3, complete=lambda number, model: Fate.PENDING)
    with ledger, pytest.raises(BadInput, match="of 3 prompts: pending 3"):
        export(pipeline, rubric, ledger, tmp_path / "out", silent)


def test_all_pairs_of_a_prompt_are_on_one_side_and_a_count_is_of_prompts(tmp_path: Path) -> None:
    told: list[str] = []
    pipeline, rubric, ledger = build(tmp_path, 20, sets=["pairs.policy=all", "export.test_size=5"])
    with ledger:
        exported = export(pipeline, rubric, ledger, tmp_path / "out", told.append)
        again = export(pipeline, rubric, ledger, tmp_path / "again", told.append)
    assert exported.rows["trl"] == again.rows["trl"] == {"train": 90, "test": 30}
    assert (exported.books.pairs, exported.books.outcomes) == (120, {"paired": 20})
    train, test = ids(tmp_path / "out", "train"), ids(tmp_path / "out", "test")
    assert set(train).isdisjoint(test)
    assert len(set(test)) == 5
    assert (train, test) == (sorted(train), sorted(test))
    assert "5 of 20 prompts with pairs" in told[0]
    assert len(told) == 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| = 20 | prompts with pairs |\n| 120 | pairs of these |" in card
    assert "| s0 | 10 | 60 |" in card


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_data_files_are_the_same_for_any_number_of_threads_and_in_a_store_made_again(tmp_path: Path) -> None:
    pipeline, rubric, ledger = build(tmp_path, 60, sets=["export.test_size=10"])
    with ledger:
        ledger.store.cursor().execute("SET threads = 1")
        export(pipeline, rubric, ledger, tmp_path / "one", silent)
        ledger.store.cursor().execute("SET threads = 8")
        export(pipeline, rubric, ledger, tmp_path / "eight", silent, now=lambda: LATER)
    pipeline.store.unlink()
    with build(tmp_path, 60, sets=["export.test_size=10"])[2] as again:
        export(pipeline, rubric, again, tmp_path / "again", silent)
    assert len(digests(tmp_path / "one")) == 8
    assert digests(tmp_path / "one") == digests(tmp_path / "eight") == digests(tmp_path / "again")


def test_the_card_differs_in_its_marked_section_alone(tmp_path: Path) -> None:
    pipeline, rubric, ledger = build(tmp_path, 6)

    def parts(out: Path) -> tuple[str, str, str]:
        head, _, rest = (out / "README.md").read_text().partition("<!-- run:begin -->")
        run, _, tail = rest.partition("<!-- run:end -->")
        return head, run, tail

    with ledger:
        export(pipeline, rubric, ledger, tmp_path / "one", silent)
        export(pipeline, rubric, ledger, tmp_path / "two", silent, now=lambda: LATER)
    one, two = parts(tmp_path / "one"), parts(tmp_path / "two")
    assert (one[0], one[2]) == (two[0], two[2])
    assert "2026-05-01 09:30 UTC" in two[1]
    assert "2026-05-01" not in two[0]


# --- its place --------------------------------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build(tmp_path, 6)


def test_an_older_export_and_an_empty_folder_are_replaced(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, ledger = built
    (tmp_path / "out").mkdir()
    with ledger:
        export(pipeline, rubric, ledger, tmp_path / "out", silent)
        (tmp_path / "out" / "stray.txt").write_text("of the older export")
        export(pipeline, rubric, ledger, tmp_path / "out", silent)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "h4", "pipeline.yaml", "run.json", "trl",
    ]  # fmt: skip
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("out.")]


@pytest.mark.parametrize("name", ["notes.txt", "run.json", "folder/file"])
def test_a_folder_with_something_else_is_left_as_it_is(tmp_path: Path, built: Built, name: str) -> None:
    pipeline, rubric, ledger = built
    kept = tmp_path / "out" / name
    kept.parent.mkdir(parents=True)
    kept.write_text('{"someone": "else"}')
    with ledger, pytest.raises(BadInput, match="no export of aif's"):
        export(pipeline, rubric, ledger, tmp_path / "out", silent)
    assert kept.read_text() == '{"someone": "else"}'


def test_a_file_is_left_as_it_is(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, ledger = built
    (tmp_path / "out").write_text("a file")
    with ledger, pytest.raises(BadInput):
        export(pipeline, rubric, ledger, tmp_path / "out", silent)
    assert (tmp_path / "out").read_text() == "a file"


def test_a_place_that_cannot_be_made_is_told(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, ledger = built
    (tmp_path / "file").write_text("")
    with ledger, pytest.raises(BadInput, match="can't be written"):
        export(pipeline, rubric, ledger, tmp_path / "file" / "out", silent)


def test_through_a_link_the_folder_behind_it_is_replaced(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, ledger = built
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with ledger:
        for _ in range(2):
            exported = export(pipeline, rubric, ledger, tmp_path / "link", silent)
    assert exported.path == tmp_path / "real"
    assert (tmp_path / "link").is_symlink()
    assert ids(tmp_path / "link", "train") == ids(tmp_path / "real", "train")


def test_an_export_that_fails_on_the_way_leaves_the_older_one(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, ledger = built

    def torn() -> datetime:
        raise KeyboardInterrupt

    with ledger:
        export(pipeline, rubric, ledger, tmp_path / "out", silent, now=lambda: LATER)
        before = (tmp_path / "out" / "run.json").read_bytes()
        with pytest.raises(KeyboardInterrupt):
            export(pipeline, rubric, ledger, tmp_path / "out", silent, now=torn)
        assert (tmp_path / "out" / "run.json").read_bytes() == before
        with pytest.raises(KeyboardInterrupt):
            export(pipeline, rubric, ledger, tmp_path / "first", silent, now=torn)
        assert not (tmp_path / "first").exists()
        export(pipeline, rubric, ledger, tmp_path / "first", silent)
    assert len(ids(tmp_path / "first", "train")) == 6
    assert not (tmp_path / "first.partial").exists()


def test_an_export_cut_off_between_the_two_moves_is_put_back(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, ledger = built
    with ledger:
        export(pipeline, rubric, ledger, tmp_path / "out", silent)
        shutil.copytree(tmp_path / "out", tmp_path / "out.partial")
        (tmp_path / "out").rename(tmp_path / "out.replaced")
        refused = with_sets(pipeline, "export.test_size=99")
        with pytest.raises(BadInput):
            export(refused, rubric, ledger, tmp_path / "out", silent)
        assert len(ids(tmp_path / "out", "train")) == 6
        export(pipeline, rubric, ledger, tmp_path / "out", silent)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("out.")]


# --- rows are checked -------------------------------------------------------------------------------------------------

PAIR = Pair(
    "ab" * 32, "s", (Message("system", "Be brief."), Message("user", "Why?")), "Because.", "No.", "m", "n", 4.5, 2.0
)


@pytest.mark.parametrize("layout", [TRL, H4, H4_GEN], ids=lambda layout: layout.name)
def test_a_sound_row_passes(layout: Layout) -> None:
    assert layout.check(layout.row(PAIR)) is None


def put(**columns: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.update(columns)


SYSTEM_LATE = [{"role": "user", "content": "Why?"}, {"role": "system", "content": "Be brief."}]


@pytest.mark.parametrize(
    ("layout", "spoil", "words"),
    [
        (TRL, lambda row: row["rejected"][0].update(content="Because."), "same text"),
        (TRL, lambda row: row["chosen"][0].update(role="user"), "chosen"),
        (TRL, lambda row: row["chosen"][0].update(content=""), "at least 1 char|longer than or equal to 1"),
        (TRL, lambda row: row["chosen"].append({"role": "assistant", "content": "More."}), "chosen"),
        (TRL, lambda row: row["prompt"].append({"role": "assistant", "content": "Hm."}), "not the user's"),
        (TRL, put(prompt=SYSTEM_LATE), "prompt"),
        (TRL, put(prompt=[]), "prompt"),
        (TRL, put(prompt="Why?"), "prompt"),
        (TRL, put(prompt_id="ab"), "prompt_id"),
        (TRL, put(score_chosen=None), "score_chosen"),
        (TRL, put(score_chosen=2.0), "not rated higher"),
        (TRL, put(extra=1), "additional|must not contain"),
        (TRL, lambda row: row.pop("source"), "source"),
        (H4, lambda row: row.update(prompt="Be brief."), "not the first user turn"),
        (H4, lambda row: row.update(messages=row["chosen"][:-1]), "not those of chosen"),
        (H4, lambda row: row.update(rejected=row["rejected"][1:]), "different turns"),
        (H4, lambda row: row.update(rejected=row["chosen"]), "same text"),
        (H4, lambda row: row["chosen"][0].update(role="tool"), "chosen"),
        (H4_GEN, lambda row: row.update(messages=row["chosen"]), "not those of chosen"),
    ],
)
def test_a_row_that_is_not_as_declared_is_found(
    layout: Layout, spoil: Callable[[dict[str, Any]], None], words: str
) -> None:
    row = json.loads(json.dumps(layout.row(PAIR)))
    spoil(row)
    fault = layout.check(row)
    assert fault is not None
    assert re.search(words, fault)


def test_a_bad_row_stops_the_export_and_names_file_and_row(tmp_path: Path) -> None:
    """No client lets an empty completion through; one that got into the store all the same must not be published."""
    pipeline, rubric, ledger = build(
        tmp_path, 5, sets=["pairs.policy=best_vs_worst"],
        complete=lambda number, model: "" if (number, model) == (2, "poor") else complete(number, model),
    )  # fmt: skip
    with ledger, pytest.raises(AifError, match=r"train-00000-of-00001\.parquet: row \d \([0-9a-f]{64}\): .*rejected"):
        export(pipeline, rubric, ledger, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


def test_every_layout_has_its_columns_in_its_schema() -> None:
    for splits in FORMATS.values():
        for _, layout in splits.values():
            assert set(layout.schema.names) == set(layout.row(PAIR))


def test_what_was_written_is_told(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, ledger = built
    with ledger:
        exported = export(pipeline, rubric, ledger, tmp_path / "out", silent)
    screen = io.StringIO()
    tell_exported(Console(width=200, file=screen), exported, Path("p.yaml"))
    text = screen.getvalue()
    assert "6 pairs of 6 prompts" in text
    assert str(tmp_path / "out") in text
    assert "train 6" in text


def test_what_is_loaded_is_what_was_last_exported_of_whichever_run(tmp_path: Path) -> None:
    """load_dataset caches by the folder's last name: a second export must not give the first once more."""
    cache, out = tmp_path / "cache", tmp_path / "dataset"
    loaded = []
    for policy in ("best_vs_random", "best_vs_worst"):
        pipeline, rubric, ledger = build(tmp_path, 8, sets=[f"pairs.policy={policy}"])
        with ledger:
            export(pipeline, rubric, ledger, out, silent)
        loaded.append(load(out, "trl", cache)["train"]["score_rejected"][:])
        (path,) = (out / "trl").glob("train-*.parquet")
        assert loaded[-1] == pq.read_table(path).column("score_rejected").to_pylist()

    assert loaded[0] != loaded[1]


def test_a_count_is_of_pending_prompts_too_so_that_an_early_export_fixes_no_large_share(tmp_path: Path) -> None:
    def rated(number: int, model: str, aspect: str) -> int | Fate:
        return rate(number, model, aspect) if number < 10 else Fate.PENDING

    pipeline, rubric, ledger = build(tmp_path, 60, sets=["export.test_size=6"], rate=rated)
    with ledger:
        early = export(pipeline, rubric, ledger, tmp_path / "out", silent).rows["trl"]
    pipeline, rubric, ledger = build(tmp_path, 60, sets=["export.test_size=6"])
    with ledger:
        late = export(pipeline, rubric, ledger, tmp_path / "out", silent).rows["trl"]

    assert sum(early.values()) == 10
    assert late == {"train": 54, "test": 6}
