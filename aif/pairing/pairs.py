"""Decide which completions of each prompt form pairs, or why none do. Pure: no text, no I/O, no model.

A *scale* is the scores that may be compared with each other, such as those that came with one source. A *candidate* is
a pair that may be selected:

- The texts differ.
- The scores are on one scale.
- The completion with the higher score is not truncated.
- The pair keeps to the policy's margin, model and length limits.

`_find_candidates` returns each prompt's candidates, or records why the prompt has none, such as a tie. `_apply_policy`
selects pairs from the candidates.

Choices among equals are drawn by sha256 of (seed, role, prompt, completion). So a prompt's result depends neither on
the order of its rows nor on other prompts. The exception is `max_per_model`, which counts all pairs.

A new outcome is added to REASONS here, with its text in engine/outcome_text.py.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from aif.core.errors import BadInput
from aif.core.types import fraction
from aif.pairing.scores import (
    DRAW_BATCH,
    TOLERANCE,
    Bools,
    CompletionScores,
    Floats,
    Ints,
    PromptRows,
    RatingColumns,
    compute_scores,
    tolerance,
)

# Why a prompt has no pair, in the order of display. If several apply, the first that _find_candidates records counts.
REASONS = (
    "too_few",  # fewer than two completions
    "unrated",  # some have no rating, and fewer than min_completions have (on_policy: or none of policy.model's)
    "missing_aspect",  # policy.missing is "drop", and a completion lacks a rating
    "no_common_aspect",  # no judge rated an aspect for every completion
    "no_such_model",  # on_policy: no completion is by policy.model
    "other_scale",  # no two completions (on_policy: none with policy.model's) have scores on one scale
    "all_truncated",  # no completion may be chosen
    "best_truncated",  # only truncated completions are higher than another
    "tie",  # no completion is higher than another
    "margin",  # some are higher, but none by min_margin
    "identical",  # all that are lower by min_margin have the chosen one's text
    "length_ratio",  # the others are too long or too short compared with the chosen one
    "model_cap",  # the models of its pairs were already chosen or rejected max_per_model times
)
OUTCOMES = ("paired", *REASONS)

MAX_CANDIDATES = 4_000_000  # ordered pairs of one prompt: 2,000 completions with policy `all`, which take 0.6 GB


@dataclass(frozen=True, slots=True)
class PairPolicy:
    """How pairs are selected.

    name: which completions of a prompt become chosen and rejected, such as the best and a random one.
    score: what completions are compared by: the weighted mean of the aspects, or the aspect `overall` alone.
    min_margin: the least difference between the scores of chosen and rejected.
    missing: if a judge's rating of an aspect is missing for a completion, leave out that judge's ratings of the aspect
        for the whole prompt, or drop the prompt.
    seed: for all random choices.
    model: for `on_policy`, the model that wrote one completion of every pair; else None.
    max_pairs_per_prompt: for `all`, the most pairs of one prompt; None: no limit.
    max_length_ratio: the highest allowed ratio of the longer text's characters to the shorter's; None: no limit.
    max_per_model: how often a model may be chosen, and how often rejected, in all pairs; None: no limit.
    shares: whether aspects differ in range, so that scores and `min_margin` are fractions from 0 to 1.
    min_completions: if some completions of a prompt have no rating, how many must have one.

    The fields are stored as JSON.
    """

    name: Literal["best_vs_random", "best_vs_worst", "all", "on_policy"]
    score: Literal["mean", "overall"]
    min_margin: float
    missing: Literal["leave_out", "drop"]
    seed: int
    model: str | None = None
    max_pairs_per_prompt: int | None = None
    max_length_ratio: float | None = None
    max_per_model: int | None = None
    shares: bool = False
    min_completions: int = 2


@dataclass(frozen=True, slots=True)
class PairingResult:
    """The outcome of every prompt, and all pairs.

    rows: the completions, a row each.
    scored: the scores of the completions.
    columns: names of the columns of ratings: aspect, or judge/aspect if there are several judges.
    outcome: per prompt, in the order of the input, "paired" or one of REASONS.
    n: per pair, its number within the prompt, from 0. The pairs of a prompt are adjacent.
    chosen: per pair, the row number of the chosen completion.
    rejected: per pair, the row number of the rejected completion.
    """

    rows: PromptRows
    scored: CompletionScores
    columns: tuple[str, ...]
    outcome: pa.Array
    n: Ints
    chosen: Ints
    rejected: Ints

    @property
    def margins(self) -> Floats:
        """Per pair, the score of chosen minus the score of rejected."""
        result: Floats = self.scored.means[self.chosen] - self.scored.means[self.rejected]
        return result

    @property
    def spread(self) -> Floats:
        """Per row, the judges' highest score minus their lowest; NaN if fewer than two judges scored it."""
        scores = self.scored.judge_means
        several = (~np.isnan(scores)).sum(axis=1) > 1
        return np.where(several, np.fmax.reduce(scores, axis=1) - np.fmin.reduce(scores, axis=1), np.nan)

    def outcomes(self) -> pa.Table:
        """Return the table of outcomes, a row per prompt. Its columns:

        prompt_id: the prompt's id.
        outcome: "paired" or one of REASONS.
        aspects: the aspects whose ratings count, each as aspect, or as judge/aspect if there are several judges.
        unrated: the number of completions left out because they have no rating.
        """
        used = self.scored.used
        offsets = np.concatenate(([0], np.cumsum(used.sum(axis=1)))).astype(np.int32)
        names = pa.array(self.columns, pa.string()).take(pa.array(np.nonzero(used)[1]))
        aspects = pa.ListArray.from_arrays(pa.array(offsets), names)
        columns = {"prompt_id": self.rows.prompt_ids, "outcome": self.outcome, "aspects": aspects}
        return pa.table({**columns, "unrated": self.rows.count_per_prompt(self.scored.unrated)})

    def preferences(self) -> pa.Table:
        """Return the table of preferences, a row per pair: prompt, keys and scores of chosen and rejected."""
        keys, means = self.rows.completions, self.scored.means
        return pa.table(
            {
                "prompt_id": self.rows.prompt_ids.take(pa.array(self.rows.prompt[self.chosen])),
                "n": self.n,
                "chosen": keys.take(pa.array(self.chosen)),
                "rejected": keys.take(pa.array(self.rejected)),
                "score_chosen": means[self.chosen],
                "score_rejected": means[self.rejected],
            }
        )

    def scores(self) -> pa.Table:
        """Return the table of scores, a row per completion that has one, with the spread between judges."""
        means, spread = self.scored.means, pa.array(self.spread, from_pandas=True)
        table = pa.table({"completion": self.rows.completions, "score": means, "spread": spread})
        return table.filter(pa.array(~np.isnan(means)))

    def judge_scores(self) -> pa.Table:
        """Return the table of scores by judge. It has a row for each completion and judge, if ratings of the judge
        count for the completion."""
        rows, judges = np.nonzero(~np.isnan(self.scored.judge_means))
        return pa.table(
            {
                "completion": self.rows.completions.take(pa.array(rows)),
                "judge": pa.array(self.scored.judges, pa.string()).take(pa.array(judges)),
                "score": self.scored.judge_means[rows, judges],
            }
        )


def count_outcomes(paired: PairingResult) -> dict[str, int]:
    """Return the number of prompts for each of OUTCOMES, in that order; they add up to all prompts."""
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(paired.outcome).to_pylist()}
    return {outcome: counts.get(outcome, 0) for outcome in OUTCOMES}


def pair_prompts(columns: RatingColumns, policy: PairPolicy) -> PairingResult:
    """Select the pairs of every prompt.

    A *scale* is the scores that may be compared with each other: judges' scores, or scores that came with one source.
    In each pair:

    - The scores are on the same scale, and that of chosen is higher by at least `min_margin`.
    - The texts differ, and their lengths are within `max_length_ratio`.
    - Chosen is not truncated; rejected may be truncated.

    The policy selects from these pairs:

    - `best_vs_random`: one pair, the best completion that isn't truncated against a random one.
    - `best_vs_worst`: one pair, the best completion that isn't truncated against the worst one.
    - `all`: every pair, or the `max_pairs_per_prompt` pairs with the widest margins.
    - `on_policy`: one pair with a completion of `model` on one side. Chosen is the best completion that has such a
      pair; rejected is random.

    Ties are broken by a seeded draw. If a prompt has several scales, the best completions of each scale count as tied.
    The same holds for the worst completions, and for the widest margins.

    With `max_per_model`, the pairs of all prompts are visited in random order. A pair is dropped if its chosen model
    has already been chosen that often, or its rejected model has already been rejected that often.

    Raises BadInput if there is no aspect `overall` and the policy compares by it. Raises BadInput if the policy
    compares by the mean and no aspect has a weight above 0. Raises ValueError if `columns` are inconsistent or
    `min_margin` is negative.
    """
    (paired,) = pair_prompts_by_part([columns], policy)
    return paired


def pair_prompts_by_part(parts: Iterable[RatingColumns], policy: PairPolicy) -> Iterator[PairingResult]:
    """Select the pairs of prompts that come in parts, to save memory. Yields a result per part, the same as
    `pair_prompts` gives for the part; only `max_per_model` counts the pairs of all parts together.

    One part is in memory at a time, except with `max_per_model`, which needs the results of all parts.
    """
    paired = (_pair_without_cap(columns, policy) for columns in parts)
    return paired if policy.max_per_model is None else _apply_model_cap(list(paired), policy.max_per_model, policy.seed)


def _pair_without_cap(columns: RatingColumns, policy: PairPolicy) -> PairingResult:
    if not policy.min_margin >= 0:
        raise ValueError(f"min_margin must be at least 0, not {policy.min_margin}")
    rows = PromptRows.from_columns(columns)
    scored = compute_scores(columns, rows, policy.score, policy.missing, policy.min_completions)
    outcomes = _PromptOutcomes(np.zeros(len(rows.starts), dtype=np.int64))
    outcomes.record("too_few", rows.sizes < 2)
    outcomes.record("unrated", scored.too_few_rated)
    outcomes.record("missing_aspect", scored.incomplete)
    outcomes.record("no_common_aspect", np.logical_not(scored.used.any(axis=1)))
    candidates = _find_candidates(columns, rows, scored.means, policy, outcomes)
    pairs = _apply_policy(candidates, rows, scored.means, policy)
    several = len(scored.judges) > 1
    names = zip(columns.judges, columns.aspects, strict=True)
    return PairingResult(
        rows=rows,
        scored=scored,
        columns=tuple(f"{judge}/{aspect}" if several else aspect for judge, aspect in names),
        outcome=pa.array(OUTCOMES).take(pa.array(outcomes.codes)),
        n=pairs.numbers(),
        chosen=pairs.high,
        rejected=pairs.low,
    )


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Pairs of rows of the same prompt.

    high: per pair, the number of the row with the higher score.
    low: per pair, the number of the row with the lower score.
    row_prompt: per row, the index of its prompt.
    prompts: the number of prompts.
    """

    high: Ints
    low: Ints
    row_prompt: Ints
    prompts: int

    @classmethod
    def with_lower(cls, rows: PromptRows, selected: Ints, means: Floats) -> "_Pairs":
        """Pair each selected row, as `high`, with every row of its group that has a lower score, as `low`.

        A group is the rows of one prompt on one scale. `means` has each row's score.
        """
        return cls._ordered(rows, means, *cls._all_of_prompt(rows, selected))

    @classmethod
    def with_higher(cls, rows: PromptRows, selected: Ints, means: Floats) -> "_Pairs":
        """Pair each selected row, as `low`, with every row of its group that has a higher score, as `high`.

        A group is the rows of one prompt on one scale. `means` has each row's score.
        """
        return cls._ordered(rows, means, *reversed(cls._all_of_prompt(rows, selected)))

    @staticmethod
    def _all_of_prompt(rows: PromptRows, selected: Ints) -> tuple[Ints, Ints]:
        """Combine each selected row with every row of its prompt, itself included. Return the row numbers of all
        combinations as two arrays: first the selected rows, then the other rows."""
        sizes = rows.sizes[rows.prompt[selected]]
        repeated = np.repeat(selected, sizes)
        starts = np.cumsum(sizes) - sizes
        return repeated, np.arange(len(repeated)) - np.repeat(starts - rows.starts[rows.prompt[selected]], sizes)

    @classmethod
    def _ordered(cls, rows: PromptRows, means: Floats, high: Ints, low: Ints) -> "_Pairs":
        above = means[high] > means[low] + tolerance(means[high], means[low])
        valid = (rows.group[high] == rows.group[low]) & above
        return cls(high[valid], low[valid], rows.prompt, len(rows.starts))

    def plus(self, others: "_Pairs") -> "_Pairs":
        high, low = np.concatenate((self.high, others.high)), np.concatenate((self.low, others.low))
        return _Pairs(high, low, self.row_prompt, self.prompts)

    def only(self, selected: Bools | Ints) -> "_Pairs":
        """Return the pairs that a mask or indices select."""
        return _Pairs(self.high[selected], self.low[selected], self.row_prompt, self.prompts)

    @property
    def prompt(self) -> Ints:
        return self.row_prompt[self.high]

    def has_pair(self) -> Bools:
        """Return per prompt whether it has a pair."""
        return np.bincount(self.prompt, minlength=self.prompts) > 0

    def numbers(self) -> Ints:
        """Return each pair's number within its prompt, from 0. The pairs of a prompt must be adjacent."""
        starts = np.flatnonzero(np.diff(self.prompt, prepend=-1))
        sizes = np.diff(starts, append=len(self.high))
        return np.arange(len(self.high)) - np.repeat(starts, sizes)


@dataclass(frozen=True, slots=True)
class _PromptOutcomes:
    """The outcome of every prompt as an index into OUTCOMES: the first reason recorded, or 0 for "paired"."""

    codes: Ints

    def record(self, reason: str, prompts: Bools) -> None:
        """Set the reason for those prompts in the mask `prompts` that have no reason yet."""
        self.codes[prompts & (self.codes == 0)] = OUTCOMES.index(reason)


def _find_candidates(
    columns: RatingColumns, rows: PromptRows, means: Floats, policy: PairPolicy, outcomes: _PromptOutcomes
) -> _Pairs:
    """Return the pairs that the policy may select, and record in `outcomes` why a prompt has none: a tie, the margin, …

    All pairs of 8,000 completions would take 1.4 GB. So pairs are built only in groups (a prompt's completions on one
    scale) where the highest and lowest score are far enough apart. For `best_vs_random` and `best_vs_worst`, only the
    pairs of the best row are built.
    """
    every = np.ones(len(means), dtype=bool)
    rated = ~np.isnan(means)
    own, complete = every, ~columns.truncated & rated  # own: at least one row of each pair must be one of these
    if policy.name == "on_policy":
        own = np.array([name == policy.model for name in rows.models.to_pylist()], dtype=bool)[rows.model]
        outcomes.record("no_such_model", ~rows.any_per_prompt(own))
        own &= rated
        outcomes.record("unrated", ~rows.any_per_prompt(own))
    comparable = np.bincount(rows.group, rated)[rows.group] > 1
    outcomes.record("other_scale", ~rows.any_per_prompt(own & rated & comparable))
    sides: list[tuple[Bools, Bools]] = [(own, every)] if own is every else [(own, every), (every, own)]
    complete_sides = [(high & complete, low) for high, low in sides]
    outcomes.record("all_truncated", ~rows.any_per_prompt(complete))
    higher = rows.any_group(_groups_with_pair(rows, means, complete_sides, 0.0))
    outcomes.record("best_truncated", rows.any_group(_groups_with_pair(rows, means, sides, 0.0)) & ~higher)
    outcomes.record("tie", ~higher)
    in_reach = _groups_with_pair(rows, means, complete_sides, policy.min_margin)[rows.group]
    outcomes.record("margin", ~rows.any_per_prompt(in_reach))
    choosable = complete & in_reach
    if policy.name in ("best_vs_random", "best_vs_worst"):
        # drawn only where a pair is in reach: 200,000 draws are half of the 0.5 s that 64,000 prompts of four take
        best = rows.draw_one(rows.highest(choosable, means), policy.seed, "chosen")
        pairs = _Pairs.with_lower(rows, best[best >= 0], means)
    else:
        pairs = _Pairs.with_lower(rows, _within_memory(np.flatnonzero(choosable & own), rows), means)
        if own is not every:
            others = _Pairs.with_higher(rows, _within_memory(np.flatnonzero(own & in_reach), rows), means)
            pairs = pairs.plus(others.only((choosable & ~own)[others.high]))
    high, low = means[pairs.high], means[pairs.low]
    pairs = pairs.only(high - low >= policy.min_margin - tolerance(high, low))
    pairs = pairs.only(rows.text[pairs.high] != rows.text[pairs.low])
    outcomes.record("identical", ~pairs.has_pair())
    if policy.max_length_ratio is not None:
        lengths = columns.lengths[pairs.high], columns.lengths[pairs.low]
        longest = policy.max_length_ratio * np.minimum(*lengths)
        pairs = pairs.only(np.maximum(*lengths) <= longest * (1 + TOLERANCE))
        outcomes.record("length_ratio", ~pairs.has_pair())
    return pairs


def _groups_with_pair(rows: PromptRows, means: Floats, sides: Sequence[tuple[Bools, Bools]], margin: float) -> Bools:
    """Return per group whether it has a pair of different scores with a margin of at least `margin`. A group is a
    prompt's completions on one scale, so that their scores may be compared.

    means: each row's score.
    sides: (rows that may be chosen, rows that may be rejected), each a mask; a pair is valid if it fits at least one
        entry.
    """
    result = np.zeros(len(rows.firsts), dtype=bool)
    for highs, lows in sides:
        top, low = rows.reduce_groups(np.fmax, highs, means), rows.reduce_groups(np.fmin, lows, means)
        result |= (top > low + tolerance(top, low)) & (top - low >= margin - tolerance(top, low))
    return result


def _within_memory(selected: Ints, rows: PromptRows) -> Ints:
    """Return `selected` unchanged. Raises BadInput if pairing a prompt's selected rows with all its rows would give
    more than MAX_CANDIDATES pairs."""
    pairs = np.bincount(rows.prompt[selected], minlength=len(rows.starts)) * rows.sizes
    if (most := int(pairs.max(initial=0))) > MAX_CANDIDATES:
        raise BadInput(
            f"prompt {rows.prompt_ids[int(pairs.argmax())]}: {rows.sizes[pairs.argmax()]:,} completions give {most:,} "
            f"possible pairs, more than {MAX_CANDIDATES:,}; set pairs.policy to best_vs_random or best_vs_worst, or "
            "correct completions.field and field: rows with the same prompt are joined"
        )
    return selected


def _apply_policy(pairs: _Pairs, rows: PromptRows, means: Floats, policy: PairPolicy) -> _Pairs:
    """Return the candidate pairs that the policy selects, prompt by prompt."""
    if policy.name == "all":
        ranked = pairs.only(_widest_first(pairs, rows, means, policy.seed))
        most = policy.max_pairs_per_prompt
        return ranked if most is None else ranked.only(ranked.numbers() < most)
    chosen = rows.draw_one(rows.highest(_as_mask(pairs.high, rows), means), policy.seed, "chosen")
    pairs = pairs.only(pairs.high == chosen[pairs.prompt])
    lower = _as_mask(pairs.low, rows)
    if policy.name == "best_vs_worst":
        lower = rows.highest(lower, -means)
    rejected = rows.draw_one(lower, policy.seed, "rejected")
    pairs = pairs.only(pairs.low == rejected[pairs.prompt])
    return pairs.only(np.argsort(pairs.high))


def _as_mask(selected: Ints, rows: PromptRows) -> Bools:
    mask = np.zeros(len(rows.prompt), dtype=bool)
    mask[selected] = True
    return mask


def _widest_first(pairs: _Pairs, rows: PromptRows, means: Floats, seed: int) -> Ints:
    """Return the indices of the pairs, sorted by prompt, then by margin, widest first. Equal margins are in random
    order.

    If a prompt has several scales, margins are ranked within each scale. Margins of the same rank, such as the widest
    of each scale, count as equal.
    """
    high, low, group = means[pairs.high], means[pairs.low], rows.group[pairs.high]
    margin, size = high - low, tolerance(high, low)
    order = np.lexsort((-margin, group))
    begins = np.diff(group[order], prepend=-1) != 0
    rounding = np.maximum(size[order], np.roll(size[order], 1))  # of a margin and the next wider one
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.cumsum(begins | (np.diff(margin[order], prepend=np.inf) < -rounding))
    first = np.zeros(len(rows.firsts), dtype=np.int64)
    first[group[order][begins]] = rank[order][begins]
    rank += pairs.prompt * (len(rank) + 1) - first[group]
    rank = np.unique(rank, return_inverse=True)[1]
    several = np.bincount(rank)[rank] > 1
    drawn = np.zeros(len(order))
    drawn[several] = rows.draw(seed, "pair", pairs.high[several], pairs.low[several])
    return np.lexsort((drawn, rank))


def _apply_model_cap(parts: Sequence[PairingResult], cap: int, seed: int) -> Iterator[PairingResult]:
    """Yield each part without the pairs beyond the cap.

    The pairs of all parts are visited in random order. A pair is dropped if its chosen model has already been chosen
    `cap` times, or its rejected model has already been rejected `cap` times.
    """
    drawn = np.concatenate([_cap_draws(part, seed) for part in parts])
    numbers: dict[str, int] = {}
    chosen, rejected = map(np.concatenate, zip(*(_models(part, numbers) for part in parts), strict=True))
    wins, losses = Counter[int](), Counter[int]()
    selected = np.zeros(len(drawn), dtype=bool)
    order = np.argsort(drawn)
    for start in range(0, len(order), DRAW_BATCH):  # Python integers for 2,480,000 pairs would take 400 MB
        batch = order[start : start + DRAW_BATCH]
        for pair, high, low in zip(batch.tolist(), chosen[batch].tolist(), rejected[batch].tolist(), strict=True):
            if wins[high] < cap and losses[low] < cap:
                wins[high] += 1
                losses[low] += 1
                selected[pair] = True
    ends = np.cumsum([len(part.n) for part in parts])
    return (_keep_pairs(part, some) for part, some in zip(parts, np.split(selected, ends[:-1]), strict=True))


def _cap_draws(part: PairingResult, seed: int) -> Floats:
    prompt_ids, prompts = part.rows.prompt_ids.to_pylist(), part.rows.prompt[part.chosen].tolist()
    pairs = zip(prompts, part.n.tolist(), strict=True)
    return np.array([fraction(seed, "cap", prompt_ids[prompt], n) for prompt, n in pairs])


def _models(part: PairingResult, numbers: dict[str, int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return per pair the models of chosen and rejected as integers. `numbers` maps model names to these integers; new
    names are added to it."""
    names = [numbers.setdefault(name, len(numbers)) for name in part.rows.models.to_pylist()]
    model = np.array(names, dtype=np.int32)[part.rows.model]
    return model[part.chosen], model[part.rejected]


def _keep_pairs(part: PairingResult, selected: Bools) -> PairingResult:
    """Return the result with only the pairs in the mask `selected`; a prompt that loses all its pairs gets the outcome
    "model_cap"."""
    pairs = _Pairs(part.chosen, part.rejected, part.rows.prompt, len(part.rows.starts)).only(selected)
    none_left = pc.and_(pc.equal(part.outcome, "paired"), pa.array(~pairs.has_pair()))
    outcome = pc.if_else(none_left, "model_cap", part.outcome)
    return replace(part, outcome=outcome, n=pairs.numbers(), chosen=pairs.high, rejected=pairs.low)
