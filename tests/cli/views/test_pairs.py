"""What `aif pairs` tells of a policy, alone and beside another, without writing anything."""

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from aif.cli.views.pairs import print_preview
from aif.config.pipeline import Pipeline, parse
from aif.core.errors import BadInput
from aif.engine.make_pairs import make_pairs
from aif.engine.pair_preview import PairPreview, differing, preview
from aif.store.result_queries import ResultReader
from tests.support.building import PIPELINE, Fate, build
from tests.support.building import rate as rate_by_quality


def complete(number: int, model: str) -> str:
    return f"{number} {model} ".ljust(400 if model == "able" else 200, ".")


def rate(number: int, model: str, aspect: str) -> int | Fate:
    """Prompt 4 is tied, prompt 5 pending."""
    if number == 4:
        return 3
    if number == 5:
        return Fate.PENDING
    return rate_by_quality(number, model, aspect)


@pytest.fixture
def store(tmp_path: Path) -> Pipeline:
    pipeline, rubric, journaled = build(tmp_path, 8, complete=complete, rate=rate)
    with journaled:
        make_pairs(pipeline, rubric, journaled.store)
    return pipeline


def with_sets(pipeline: Pipeline, *sets: str) -> Pipeline:
    return parse(PIPELINE, pipeline.path, [f"store={pipeline.store}", *sets])


def seen(pipeline: Pipeline, *sets: str) -> PairPreview:
    with ResultReader.open(pipeline.store) as reader:
        return preview(with_sets(pipeline, *sets), reader)


def told(one: PairPreview, other: PairPreview | None = None, versus: Sequence[str] = ()) -> dict[str, str]:
    """What is printed, by the first words of its line."""
    screen = io.StringIO()
    print_preview(Console(width=200, file=screen), one, other, versus)
    lines = [line.rstrip().partition("  ") for line in screen.getvalue().splitlines()]
    return {words: " ".join(rest.split()) for words, _, rest in lines}


def test_prompts_margins_lengths_and_models_of_one_policy(store: Pipeline) -> None:
    found = told(seen(store, "pairs.policy=best_vs_worst"))
    assert (found["with pairs"], found["tied: no completion scores below the best"], found["pending"]) == (
        "6", "1", "1",
    )  # fmt: skip
    assert (found["all"], found["pairs"]) == ("8", "6")
    assert [found[f"margin, {name}"] for name in ("min", "p25", "median", "p75", "max")] == ["4.00"] * 5
    assert (found["characters of chosen, median"], found["characters of rejected, median"]) == ("400", "200")
    assert (found["chosen is longer"], found["chosen / rejected length, mean"]) == ("100.0%", "2.00")
    assert found["poor"] == "0 (0.0%) / 6 (100.0%)"


def test_two_policies_stand_side_by_side(store: Pipeline) -> None:
    one, other = seen(store, "pairs.policy=best_vs_worst"), seen(store, "pairs.policy=all")
    found = told(one, other, ["pairs.policy=all"])
    assert (found["with pairs"], found["pairs"]) == ("6 6", "6 36")
    assert (found["margin, mean"], found["chosen / rejected length, mean"]) == ("4.00 2.33", "2.00 1.41")
    assert found["different chosen"] == "6"
    assert sum(n for _, n in differing(one, other)) == 6


@pytest.mark.parametrize(
    ("sets", "differ"),
    [
        (["pairs.policy=best_vs_worst", "pairs.min_margin=2"], (6, 0, 0, 0, 0)),
        (["pairs.policy=on_policy", "pairs.model=plain"], (0, 6, 0, 0, 0)),
        (["pairs.policy=on_policy", "pairs.model=plain", "pairs.max_length_ratio=1.5"], (0, 0, 6, 0, 0)),
        (["pairs.policy=best_vs_worst", "pairs.max_length_ratio=1.5"], (0, 0, 0, 6, 0)),
        (["pairs.policy=best_vs_worst", "pairs.max_per_model=2"], (2, 0, 0, 4, 0)),
    ],
)
def test_what_differs_is_counted_by_prompt(store: Pipeline, sets: list[str], differ: tuple[int, ...]) -> None:
    worst, other = seen(store, "pairs.policy=best_vs_worst"), seen(store, *sets)
    assert tuple(n for _, n in differing(worst, other)) == differ
    assert tuple(n for _, n in differing(other, worst)) == (*differ[:3], differ[4], differ[3])


def test_without_any_pair_there_is_still_something_to_tell(store: Pipeline) -> None:
    found = told(seen(store, "pairs.min_margin=4.5"), seen(store), ["pairs.min_margin=0"])
    assert found["no completion is below the best by min_margin"] == "6 0"
    assert found["margin, mean"].startswith("– ")
    assert found["pairs only with the second"] == "6"


def test_nothing_is_written(store: Pipeline) -> None:
    before = {path: path.read_bytes() for path in store.store.parent.rglob("*") if path.is_file()}
    told(seen(store, "pairs.policy=all"))
    assert {path: path.read_bytes() for path in store.store.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "change", ["seed=8", "judges.strict.max_tokens=77", "rubric=ultrafeedback", "completions.max_tokens=9"]
)
def test_a_store_that_was_brought_to_another_pipeline_is_not_guessed_from(store: Pipeline, change: str) -> None:
    with pytest.raises(BadInput, match=r"the store was last updated with other models.*; `aif export"):
        seen(store, change)


def test_a_judges_weight_can_be_compared_without_asking_it_again(store: Pipeline) -> None:
    assert dict(differing(seen(store), seen(store, "judges.strict.weight=3")))["same pairs"] == 6
