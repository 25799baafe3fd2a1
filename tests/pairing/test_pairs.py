"""The pairing against an oracle written from the rules in exact fractions, and against cases worked out by hand."""

import hashlib
import random
import tracemalloc
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise, permutations, product
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from aif.core.errors import BadInput
from aif.core.resources import shipped
from aif.core.types import fraction
from aif.judging.rubric import load
from aif.pairing.pairs import OUTCOMES, PairingResult, PairPolicy, count_outcomes, pair_prompts, pair_prompts_by_part
from aif.pairing.scores import RatingColumns

ASPECTS = ("honesty", "helpfulness", "truthfulness", "overall")
WEIGHTS = (Fraction(1), Fraction(1), Fraction(1), Fraction(0))
POLICY = PairPolicy(name="best_vs_worst", score="mean", min_margin=0.0, missing="leave_out", seed=42)

Points = tuple[Fraction | None, ...]


@dataclass(frozen=True)
class Row:
    """A completion as the oracle sees it: a point for each column."""

    key: str
    points: Points
    truncated: bool = False
    text: str = ""  # the key, if empty: a text of its own
    model: str = "m"
    length: int = 10

    @property
    def text_id(self) -> str:
        return self.text or self.key


Prompts = dict[str, list[Row]]


@dataclass(frozen=True)
class Sheet:
    """What the columns are: every aspect by every judge, judge by judge, with the weights of both."""

    aspects: dict[str, Fraction]
    judges: dict[str, Fraction]

    @property
    def columns(self) -> list[tuple[str, str]]:
        return list(product(self.judges, self.aspects))


def row(key: str, *points: float | str | None, **given: Any) -> Row:
    return Row(key, tuple(None if p is None else Fraction(p) for p in points), **given)


def sheet(aspects: tuple[str, ...] = ASPECTS, weights: Any = WEIGHTS, judges: dict[str, Any] | None = None) -> Sheet:
    named = {name: Fraction(weight) for name, weight in (judges or {"j": 1}).items()}
    return Sheet({a: Fraction(w) for a, w in zip(aspects, weights, strict=True)}, named)


def columns(prompts: Prompts, of: Sheet | None = None) -> RatingColumns:
    of = of or sheet()
    flat = [(prompt, r) for prompt, rows in prompts.items() for r in rows]
    points = [[np.nan if p is None else float(p) for p in r.points] for _, r in flat]
    return RatingColumns(
        prompt_ids=[prompt for prompt, _ in flat],
        completions=pa.array([r.key for _, r in flat], pa.string()),
        models=pa.array([r.model for _, r in flat], pa.string()),
        text_ids=pa.array([r.text_id for _, r in flat], pa.string()),
        lengths=np.array([r.length for _, r in flat], dtype=np.int64),
        truncated=np.array([r.truncated for _, r in flat], dtype=bool),
        ratings=np.array(points, dtype=float).reshape(len(flat), len(of.columns)),
        aspects=tuple(aspect for _, aspect in of.columns),
        judges=tuple(judge for judge, _ in of.columns),
        weights=tuple(float(of.aspects[aspect]) for _, aspect in of.columns),
        judge_weights=tuple(float(of.judges[judge]) for judge, _ in of.columns),
    )


Two = tuple[str, str, float, float]  # chosen, rejected, their scores


@dataclass(frozen=True)
class Verdict:
    """What becomes of one prompt, and its pairs by n."""

    outcome: str
    pairs: tuple[Two, ...] = ()

    @property
    def chosen(self) -> str:
        return self.pairs[0][0]

    @property
    def rejected(self) -> str:
        return self.pairs[0][1]


def made(*pairs: Two) -> Verdict:
    return Verdict("paired", pairs)


def verdicts(paired: PairingResult) -> dict[str, Verdict]:
    pairs: dict[str, list[Two]] = {}
    for r in paired.preferences().to_pylist():
        of = pairs.setdefault(r["prompt_id"], [])
        assert r["n"] == len(of)
        of.append((r["chosen"], r["rejected"], r["score_chosen"], r["score_rejected"]))
    outcomes = paired.outcomes().to_pylist()
    assert pairs.keys() == {r["prompt_id"] for r in outcomes if r["outcome"] == "paired"}
    return {r["prompt_id"]: Verdict(r["outcome"], tuple(pairs.get(r["prompt_id"], ()))) for r in outcomes}


def one(*rows: Row, aspects: tuple[str, ...] = ("a",), weights: Any = (1,), **policy: Any) -> Verdict:
    """The verdict on a single prompt, by best_vs_worst over one aspect unless told otherwise."""
    paired = pair_prompts(columns({"p": list(rows)}, sheet(aspects, weights)), replace(POLICY, **policy))
    return verdicts(paired)["p"]


# --- the oracle: one prompt at a time, exact numbers, in the words of the rules ---------------------------------------


def wanted_columns(policy: PairPolicy, of: Sheet) -> list[int]:
    """The columns of the score."""
    return [
        i
        for i, (_, aspect) in enumerate(of.columns)
        if (aspect == "overall" if policy.score == "overall" else of.aspects[aspect] > 0)
    ]


def used_columns(rows: list[Row], policy: PairPolicy, of: Sheet) -> list[int]:
    """The columns of the score that every completion has, none where one lacks any and that drops the prompt."""
    wanted = wanted_columns(policy, of)
    used = [i for i in wanted if all(r.points[i] is not None for r in rows)]
    return used if policy.missing == "leave_out" or used == wanted else []


def weighted(points: list[tuple[Fraction, Fraction]]) -> Fraction:
    return sum((weight * point for weight, point in points), Fraction(0)) / sum(weight for weight, _ in points)


def weight(aspect: str, policy: PairPolicy, of: Sheet) -> Fraction:
    return Fraction(1) if policy.score == "overall" else of.aspects[aspect]


def points_of(r: Row, used: list[int], of: Sheet) -> list[tuple[str, str, Fraction]]:
    """Judge, aspect and point of what is used."""
    found = [(*of.columns[i], r.points[i]) for i in used]
    return [(judge, aspect, point) for judge, aspect, point in found if point is not None]


def score(r: Row, used: list[int], policy: PairPolicy, of: Sheet) -> Fraction:
    """The mean over aspects of the mean over judges."""
    by_aspect: dict[str, list[tuple[Fraction, Fraction]]] = {}
    for judge, aspect, point in points_of(r, used, of):
        by_aspect.setdefault(aspect, []).append((of.judges[judge], point))
    return weighted([(weight(aspect, policy, of), weighted(points)) for aspect, points in by_aspect.items()])


def own(r: Row, used: list[int], policy: PairPolicy, of: Sheet) -> dict[str, Fraction]:
    """Each judge's own mean over its aspects."""
    by_judge: dict[str, list[tuple[Fraction, Fraction]]] = {}
    for judge, aspect, point in points_of(r, used, of):
        by_judge.setdefault(judge, []).append((weight(aspect, policy, of), point))
    return {judge: weighted(points) for judge, points in by_judge.items()}


@dataclass(frozen=True)
class Case:
    prompts: Prompts
    policy: PairPolicy
    margin: Fraction
    ratio: Fraction | None
    of: Sheet

    @property
    def scores(self) -> RatingColumns:
        return columns(self.prompts, self.of)


Found = tuple[str, list[tuple[Row, Row]]]


def rated(rows: list[Row], case: Case) -> list[Row]:
    """Those with any rating that counts; all, where none has one."""
    wanted = wanted_columns(case.policy, case.of)
    return [r for r in rows if any(r.points[i] is not None for i in wanted)] or rows


def comparable(rows: list[Row], case: Case) -> str | None:
    """Why a prompt's completions can't be compared at all."""
    if len(rows) < 2:
        return "too_few"
    left = rated(rows, case)
    if len(left) < len(rows) and len(left) < case.policy.min_completions:
        return "unrated"
    every, rows = rows, left
    used = used_columns(rows, case.policy, case.of)
    if case.policy.missing == "drop" and used != wanted_columns(case.policy, case.of):
        return "missing_aspect"
    if not used:
        return "no_common_aspect"
    if case.policy.name == "on_policy":
        if all(r.model != case.policy.model for r in every):
            return "no_such_model"
        if all(r.model != case.policy.model for r in rows):
            return "unrated"
    return "all_truncated" if all(r.truncated for r in rows) else None


def expected(prompt: str, rows: list[Row], case: Case) -> Found:
    """What the rules say of one prompt, before any cap over all of them."""
    if why := comparable(rows, case):
        return why, []
    policy, rows = case.policy, rated(rows, case)
    used = used_columns(rows, policy, case.of)
    scores = {r.key: score(r, used, policy, case.of) for r in rows}
    pairs = [(a, b) for a, b in permutations(rows, 2) if scores[a.key] > scores[b.key]]
    if policy.name == "on_policy":
        pairs = [(a, b) for a, b in pairs if policy.model in (a.model, b.model)]
    if not any(not a.truncated for a, _ in pairs):
        return "best_truncated" if pairs else "tie", []
    pairs = [(a, b) for a, b in pairs if not a.truncated]
    pairs = [(a, b) for a, b in pairs if scores[a.key] - scores[b.key] >= case.margin]
    if not pairs:
        return "margin", []
    if policy.name.startswith("best"):
        best = drawn(prompt, [r for r in rows if not r.truncated], scores, policy, "chosen")
        pairs = [(a, b) for a, b in pairs if a == best]
    pairs = [(a, b) for a, b in pairs if a.text_id != b.text_id]
    if not pairs:
        return "identical", []
    if (ratio := case.ratio) is not None:
        pairs = [(a, b) for a, b in pairs if max(a.length, b.length) <= ratio * min(a.length, b.length)]
    if not pairs:
        return "length_ratio", []
    return "paired", picked(prompt, pairs, scores, policy)


def drawn(prompt: str, rows: list[Row], scores: dict[str, Fraction], policy: PairPolicy, role: str) -> Row:
    """The best, drawn among equals."""
    top = max(scores[r.key] for r in rows)
    return min((r for r in rows if scores[r.key] == top), key=lambda r: fraction(policy.seed, role, prompt, r.key))


def picked(
    prompt: str, pairs: list[tuple[Row, Row]], scores: dict[str, Fraction], policy: PairPolicy
) -> list[tuple[Row, Row]]:
    if policy.name == "all":
        pairs = sorted(
            pairs,
            key=lambda two: (
                scores[two[1].key] - scores[two[0].key],
                fraction(policy.seed, "pair", prompt, two[0].key, two[1].key),
            ),
        )
        return pairs[: policy.max_pairs_per_prompt]
    chosen = drawn(prompt, [a for a, _ in pairs], scores, policy, "chosen")
    rivals = [b for a, b in pairs if a == chosen]
    alike = {r.key: -scores[r.key] if policy.name == "best_vs_worst" else Fraction(0) for r in rivals}
    return [(chosen, drawn(prompt, rivals, alike, policy, "rejected"))]


def capped(found: dict[str, Found], policy: PairPolicy) -> dict[str, Found]:
    """What max_per_model leaves."""
    if policy.max_per_model is None:
        return found
    wins, losses = Counter[str](), Counter[str]()
    left: dict[str, list[tuple[int, Row, Row]]] = {prompt: [] for prompt in found}
    pairs = [(prompt, n, a, b) for prompt, (_, of) in found.items() for n, (a, b) in enumerate(of)]
    for prompt, n, a, b in sorted(pairs, key=lambda x: fraction(policy.seed, "cap", x[0], x[1])):
        if max(wins[a.model], losses[b.model]) < policy.max_per_model:
            wins[a.model] += 1
            losses[b.model] += 1
            left[prompt].append((n, a, b))
    return {
        prompt: (
            "model_cap" if outcome == "paired" and not left[prompt] else outcome,
            [(a, b) for _, a, b in sorted(left[prompt], key=lambda x: x[0])],
        )
        for prompt, (outcome, _) in found.items()
    }


# --- random inputs ----------------------------------------------------------------------------------------------------

# Tenths and thirds: no binary float holds them, and sums of them miss each other in the last bit.
POINTS = [Fraction(n, d) for n, d in ((5, 1), (4, 1), (2, 1), (1, 1), (1, 10), (2, 10), (3, 10), (1, 3), (2, 3))]
DECLARED = [Fraction(0), Fraction(1), Fraction(2), Fraction(1, 10), Fraction(3, 10), Fraction(1, 3)]
MARGINS = [Fraction(0), Fraction(1, 10), Fraction(2, 10), Fraction(1, 3), Fraction(2, 3), Fraction(1), Fraction(2)]
RATIOS = [None, Fraction(1), Fraction(11, 10), Fraction(2), Fraction(3)]
LENGTHS = [0, 10, 11, 20, 31]


@st.composite
def sheets(draw: st.DrawFn) -> Sheet:
    aspects = ("overall", *[f"a{i}" for i in range(draw(st.integers(0, 2)))])
    judges = [f"j{i}" for i in range(draw(st.sampled_from([1, 1, 2, 3])))]
    weights = draw(st.tuples(*[st.sampled_from(DECLARED)] * len(aspects)).filter(any))
    trust = draw(st.tuples(*[st.sampled_from(DECLARED[1:])] * len(judges)))
    return Sheet(dict(zip(aspects, weights, strict=True)), dict(zip(judges, trust, strict=True)))


@st.composite
def policies(draw: st.DrawFn, margin: Fraction, ratio: Fraction | None) -> PairPolicy:
    name: Any = draw(st.sampled_from(["best_vs_random", "best_vs_worst", "all", "on_policy"]))
    return PairPolicy(
        name=name,
        score=draw(st.sampled_from(["mean", "overall"])),
        min_margin=float(margin),
        missing=draw(st.sampled_from(["leave_out", "drop"])),
        seed=draw(st.integers(0, 5)),
        model=draw(st.sampled_from("mno")) if name == "on_policy" else None,
        max_pairs_per_prompt=draw(st.sampled_from([None, 1, 2, 3])) if name == "all" else None,
        max_length_ratio=None if ratio is None else float(ratio),
        max_per_model=draw(st.sampled_from([None, None, 1, 2, 4])),
        min_completions=draw(st.sampled_from([2, 2, 3])),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    of = draw(sheets())
    few = draw(st.lists(st.sampled_from(POINTS), min_size=2, max_size=4, unique=True))  # few: many ties
    holes = draw(st.sampled_from([0, 1, 8]))  # chances in 10 that a point is missing
    point = st.sampled_from([None] * holes + few * 10) if holes < 8 else st.sampled_from([None, *few])
    cut = st.booleans() if draw(st.booleans()) else st.just(False)
    length = st.sampled_from(LENGTHS) if draw(st.booleans()) else st.just(10)
    prompts: Prompts = {}
    for number in range(draw(st.integers(0, 4))):
        rows = [
            Row(
                f"{number}.{i}",
                draw(st.tuples(*[point] * len(of.columns))),
                draw(cut),
                draw(st.sampled_from("xy") | st.just("")),
                draw(st.sampled_from("mn")),
                draw(length),
            )
            for i in range(draw(st.sampled_from([2, 3, 4, 5, 1])))
        ]
        prompts[f"p{number}"] = rows
    margin, ratio = draw(st.sampled_from(MARGINS)), draw(st.sampled_from(RATIOS))
    return Case(prompts, draw(policies(margin, ratio)), margin, ratio, of)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_every_prompt_ends_as_the_rules_say(case: Case) -> None:
    paired = pair_prompts(case.scores, case.policy)
    found = verdicts(paired)
    assert list(found) == list(case.prompts)
    want = capped({prompt: expected(prompt, rows, case) for prompt, rows in case.prompts.items()}, case.policy)
    for prompt, (outcome, pairs) in want.items():
        assert found[prompt].outcome == outcome
        assert [(a, b) for a, b, _, _ in found[prompt].pairs] == [(a.key, b.key) for a, b in pairs]
        used = used_columns(rated(case.prompts[prompt], case), case.policy, case.of)
        for (_, _, *scores), two in zip(found[prompt].pairs, pairs, strict=True):
            assert scores == pytest.approx([float(score(r, used, case.policy, case.of)) for r in two], abs=1e-12)
    assert count_outcomes(paired) == {o: sum(v.outcome == o for v in found.values()) for o in OUTCOMES}
    assert sum(count_outcomes(paired).values()) == len(case.prompts)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_every_completion_is_scored_over_what_all_of_its_prompt_have(case: Case) -> None:
    paired = pair_prompts(case.scores, case.policy)
    scores = {r["completion"]: r for r in paired.scores().to_pylist()}
    judged: dict[str, dict[str, float]] = {}
    for r in paired.judge_scores().to_pylist():
        judged.setdefault(r["completion"], {})[r["judge"]] = r["score"]
    several = len(case.of.judges) > 1
    for number, rows in enumerate(case.prompts.values()):
        left = rated(rows, case)
        few = len(left) < len(rows) and len(left) < case.policy.min_completions
        used = [] if few else used_columns(left, case.policy, case.of)
        assert list(np.flatnonzero(paired.scored.used[number])) == used
        names = ["/".join(case.of.columns[i]) if several else case.of.columns[i][1] for i in used]
        assert paired.outcomes().column("aspects")[number].as_py() == names
        for r in rows:
            assert (r.key in scores) == (r.key in judged) == (bool(used) and r in left)
            if used and r in left:
                assert scores[r.key]["score"] == pytest.approx(float(score(r, used, case.policy, case.of)), abs=1e-12)
                each = {judge: float(mean) for judge, mean in own(r, used, case.policy, case.of).items()}
                assert judged[r.key] == pytest.approx(each, abs=1e-12)
                spread = pytest.approx(max(each.values()) - min(each.values()), abs=1e-12) if len(each) > 1 else None
                assert scores[r.key]["spread"] == spread


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.randoms(use_true_random=False))
def test_neither_the_order_of_rows_nor_of_prompts_matters(case: Case, rng: random.Random) -> None:
    shuffled = {prompt: rng.sample(rows, len(rows)) for prompt, rows in case.prompts.items()}
    shuffled = dict(rng.sample(list(shuffled.items()), len(shuffled)))
    before = pair_prompts(case.scores, case.policy)
    after = pair_prompts(columns(shuffled, case.of), case.policy)
    assert verdicts(after) == verdicts(before)
    assert {r["prompt_id"]: r["aspects"] for r in after.outcomes().to_pylist()} == {
        r["prompt_id"]: r["aspects"] for r in before.outcomes().to_pylist()
    }


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_a_prompt_alone_ends_as_it_does_among_others_unless_models_are_capped(case: Case) -> None:
    policy = replace(case.policy, max_per_model=None)
    together = verdicts(pair_prompts(case.scores, policy))
    for prompt, rows in case.prompts.items():
        alone = pair_prompts(columns({prompt: rows}, case.of), policy)
        assert verdicts(alone) == {prompt: together[prompt]}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.randoms(use_true_random=False))
def test_parts_end_as_the_whole_does(case: Case, random: random.Random) -> None:
    """A cap on models, too, is about all of them."""
    assume(case.prompts)
    bounds = sorted({0, len(case.prompts), *(random.randint(0, len(case.prompts)) for _ in range(3))})
    parts = [columns(dict([*case.prompts.items()][start:end]), case.of) for start, end in pairwise(bounds)]
    found = [verdicts(part) for part in pair_prompts_by_part(parts, case.policy)]
    assert {prompt: end for part in found for prompt, end in part.items()} == verdicts(
        pair_prompts(case.scores, case.policy)
    )


# --- worked out by hand -----------------------------------------------------------------------------------------------


def test_best_against_worst() -> None:
    assert one(row("a", 3), row("b", 5), row("c", 1)) == made(("b", "c", 5.0, 1.0))


def test_the_mean_is_weighted_and_an_aspect_of_weight_0_stays_out() -> None:
    rows = row("a", 4, 1, 10), row("b", 2, 4, 1)
    got = one(*rows, aspects=("x", "y", "overall"), weights=(3, 1, 0))
    assert got == made(("a", "b", 3.25, 2.5))


def test_overall_is_taken_as_it_is_whatever_its_weight() -> None:
    rows = row("a", 1, 7), row("b", 5, 6)
    for weight in (0.0, 0.3, 1.0):
        got = one(*rows, aspects=("x", "overall"), weights=(1, weight), score="overall")
        assert got == made(("a", "b", 7.0, 6.0))


def test_an_aspect_one_completion_lacks_is_left_out_for_all() -> None:
    # over all that each has, a would win by 5 to 4.5; over what both have, b wins by 4 to 3
    paired = pair_prompts(columns({"p": [row("a", 3, 7), row("b", 4, None)]}, sheet(("x", "y"), (1, 1))), POLICY)
    assert verdicts(paired)["p"] == made(("b", "a", 4.0, 3.0))
    assert paired.outcomes()["aspects"].to_pylist() == [["x"]]
    assert paired.scored.means.tolist() == [3.0, 4.0]


def test_an_aspect_lacking_drops_the_prompt_if_so_declared() -> None:
    rows = row("a", 3, 7), row("b", 4, None)
    assert one(*rows, aspects=("x", "y"), weights=(1, 1), missing="drop") == Verdict("missing_aspect")
    assert one(*rows, aspects=("x", "y"), weights=(1, 0), missing="drop").outcome == "paired"


def test_without_a_common_aspect_nothing_is_compared() -> None:
    rows = row("a", 5, None), row("b", None, 1)
    paired = pair_prompts(columns({"p": list(rows)}, sheet(("x", "y"), (1, 1))), POLICY)
    assert verdicts(paired)["p"] == Verdict("no_common_aspect")
    assert np.isnan(paired.scored.means).all()
    assert paired.outcomes()["aspects"].to_pylist() == [[]]


def test_a_completion_without_any_rating_is_left_out_and_the_others_are_compared() -> None:
    rows = row("a", 5, None), row("b", None, None), row("c", 1, None)
    of = sheet(("x", "y"), (1, 1))
    paired = pair_prompts(columns({"p": list(rows)}, of), POLICY)
    assert verdicts(paired)["p"] == made(("a", "c", 5.0, 1.0))
    assert paired.outcomes().to_pylist() == [{"prompt_id": "p", "outcome": "paired", "aspects": ["x"], "unrated": 1}]
    assert [one["completion"] for one in paired.scores().to_pylist()] == ["a", "c"]
    few = pair_prompts(columns({"p": list(rows)}, of), replace(POLICY, min_completions=3))
    assert verdicts(few)["p"] == Verdict("unrated")
    assert one(row("a", 5), row("b", None)) == Verdict("unrated")
    assert one(*rows, aspects=("x", "y"), weights=(1, 1), missing="drop") == Verdict("missing_aspect")
    assert one(*rows, aspects=("x", "y"), weights=(1, 0), missing="drop") == made(("a", "c", 5.0, 1.0))


def test_without_any_rating_nothing_is_left_to_leave_out() -> None:
    paired = pair_prompts(columns({"p": [row("a", None), row("b", None)]}, sheet(("x",), (1,))), POLICY)
    assert paired.outcomes().to_pylist() == [
        {"prompt_id": "p", "outcome": "no_common_aspect", "aspects": [], "unrated": 0}
    ]


def test_a_truncated_completion_is_never_chosen_but_may_be_rejected() -> None:
    cut = row("b", 5, truncated=True)
    assert one(row("a", 3), cut, row("c", 2)) == made(("a", "c", 3.0, 2.0))
    assert one(row("a", 3), row("b", 1, truncated=True)) == made(("a", "b", 3.0, 1.0))
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
    assert one(*rows, min_margin=3.0) == made(("a", "c", 4.0, 1.0))
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
    assert one(*rows) == made(("a", "c", 5.0, 2.0))
    assert one(*rows, min_margin=3.5) == Verdict("identical")


def test_one_completion_makes_no_pair() -> None:
    assert one(row("a", 5)) == Verdict("too_few")
    assert one(row("a", None)) == Verdict("too_few")


def test_each_seed_draws_its_own_and_draws_evenly() -> None:
    prompts = {f"p{n}": [row(f"{n}.{k}", k) for k in (4, 3, 2, 1)] for n in range(3000)}
    prompts |= {f"q{n}": [row(f"q{n}.{k}", 5) for k in (3, 2, 1)] + [row(f"q{n}.0", 1)] for n in range(3000)}
    scores = columns(prompts, sheet(("a",), (1,)))
    random_rejected = verdicts(pair_prompts(scores, replace(POLICY, name="best_vs_random")))
    chosen, rejected = Counter[str](), Counter[str]()
    for prompt, verdict in random_rejected.items():
        if prompt.startswith("p"):
            assert verdict.chosen.endswith(".4")
            rejected[verdict.rejected[-1]] += 1
        else:
            assert verdict.rejected.endswith(".0")
            chosen[verdict.chosen[-1]] += 1
    # 1000 expected of each: standard deviation 26
    assert set(chosen) == set(rejected) == {"1", "2", "3"}
    assert all(900 < n < 1100 for n in (*chosen.values(), *rejected.values()))
    other = verdicts(pair_prompts(scores, replace(POLICY, name="best_vs_random", seed=43)))
    assert 1600 < sum(other[p].rejected != random_rejected[p].rejected for p in prompts if p[0] == "p") < 2400


# --- several pairs, several models ------------------------------------------------------------------------------------


def test_all_makes_every_pair_widest_first() -> None:
    rows = row("a", 5), row("b", 3), row("c", 2, truncated=True), row("d", 2)
    assert [pair[2:] for pair in one(*rows, name="all", min_margin=2.0).pairs] == [(5, 2), (5, 2), (5, 3)]
    every = one(*rows, name="all").pairs
    assert {(a, b) for a, b, *_ in every} == {("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")}
    assert one(*rows, name="all", max_pairs_per_prompt=2).pairs == every[:2]
    assert {one(*rows, name="all", seed=seed).rejected for seed in range(20)} == {"c", "d"}


def test_all_takes_a_pair_below_the_best_where_the_best_has_none() -> None:
    rows = row("a", 5, text="yes"), row("b", 4, text="yes"), row("c", 4.5, text="yes"), row("d", 4.2, text="no")
    assert one(*rows[:3], name="all") == Verdict("identical")
    assert [(a, b) for a, b, *_ in one(*rows, name="all").pairs] == [("a", "d"), ("c", "d"), ("d", "b")]


def test_a_length_beyond_the_ratio_is_no_rival() -> None:
    rows = row("a", 5, length=100), row("b", 2, length=49), row("c", 3, length=200)
    assert one(*rows, max_length_ratio=2.0) == made(("a", "c", 5, 3))
    assert one(*rows[:2], max_length_ratio=2.0) == Verdict("length_ratio")
    assert one(*rows[:2], max_length_ratio=2.0, min_margin=4.0) == Verdict("margin")
    assert one(row("a", 5, length=115), row("b", 1, length=100), max_length_ratio=1.15).outcome == "paired"
    assert one(row("a", 5, length=3), row("b", 1, length=0), max_length_ratio=9.0) == Verdict("length_ratio")


def test_on_policy_has_its_model_on_one_side_of_every_pair() -> None:
    on: dict[str, Any] = {"name": "on_policy", "model": "mine"}
    rows = row("a", 5, model="x"), row("b", 4, model="mine"), row("c", 2, model="y"), row("d", 1, model="y")
    assert one(*rows, **on) == made(("a", "b", 5, 4))
    assert one(replace(rows[0], truncated=True), *rows[1:], **on).chosen == "b"
    assert {one(replace(rows[0], truncated=True), *rows[1:], **on, seed=s).rejected for s in range(20)} == {"c", "d"}
    assert one(rows[0], *rows[2:], **on) == Verdict("no_such_model")
    assert one(row("a", 5, model="x"), row("b", 4, model="mine"), **on, min_margin=2.0) == Verdict("margin")
    assert one(row("a", 3, model="x"), row("b", 3, model="mine"), **on) == Verdict("tie")
    cut = row("b", 5, model="mine", truncated=True)
    assert one(cut, *rows[2:], **on) == Verdict("best_truncated")
    assert one(cut, replace(rows[2], truncated=True), **on) == Verdict("all_truncated")
    assert one(row("a", 3, model="mine"), row("b", 2, model="mine"), **on) == made(("a", "b", 3, 2))


def test_no_model_is_on_a_side_more_often_than_the_cap() -> None:
    prompts = {f"p{n}": [row(f"{n}.{m}", k, model=m) for k, m in enumerate("wxyz")] for n in range(300)}
    scores = columns(prompts, sheet(("a",), (1,)))
    for name in ("best_vs_random", "all"):
        policy = replace(POLICY, name=name, max_per_model=40)
        paired = pair_prompts(scores, policy)
        table = paired.preferences()
        chosen, rejected = (
            Counter(key.partition(".")[2] for key in table[side].to_pylist()) for side in ("chosen", "rejected")
        )
        assert max(*chosen.values(), *rejected.values()) == 40
        assert count_outcomes(paired)["paired"] + count_outcomes(paired)["model_cap"] == 300
        assert pair_prompts(scores, replace(policy, max_per_model=10**6)).n.size > table.num_rows


# --- several judges ---------------------------------------------------------------------------------------------------


def judged(*rows: Row, aspects: tuple[str, ...] = ("x", "y"), judges: dict[str, Any], **policy: Any) -> PairingResult:
    of = sheet(aspects, (1,) * len(aspects), judges)
    return pair_prompts(columns({"p": list(rows)}, of), replace(POLICY, **policy))


def test_judges_count_by_their_weight() -> None:
    rows = row("a", 5, 1), row("b", 1, 4)  # one aspect, two judges
    assert verdicts(judged(*rows, aspects=("x",), judges={"k": 1, "l": 1}))["p"] == made(("a", "b", 3.0, 2.5))
    assert verdicts(judged(*rows, aspects=("x",), judges={"k": 1, "l": 3}))["p"] == made(("b", "a", 3.25, 2.0))


def test_a_judge_alone_counts_whatever_its_weight() -> None:
    paired = judged(row("a", 3, 5), row("b", 1, 1), judges={"k": 0.5})
    assert verdicts(paired)["p"] == made(("a", "b", 4.0, 1.0))
    assert paired.spread.tolist() == pytest.approx([np.nan] * 2, nan_ok=True)
    assert paired.outcomes()["aspects"].to_pylist() == [["x", "y"]]


def test_what_a_judge_did_not_rate_for_all_is_left_out_of_that_judge_alone() -> None:
    # k: x and y; l lacks y for b, so y is k's word alone
    paired = judged(row("a", 5, 2, 3, 5), row("b", 3, 4, 1, None), judges={"k": 1, "l": 1})
    assert paired.outcomes()["aspects"].to_pylist() == [["k/x", "k/y", "l/x"]]
    assert paired.scored.means.tolist() == [(4 + 2) / 2, (2 + 4) / 2]
    assert paired.scored.judge_means.tolist() == [[3.5, 3.0], [3.5, 1.0]]
    assert paired.spread.tolist() == [0.5, 2.5]
    assert verdicts(judged(row("a", 5, 2, 3, 5), row("b", 3, 4, 1, None), judges={"k": 1, "l": 1}, missing="drop")) == {
        "p": Verdict("missing_aspect")
    }


def test_aspects_weigh_the_same_however_many_judges_rated_them() -> None:
    # x by two judges, y by one: the mean of the aspects is not the mean of the three ratings
    paired = judged(row("a", 5, 1, 5, None), row("b", 1, 4, 1, 2), judges={"k": 1, "l": 1})
    assert paired.scored.means.tolist() == [3.0, 2.5]


# --- columns in and out -----------------------------------------------------------------------------------------------

EXAMPLE: Prompts = {
    "q": [row("1", 3, 3, 3, 9), row("2", 5, 4, 3, 1)],
    "p": [row("3", 3, 3, None, None), row("4", 3, 3, 5, None)],
}


def test_outcomes_have_a_row_per_prompt_in_the_order_of_the_input_and_preferences_one_per_pair() -> None:
    paired = pair_prompts(columns(EXAMPLE), POLICY)
    assert paired.outcomes().to_pylist() == [
        {"prompt_id": "q", "outcome": "paired", "aspects": ["honesty", "helpfulness", "truthfulness"], "unrated": 0},
        {"prompt_id": "p", "outcome": "tie", "aspects": ["honesty", "helpfulness"], "unrated": 0},
    ]
    assert paired.preferences().to_pylist() == [
        {"prompt_id": "q", "n": 0, "chosen": "2", "rejected": "1", "score_chosen": 4.0, "score_rejected": 3.0}
    ]
    assert paired.margins.tolist() == [1.0]


def test_without_prompts_there_are_no_pairs() -> None:
    for name in ("best_vs_random", "best_vs_worst", "all", "on_policy"):
        policy = replace(POLICY, name=name, max_per_model=1, max_length_ratio=2.0, model="m")
        paired, other = pair_prompts(columns({}), policy), pair_prompts(columns(EXAMPLE), policy)
        for table in ("outcomes", "preferences", "scores", "judge_scores"):
            assert getattr(paired, table)().num_rows == 0
            assert getattr(paired, table)().schema == getattr(other, table)().schema
        assert count_outcomes(paired) == dict.fromkeys(OUTCOMES, 0)


def test_counts_names_every_outcome() -> None:
    assert count_outcomes(pair_prompts(columns(EXAMPLE), POLICY)) == dict.fromkeys(OUTCOMES, 0) | {
        "paired": 1,
        "tie": 1,
    }


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
    for table in ("outcomes", "preferences", "scores"):
        assert getattr(pair_prompts(other, POLICY), table)() == getattr(pair_prompts(scores, POLICY), table)()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": ["q", "p", "q", "p"]}, "together"),
        ({"completions": ["1", "2", "2", "4"]}, "more than one row"),
        ({"text_ids": ["a", None, "b", "c"]}, "nulls"),
        ({"truncated": np.zeros(3, dtype=bool)}, "don't fit"),
        ({"truncated": np.zeros(4, dtype=int)}, "booleans"),
        ({"ratings": np.ones((4, 3))}, "don't fit"),
        ({"lengths": np.zeros(3, dtype=np.int64)}, "don't fit"),
        ({"weights": (1.0, 1.0)}, "weights"),
        ({"judge_weights": (1.0, 1.0, 1.0, 2.0)}, "judge_weights"),
        ({"judge_weights": (0.0, 0.0, 0.0, 0.0)}, "judge_weights"),
        ({"judges": ("j", "j", "j")}, "judge_weights"),
        ({"aspects": ("honesty", "honesty", "truthfulness", "overall")}, "differ in aspect or judge"),
        ({"weights": (1.0, 1.0, -1.0, 0.0)}, "weights"),
        ({"weights": (1.0, 1.0, float("nan"), 0.0)}, "weights"),
    ],
)
def test_columns_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair_prompts(replace(columns(EXAMPLE), **change), POLICY)


@pytest.mark.parametrize("margin", [-0.1, float("nan")])
def test_a_margin_below_0_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="min_margin"):
        pair_prompts(columns(EXAMPLE), replace(POLICY, min_margin=margin))


def test_a_score_the_rubric_does_not_give_is_bad_input() -> None:
    scores = columns({"p": [row("a", 1), row("b", 2)]}, sheet(("honesty",), (0,)))
    with pytest.raises(BadInput, match=r"overall.*honesty"):
        pair_prompts(scores, replace(POLICY, score="overall"))
    with pytest.raises(BadInput, match=r"mean.*honesty"):
        pair_prompts(scores, POLICY)


def many(completions: int, points: int) -> RatingColumns:
    """A prompt with so many completions, of so many different scores."""
    n = np.arange(completions)
    return RatingColumns(
        ["p"] * completions, [f"k{i}" for i in n], ["m"] * completions, [f"t{i}" for i in n], n + 1,
        np.zeros(completions, dtype=bool), (n % points)[:, None].astype(float), ("overall",), ("j",), (1.0,), (1.0,),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["best_vs_random", "best_vs_worst"])
def test_memory_grows_with_a_prompts_completions_and_not_with_their_pairs(name: Any) -> None:
    """Of 8,000 completions all 32,000,000 pairs took 1.4 GB."""
    tracemalloc.start()
    try:
        found = pair_prompts(many(8000, 11), replace(POLICY, name=name, score="overall"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.outcome.to_pylist() == ["paired"]
    assert peak < 30 * 2**20


def test_a_prompt_with_too_many_pairs_for_memory_is_told_with_what_to_do() -> None:
    policy = replace(POLICY, name="all", score="overall")
    with pytest.raises(BadInput, match=r"prompt p: 2,001 completions .* set pairs\.policy to best_vs_random"):
        pair_prompts(many(2001, 2001), policy)
    assert len(pair_prompts(many(60, 60), policy).n) == 60 * 59 // 2


# --- scales, ranges, sizes --------------------------------------------------------------------------------------------


def on_scales(prompts: Prompts, scale: dict[str, str], policy: PairPolicy) -> dict[str, Verdict]:
    """`scale`: of each key."""
    scores = columns(prompts, sheet(("a",), (1,)))
    return verdicts(
        pair_prompts(replace(scores, scales=[scale[key] for key in scores.completions.to_pylist()]), policy)
    )


@pytest.mark.parametrize("name", ["all", "best_vs_worst", "best_vs_random", "on_policy"])
def test_scores_on_several_scales_are_compared_within_one_alone(name: Any) -> None:
    mine, yours = row("good", "0.9"), row("bad", "0.1")
    others = row("well", 9, model="n"), row("ill", 2, model="n")
    policy = replace(POLICY, name=name, model="m" if name == "on_policy" else None)
    scale = {"good": "1", "bad": "1", "well": "10", "ill": "10", "x": "2", "y": "3"}
    found = on_scales({"p": [mine, others[0], yours, others[1]]}, scale, policy)["p"]
    own, theirs = ("good", "bad", 0.9, 0.1), ("well", "ill", 9.0, 2.0)
    assert found.outcome == "paired"
    assert set(found.pairs) <= {own, theirs}
    assert len(found.pairs) == (2 if name == "all" else 1)
    drawn = {on_scales({"p": [mine, *others, yours]}, scale, replace(policy, seed=n))["p"].pairs[0] for n in range(40)}
    assert drawn == ({own} if name == "on_policy" else {own, theirs})

    apart = {"p": [row("x", 5), row("y", 1, model="n")], "q": [mine, yours]}
    assert on_scales(apart, scale, policy) == {"p": Verdict("other_scale"), "q": made(own)}
    assert on_scales({"p": [mine, others[0]]}, scale, policy)["p"] == Verdict("other_scale")
    # one with a scale to itself keeps the others from nothing, whatever its score
    assert on_scales({"p": [row("x", 99, model="n"), mine, yours]}, scale, policy)["p"] == made(own)


def test_which_reason_stands_for_a_prompt_on_several_scales() -> None:
    scale = {"a": "1", "b": "1", "c": "2", "d": "3"}
    tied = [row("a", 5), row("b", 5), row("c", 3)]
    assert on_scales({"p": tied}, scale, POLICY)["p"] == Verdict("tie")  # 3 of another scale is no lower
    cut = [row("c", 5, truncated=True), row("d", 1, truncated=True)]
    assert on_scales({"p": cut}, scale, POLICY)["p"] == Verdict("other_scale")
    policy = replace(POLICY, name="on_policy", model="n")
    alone = [row("a", 5), row("b", 1), row("c", 3, model="n")]
    assert on_scales({"p": alone}, scale, policy)["p"] == Verdict("other_scale")
    assert on_scales({"p": tied}, scale, policy)["p"] == Verdict("no_such_model")
    unrated = [row("a", 5), row("b", None), row("c", 3)]  # who has no score is no company
    assert on_scales({"p": unrated}, scale, POLICY)["p"] == Verdict("other_scale")


def test_of_the_widest_margins_each_scale_has_its_own() -> None:
    """0.9 of 1 is not narrower than 7 of 10."""
    rows = [row("a", 1), row("b", "0.1"), row("c", 0), row("A", 10), row("B", 3), row("C", 2)]
    scale = {key: "1" if key.islower() else "10" for key in "abcABC"}
    policy = replace(POLICY, name="all", max_pairs_per_prompt=2)
    assert {(a, b) for a, b, *_ in on_scales({"p": rows}, scale, policy)["p"].pairs} == {("a", "c"), ("A", "C")}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.integers(1, 3), st.randoms(use_true_random=False))
def test_all_pairs_on_several_scales_are_those_of_each_by_itself(case: Case, n: int, random: random.Random) -> None:
    policy = replace(case.policy, name="all", model=None, max_pairs_per_prompt=None, max_per_model=None, missing="drop")
    scale = {r.key: random.randrange(n) for rows in case.prompts.values() for r in rows}

    def pairs(prompts: Prompts, scales: Any = None) -> dict[str, set[Two]]:
        scores = columns(prompts, case.of)
        scales = scales and [str(scales[key]) for key in scores.completions.to_pylist()]
        return {
            p: set(found.pairs) for p, found in verdicts(pair_prompts(replace(scores, scales=scales), policy)).items()
        }

    whole = {p: rows for p, rows in case.prompts.items() if all(None not in r.points for r in rows)}
    each = [{p: own for p, rows in whole.items() if (own := [r for r in rows if scale[r.key] == i])} for i in range(n)]
    alone = [pairs(prompts) for prompts in each]
    assert pairs(whole, scale) == {p: set().union(*(found.get(p, set()) for found in alone)) for p in whole}
    shuffled = {p: random.sample(rows, len(rows)) for p, rows in whole.items()}
    assert pairs(shuffled, scale) == pairs(whole, scale)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.sampled_from([1e-300, 1e-11, 2.0**-40, 1 / 3, 7.0, 2.0**40, 1e299]))
def test_scores_times_a_number_make_the_same_pairs(case: Case, times: float) -> None:
    scores, policy = case.scores, case.policy
    larger = replace(scores, ratings=scores.ratings * times)
    with np.errstate(all="raise", under="ignore"):
        after = pair_prompts(larger, replace(policy, min_margin=policy.min_margin * times))
    before = pair_prompts(scores, policy)
    assert after.outcome == before.outcome
    assert [(a, b) for v in verdicts(after).values() for a, b, *_ in v.pairs] == [
        (a, b) for v in verdicts(before).values() for a, b, *_ in v.pairs
    ]


@pytest.mark.parametrize(
    ("higher", "lower", "tied"),
    [
        (3e-11, 1e-11, False),
        (1.0000001e-11, 1e-11, False),
        (1.0000000001e-11, 1e-11, True),
        (0.1 + 0.2, 0.3, True),
        (3e300 * (0.1 + 0.2), 3e300 * 0.3, True),
        (5e-324, 0.0, False),
        (0.0, -0.0, True),
        (0.0, -1e-12, False),
        (-1.0, -1.0 - 1e-15, True),
        (-1e-20, -3e-20, False),
        (1e300, -1e300, False),
        (1e300, 0.99e300, False),
        (1e16 + 2, 1e16, True),
    ],
)
def test_scores_tie_by_their_size(higher: float, lower: float, tied: bool) -> None:
    for name in ("best_vs_worst", "all"):
        with np.errstate(all="raise", under="ignore"):
            found = one(row("a", lower), row("b", higher), name=name)
        assert found == (Verdict("tie") if tied else made(("b", "a", higher, lower)))


MIXED = ("honesty", "helpfulness", "truthfulness", "style")


def ranged(*ends: tuple[int, int], score: Any = "mean", weights: Any = (1, 1, 1, 1)) -> PairingResult:
    rows = [row("a", 5, 5, 5, 40), row("b", 1, 1, 1, 60)]
    return pair_prompts(
        replace(columns({"p": rows}, sheet(MIXED, weights)), ranges=ends), replace(POLICY, score=score, shares=True)
    )


def test_aspects_of_other_ranges_count_as_shares_of_their_own() -> None:
    """By points the one of 0 to 100 would decide: 13.75 against 15.75."""
    one_to_five, hundred = (1, 5), (0, 100)
    assert verdicts(ranged(one_to_five, one_to_five, one_to_five, hundred))["p"] == made(("a", "b", 0.85, 0.15))
    assert ranged(one_to_five, one_to_five, one_to_five, hundred).scored.judge_means.tolist() == [[0.85], [0.15]]
    for paired in (
        ranged(hundred, hundred, hundred, hundred),
        ranged(),
    ):
        assert verdicts(paired)["p"] == made(("b", "a", 15.75, 13.75))
    weightless = ranged(one_to_five, one_to_five, one_to_five, hundred, weights=(1, 1, 1, 0))
    assert verdicts(weightless)["p"] == made(("a", "b", 5.0, 1.0))


def test_the_pairs_of_a_shipped_rubric_are_what_they_were() -> None:
    """Golden values, by the version before ranges, scales and the size of scores counted."""
    draws = random.Random(5)
    found = []
    for name in ("unified", "ultrafeedback", "mt-bench"):
        aspects = load(shipped("prompts", "rubrics", name)).sheet.aspects
        of = sheet(tuple(aspects), [one.weight for one in aspects.values()], {"i": 1, "j": 2})
        prompts = {
            f"{name}{n}": [
                row(
                    f"{name}{n}.{i}",
                    *(
                        draws.randint(*aspects[aspect].scale) if aspect == "overall" or draws.random() < 0.95 else None
                        for _, aspect in of.columns
                    ),
                    truncated=draws.random() < 0.1,
                    model=draws.choice("mno"),
                    length=draws.randint(1, 40),
                )
                for i in range(4)
            ]
            for n in range(120)
        }
        scores = replace(columns(prompts, of), ranges=tuple(aspects[aspect].scale for _, aspect in of.columns))
        names: Any = ("best_vs_random", "best_vs_worst", "all", "on_policy")
        means: Any = ("mean", "overall") if "overall" in aspects else ("mean",)
        for policy, margin, score in product(names, (0.0, 0.5), means):
            chosen = replace(POLICY, name=policy, min_margin=margin, score=score, model="m", max_length_ratio=3.0)
            made = pair_prompts(scores, chosen)
            outcomes = made.outcomes().drop_columns("unrated")
            found += [made.preferences().to_pylist(), outcomes.to_pylist(), made.scores().to_pylist()]
    golden = "f132dd888012ad7857f8f5389f5e1cde5800be7241a3cd0032db1a89ccf6235d"
    assert hashlib.sha256(repr(found).encode()).hexdigest() == golden
