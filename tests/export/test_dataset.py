"""Exports as users get them: loaded by `datasets`, byte-identical, and replaced atomically."""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from aif.cli.views.export import print_exported
from aif.config.pipeline import Pipeline, parse
from aif.core import batching
from aif.core.errors import AifError, BadInput, Exit, Incomplete
from aif.core.types import Message, Principle, Rating, digest
from aif.engine.make_pairs import make_pairs
from aif.export import parquet
from aif.export.dataset import ExportResult, export
from aif.export.formats import FORMATS, H4, H4_GEN, KTO, REWARD, SFT, TRL
from aif.export.layout import Layout, RowKind
from aif.export.manifest import MANIFEST, store_state
from aif.export.ultrafeedback import ULTRAFEEDBACK, AnnotatedPrompt
from aif.judging.rubric import Rubric
from aif.store import records
from aif.store.journaled_store import JournaledStore
from aif.store.result_queries import (
    CompletionResult,
    JudgementResult,
    Pair,
    PromptResult,
    ResultReader,
    ScoredCompletion,
)
from tests.support.building import PIPELINE, Cut, Fate, build, complete, rate

Built = tuple[Pipeline, Rubric, JournaledStore]

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


def test_trl_loads_with_its_features_prompts_and_answers(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, sets=["export.test_size=3", "pairs.policy=best_vs_worst"])
    with journaled:
        exported = export(pipeline, rubric, journaled, tmp_path / "out", silent)
        with ResultReader.of(journaled.store) as reader:
            asked = {prompt.prompt_id: (n, prompt) for page in reader.selected_prompts() for n, prompt in page}
    assert exported == ExportResult(
        tmp_path / "out",
        {
            "trl": {"train": 9, "test": 3},
            "h4": {
                "train_prefs": 9, "test_prefs": 3, "train_sft": 9, "test_sft": 3, "train_gen": 9, "test_gen": 3,
            },
        },
        exported.prompt_counts,
        [],
    )  # fmt: skip
    assert exported.prompt_counts.selected == 12

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
    pipeline, rubric, journaled = build(tmp_path, sets=["export.test_size=3"])
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
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


def test_the_first_config_is_the_default_and_only_the_requested_formats_are_there(
    tmp_path: Path,
) -> None:
    pipeline, rubric, journaled = build(tmp_path, 4)
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "both", silent)
        only = with_sets(pipeline, "export.formats=[h4]")
        assert list(export(only, rubric, journaled, tmp_path / "one", silent).rows) == ["h4"]
    assert "chosen_model" in load(tmp_path / "both", None, tmp_path / "cache")["train"].features
    assert "messages" in load(tmp_path / "one", None, tmp_path / "cache")["train_prefs"].features
    assert not (tmp_path / "one" / "trl").exists()


def test_rows_are_in_the_order_of_prompt_id(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 30)
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    found = ids(tmp_path / "out", "train")
    assert found == sorted(found)
    assert len(found) == 30


def test_run_json_has_prompt_counts_spend_and_pipeline(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(
        tmp_path, 8, rate=lambda n, model, aspect: 3 if n == 0 else rate(n, model, aspect)
    )
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent, now=lambda: LATER)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["made_by"] == "aif"
    assert run["made"] == "2026-05-01T09:30:00+00:00"
    assert run["books"] == {
        "intake": {"selected": 8},
        "outcomes": {"paired": 7, "tie": 1},
        "pairs": 7,
        "empty": 0,
        "unrated": 0,
    }
    assert run["rows"]["trl"] == {"train": 7}
    assert sum(row["calls"] for row in run["spend"]) == 8 * 5
    assert sum(row["usd"] for row in run["spend"]) == pytest.approx(0.04)
    assert run["calls"] == ["2026-03-01T12:00:00+00:00", "2026-03-01T12:00:07+00:00"]
    assert run["pipeline_yaml"] == pipeline.public_yaml == (tmp_path / "out" / "pipeline.yaml").read_text()


# --- the other formats ------------------------------------------------------------------------------------------------

ALL = "export.formats=[trl, h4, ultrafeedback, kto, reward, sft]"


def rows_of(out: Path, config: str, cache: Path) -> list[dict[str, Any]]:
    return [row for split in load(out, config, cache).values() for row in split]


def test_every_format_loads_with_the_columns_of_its_layout_and_one_prompt_is_in_one_part_everywhere(
    tmp_path: Path,
) -> None:
    pipeline, rubric, journaled = build(tmp_path, 30, sets=[ALL, "export.test_size=5"])
    with journaled:
        exported = export(pipeline, rubric, journaled, tmp_path / "out", silent)
    assert exported.rows == {
        "trl": {"train": 25, "test": 5},
        "h4": {f"{part}_{kind}": n for kind in ("prefs", "sft", "gen") for part, n in (("train", 25), ("test", 5))},
        "ultrafeedback": {"train": 25, "test": 5},
        "kto": {"train": 50, "test": 10},
        "reward": {"train": 25, "test": 5},
        "sft": {"train": 25, "test": 5},
    }
    held_out = set(ids(tmp_path / "out", "test"))
    for config in ("ultrafeedback", "kto", "reward", "sft"):
        found = load(tmp_path / "out", config, tmp_path / "cache")
        _, layout = FORMATS[config]["train"]
        for rows in found.values():
            assert rows.features.arrow_schema.equals(layout.schema, check_metadata=False)
        assert set(found["test"]["prompt_id"]) == held_out
        assert held_out.isdisjoint(found["train"]["prompt_id"])


def test_no_prompt_of_any_format_holds_a_principle(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 12, sets=[ALL])
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
        with ResultReader.of(journaled.store) as reader:
            principles = set(reader.texts("principle").values())
    steered = 0
    for config in ("trl", "h4", "kto", "reward", "sft", "ultrafeedback"):
        for row in rows_of(tmp_path / "out", config, tmp_path / "cache"):
            for completion in row.pop("completions", []):
                steered += completion["custom_system_prompt"] in principles
            text = json.dumps(row)
            assert not any(json.dumps(principle)[1:-1] in text for principle in principles)
    assert steered == 12 * 4  # and there they were


def test_reward_has_whole_conversations_and_their_margin(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 9, sets=[ALL])
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    trl = {row["prompt_id"]: row for row in rows_of(tmp_path / "out", "trl", tmp_path / "cache")}
    for row in rows_of(tmp_path / "out", "reward", tmp_path / "cache"):
        pair = trl[row["prompt_id"]]
        assert row["chosen"] == pair["prompt"] + pair["chosen"]
        assert row["rejected"] == pair["prompt"] + pair["rejected"]
        assert row["margin"] == pair["score_chosen"] - pair["score_rejected"] > 0


def test_sft_has_the_chosen_one_of_every_pair_and_of_a_tie_one_of_the_best(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(
        tmp_path, 12, sets=[ALL], rate=lambda n, model, aspect: 3 if n % 4 == 0 else rate(n, model, aspect)
    )
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    trl = {row["prompt_id"]: row for row in rows_of(tmp_path / "out", "trl", tmp_path / "cache")}
    rows = rows_of(tmp_path / "out", "sft", tmp_path / "cache")
    assert (len(trl), len(rows)) == (9, 12)
    tied = [row for row in rows if row["prompt_id"] not in trl]
    assert {row["score"] for row in tied} == {3.0}
    for row in rows:
        if pair := trl.get(row["prompt_id"]):
            assert row["messages"] == pair["prompt"] + pair["chosen"]
            assert (row["model"], row["score"]) == (pair["chosen_model"], pair["score_chosen"])


def test_a_completion_cut_at_max_tokens_is_neither_in_sft_nor_desirable(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(
        tmp_path, 12, sets=[ALL, "export.kto={rule: scores, desirable: 4, undesirable: 2}"],
        complete=lambda n, model: Cut(complete(n, model)) if model == "able" else complete(n, model),
    )  # fmt: skip
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    assert {row["model"] for row in rows_of(tmp_path / "out", "sft", tmp_path / "cache")} == {"fair"}
    kto = rows_of(tmp_path / "out", "kto", tmp_path / "cache")
    assert {(row["model"], row["label"]) for row in kto} == {("fair", True), ("plain", False), ("poor", False)}
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["kto"] == {
        "rule": "scores", "desirable": 4.0, "undesirable": 2.0,
        "labels": {"train": {"desirable": 12, "undesirable": 24}}, "left_out": {"truncated": 12},
    }  # fmt: skip


def test_kto_labels_the_sides_of_the_pairs_and_says_so(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 12, sets=[ALL, "export.test_size=3"])
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    trl = {row["prompt_id"]: row for row in rows_of(tmp_path / "out", "trl", tmp_path / "cache")}
    kto = rows_of(tmp_path / "out", "kto", tmp_path / "cache")
    assert len(kto) == 24
    for row in kto:
        side = "chosen" if row["label"] else "rejected"
        pair = trl[row["prompt_id"]]
        assert (row["prompt"], row["completion"], row["model"]) == (pair["prompt"], pair[side], pair[f"{side}_model"])
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["kto"] == {
        "rule": "pairs", "left_out": {"in_no_pair": 24},
        "labels": {"train": {"desirable": 9, "undesirable": 9}, "test": {"desirable": 3, "undesirable": 3}},
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the chosen side of a pair is, the rejected side is not" in card
    assert "| train | 9 | 9 |" in card
    assert "Without a label: 24 in no pair." in card
    assert "not balanced" not in card


def test_the_neighbours_of_kto_are_of_different_prompts(tmp_path: Path) -> None:
    """TRL makes its mismatched pairs, for the KL term, of neighbours."""
    pipeline, rubric, journaled = build(tmp_path, 60, sets=[ALL])
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    prompts = ids(tmp_path / "out", "train", "kto")
    assert len(prompts) == 120
    assert sum(one == other for one, other in pairwise(prompts)) <= 6


def test_a_card_advises_the_weight_where_labels_are_out_of_balance(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(
        tmp_path, 12, sets=["export={formats: [kto], kto: {rule: scores, desirable: 5, undesirable: 4}}"]
    )
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`desirable_weight` from 3.00 to 4.00" in card
    assert 'KTOConfig(output_dir="kto-model", desirable_weight=3.50)' in card
    assert 'load_dataset("REPOSITORY_OR_FOLDER", "kto", split="train")' in card


def test_a_missing_label_is_reported(tmp_path: Path) -> None:
    told: list[str] = []
    pipeline, rubric, journaled = build(
        tmp_path, 4, sets=["export={formats: [kto], kto: {rule: scores, desirable: 1, undesirable: 0}}"]
    )
    with journaled:
        exported = export(pipeline, rubric, journaled, tmp_path / "out", told.append)
    assert exported.rows == {"kto": {"train": 16}}
    assert told == ["kto: no completion to train on is undesirable; KTO needs both, so see export.kto"]


def test_without_pairs_formats_that_need_none_are_exported_and_the_others_reported(tmp_path: Path) -> None:
    told: list[str] = []
    pipeline, rubric, journaled = build(
        tmp_path, 6, sets=[ALL, "export.kto={rule: scores, desirable: 5, undesirable: 1}"], rate=lambda *_: 3
    )
    with journaled:
        exported = export(pipeline, rubric, journaled, tmp_path / "out", told.append)
    assert exported.rows == {"ultrafeedback": {"train": 6}, "sft": {"train": 6}}
    assert told == [
        *(f"{config} is left out: there are no pairs; of 6 prompts: tie 6" for config in ("trl", "h4")),
        "kto is left out: no completion has a label by export.kto (scores from 5, and up to 1)",
        "reward is left out: there are no pairs; of 6 prompts: tie 6",
    ]
    assert len(load(tmp_path / "out", None, tmp_path / "cache")["train"]) == 6
    assert "## Scores" not in (tmp_path / "out" / "README.md").read_text()


def test_an_empty_export_gives_the_reason_for_each_format(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(
        tmp_path, 3, sets=["export.formats=[sft, kto, reward]"], complete=lambda n, model: Fate.PENDING
    )
    with (
        journaled,
        pytest.raises(BadInput, match=r"nothing to export: there is no .* score.*; no .* label .*; .* no pairs"),
    ):
        export(pipeline, rubric, journaled, tmp_path / "out", silent)


def test_the_conversions_in_the_docs_give_what_other_trainers_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, rubric, journaled = build(tmp_path, 4, sets=[ALL])
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    code = page.partition("### LLaMA-Factory")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    exec(code.replace("DATASET", "out"), {})

    pairs = [json.loads(line) for line in (tmp_path / "data" / "aif_pairs.jsonl").read_text().splitlines()]
    assert {side["role"] for row in pairs for side in (row["chosen"], row["rejected"])} == {"assistant"}
    assert {row["prompt"][-1]["role"] for row in pairs} == {"user"}
    kto = [json.loads(line) for line in (tmp_path / "data" / "aif_kto.jsonl").read_text().splitlines()]
    assert {(row["messages"][-1]["role"], type(row["label"])) for row in kto} == {("assistant", bool)}


# --- ultrafeedback ----------------------------------------------------------------------------------------------------


def test_ultrafeedback_has_a_state_for_everything(tmp_path: Path) -> None:
    def answered(number: int, model: str) -> str | Cut | Fate:
        if (number, model) == (0, "poor"):
            return Fate.FAILED
        if (number, model) == (1, "poor"):
            return Fate.PENDING
        return Cut("Endless") if (number, model) == (2, "poor") else complete(number, model)

    def rated(number: int, model: str, aspect: str) -> int | str | Fate:
        if (number, aspect) == (3, "honesty"):
            return "N/A"
        if (number, aspect) == (4, "truthfulness"):
            return Fate.FAILED
        if (number, aspect) == (5, "truthfulness"):
            return Fate.PENDING
        return rate(number, model, aspect)

    pipeline, rubric, journaled = build(
        tmp_path, 8, sets=["export.formats=[ultrafeedback]", "rubric=ultrafeedback"], complete=answered, rate=rated
    )
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
        with ResultReader.of(journaled.store) as reader:
            places = {prompt.prompt_id: n for page in reader.selected_prompts() for n, prompt in page}
    rows = {places[row["prompt_id"]]: row for row in rows_of(tmp_path / "out", "ultrafeedback", tmp_path / "cache")}
    assert sorted(rows) == list(range(8))

    def of(number: int, model: str = "poor") -> dict[str, Any]:
        (found,) = [one for one in rows[number]["completions"] if one["model"] == model]
        return dict(found)

    def states(completion: dict[str, Any]) -> dict[str, tuple[str, Any, str | None]]:
        return {one["aspect"]: (one["state"], one["Rating"], one["reason"]) for one in completion["annotations"]}

    fields = ("state", "reason", "finish", "response")
    assert [of(0)[name] for name in fields] == ["failed", "blocked", None, None]
    assert [of(1)[name] for name in fields] == ["pending", "not_asked", None, None]
    assert of(1)["annotations"] == of(1, "able")["annotations"] == []  # nothing is judged before all are answered
    assert [of(2)[name] for name in fields] == ["answered", None, "length", "Endless"]
    assert states(of(3))["honesty"] == ("not_applicable", None, None)
    assert states(of(4))["truthfulness"] == ("missing", None, "blocked")
    assert states(of(5))["truthfulness"] == ("missing", None, "not_asked")
    assert states(of(6)) == dict.fromkeys(
        ("helpfulness", "honesty", "instruction_following", "truthfulness", "overall"), ("rated", 1.0, None)
    )
    assert (of(6)["critique"], of(6)["overall_score"], of(6)["fine-grained_score"]) == (
        "overall was weighed.",
        1.0,
        1.0,
    )
    assert of(6, "able")["score"] == 5.0
    assert of(5)["score"] is None  # the prompt is not judged whole
    assert of(3)["fine-grained_score"] == 1.0
    assert rows[2]["messages"][-1]["content"] == rows[2]["instruction"] == "Go on."
    assert rows[6]["models"] == [one["model"] for one in rows[6]["completions"]]

    judgements = {one["id"]: one for one in rows[6]["judgements"]}
    assert len(judgements) == 4 + 4
    for completion in rows[6]["completions"]:
        for one in completion["annotations"]:
            judgement = judgements[one["judgement"]]
            assert completion["completion_id"] in judgement["shown"]
            assert one["Rationale"] in judgement["text"]
    assert "the provider's filter refused it" not in json.dumps(list(rows.values()))  # a message may name a host


def test_an_unparseable_judge_reply_is_exported_and_a_server_error_is_not(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(
        tmp_path, 2, sets=["export.formats=[ultrafeedback]"],
        rate=lambda n, model, aspect: Fate.FAILED,
    )  # fmt: skip
    with journaled:
        cursor = journaled.store.cursor()
        prompts = [row[0] for row in cursor.execute("SELECT prompt_id FROM selection ORDER BY position").fetchall()]
        for prompt_id, kind, raw in zip(
            prompts, ("unreadable", "bad_request"), ("Mostly 4s.", "host.internal"), strict=True
        ):
            cursor.execute("UPDATE failed SET kind = ?, raw = ? WHERE prompt_id = ?", [kind, raw, prompt_id])
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    rows = {row["prompt_id"]: row for row in rows_of(tmp_path / "out", "ultrafeedback", tmp_path / "cache")}
    said = [
        (one["state"], one["reason"], one["text"]) for prompt_id in prompts for one in rows[prompt_id]["judgements"]
    ]
    assert said == [("failed", "unreadable", "Mostly 4s."), ("failed", "bad_request", None)]


def test_reference_answers_are_lists_of_texts_in_any_input_form() -> None:
    def answers(meta: dict[str, Any]) -> tuple[Any, Any]:
        row = ULTRAFEEDBACK.row(replace(WHOLE, whole=replace(WHOLE.whole, meta=meta)))
        assert ULTRAFEEDBACK.check(row) is None
        return row["correct_answers"], row["incorrect_answers"]

    assert answers({"correct_answers": ["a", "b"], "incorrect_answers": "c"}) == (["a", "b"], ["c"])
    assert answers({"correct_answers": ["None"], "incorrect_answers": None}) == ([], [])
    assert answers({"correct_answers": {"a": 1}, "incorrect_answers": [1, None, "d"]}) == ([], ["d"])
    assert answers({}) == ([], [])


def test_several_judges_are_listed_and_averaged_by_aspect() -> None:
    row = ULTRAFEEDBACK.row(WHOLE)
    first, second, third = row["completions"]
    assert [(one["judge"], one["aspect"], one["state"]) for one in first["annotations"]] == [
        ("judge", "honesty", "rated"), ("judge", "overall", "missing"), ("other", "overall", "rated"),
    ]  # fmt: skip
    assert (first["critique"], first["overall_score"], first["fine-grained_score"]) == ("Well done.", 9.0, 4.0)
    assert (second["annotations"], second["principle"]) == ([], None)
    assert (third["critique"], third["overall_score"], third["fine-grained_score"]) == (None, None, None)
    assert (first["principle"], first["custom_system_prompt"]) == ("honesty", "Say only what you know.")
    assert [one["id"] for one in row["judgements"]] == ["a" * 32, "b" * 32, "c" * 32]


# --- splits -----------------------------------------------------------------------------------------------------------


def test_a_count_is_exact_and_growth_moves_no_test_prompt_into_train(tmp_path: Path) -> None:
    told: list[str] = []
    pipeline, rubric, journaled = build(tmp_path, 12, sets=["export.test_size=3"])
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "small", told.append)
    assert len(ids(tmp_path / "small", "test")) == 3
    assert "fixed at" in told[0]
    pipeline, rubric, journaled = build(tmp_path, 120, sets=["export.test_size=3"])
    with journaled:
        grown = export(pipeline, rubric, journaled, tmp_path / "grown", told.append)
    assert set(ids(tmp_path / "small", "test")) <= set(ids(tmp_path / "grown", "test"))
    assert set(ids(tmp_path / "small", "train")) <= set(ids(tmp_path / "grown", "train"))
    assert grown.rows["trl"]["test"] > 3
    assert f"the test split has {grown.rows['trl']['test']} prompts, not 3" in told[-1]


def test_the_fixed_test_share_is_in_the_journal(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 12, sets=["export.test_size=3"])
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "before", silent)
        with ResultReader.of(journaled.store) as reader:
            bound = reader.test_threshold(3)
    assert bound is not None
    with JournaledStore.open(pipeline.store, silent, rebuild=True) as anew, ResultReader.of(anew.store) as reader:
        assert reader.test_threshold(3) == bound
        assert reader.test_threshold(4) is None


def test_a_share_is_approximate_and_other_pairs_do_not_change_it(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 200, sets=["export.test_size=0.25"])
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    assert 30 <= len(ids(tmp_path / "out", "test")) <= 70
    assert set(ids(tmp_path / "out", "test")).isdisjoint(ids(tmp_path / "out", "train"))


def test_without_test_size_there_is_no_test_split(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 4)
    with journaled:
        exported = export(pipeline, rubric, journaled, tmp_path / "out", silent)
    assert exported.rows == {"trl": {"train": 4}, "h4": {"train_prefs": 4, "train_sft": 4, "train_gen": 4}}
    assert not list((tmp_path / "out").rglob("test*"))


def test_a_test_split_without_pairs_is_reported(tmp_path: Path) -> None:
    told: list[str] = []
    pipeline, rubric, journaled = build(tmp_path, 4, sets=["export.test_size=0.0001"])
    with journaled:
        exported = export(pipeline, rubric, journaled, tmp_path / "out", told.append)
    assert exported.rows["trl"] == {"train": 4}
    assert "no test split" in told[0]


@pytest.mark.parametrize(
    ("size", "words"), [("4", "4 can't be held out of 4 prompts"), ("0.9999", "all 4 prompts of trl fall into")]
)
def test_nothing_left_to_train_on_is_refused(tmp_path: Path, size: str, words: str) -> None:
    pipeline, rubric, journaled = build(tmp_path, 4, sets=[f"export.test_size={size}"])
    with journaled, pytest.raises(BadInput, match=words):
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


def test_an_export_without_pairs_is_refused_with_the_outcomes_of_the_prompts(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 3, complete=lambda number, model: Fate.PENDING)
    with journaled, pytest.raises(BadInput, match="of 3 prompts: pending 3"):
        export(pipeline, rubric, journaled, tmp_path / "out", silent)


def test_all_pairs_of_a_prompt_are_in_one_split_and_a_count_is_of_prompts(tmp_path: Path) -> None:
    told: list[str] = []
    pipeline, rubric, journaled = build(tmp_path, 20, sets=["pairs.policy=all", "export.test_size=5"])
    with journaled:
        exported = export(pipeline, rubric, journaled, tmp_path / "out", told.append)
        again = export(pipeline, rubric, journaled, tmp_path / "again", told.append)
    assert exported.rows["trl"] == again.rows["trl"] == {"train": 90, "test": 30}
    assert (exported.prompt_counts.pairs, exported.prompt_counts.outcomes) == (120, {"paired": 20})
    train, test = ids(tmp_path / "out", "train"), ids(tmp_path / "out", "test")
    assert set(train).isdisjoint(test)
    assert len(set(test)) == 5
    assert (train, test) == (sorted(train), sorted(test))
    assert "5 of 20 prompts" in told[0]
    assert len(told) == 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| = 20 | prompts with pairs |\n| 120 | pairs of these |" in card
    assert "| s0 | 10 | 60 |" in card


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_data_files_are_the_same_for_any_number_of_threads_and_after_a_rebuild(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 60, sets=[ALL, "export.test_size=10"])
    with journaled:
        journaled.store.cursor().execute("SET threads = 1")
        export(pipeline, rubric, journaled, tmp_path / "one", silent)
        journaled.store.cursor().execute("SET threads = 8")
        export(pipeline, rubric, journaled, tmp_path / "eight", silent, now=lambda: LATER)
    pipeline.store.unlink()
    with build(tmp_path, 60, sets=[ALL, "export.test_size=10"])[2] as again:
        export(pipeline, rubric, again, tmp_path / "again", silent)
    assert len(digests(tmp_path / "one")) == 16
    assert digests(tmp_path / "one") == digests(tmp_path / "eight") == digests(tmp_path / "again")


def test_the_card_differs_in_its_marked_section_alone(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 6)

    def parts(out: Path) -> tuple[str, str, str]:
        head, _, rest = (out / "README.md").read_text().partition("<!-- run:begin -->")
        run, _, tail = rest.partition("<!-- run:end -->")
        return head, run, tail

    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "one", silent)
        export(pipeline, rubric, journaled, tmp_path / "two", silent, now=lambda: LATER)
    one, two = parts(tmp_path / "one"), parts(tmp_path / "two")
    assert (one[0], one[2]) == (two[0], two[2])
    assert "2026-05-01 09:30 UTC" in two[1]
    assert "2026-05-01" not in two[0]


# --- its place --------------------------------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build(tmp_path, 6)


def test_an_older_export_and_an_empty_folder_are_replaced(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, journaled = built
    (tmp_path / "out").mkdir()
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
        (tmp_path / "out" / "stray.txt").write_text("of the older export")
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "h4", "pipeline.yaml", "run.json", "trl",
    ]  # fmt: skip
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("out.")]


@pytest.mark.parametrize("name", ["notes.txt", "run.json", "folder/file"])
def test_a_folder_with_something_else_is_left_as_it_is(tmp_path: Path, built: Built, name: str) -> None:
    pipeline, rubric, journaled = built
    kept = tmp_path / "out" / name
    kept.parent.mkdir(parents=True)
    kept.write_text('{"someone": "else"}')
    with journaled, pytest.raises(BadInput, match="already exists and isn't an aif export"):
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    assert kept.read_text() == '{"someone": "else"}'


def test_a_file_is_left_as_it_is(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, journaled = built
    (tmp_path / "out").write_text("a file")
    with journaled, pytest.raises(BadInput):
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    assert (tmp_path / "out").read_text() == "a file"


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, journaled = built
    (tmp_path / "file").write_text("")
    with journaled, pytest.raises(BadInput, match="can't be written"):
        export(pipeline, rubric, journaled, tmp_path / "file" / "out", silent)


def test_through_a_symlink_its_target_is_replaced(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, journaled = built
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with journaled:
        for _ in range(2):
            exported = export(pipeline, rubric, journaled, tmp_path / "link", silent)
    assert exported.path == tmp_path / "real"
    assert (tmp_path / "link").is_symlink()
    assert ids(tmp_path / "link", "train") == ids(tmp_path / "real", "train")


def test_a_failed_export_leaves_the_older_one(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, journaled = built

    def torn() -> datetime:
        raise KeyboardInterrupt

    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent, now=lambda: LATER)
        before = (tmp_path / "out" / "run.json").read_bytes()
        with pytest.raises(KeyboardInterrupt):
            export(pipeline, rubric, journaled, tmp_path / "out", silent, now=torn)
        assert (tmp_path / "out" / "run.json").read_bytes() == before
        with pytest.raises(KeyboardInterrupt):
            export(pipeline, rubric, journaled, tmp_path / "first", silent, now=torn)
        assert not (tmp_path / "first").exists()
        export(pipeline, rubric, journaled, tmp_path / "first", silent)
    assert len(ids(tmp_path / "first", "train")) == 6
    assert not (tmp_path / ".first.aif-partial").exists()


def test_an_export_killed_between_the_two_moves_is_restored(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, journaled = built
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
        shutil.copytree(tmp_path / "out", tmp_path / ".out.aif-partial")
        (tmp_path / "out").rename(tmp_path / ".out.aif-replaced")
        refused = with_sets(pipeline, "export.test_size=99")
        with pytest.raises(BadInput):
            export(refused, rubric, journaled, tmp_path / "out", silent)
        assert len(ids(tmp_path / "out", "train")) == 6
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("out.")]


# --- rows are checked -------------------------------------------------------------------------------------------------

PAIR = Pair(
    "ab" * 32, "s", (Message("system", "Be brief."), Message("user", "Why?")), "Because.", "No.", "m", "n", 4.5, 2.0
)
ONE = ScoredCompletion("ab" * 32, "s", PAIR.messages, "Because.", "m", 4.5, True)
WHOLE = AnnotatedPrompt(
    PromptResult(
        "ab" * 32, "s", PAIR.messages, {"correct_answers": ["Because."], "incorrect_answers": "No."},
        {"reference": "Because it is so."},
        (
            CompletionResult("1" * 32, "m", "steer", "answered", None, "Because.", "stop", 4.5),
            CompletionResult("2" * 32, "n", None, "failed", "blocked", None, None, None),
            CompletionResult("3" * 32, "o", None, "answered", None, "Hm.", "length", None),
        ),
        (
            JudgementResult(
                "a" * 32, "judge", 0, "aspects", ("1" * 32, "3" * 32), "answered", None, "{}", ("3" * 32, "1" * 32),
                (
                    Rating("3" * 32, "honesty", "not_applicable", None, "A poem."),
                    Rating("1" * 32, "honesty", "rated", 4.0, "Sound.", (1, 3)),
                ),
            ),
            JudgementResult(None, "judge", 0, "critique", ("1" * 32,), "pending", None, None, (), ()),
            JudgementResult("b" * 32, "judge", 0, "critique", ("3" * 32,), "failed", "unreadable", "Hm?", (), ()),
            JudgementResult(
                "c" * 32, "other", 0, "critique", ("1" * 32,), "answered", None, "{}", ("1" * 32,),
                (Rating("1" * 32, "overall", "rated", 9.0, "Well done."),),
            ),
        ),
    ),
    {"aspects": ("honesty",), "critique": ("overall",)},
    {"steer": Principle("honesty", "Say only what you know.")},
)  # fmt: skip
SAMPLES: dict[RowKind, Any] = {"pairs": PAIR, "best": ONE, "labels": ONE, "prompts": WHOLE}
LAYOUTS = [TRL, H4, H4_GEN, REWARD, KTO, SFT, ULTRAFEEDBACK]


def sound(layout: Layout) -> dict[str, Any]:
    """A row as it is read back from its file."""
    table = pa.Table.from_pylist([layout.row(SAMPLES[layout.kind])], schema=layout.schema)
    row: dict[str, Any] = table.to_pylist()[0]
    return row


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_valid_row_passes(layout: Layout) -> None:
    assert layout.check(sound(layout)) is None


def test_every_layout_of_every_format_is_among_them() -> None:
    assert {layout.name for splits in FORMATS.values() for _, layout in splits.values()} == {
        layout.name for layout in LAYOUTS
    }


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
        (REWARD, put(margin=2.0), "margin is not"),
        (REWARD, put(score_chosen=2.0, margin=0.0), "margin|not rated higher"),
        (REWARD, lambda row: row["rejected"].pop(0), "different turns"),
        (REWARD, put(prompt=[]), "additional|must not contain"),
        (KTO, put(label=None), "label"),
        (KTO, put(label=1), "label"),
        (KTO, lambda row: row["completion"][0].update(content=""), "at least 1 char|longer than or equal to 1"),
        (KTO, lambda row: row["prompt"].append({"role": "assistant", "content": "Hm."}), "not the user's"),
        (SFT, lambda row: row["messages"].pop(), "don't end with an answer"),
        (SFT, lambda row: row["messages"][-1].update(content=""), "don't end with an answer"),
        (SFT, lambda row: row["messages"].insert(2, row["messages"][-1]), "not the user's"),
        (SFT, put(score=None), "score"),
        (ULTRAFEEDBACK, put(instruction="Be brief."), "not the last turn"),
        (ULTRAFEEDBACK, lambda row: row["models"].reverse(), "models are not"),
        (ULTRAFEEDBACK, lambda row: row["completions"][1].update(response="x"), "is failed, but"),
        (ULTRAFEEDBACK, lambda row: row["completions"][1].update(reason=None), "is failed, but"),
        (ULTRAFEEDBACK, lambda row: row["completions"][0].update(state="lost"), "state"),
        (ULTRAFEEDBACK, lambda row: row["completions"][0].update(overall_score="N/A"), "overall_score"),
        (ULTRAFEEDBACK, lambda row: row["completions"][2]["annotations"][0].update(Rating=1.0), "not_applicable, but"),
        (ULTRAFEEDBACK, lambda row: row["completions"][0]["annotations"][0].update(Rating=None), "rated, but"),
        (ULTRAFEEDBACK, lambda row: row["completions"][0]["annotations"][0].update(reason="x"), "rated, but"),
        (ULTRAFEEDBACK, lambda row: row["completions"][0]["annotations"][1].update(reason=None), "missing, but"),
        (ULTRAFEEDBACK, lambda row: row["judgements"].pop(0), "not there"),
    ],
)
def test_an_invalid_row_is_detected(layout: Layout, spoil: Callable[[dict[str, Any]], None], words: str) -> None:
    row = sound(layout)
    spoil(row)
    fault = layout.check(row)
    assert fault is not None
    assert re.search(words, fault)


def test_a_bad_row_stops_the_export_and_names_file_and_row(tmp_path: Path) -> None:
    """No client lets an empty completion through; one that got into the store all the same must not be published."""
    pipeline, rubric, journaled = build(
        tmp_path, 5, sets=["pairs.policy=best_vs_worst"],
        complete=lambda number, model: "" if (number, model) == (2, "poor") else complete(number, model),
    )  # fmt: skip
    with (
        journaled,
        pytest.raises(AifError, match=r"train-00000-of-00001\.parquet: row \d \([0-9a-f]{64}\): .*rejected"),
    ):
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_fills_its_columns_and_no_other(layout: Layout) -> None:
    row = layout.row(SAMPLES[layout.kind])
    assert set(layout.schema.names) == set(row)
    assert sound(layout) == row


def test_the_written_export_is_reported(tmp_path: Path, built: Built) -> None:
    pipeline, rubric, journaled = built
    with journaled:
        exported = export(pipeline, rubric, journaled, tmp_path / "out", silent)
    screen = io.StringIO()
    print_exported(Console(width=200, file=screen), exported)
    text = screen.getvalue()
    assert "6 pairs of 6 prompts" in text
    assert str(tmp_path / "out") in text
    assert "train 6" in text


def test_the_line_that_loads_a_dataset_works_where_its_folder_looks_like_a_pattern(
    tmp_path: Path, built: Built
) -> None:
    pipeline, rubric, journaled = built
    with journaled:
        exported = export(pipeline, rubric, journaled, tmp_path / "out [v1]*", silent)
    screen = io.StringIO()
    print_exported(Console(width=200, file=screen), exported)
    (line,) = re.findall(r"^load +(.*)$", screen.getvalue(), re.MULTILINE)
    loaded = eval(line, {"load_dataset": datasets.load_dataset})
    assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 6}


def partly(number: int, model: str) -> str | Fate:
    """Of eight prompts 2 has a completion that failed, 5 one that is pending: 75 % are whole."""
    fates = {(2, "fair"): Fate.FAILED, (5, "poor"): Fate.PENDING}
    return fates.get((number, model)) or complete(number, model)


@pytest.mark.parametrize(("least", "told"), [("1.0", True), ("0.76", True), ("0.75", False), ("0", False)])
def test_an_export_below_the_requested_completeness_says_what_is_missing(
    tmp_path: Path, least: str, told: bool
) -> None:
    pipeline, rubric, journaled = build(tmp_path, 8, complete=partly, sets=[f"export.completeness={least}"])
    with journaled:
        exported = export(pipeline, rubric, journaled, tmp_path / "out", silent)
    screen = io.StringIO()
    print_exported(Console(width=300, file=screen), exported)
    said, path = screen.getvalue(), pipeline.path
    assert ("6 of 8 prompts complete (75.0%); export.completeness is" in said) is told
    assert (
        "  fair: 1 completion failed permanently: blocked, as in: the provider's filter refused it\n" in said
    ) is told
    assert ("  poor: 1 completion, not sent yet\n" in said) is told
    assert ("  strict: 1 judgement, waiting for pending completions\n" in said) is told
    assert (f"`aif run {path}` requests what is pending" in said) is told
    assert (f"`aif run {path} --retry-failed` retries" in said) is told
    card = (tmp_path / "out" / "README.md").read_text()
    assert "6 of 8 prompts complete (75.0%)" in card
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["complete"] == {"prompts": 8, "whole": 6}


def test_a_refused_export_leaves_the_older_one_as_it_is(tmp_path: Path) -> None:
    out, refusing = tmp_path / "out", ["export.incomplete=refuse", "export.completeness=0.8"]
    pipeline, rubric, journaled = build(tmp_path, 8, complete=partly)
    with journaled:
        export(pipeline, rubric, journaled, out, silent)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    pipeline, rubric, journaled = build(tmp_path, 8, complete=partly, sets=refusing)
    with journaled:
        journaled.keep([records.retry(LATER)])  # what had failed is pending now, and still missing
        with pytest.raises(Incomplete, match="nothing was exported: 6 of 8 prompts") as refused:
            export(pipeline, rubric, journaled, out, silent)
    assert "fair: 1 completion to be retried: blocked" in str(refused.value)
    assert refused.value.exit == Exit.FAILURES
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    pipeline, rubric, journaled = build(tmp_path, 8, sets=refusing)
    with journaled:
        assert export(pipeline, rubric, journaled, out, silent).shortfall == []


def test_loading_gives_the_last_export_of_any_run(tmp_path: Path) -> None:
    """load_dataset caches by the folder's last name: a second export must not give the first once more."""
    cache, out = tmp_path / "cache", tmp_path / "dataset"
    loaded = []
    for policy in ("best_vs_random", "best_vs_worst"):
        pipeline, rubric, journaled = build(tmp_path, 8, sets=[f"pairs.policy={policy}"])
        with journaled:
            export(pipeline, rubric, journaled, out, silent)
        loaded.append(load(out, "trl", cache)["train"]["score_rejected"][:])
        (path,) = (out / "trl").glob("train-*.parquet")
        assert loaded[-1] == pq.read_table(path).column("score_rejected").to_pylist()

    assert loaded[0] != loaded[1]


def test_a_count_includes_pending_prompts_so_that_an_early_export_fixes_no_large_share(tmp_path: Path) -> None:
    def rated(number: int, model: str, aspect: str) -> int | Fate:
        return rate(number, model, aspect) if number < 10 else Fate.PENDING

    pipeline, rubric, journaled = build(tmp_path, 60, sets=["export.test_size=6"], rate=rated)
    with journaled:
        early = export(pipeline, rubric, journaled, tmp_path / "out", silent).rows["trl"]
    pipeline, rubric, journaled = build(tmp_path, 60, sets=["export.test_size=6"])
    with journaled:
        late = export(pipeline, rubric, journaled, tmp_path / "out", silent).rows["trl"]

    assert sum(early.values()) == 10
    assert late == {"train": 54, "test": 6}


@pytest.mark.parametrize("policy", ["on_policy, model: plain", "all, max_length_ratio: 1.3"])
def test_sft_has_the_best_completion_with_any_pairing_policy(tmp_path: Path, policy: str) -> None:
    """Of `able` no pair can be made: it is beyond the length ratio, or has no part in what is on policy."""

    def said(number: int, model: str) -> str:
        return complete(number, model) + (" And so on." * 9 if model == "able" else "")

    sets = [f"pairs={{policy: {policy}, min_margin: 2.0}}", "export.formats=[trl, sft]"]
    rated = {"able": 5, "fair": 4, "plain": 4 if "on_policy" in policy else 2, "poor": 1}
    pipeline, rubric, journaled = build(
        tmp_path, 6, sets=sets, complete=said, rate=lambda n, model, aspect: rated[model]
    )
    with journaled:
        export(pipeline, rubric, journaled, tmp_path / "out", silent)
    assert set(load(tmp_path / "out", "sft", tmp_path / "cache")["train"]["model"]) == {"able"}


def test_row_groups_are_cut_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, rubric, journaled = build(tmp_path, 6, complete=lambda n, model: f"{model} {n} " + "w" * 300)
    monkeypatch.setattr(batching, "MAX_BATCH_BYTES", 1000)
    with journaled:
        done = export(pipeline, rubric, journaled, tmp_path / "out", print)
    (file,) = (done.path / "trl").glob("*.parquet")

    found = pq.ParquetFile(file)
    assert found.num_row_groups == 6
    assert len(list(parquet.read_rows(file))) == 6


def test_the_store_state_is_the_digest_of_all_pairs(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 5, sets=["pairs.policy=all"])
    with journaled:
        make_pairs(pipeline, rubric, journaled.store)
        with ResultReader.of(journaled.store) as reader:
            books, paired = reader.prompt_counts(), reader.pair_keys()
            told = [reader.get_mark("plan"), *reader.replies_digest(), books.intake, books.outcomes]
            assert store_state(reader, books, paired) == digest([*told, paired.to_pylist()])
            assert store_state(reader, books, paired.slice(0, 0)) == digest([*told, []])
