"""The best completion of each prompt, and labels: books that add up, no text both ways, drawn as pairs are drawn."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.config.sections import KtoLabels
from aif.pairing.labels import REASONS, balancing_weight, best_completions, label_completions
from aif.pairing.pairs import PairPolicy, pair_prompts
from aif.pairing.scores import RatingColumns

PAIRS = KtoLabels()
SCORES = KtoLabels(rule="scores", desirable=4.0, undesirable=2.0)

NO_PAIRS = pa.table({name: pa.array([], pa.string()) for name in ("prompt_id", "chosen", "rejected")})


def scored(*rows: tuple[str, str, float, bool], texts: list[str] | None = None) -> pa.Table:
    """Rows are (prompt, key, score, truncated); every text is its own unless given."""
    prompts, keys, scores, truncated = zip(*rows, strict=True)
    return pa.table(
        {
            "prompt_id": prompts, "source": ["s"] * len(rows), "completion": keys, "text_id": texts or keys,
            "model": ["m"] * len(rows), "score": scores, "truncated": truncated,
        }
    )  # fmt: skip


def paired(*rows: tuple[str, str, str]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(("prompt_id", "chosen", "rejected"), row, strict=True)) for row in rows])


def keys(table: pa.Table) -> list[str]:
    found: list[str] = table.column("completion").to_pylist()
    return found


def labels(table: pa.Table) -> dict[str, bool]:
    return dict(zip(keys(table), table.column("label").to_pylist(), strict=True))


@st.composite
def prompts(draw: st.DrawFn) -> list[tuple[str, str, float, bool]]:
    """Prompts of one to five completions with few different scores."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    return [
        (f"p{n}", f"p{n}c{i}", draw(st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0])), draw(st.booleans()))
        for n, size in enumerate(sizes)
        for i in range(size)
    ]


# --- the best ---------------------------------------------------------------------------------------------------------


@given(prompts(), st.integers(0, 5))
def test_the_best_is_drawn_as_pairs_draw_theirs(rows: list[tuple[str, str, float, bool]], seed: int) -> None:
    table = scored(*rows)
    made = pair_prompts(
        RatingColumns(
            prompt_ids=table.column("prompt_id"),
            completions=table.column("completion"),
            models=table.column("model"),
            text_ids=table.column("text_id"),
            lengths=np.ones(len(rows), dtype=np.int64),
            truncated=np.array([row[3] for row in rows]),
            ratings=np.array([[row[2]] for row in rows]),
            aspects=("overall",),
            judges=("judge",),
            weights=(1.0,),
            judge_weights=(1.0,),
        ),
        PairPolicy("best_vs_random", "overall", 0.0, "drop", seed),
    )
    found = best_completions(table, seed)
    by_prompt = dict(zip(found.column("prompt_id").to_pylist(), keys(found), strict=True))
    for pair_made in made.preferences().to_pylist():
        assert by_prompt[pair_made["prompt_id"]] == pair_made["chosen"]
    whole = {prompt_id: score for prompt_id, _, score, cut in sorted(rows, key=lambda row: row[2]) if not cut}
    assert dict(zip(found.column("prompt_id").to_pylist(), found.column("score").to_pylist(), strict=True)) == whole


def test_of_a_prompt_of_which_all_were_cut_there_is_none() -> None:
    table = scored(("p", "a", 5.0, True), ("p", "b", 4.0, True), ("q", "c", 5.0, True), ("q", "d", 1.0, False))
    assert keys(best_completions(table, seed=0)) == ["d"]


# --- labels -----------------------------------------------------------------------------------------------------------


@given(prompts(), st.data())
def test_labels_and_what_is_left_out_add_up(rows: list[tuple[str, str, float, bool]], data: Any) -> None:
    texts = [data.draw(st.sampled_from(["x", "y", key])) for _, key, _, _ in rows]
    table = scored(*rows, texts=texts)
    sides = [
        (one[0], one[1], other[1])
        for one in rows
        for other in rows
        if one[0] == other[0] and one[2] > other[2] and not one[3] and data.draw(st.booleans())
    ]
    pairs = paired(*sides) if sides else NO_PAIRS
    for rule in (PAIRS, SCORES):
        found = label_completions(table, pairs, rule)
        assert len(found.rows) + sum(found.left_out.values()) == len(rows)
        assert set(found.left_out) <= set(REASONS)
        assert keys(found.rows) == sorted(keys(found.rows))
        said: dict[tuple[str, str], set[bool]] = {}
        for row in found.rows.to_pylist():
            said.setdefault((row["prompt_id"], row["text_id"]), set()).add(row["label"])
            assert not (row["label"] and row["truncated"])
            if rule is SCORES:
                assert row["score"] >= 4 if row["label"] else row["score"] <= 2
        assert all(len(labels) == 1 for labels in said.values())


def test_the_sides_of_pairs_are_labels_and_who_is_on_both_has_none() -> None:
    table = scored(("p", "a", 5.0, False), ("p", "b", 4.0, False), ("p", "c", 1.0, True), ("p", "d", 1.0, False))
    found = label_completions(table, paired(("p", "a", "b"), ("p", "b", "c")), PAIRS)
    assert labels(found.rows) == {"a": True, "c": False}
    assert found.left_out == {"in_no_pair": 1, "both_ways": 1}


def test_scores_make_labels_from_and_up_to_the_bounds() -> None:
    rows = [("p", "a", 4.0, False), ("p", "b", 4.0, True), ("p", "c", 3.0, False), ("p", "d", 2.0, True)]
    found = label_completions(scored(*rows), NO_PAIRS, SCORES)
    assert labels(found.rows) == {"a": True, "d": False}
    assert found.left_out == {"between": 1, "truncated": 1}


def test_one_text_rated_both_ways_has_no_label_and_another_prompt_s_stays() -> None:
    rows = [("p", "a", 5.0, False), ("p", "b", 1.0, False), ("q", "c", 1.0, False)]
    found = label_completions(scored(*rows, texts=["same", "same", "same"]), NO_PAIRS, SCORES)
    assert labels(found.rows) == {"c": False}
    assert found.left_out == {"both_ways": 2}


@pytest.mark.parametrize(
    ("desirable", "undesirable", "advised"),
    [
        (10, 10, None),
        (13, 10, None),
        (0, 10, None),
        (10, 0, None),
        (10, 20, ("desirable_weight", 2.0, 8 / 3)),
        (20, 10, ("undesirable_weight", 1.5, 2.0)),
    ],
)
def test_the_weight_that_balances(desirable: int, undesirable: int, advised: tuple[str, float, float] | None) -> None:
    found = balancing_weight(desirable, undesirable)
    assert (found and found[0]) == (advised and advised[0])
    assert found is None or advised is None or found[1:] == pytest.approx(advised[1:])


def test_the_best_of_several_scales_is_drawn_from_the_best_of_each() -> None:
    table = scored(("p", "a", 0.9, False), ("p", "b", 0.2, False), ("p", "c", 9.0, False), ("p", "d", 2.0, False))
    table = table.append_column("scale", pa.array(["1", "1", "10", "10"]))
    assert {keys(best_completions(table, seed))[0] for seed in range(30)} == {"a", "c"}


def test_scores_are_equal_by_their_size_alone() -> None:
    table = scored(("p", "a", 1e-11, False), ("p", "b", 3e-11, False))
    assert {keys(best_completions(table, seed))[0] for seed in range(30)} == {"b"}
    found = label_completions(table, NO_PAIRS, KtoLabels(rule="scores", desirable=3e-11, undesirable=1e-11))
    assert labels(found.rows) == {"a": False, "b": True}
