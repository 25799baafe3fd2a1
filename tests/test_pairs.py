"""The pairing against an oracle written from the rules in exact fractions, and against cases worked out by hand."""

import random
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aif.errors import BadInput
from aif.pairs import OUTCOMES, Paired, Policy, Scores, counts, pair
from aif.records import fraction

ASPECTS = ("honesty", "helpfulness", "truthfulness", "overall")
WEIGHTS = (Fraction(1), Fraction(1), Fraction(1), Fraction(0))
POLICY = Policy(name="best_vs_worst", score="mean", min_margin=0.0, missing="leave_out", seed=42)

Points = tuple[Fraction | None, ...]


@dataclass(frozen=True)
class Row:
    """A completion as the oracle sees it."""

    key: str
    points: Points
    truncated: bool = False
    text: str = ""  # the key, if empty: a text of its own

    @property
    def text_id(self) -> str:
        return self.text or self.key


Prompts = dict[str, list[Row]]


def row(key: str, *points: float | str | None, truncated: bool = False, text: str = "") -> Row:
    return Row(key, tuple(None if p is None else Fraction(p) for p in points), truncated, text)


def columns(prompts: Prompts, aspects: tuple[str, ...] = ASPECTS, weights: Any = WEIGHTS) -> Scores:
    flat = [(prompt, r) for prompt, rows in prompts.items() for r in rows]
    points = [[np.nan if p is None else float(p) for p in r.points] for _, r in flat]
    return Scores(
        prompt_ids=[prompt for prompt, _ in flat],
        completions=pa.array([r.key for _, r in flat], pa.string()),
        models=pa.array(["m"] * len(flat), pa.string()),
        text_ids=pa.array([r.text_id for _, r in flat], pa.string()),
        truncated=np.array([r.truncated for _, r in flat], dtype=bool),
        scores=np.array(points, dtype=float).reshape(len(flat), len(aspects)),
        aspects=aspects,
        weights=tuple(float(w) for w in weights),
    )


@dataclass(frozen=True)
class Verdict:
    """What becomes of one prompt."""

    outcome: str
    chosen: str | None = None
    rejected: str | None = None
    scores: tuple[float, float] | None = None


def verdicts(paired: Paired) -> dict[str, Verdict]:
    table = paired.to_arrow().to_pylist()
    return {
        r["prompt_id"]: Verdict(
            r["outcome"],
            r["chosen"],
            r["rejected"],
            None if r["score_chosen"] is None else (r["score_chosen"], r["score_rejected"]),
        )
        for r in table
    }


def one(*rows: Row, aspects: tuple[str, ...] = ("a",), weights: Any = (1,), **policy: Any) -> Verdict:
    """The verdict on a single prompt, by best_vs_worst over one aspect unless told otherwise."""
    paired = pair(columns({"p": list(rows)}, aspects, weights), replace(POLICY, **policy))
    return verdicts(paired)["p"]


# --- the oracle: one prompt at a time, exact numbers, in the words of the rules ---------------------------------------


def used_aspects(rows: list[Row], policy: Policy, aspects: tuple[str, ...], weights: tuple[Fraction, ...]) -> list[int]:
    """The aspects of the score that every completion has."""
    if policy.score == "overall":
        wanted = [aspects.index("overall")]
    else:
        wanted = [i for i, weight in enumerate(weights) if weight > 0]
    return [i for i in wanted if all(r.points[i] is not None for r in rows)]


def score(r: Row, used: list[int], policy: Policy, weights: tuple[Fraction, ...]) -> Fraction:
    """The one score, or the weighted mean."""
    points = {i: p for i, p in enumerate(r.points) if i in used and p is not None}
    if policy.score == "overall":
        (only,) = points.values()
        return only
    return sum((weights[i] * p for i, p in points.items()), Fraction(0)) / sum(weights[i] for i in used)


def expected(
    prompt: str,
    rows: list[Row],
    policy: Policy,
    margin: Fraction,
    aspects: tuple[str, ...],
    weights: tuple[Fraction, ...],
) -> Verdict:
    """What the rules say of one prompt."""
    if len(rows) < 2:
        return Verdict("too_few")
    wanted = 1 if policy.score == "overall" else sum(weight > 0 for weight in weights)
    used = used_aspects(rows, policy, aspects, weights)
    if policy.missing == "drop" and len(used) < wanted:
        return Verdict("missing_aspect")
    if not used:
        return Verdict("no_common_aspect")
    complete = [r for r in rows if not r.truncated]
    if not complete:
        return Verdict("all_truncated")

    scores = {r.key: score(r, used, policy, weights) for r in rows}
    top = max(scores[r.key] for r in complete)
    best = [r for r in complete if scores[r.key] == top]
    chosen = min(best, key=lambda r: fraction(policy.seed, "chosen", prompt, r.key))

    lower = [r for r in rows if scores[r.key] < top]
    if not lower:
        return Verdict("best_truncated" if max(scores.values()) > top else "tie")
    wide = [r for r in lower if top - scores[r.key] >= margin]
    if not wide:
        return Verdict("margin")
    rivals = [r for r in wide if r.text_id != chosen.text_id]
    if not rivals:
        return Verdict("identical")
    if policy.name == "best_vs_worst":
        bottom = min(scores[r.key] for r in rivals)
        rivals = [r for r in rivals if scores[r.key] == bottom]
    rejected = min(rivals, key=lambda r: fraction(policy.seed, "rejected", prompt, r.key))
    pair_scores = float(scores[chosen.key]), float(scores[rejected.key])
    return Verdict("paired", chosen.key, rejected.key, pair_scores)


# --- random inputs ----------------------------------------------------------------------------------------------------

# Tenths and thirds: no binary float holds them, and sums of them miss each other in the last bit.
POINTS = [Fraction(n, d) for n, d in ((5, 1), (4, 1), (2, 1), (1, 1), (1, 10), (2, 10), (3, 10), (1, 3), (2, 3))]
DECLARED = [Fraction(0), Fraction(1), Fraction(2), Fraction(1, 10), Fraction(3, 10), Fraction(1, 3)]
MARGINS = [Fraction(0), Fraction(1, 10), Fraction(2, 10), Fraction(1, 3), Fraction(2, 3), Fraction(1), Fraction(2)]


@dataclass(frozen=True)
class Case:
    prompts: Prompts
    policy: Policy
    margin: Fraction
    aspects: tuple[str, ...]
    weights: tuple[Fraction, ...]

    @property
    def scores(self) -> Scores:
        return columns(self.prompts, self.aspects, self.weights)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    aspects = ("overall", *[f"a{i}" for i in range(draw(st.integers(0, 3)))])
    weights = draw(st.tuples(*[st.sampled_from(DECLARED)] * len(aspects)).filter(any))
    few = draw(st.lists(st.sampled_from(POINTS), min_size=2, max_size=4, unique=True))  # few: many ties
    holes = draw(st.sampled_from([0, 1, 8]))  # chances in 10 that a point is missing
    point = st.sampled_from([None] * holes + few * 10) if holes < 8 else st.sampled_from([None, *few])
    cut = st.booleans() if draw(st.booleans()) else st.just(False)
    prompts: Prompts = {}
    for number in range(draw(st.integers(0, 4))):
        rows = [
            Row(
                f"{number}.{i}",
                draw(st.tuples(*[point] * len(aspects))),
                draw(cut),
                draw(st.sampled_from("xy") | st.just("")),
            )
            for i in range(draw(st.sampled_from([2, 3, 4, 5, 1])))
        ]
        prompts[f"p{number}"] = rows
    margin = draw(st.sampled_from(MARGINS))
    policy = Policy(
        name=draw(st.sampled_from(["best_vs_random", "best_vs_worst"])),
        score=draw(st.sampled_from(["mean", "overall"])),
        min_margin=float(margin),
        missing=draw(st.sampled_from(["leave_out", "drop"])),
        seed=draw(st.integers(0, 5)),
    )
    return Case(prompts, policy, margin, aspects, weights)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_every_prompt_ends_as_the_rules_say(case: Case) -> None:
    paired = pair(case.scores, case.policy)
    found = verdicts(paired)
    assert list(found) == list(case.prompts)
    means = iter(paired.means)
    for number, (prompt, rows) in enumerate(case.prompts.items()):
        want = expected(prompt, rows, case.policy, case.margin, case.aspects, case.weights)
        got = found[prompt]
        assert (got.outcome, got.chosen, got.rejected) == (want.outcome, want.chosen, want.rejected)
        if want.scores is None:
            assert got.scores is None
        else:
            assert got.scores == pytest.approx(want.scores, abs=1e-12)

        used = used_aspects(rows, case.policy, case.aspects, case.weights)
        if want.outcome == "missing_aspect":
            used = []
        elif want.outcome == "too_few" and case.policy.missing == "drop":
            wanted = 1 if case.policy.score == "overall" else sum(weight > 0 for weight in case.weights)
            used = used if len(used) == wanted else []
        assert list(np.flatnonzero(paired.used[number])) == used
        for r in rows:
            mean = next(means)
            if used:
                assert mean == pytest.approx(float(score(r, used, case.policy, case.weights)), abs=1e-12)
            else:
                assert np.isnan(mean)
    assert sum(counts(paired).values()) == len(case.prompts)
    assert counts(paired) == {o: sum(v.outcome == o for v in found.values()) for o in OUTCOMES}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.randoms(use_true_random=False))
def test_neither_the_order_of_rows_nor_of_prompts_matters(case: Case, rng: random.Random) -> None:
    shuffled = {prompt: rng.sample(rows, len(rows)) for prompt, rows in case.prompts.items()}
    shuffled = dict(rng.sample(list(shuffled.items()), len(shuffled)))
    before = pair(case.scores, case.policy)
    after = pair(columns(shuffled, case.aspects, case.weights), case.policy)
    assert verdicts(after) == verdicts(before)
    assert {r["prompt_id"]: r["aspects"] for r in after.to_arrow().to_pylist()} == {
        r["prompt_id"]: r["aspects"] for r in before.to_arrow().to_pylist()
    }


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_a_prompt_alone_ends_as_it_does_among_others(case: Case) -> None:
    together = verdicts(pair(case.scores, case.policy))
    for prompt, rows in case.prompts.items():
        alone = pair(columns({prompt: rows}, case.aspects, case.weights), case.policy)
        assert verdicts(alone) == {prompt: together[prompt]}


# --- worked out by hand -----------------------------------------------------------------------------------------------


def test_best_against_worst() -> None:
    assert one(row("a", 3), row("b", 5), row("c", 1)) == Verdict("paired", "b", "c", (5.0, 1.0))


def test_the_mean_is_weighted_and_an_aspect_of_weight_0_stays_out() -> None:
    rows = row("a", 4, 1, 10), row("b", 2, 4, 1)
    got = one(*rows, aspects=("x", "y", "overall"), weights=(3, 1, 0))
    assert got == Verdict("paired", "a", "b", (3.25, 2.5))


def test_overall_is_taken_as_it_is_whatever_its_weight() -> None:
    rows = row("a", 1, 7), row("b", 5, 6)
    for weight in (0.0, 0.3, 1.0):
        got = one(*rows, aspects=("x", "overall"), weights=(1, weight), score="overall")
        assert got == Verdict("paired", "a", "b", (7.0, 6.0))


def test_an_aspect_one_completion_lacks_is_left_out_for_all() -> None:
    # over all that each has, a would win by 5 to 4.5; over what both have, b wins by 4 to 3
    paired = pair(columns({"p": [row("a", 3, 7), row("b", 4, None)]}, ("x", "y"), (1, 1)), POLICY)
    assert verdicts(paired)["p"] == Verdict("paired", "b", "a", (4.0, 3.0))
    assert paired.to_arrow()["aspects"].to_pylist() == [["x"]]
    assert paired.means.tolist() == [3.0, 4.0]


def test_an_aspect_lacking_drops_the_prompt_if_so_declared() -> None:
    rows = row("a", 3, 7), row("b", 4, None)
    assert one(*rows, aspects=("x", "y"), weights=(1, 1), missing="drop") == Verdict("missing_aspect")
    assert one(*rows, aspects=("x", "y"), weights=(1, 0), missing="drop").outcome == "paired"


def test_without_a_common_aspect_nothing_is_compared() -> None:
    rows = row("a", 5, None), row("b", None, 1)
    paired = pair(columns({"p": list(rows)}, ("x", "y"), (1, 1)), POLICY)
    assert verdicts(paired)["p"] == Verdict("no_common_aspect")
    assert np.isnan(paired.means).all()
    assert paired.to_arrow()["aspects"].to_pylist() == [[]]


def test_a_truncated_completion_is_never_chosen_but_may_be_rejected() -> None:
    cut = row("b", 5, truncated=True)
    assert one(row("a", 3), cut, row("c", 2)) == Verdict("paired", "a", "c", (3.0, 2.0))
    assert one(row("a", 3), row("b", 1, truncated=True)) == Verdict("paired", "a", "b", (3.0, 1.0))
    assert one(row("a", 3), cut) == Verdict("best_truncated")
    assert one(row("a", 3), row("b", 3, truncated=True)) == Verdict("tie")
    assert one(cut, row("c", 1, truncated=True)) == Verdict("all_truncated")


def test_the_best_may_share_its_score_as_long_as_one_is_lower() -> None:
    got = one(row("a", 5), row("b", 5), row("c", 5), row("d", 2))
    assert got.outcome == "paired"
    assert got.chosen in {"a", "b", "c"}
    assert got.rejected == "d"
    assert one(row("a", 5), row("b", 5)) == Verdict("tie")


def test_the_margin_counts_from_the_best() -> None:
    rows = row("a", 4), row("b", 3), row("c", 1)
    assert one(*rows, min_margin=3.0) == Verdict("paired", "a", "c", (4.0, 1.0))
    assert one(*rows, min_margin=3.5) == Verdict("margin")
    assert one(row("a", 4), row("b", 4), min_margin=3.5) == Verdict("tie")
    drawn = {one(*rows, name="best_vs_random", min_margin=2.0, seed=seed).rejected for seed in range(30)}
    assert drawn == {"c"}


def test_float_error_makes_neither_a_difference_nor_a_miss() -> None:
    # 0.1 + 0.2 > 0.3 and 1.2 - 0.9 < 0.3 in floats
    more, same = row("m", "0.1", "0.2"), row("s", "0.3", 0)
    two: dict[str, Any] = {"aspects": ("x", "y"), "weights": (1, 1)}
    assert one(more, same, **two) == Verdict("tie")
    assert one(replace(more, truncated=True), same, **two) == Verdict("tie")
    assert {one(more, same, row("z", 0, 0), **two, seed=seed).chosen for seed in range(30)} == {"m", "s"}
    assert {one(more, same, row("t", 1, 1), **two, seed=seed).rejected for seed in range(30)} == {"m", "s"}
    assert one(row("a", "1.2"), row("b", "0.9"), min_margin=0.3).outcome == "paired"
    assert one(row("a", "13/3"), row("b", "11/3"), min_margin=2 / 3).outcome == "paired"


def test_a_text_is_never_rejected_against_itself() -> None:
    assert one(row("a", 5, text="yes"), row("b", 2, text="yes")) == Verdict("identical")
    rows = row("a", 5, text="yes"), row("b", 1, text="yes"), row("c", 2, text="no")
    assert one(*rows) == Verdict("paired", "a", "c", (5.0, 2.0))
    assert one(*rows, min_margin=3.5) == Verdict("identical")


def test_one_completion_makes_no_pair() -> None:
    assert one(row("a", 5)) == Verdict("too_few")
    assert one(row("a", None)) == Verdict("too_few")


def test_each_seed_draws_its_own_and_draws_evenly() -> None:
    prompts = {f"p{n}": [row(f"{n}.{k}", k) for k in (4, 3, 2, 1)] for n in range(3000)}
    prompts |= {f"q{n}": [row(f"q{n}.{k}", 5) for k in (3, 2, 1)] + [row(f"q{n}.0", 1)] for n in range(3000)}
    scores = columns(prompts, ("a",), (1,))
    random_rejected = verdicts(pair(scores, replace(POLICY, name="best_vs_random")))
    chosen, rejected = Counter[str](), Counter[str]()
    for prompt, verdict in random_rejected.items():
        assert verdict.chosen is not None
        assert verdict.rejected is not None
        if prompt.startswith("p"):
            assert verdict.chosen.endswith(".4")
            rejected[verdict.rejected[-1]] += 1
        else:
            assert verdict.rejected.endswith(".0")
            chosen[verdict.chosen[-1]] += 1
    # 1000 expected of each: standard deviation 26
    assert set(chosen) == set(rejected) == {"1", "2", "3"}
    assert all(900 < n < 1100 for n in (*chosen.values(), *rejected.values()))
    other = verdicts(pair(scores, replace(POLICY, name="best_vs_random", seed=43)))
    assert 1600 < sum(other[p].rejected != random_rejected[p].rejected for p in prompts if p[0] == "p") < 2400


# --- columns in and out -----------------------------------------------------------------------------------------------

EXAMPLE: Prompts = {
    "q": [row("1", 3, 3, 3, 9), row("2", 5, 4, 3, 1)],
    "p": [row("3", 3, 3, None, None), row("4", 3, 3, 5, None)],
}


def test_the_table_has_a_row_per_prompt_in_the_order_of_the_input() -> None:
    table = pair(columns(EXAMPLE), POLICY).to_arrow()
    assert table.to_pylist() == [
        {
            "prompt_id": "q",
            "outcome": "paired",
            "chosen": "2",
            "rejected": "1",
            "score_chosen": 4.0,
            "score_rejected": 3.0,
            "aspects": ["honesty", "helpfulness", "truthfulness"],
        },
        {
            "prompt_id": "p",
            "outcome": "tie",
            "chosen": None,
            "rejected": None,
            "score_chosen": None,
            "score_rejected": None,
            "aspects": ["honesty", "helpfulness"],
        },
    ]


def test_without_prompts_there_are_no_pairs() -> None:
    paired = pair(columns({}), POLICY)
    assert paired.to_arrow().num_rows == 0
    assert paired.to_arrow().schema == pair(columns(EXAMPLE), POLICY).to_arrow().schema
    assert counts(paired) == dict.fromkeys(OUTCOMES, 0)


def test_counts_names_every_outcome() -> None:
    assert counts(pair(columns(EXAMPLE), POLICY)) == dict.fromkeys(OUTCOMES, 0) | {"paired": 1, "tie": 1}


@pytest.mark.parametrize("kind", ["list", "chunked", "large", "dictionary"])
def test_columns_come_as_lists_or_arrow_of_any_string_type(
    kind: Literal["list", "chunked", "large", "dictionary"],
) -> None:
    scores = columns(EXAMPLE)

    def as_kind(column: Any) -> Any:
        values = column if isinstance(column, list) else column.to_pylist()
        match kind:
            case "list":
                return values
            case "chunked":
                return pa.chunked_array([values[:1], values[1:]])
            case "large":
                return pa.array(values, pa.large_string())
            case "dictionary":
                return pa.array(values).dictionary_encode()

    names = ("prompt_ids", "completions", "models", "text_ids")
    other = replace(scores, **{name: as_kind(getattr(scores, name)) for name in names})
    assert pair(other, POLICY).to_arrow() == pair(scores, POLICY).to_arrow()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": ["q", "p", "q", "p"]}, "together"),
        ({"completions": ["1", "2", "2", "4"]}, "more than one row"),
        ({"text_ids": ["a", None, "b", "c"]}, "nulls"),
        ({"truncated": np.zeros(3, dtype=bool)}, "don't fit"),
        ({"truncated": np.zeros(4, dtype=int)}, "booleans"),
        ({"scores": np.ones((4, 3))}, "don't fit"),
        ({"weights": (1.0, 1.0)}, "weights"),
        ({"weights": (1.0, 1.0, -1.0, 0.0)}, "weights"),
        ({"weights": (1.0, 1.0, float("nan"), 0.0)}, "weights"),
    ],
)
def test_columns_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair(replace(columns(EXAMPLE), **change), POLICY)


@pytest.mark.parametrize("margin", [-0.1, float("nan")])
def test_a_margin_below_0_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="min_margin"):
        pair(columns(EXAMPLE), replace(POLICY, min_margin=margin))


def test_a_score_the_rubric_does_not_give_is_bad_input() -> None:
    scores = columns({"p": [row("a", 1), row("b", 2)]}, ("honesty",), (0,))
    with pytest.raises(BadInput, match=r"overall.*honesty"):
        pair(scores, replace(POLICY, score="overall"))
    with pytest.raises(BadInput, match=r"mean.*honesty"):
        pair(scores, POLICY)
