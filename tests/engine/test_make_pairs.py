"""Every selected prompt gets exactly one outcome, whatever became of its completions and judgements."""

import random
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from aif.config.pipeline import Pipeline, parse
from aif.engine.make_pairs import ALL_OUTCOMES, make_pairs, scores_of
from aif.engine.outcome_text import OUTCOME_TEXTS
from aif.judging.rubric import Rubric
from aif.store import records, result_queries
from aif.store.journaled_store import JournaledStore
from aif.store.result_queries import ResultReader
from tests.support.building import PIPELINE, Cut, Fate, build
from tests.support.building import rate as rate_by_quality

MODELS = ("able", "fair", "plain", "poor")


def with_sets(pipeline: Pipeline, *sets: str) -> Pipeline:
    """Return the pipeline with some keys changed, over the same store."""
    return parse(PIPELINE, pipeline.path, [f"store={pipeline.store}", *sets])


def outcomes(journaled: JournaledStore) -> dict[int, str]:
    """Return outcomes by position in the selection; fails if a prompt has none or several."""
    with ResultReader.of(journaled.store) as reader:
        rows = reader._query("SELECT e.position, o.outcome FROM selection e LEFT JOIN outcomes o USING (prompt_id)")
        strays = reader._query("SELECT * FROM outcomes WHERE prompt_id NOT IN (SELECT prompt_id FROM selection)")
    assert strays == []
    assert max(Counter(row["position"] for row in rows).values()) == 1
    return {row["position"]: row["outcome"] for row in rows}


def outcome_at(journaled: JournaledStore, position: int) -> dict[str, Any]:
    with ResultReader.of(journaled.store) as reader:
        (row,) = reader._query(
            "SELECT o.* FROM outcomes o JOIN selection e USING (prompt_id) WHERE e.position = ?", [position]
        )
    return row


def make(built: tuple[Pipeline, Rubric, JournaledStore]) -> tuple[dict[str, int], dict[int, str]]:
    """Return counts as make_pairs returns them, and outcomes as stored."""
    pipeline, rubric, journaled = built
    counts = make_pairs(pipeline, rubric, journaled.store)
    return counts, outcomes(journaled)


def test_each_reason_for_no_pair_is_told_apart(tmp_path: Path) -> None:
    expected = {
        1: "too_few_completions", 2: "pending", 3: "judgement_failed", 4: "pending", 5: "tie", 6: "all_truncated",
        7: "best_truncated", 8: "identical",
    }  # fmt: skip

    def complete(number: int, model: str) -> str | Cut | Fate:
        text = f"{model} on {number}"
        if number == 1 and model != "able":
            return Fate.FAILED
        if number == 2 and model == "poor":
            return Fate.PENDING
        if number == 6 or (number == 7 and model == "able"):
            return Cut(text)
        return "the same words" if number == 8 else text

    def rate(number: int, model: str, aspect: str) -> int | str | Fate:
        if number == 3:
            return Fate.FAILED
        if number == 4:
            return Fate.PENDING
        if number == 5 or (number == 7 and model != "able"):
            return 3
        return rate_by_quality(number, model, aspect)

    built = build(tmp_path, 9, complete=complete, rate=rate)
    with built[2]:
        counts, stored = make(built)
    assert stored == {0: "paired"} | expected
    assert counts == {name: list(stored.values()).count(name) for name in ALL_OUTCOMES}
    assert sum(counts.values()) == 9


@pytest.mark.parametrize("seed", range(3))
def test_compared_and_uncompared_prompts_add_up_to_all_prompts(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    fates = [None, None, Fate.FAILED]
    completion = {(n, m): draw.choice([*fates * 4, Fate.PENDING]) for n in range(60) for m in MODELS}
    judgement = [draw.choice([*fates * 2, Fate.PENDING]) for _ in range(60)]
    built = build(
        tmp_path,
        60,
        complete=lambda number, model: completion[number, model] or f"{model} on {number}",
        rate=lambda number, model, aspect: judgement[number] or draw.randint(1, 5),
    )
    _, rubric, journaled = built
    with journaled:
        counts, stored = make(built)
        with ResultReader.of(journaled.store) as reader:
            compared = set(scores_of(built[0], rubric, reader).prompt_ids.to_pylist())
            not_compared = reader.unpaired_prompts().column("prompt_id").to_pylist()
            selected = [prompt.prompt_id for page in reader.selected_prompts() for _, prompt in page]
    assert sorted([*compared, *not_compared]) == sorted(selected)
    assert sum(counts.values()) == 60

    for number in range(60):
        of = [completion[number, model] for model in MODELS]
        if Fate.PENDING in of:
            assert stored[number] == "pending"
        elif of.count(Fate.FAILED) > 2:
            assert stored[number] == "too_few_completions"
        elif judgement[number] is Fate.PENDING:
            assert stored[number] == "pending"
        elif judgement[number] is Fate.FAILED:
            assert stored[number] == "judgement_failed"
        else:
            assert stored[number] in {"paired", "tie"}
    assert {"pending", "too_few_completions", "judgement_failed", "paired"} <= set(stored.values())  # all occur


def test_without_answers_every_prompt_is_pending(tmp_path: Path) -> None:
    built = build(tmp_path, 3, complete=lambda number, model: Fate.PENDING)
    with built[2]:
        counts, stored = make(built)
    assert set(stored.values()) == {"pending"}
    assert counts["pending"] == sum(counts.values()) == 3


def test_an_aspect_that_is_not_applicable_to_one_completion_is_left_out_for_all(tmp_path: Path) -> None:
    def rate(number: int, model: str, aspect: str) -> int | str:
        return "N/A" if (aspect, model) == ("honesty", "fair") else rate_by_quality(number, model, aspect)

    pipeline, rubric, journaled = build(tmp_path, 2, rate=rate)
    with journaled:
        make_pairs(pipeline, rubric, journaled.store)
        row = outcome_at(journaled, 0)
        assert row["outcome"] == "paired"
        assert row["aspects"] == ["instruction_following", "truthfulness", "helpfulness"]
        counts = make_pairs(with_sets(pipeline, "pairs.missing=drop"), rubric, journaled.store)
    assert counts["missing_aspect"] == 2


def test_a_failed_request_is_a_missing_aspect_and_a_pending_request_keeps_the_prompt_pending(
    tmp_path: Path,
) -> None:
    def rate(number: int, model: str, aspect: str) -> int | Fate:
        if aspect == "truthfulness" and number < 2:
            return (Fate.FAILED, Fate.PENDING)[number]
        return rate_by_quality(number, model, aspect)

    built = build(tmp_path, 3, sets=["rubric=ultrafeedback"], rate=rate)
    with built[2] as journaled:
        _, stored = make(built)
        assert stored == {0: "paired", 1: "pending", 2: "paired"}
        assert "truthfulness" not in outcome_at(journaled, 0)["aspects"]
        assert "truthfulness" in outcome_at(journaled, 2)["aspects"]


def test_another_policy_replaces_the_outcomes_of_the_first(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 6)
    with journaled, ResultReader.of(journaled.store) as reader:
        assert make_pairs(pipeline, rubric, journaled.store)["paired"] == 6
        assert make_pairs(with_sets(pipeline, "pairs.min_margin=4.5"), rubric, journaled.store)["margin"] == 6
        assert make_pairs(with_sets(pipeline, "pairs.policy=best_vs_worst"), rubric, journaled.store)["paired"] == 6
        sides = reader._query("SELECT DISTINCT chosen_model, rejected_model, score_chosen, score_rejected FROM pairs")
        assert sides == [{"chosen_model": "able", "rejected_model": "poor", "score_chosen": 5.0, "score_rejected": 1.0}]
        scores = reader._query(
            "SELECT model, count(*) AS n, any_value(score) AS score FROM scores x JOIN slots s ON s.key = x.completion "
            "GROUP BY model ORDER BY model"
        )
    assert scores == [
        {"model": model, "n": 6, "score": float(rate_by_quality(0, model, "honesty"))} for model in MODELS
    ]


def test_ratings_by_other_settings_of_the_judge_do_not_count(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 4)
    with journaled:
        other = with_sets(pipeline, "judges.strict.max_tokens=77")
        assert make_pairs(other, rubric, journaled.store)["pending"] == 4
        assert make_pairs(pipeline, rubric, journaled.store)["paired"] == 4


def test_prompts_read_again_are_pending_until_they_are_planned(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 5)
    with journaled:
        with ResultReader.of(journaled.store) as reader:
            rows = [(prompt.prompt_id, prompt.source) for page in reader.selected_prompts() for _, prompt in page]
        turned = [rows[4], *rows[:4]]
        journaled.keep([records.page(0, turned), records.selected("another fingerprint", {("s0", "selected"): 5})])
        counts = make_pairs(pipeline, rubric, journaled.store)
        assert set(outcomes(journaled).values()) == {"pending"}
    assert counts["pending"] == sum(counts.values()) == 5


# --- several pairs of a prompt ----------------------------------------------------------------------------------------


def test_all_pairs_of_a_prompt_are_stored_in_order(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 5, sets=["pairs.policy=all"])
    with journaled, ResultReader.of(journaled.store) as reader:
        assert make_pairs(pipeline, rubric, journaled.store)["paired"] == 5
        assert (reader.prompt_counts().pairs, reader.prompt_counts().outcomes) == (30, {"paired": 5})
        table = reader.pair_keys()
        keys = list(zip(table["prompt_id"].to_pylist(), table["n"].to_pylist(), strict=True))
        assert keys == sorted(keys)
        assert [n for _, n in keys] == [*range(6)] * 5
        first = [(pair.chosen_model, pair.rejected_model, pair.n) for pair in next(reader.pairs_with_texts(table, 6))]
        assert first[0] == ("able", "poor", 0)
        assert {(chosen, rejected) for chosen, rejected, _ in first} == set(combinations(MODELS, 2))
        board = {row["model"]: (row["chosen"], row["rejected"]) for row in reader._query("FROM leaderboard")}
        assert board == {"able": (15, 0), "fair": (10, 5), "plain": (5, 10), "poor": (0, 15)}

        make_pairs(with_sets(pipeline, "pairs.policy=all", "pairs.max_pairs_per_prompt=2"), rubric, journaled.store)
        assert reader.prompt_counts().pairs == 10
        make_pairs(with_sets(pipeline, "pairs.policy=on_policy", "pairs.model=plain"), rubric, journaled.store)
        assert {row["chosen_model"] for row in reader._query("FROM pairs")} == {"able"}
        assert {row["rejected_model"] for row in reader._query("FROM pairs")} == {"plain"}


def test_lengths_are_characters_and_prompts_beyond_a_cap_are_counted(tmp_path: Path) -> None:
    def complete(number: int, model: str) -> str:
        return "é" * (30 if model == "able" else 15 if model == "fair" else 14) + model[0] + str(number)

    pipeline, rubric, journaled = build(tmp_path, 9, complete=complete)
    ratio = "pairs.max_length_ratio=1.9"
    with journaled, ResultReader.of(journaled.store) as reader:
        assert make_pairs(with_sets(pipeline, ratio), rubric, journaled.store)["paired"] == 9
        assert {row["rejected_model"] for row in reader._query("FROM pairs")} == {"fair"}
        counts = make_pairs(with_sets(pipeline, ratio, "pairs.max_per_model=4"), rubric, journaled.store)
        assert (counts["paired"], counts["model_cap"]) == (4, 5)
        assert (
            make_pairs(with_sets(pipeline, "pairs.max_length_ratio=1.0"), rubric, journaled.store)["length_ratio"] == 9
        )


# --- several judges ---------------------------------------------------------------------------------------------------

ONE = "judges={first: {provider: openai, model: m1, weight: 3}}"
TWO = "judges={first: {provider: openai, model: m1, weight: 3}, second: {provider: openai, model: m2}}"


def rate_otherwise(number: int, model: str, aspect: str) -> int | str | Fate:
    """Rate `poor` best and `able` worst; leave out one aspect once, and one prompt entirely."""
    if number == 1:
        return Fate.FAILED
    if (number, model, aspect) == (2, "fair", "honesty"):
        return "N/A"
    return 6 - rate_by_quality(number, model, aspect)


def two_judges(folder: Path, *sets: str) -> tuple[Pipeline, Rubric, JournaledStore]:
    build(folder, 4, sets=[ONE, *sets])[2].close()
    return build(folder, 4, sets=[TWO, *sets], rate=rate_otherwise)


def test_the_score_is_the_weighted_mean_of_judges_over_aspects_rated_for_all(tmp_path: Path) -> None:
    pipeline, rubric, journaled = two_judges(tmp_path)
    with journaled, ResultReader.of(journaled.store) as reader:
        assert make_pairs(pipeline, rubric, journaled.store)["paired"] == 4
        whole, failed, lacking = (outcome_at(journaled, position)["aspects"] for position in (0, 1, 2))
        assert len(whole) == 8
        assert failed == [f"first/{aspect}" for aspect in rubric.sheet.aspects]
        assert set(whole) - set(lacking) == {"second/honesty"}
        rows = reader._query(
            "SELECT s.position, s.model, x.score, x.spread FROM scores x JOIN slots s ON s.key = x.completion "
            "WHERE s.model IN ('able', 'fair') ORDER BY s.position, s.model"
        )
    scores = [(row["position"], row["model"], row["score"], row["spread"]) for row in rows]
    assert scores[:4] == [(0, "able", 4.0, 4.0), (0, "fair", 3.5, 2.0), (1, "able", 5.0, None), (1, "fair", 4.0, None)]
    honesty, others = 4.0, 3.5  # prompt 2, fair: the first judge's ratings alone, and both judges'
    assert scores[5] == (2, "fair", pytest.approx((honesty + 3 * others) / 4), 2.0)


def test_pairs_that_judges_disagree_on_are_stored_with_both_scores(tmp_path: Path) -> None:
    pipeline, rubric, journaled = two_judges(tmp_path)
    with journaled, ResultReader.of(journaled.store) as reader:
        make_pairs(pipeline, rubric, journaled.store)
        assert reader.disputed_pairs() == 3
        assert {
            (row["judge"], row["score_chosen"], row["score_rejected"] > 1) for row in reader._query("FROM dissent")
        } == {("second", 1.0, True)}
        rows = {row["aspect"]: row for row in reader._query("FROM agreement")}
        assert {(row["judge"], row["other"]) for row in rows.values()} == {("first", "second")}
        assert rows.keys() == set(rubric.sheet.aspects)
        assert (rows["honesty"]["completions"], rows["helpfulness"]["completions"]) == (11, 12)
        (scores,) = reader._query("FROM score_agreement")
        assert (scores["judge"], scores["other"], scores["completions"]) == ("first", "second", 12)
        assert scores["correlation"] == pytest.approx(-1, abs=0.02)
        assert rows["helpfulness"]["correlation"] == pytest.approx(-1)
        assert rows["helpfulness"]["difference"] == pytest.approx(3.0)


def test_another_name_for_a_judge_is_the_same_judge(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(tmp_path, 3, sets=[ONE])
    with journaled, ResultReader.of(journaled.store) as reader:
        renamed = with_sets(pipeline, "judges={other: {provider: openai, model: m1}}")
        assert make_pairs(renamed, rubric, journaled.store)["paired"] == 3
        assert reader._query("SELECT DISTINCT judge FROM ratings") == [{"judge": "other"}]
        assert reader._query("SELECT DISTINCT judge FROM judge_scores") == [{"judge": "other"}]


def test_single_judgements_of_different_judges_are_not_averaged_within_a_prompt(tmp_path: Path) -> None:
    """The second judge failed on one completion of prompt 0: its ratings of the others must not change their scores."""

    def rate(number: int, model: str, aspect: str) -> int | Fate:
        if aspect != "overall":
            return rate_by_quality(number, model, aspect)
        return Fate.FAILED if (number, model) == (0, "able") else 1

    sets = ["rubric=ultrafeedback", "pairs.score=overall"]
    build(tmp_path, 2, sets=[ONE, *sets])[2].close()
    pipeline, rubric, journaled = build(tmp_path, 2, sets=[TWO, *sets], rate=rate)
    with journaled, ResultReader.of(journaled.store) as reader:
        make_pairs(pipeline, rubric, journaled.store)
        assert outcome_at(journaled, 0)["aspects"] == ["first/overall"]
        assert outcome_at(journaled, 1)["aspects"] == ["first/overall", "second/overall"]
        rows = reader._query(
            "SELECT s.position, s.model, x.score FROM scores x JOIN slots s ON s.key = x.completion ORDER BY ALL"
        )
        assert [row["score"] for row in rows] == [5, 4, 2, 1, 4, 3.25, 1.75, 1]
        dropping = with_sets(pipeline, TWO, *sets, "pairs.missing=drop")
        assert make_pairs(dropping, rubric, journaled.store)["missing_aspect"] == 1


def test_every_outcome_has_a_text() -> None:
    assert set(OUTCOME_TEXTS) == set(ALL_OUTCOMES)


@pytest.mark.parametrize(("cap", "pairs"), [("null", 12 * 6), (7, 16)])
def test_pairs_are_the_same_in_parts_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: object, pairs: int
) -> None:
    """Parts are cut by their number of pairs: 25,000 prompts with 32 completions each have 12,000,000."""
    pipeline, rubric, journaled = build(tmp_path, 12, sets=[f"pairs={{policy: all, max_per_model: {cap}}}"])
    outcomes_by_part: list[Any] = []
    parts: list[int] = []
    rated = ResultReader._rated_between

    def counted(self: ResultReader, *arguments: Any) -> Any:
        parts.append(1)
        return rated(self, *arguments)

    monkeypatch.setattr(ResultReader, "_rated_between", counted)
    with journaled:
        for looked_at, completions in ((10**9, 10**9), (33, 10**9), (10**9, 5), (1, 1)):
            monkeypatch.setattr(result_queries, "PAIRS_AT_ONCE", looked_at)
            monkeypatch.setattr(result_queries, "COMPLETIONS_AT_ONCE", completions)
            parts.clear()
            counts = make_pairs(pipeline, rubric, journaled.store)
            with ResultReader.of(journaled.store) as reader:
                outcomes_by_part.append((counts, reader.pair_keys().to_pylist()))
            outcomes_by_part.append(len(parts))

    assert outcomes_by_part[1::2] == [1, 6, 10, 12]
    assert all(r == outcomes_by_part[0] for r in outcomes_by_part[::2])
    assert len(outcomes_by_part[0][1]) == pairs
