"""Columns of scores in; per prompt which completions make pairs, or why none do. Pure: no text, no I/O, no model.

Two completions of a prompt whose scores are on one scale are candidates where one is higher, is not truncated, and
whatever else the policy asks of the two holds; the policy then picks among the candidates. Every choice among equals is
drawn from sha256 of (seed, role, prompt, completion), and every prompt ends in exactly one outcome. So the result for a
prompt depends on neither the order of its rows nor on any other prompt, but for `max_per_model`, which is about all
pairs together.
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
    DRAWN,
    TOLERANCE,
    Bools,
    Floats,
    Ints,
    Scored,
    ScoreRows,
    Scores,
    compute_scores,
    tolerance,
)

# A prompt that meets several reasons is counted under the first.
REASONS = (
    "too_few",  # fewer than two completions
    "unrated",  # fewer than Policy.min_completions of them are rated
    "missing_aspect",  # Policy.missing is "drop", and a completion lacks a rating
    "no_common_aspect",  # no judge rated an aspect for every completion
    "no_such_model",  # on_policy: none is Policy.model's
    "other_scale",  # no two, or with none of Policy.model's, have scores on one scale
    "all_truncated",  # no completion may be chosen
    "best_truncated",  # only a truncated one is higher than another
    "tie",  # none is higher than another
    "margin",  # some are higher, none by min_margin
    "identical",  # those lower by min_margin have the text of the chosen one
    "length_ratio",  # the others are too long or too short beside the chosen one
    "model_cap",  # its pairs' models have been on their sides max_per_model times
)
OUTCOMES = ("paired", *REASONS)

MAX_CANDIDATES = 4_000_000  # of a prompt's, each way: `all` of 2,000 completions, which take 0.6 GB


@dataclass(frozen=True, slots=True)
class PairPolicy:
    """How pairs are picked.

    `score` is the weighted mean of the aspects of positive weight, or the aspect named `overall` alone; `missing` is
    about these aspects only. `min_margin` is in points of that score, at least 0, or a share where it is a mean of
    `shares`; `max_length_ratio` is of characters, the longer text to the shorter. `model` is the one that `on_policy`
    has on one side of every pair. Where a completion has no rating, the others make pairs if they are
    `min_completions`.
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
    """What became of every prompt, and every pair.

    By prompt, in the order of the input: `outcome`, "paired" or one of REASONS. By pair, prompt by prompt: `n`, from 0
    within the prompt, and `chosen` and `rejected`, rows of the input by number. `columns` names those of `scored.used`.
    """

    rows: ScoreRows
    scored: Scored
    columns: tuple[str, ...]
    outcome: pa.Array
    n: Ints
    chosen: Ints
    rejected: Ints

    @property
    def margins(self) -> Floats:
        """By pair how far chosen lies above rejected."""
        found: Floats = self.scored.means[self.chosen] - self.scored.means[self.rejected]
        return found

    @property
    def spread(self) -> Floats:
        """By row the highest of the judges' own scores less the lowest; NaN where fewer than two have one."""
        own = self.scored.own
        several = (~np.isnan(own)).sum(axis=1) > 1
        return np.where(several, np.fmax.reduce(own, axis=1) - np.fmin.reduce(own, axis=1), np.nan)

    def outcomes(self) -> pa.Table:
        """A row per prompt; `aspects` lists what entered its score, as judge/aspect where there are several judges;
        `unrated` counts the completions that are left out."""
        used = self.scored.used
        offsets = np.concatenate(([0], np.cumsum(used.sum(axis=1)))).astype(np.int32)
        names = pa.array(self.columns, pa.string()).take(pa.array(np.nonzero(used)[1]))
        aspects = pa.ListArray.from_arrays(pa.array(offsets), names)
        columns = {"prompt_id": self.rows.prompt_ids, "outcome": self.outcome, "aspects": aspects}
        return pa.table({**columns, "unrated": self.rows.count(self.scored.unrated)})

    def preferences(self) -> pa.Table:
        """A row per pair."""
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
        """A row per completion that has a score."""
        means, spread = self.scored.means, pa.array(self.spread, from_pandas=True)
        table = pa.table({"completion": self.rows.completions, "score": means, "spread": spread})
        return table.filter(pa.array(~np.isnan(means)))

    def judge_scores(self) -> pa.Table:
        """A row per completion and judge that had a part in its score."""
        rows, judges = np.nonzero(~np.isnan(self.scored.own))
        return pa.table(
            {
                "completion": self.rows.completions.take(pa.array(rows)),
                "judge": pa.array(self.scored.judges, pa.string()).take(pa.array(judges)),
                "score": self.scored.own[rows, judges],
            }
        )


def count_outcomes(paired: PairingResult) -> dict[str, int]:
    """Prompts by outcome, each of OUTCOMES in its order, 0 where none; they add up to the number of prompts."""
    found = {entry["values"]: entry["counts"] for entry in pc.value_counts(paired.outcome).to_pylist()}
    return {outcome: found.get(outcome, 0) for outcome in OUTCOMES}


def pair_prompts(scores: Scores, policy: PairPolicy) -> PairingResult:
    """Pick the pairs of every prompt.

    A pair's chosen one is not truncated, and higher than its rejected one by more than 0 and by at least `min_margin`;
    the rejected one has another text, within `max_length_ratio`, and may be truncated. Their scores are on one scale.

    `best_vs_random` and `best_vs_worst` make one pair: the best that is not truncated, drawn where several are, against
    one drawn from those it may stand against, or the lowest of them. `all` makes every pair; `max_pairs_per_prompt`
    leaves those with the widest margins, equals drawn. `on_policy` makes one of those that have `model` on one side:
    the best that is chosen in any, against one drawn. With `max_per_model`, in the order of a hash of prompt and n, a
    pair stays while its chosen's model has been chosen, and its rejected's model rejected, fewer times.

    Of several scales each has its best, its lowest and its widest margin: these count as equals.

    Raises BadInput where the policy asks for a score these aspects don't give, ValueError where columns don't fit.
    """
    (paired,) = pair_prompts_by_part([scores], policy)
    return paired


def pair_prompts_by_part(parts: Iterable[Scores], policy: PairPolicy) -> Iterator[PairingResult]:
    """The same of prompts that come in parts: all pairs of one are in memory at a time, or what is left of all of them
    where `max_per_model` is to choose among these."""
    paired = (_paired(scores, policy) for scores in parts)
    return paired if policy.max_per_model is None else _within_cap(list(paired), policy.max_per_model, policy.seed)


def _paired(scores: Scores, policy: PairPolicy) -> PairingResult:
    """Without regard to `max_per_model`."""
    if not policy.min_margin >= 0:
        raise ValueError(f"min_margin must be at least 0, not {policy.min_margin}")
    rows = ScoreRows.from_scores(scores)
    scored = compute_scores(scores, rows, policy.score, policy.missing, policy.min_completions)
    ends = _PromptOutcomes(np.zeros(len(rows.starts), dtype=np.int64))
    ends.put("too_few", rows.sizes < 2)
    ends.put("unrated", scored.few)
    ends.put("missing_aspect", scored.incomplete)
    ends.put("no_common_aspect", np.logical_not(scored.used.any(axis=1)))
    found = _picked(_candidates(scores, rows, scored.means, policy, ends), rows, scored.means, policy)
    several = len(scored.judges) > 1
    names = zip(scores.judges, scores.aspects, strict=True)
    return PairingResult(
        rows=rows,
        scored=scored,
        columns=tuple(f"{judge}/{aspect}" if several else aspect for judge, aspect in names),
        outcome=pa.array(OUTCOMES).take(pa.array(ends.codes)),
        n=found.places(),
        chosen=found.high,
        rejected=found.low,
    )


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Pairs of rows of one prompt, `high` above `low`. `owner` (rows) numbers each row's prompt, of so many."""

    high: Ints
    low: Ints
    owner: Ints
    of: int

    @classmethod
    def of_each(cls, ones: Ints, rows: ScoreRows, means: Floats, above: bool = True) -> "_Pairs":
        """Each of these rows with every row of its prompt that it is above, or below."""
        sizes = rows.sizes[rows.prompt[ones]]
        mine = np.repeat(ones, sizes)
        starts = np.cumsum(sizes) - sizes
        others = np.arange(len(mine)) - np.repeat(starts - rows.starts[rows.prompt[ones]], sizes)
        high, low = (mine, others) if above else (others, mine)
        kept = (rows.group[high] == rows.group[low]) & (means[high] > means[low] + tolerance(means[high], means[low]))
        return cls(high[kept], low[kept], rows.prompt, len(rows.starts))

    def also(self, others: "_Pairs") -> "_Pairs":
        high, low = np.concatenate((self.high, others.high)), np.concatenate((self.low, others.low))
        return _Pairs(high, low, self.owner, self.of)

    def only(self, kept: Bools | Ints) -> "_Pairs":
        """Some of them, by mask or by number."""
        return _Pairs(self.high[kept], self.low[kept], self.owner, self.of)

    @property
    def prompt(self) -> Ints:
        return self.owner[self.high]

    def prompts(self) -> Bools:
        """Per prompt whether it has any."""
        return np.bincount(self.prompt, minlength=self.of) > 0

    def places(self) -> Ints:
        """Of each its number within its prompt, whose pairs must stand together."""
        starts = np.flatnonzero(np.diff(self.prompt, prepend=-1))
        sizes = np.diff(starts, append=len(self.high))
        return np.arange(len(self.high)) - np.repeat(starts, sizes)


@dataclass(frozen=True, slots=True)
class _PromptOutcomes:
    """The outcome of every prompt, as a place in OUTCOMES: the first reason put down for it, or 0."""

    codes: Ints

    def put(self, reason: str, prompts: Bools) -> None:
        self.codes[prompts & (self.codes == 0)] = OUTCOMES.index(reason)


def _candidates(scores: Scores, rows: ScoreRows, means: Floats, policy: PairPolicy, ends: _PromptOutcomes) -> _Pairs:
    """The pairs the policy may pick from. Puts down why a prompt has none.

    Whether any two rows are far enough apart is known of the highest and the lowest: pairs are made of what may be
    chosen alone, since of 8,000 completions all of them take 1.4 GB.
    """
    every = np.ones(len(means), dtype=bool)
    rated = ~np.isnan(means)
    own, whole = every, ~scores.truncated & rated
    if policy.name == "on_policy":
        own = np.array([name == policy.model for name in rows.models.to_pylist()], dtype=bool)[rows.model]
        ends.put("no_such_model", ~rows.any(own))
        own &= rated
        ends.put("unrated", ~rows.any(own))
    peers = np.bincount(rows.group, rated)[rows.group] > 1
    ends.put("other_scale", ~rows.any(own & rated & peers))
    sides: list[tuple[Bools, Bools]] = [(own, every)] if own is every else [(own, every), (every, own)]
    ends.put("all_truncated", ~rows.any(whole))
    reach = rows.per_prompt(_reach(rows, means, [(high & whole, low) for high, low in sides], 0.0))
    ends.put("best_truncated", rows.per_prompt(_reach(rows, means, sides, 0.0)) & ~reach)
    ends.put("tie", ~reach)
    reach = _reach(rows, means, [(high & whole, low) for high, low in sides], policy.min_margin)[rows.group]
    ends.put("margin", ~rows.any(reach))
    may = whole & reach
    if policy.name in ("best_vs_random", "best_vs_worst"):
        # drawn only where a pair is in reach: 200,000 draws are half of the 0.5 s that 64,000 prompts of four take
        best = rows.pick(rows.best(may, means), policy.seed, "chosen")
        found = _Pairs.of_each(best[best >= 0], rows, means)
    else:
        found = _Pairs.of_each(_few(np.flatnonzero(may & own), rows), rows, means)
        if own is not every:
            others = _Pairs.of_each(_few(np.flatnonzero(own & reach), rows), rows, means, above=False)
            found = found.also(others.only((may & ~own)[others.high]))
    high, low = means[found.high], means[found.low]
    found = found.only(high - low >= policy.min_margin - tolerance(high, low))

    def keep(kept: Bools, reason: str) -> None:
        nonlocal found
        found = found.only(kept)
        ends.put(reason, ~found.prompts())

    keep(rows.text[found.high] != rows.text[found.low], "identical")
    if policy.max_length_ratio is not None:
        lengths = scores.lengths[found.high], scores.lengths[found.low]
        longest = policy.max_length_ratio * np.minimum(*lengths)
        keep(np.maximum(*lengths) <= longest * (1 + TOLERANCE), "length_ratio")
    return found


def _reach(rows: ScoreRows, means: Floats, sides: Sequence[tuple[Bools, Bools]], margin: float) -> Bools:
    """Per group whether some row of one side is above some row of the other, by so much at least."""
    found = np.zeros(len(rows.firsts), dtype=bool)
    for highs, lows in sides:
        top, low = rows.over(np.fmax, highs, means), rows.over(np.fmin, lows, means)
        found |= (top > low + tolerance(top, low)) & (top - low >= margin - tolerance(top, low))
    return found


def _few(ones: Ints, rows: ScoreRows) -> Ints:
    """These rows, none of which is in too many pairs for memory."""
    pairs = np.bincount(rows.prompt[ones], minlength=len(rows.starts)) * rows.sizes
    if (most := int(pairs.max(initial=0))) > MAX_CANDIDATES:
        raise BadInput(
            f"prompt {rows.prompt_ids[int(pairs.argmax())]}: {rows.sizes[pairs.argmax()]:,} completions are {most:,} "
            f"pairs to look at, more than {MAX_CANDIDATES:,}; set pairs.policy to best_vs_random or best_vs_worst, or "
            "correct completions.field and field: rows of one prompt are gathered"
        )
    return ones


def _picked(found: _Pairs, rows: ScoreRows, means: Floats, policy: PairPolicy) -> _Pairs:
    """Those of the candidates that the policy makes, prompt by prompt."""
    if policy.name == "all":
        ranked = found.only(_widest_first(found, rows, means, policy.seed))
        most = policy.max_pairs_per_prompt
        return ranked if most is None else ranked.only(ranked.places() < most)
    chosen = rows.pick(rows.best(_marked(found.high, rows), means), policy.seed, "chosen")
    found = found.only(found.high == chosen[found.prompt])
    rivals = _marked(found.low, rows)
    if policy.name == "best_vs_worst":
        rivals = rows.best(rivals, -means)
    rejected = rows.pick(rivals, policy.seed, "rejected")
    found = found.only(found.low == rejected[found.prompt])
    return found.only(np.argsort(found.high))


def _marked(rows: Ints, of: ScoreRows) -> Bools:
    marks = np.zeros(len(of.prompt), dtype=bool)
    marks[rows] = True
    return marks


def _widest_first(found: _Pairs, rows: ScoreRows, means: Floats, seed: int) -> Ints:
    """The order of pairs by prompt and margin, those of equal margin drawn. The widest of several scales are
    equals, and so are the next of each."""
    high, low, group = means[found.high], means[found.low], rows.group[found.high]
    margin, size = high - low, tolerance(high, low)
    order = np.lexsort((-margin, group))
    begins = np.diff(group[order], prepend=-1) != 0
    rest = np.maximum(size[order], np.roll(size[order], 1))  # of a margin and the wider one before it
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.cumsum(begins | (np.diff(margin[order], prepend=np.inf) < -rest))
    first = np.zeros(len(rows.firsts), dtype=np.int64)
    first[group[order][begins]] = rank[order][begins]
    rank += found.prompt * (len(rank) + 1) - first[group]
    rank = np.unique(rank, return_inverse=True)[1]
    several = np.bincount(rank)[rank] > 1
    drawn = np.zeros(len(order))
    drawn[several] = rows.draw(seed, "pair", found.high[several], found.low[several])
    return np.lexsort((drawn, rank))


def _within_cap(parts: Sequence[PairingResult], cap: int, seed: int) -> Iterator[PairingResult]:
    """The parts with the pairs that stay when no model may be chosen, and none rejected, more than `cap` times."""
    drawn = np.concatenate([_cap_draws(part, seed) for part in parts])
    numbers: dict[str, int] = {}
    chosen, rejected = map(np.concatenate, zip(*(_models(part, numbers) for part in parts), strict=True))
    wins, losses = Counter[int](), Counter[int]()
    kept = np.zeros(len(drawn), dtype=bool)
    order = np.argsort(drawn)
    for start in range(0, len(order), DRAWN):  # Python's numbers of 2,480,000 pairs are 400 MB
        some = order[start : start + DRAWN]
        for at, high, low in zip(some.tolist(), chosen[some].tolist(), rejected[some].tolist(), strict=True):
            if wins[high] < cap and losses[low] < cap:
                wins[high] += 1
                losses[low] += 1
                kept[at] = True
    ends = np.cumsum([len(part.n) for part in parts])
    return (_only(part, stay) for part, stay in zip(parts, np.split(kept, ends[:-1]), strict=True))


def _cap_draws(part: PairingResult, seed: int) -> Floats:
    prompts, of = part.rows.prompt_ids.to_pylist(), part.rows.prompt[part.chosen].tolist()
    return np.array([fraction(seed, "cap", prompts[at], n) for at, n in zip(of, part.n.tolist(), strict=True)])


def _models(part: PairingResult, numbers: dict[str, int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """By pair the models of its sides, numbered as they come over all parts."""
    names = [numbers.setdefault(name, len(numbers)) for name in part.rows.models.to_pylist()]
    model = np.array(names, dtype=np.int32)[part.rows.model]
    return model[part.chosen], model[part.rejected]


def _only(part: PairingResult, kept: Bools) -> PairingResult:
    """With some of its pairs."""
    found = _Pairs(part.chosen, part.rejected, part.rows.prompt, len(part.rows.starts)).only(kept)
    none = pc.and_(pc.equal(part.outcome, "paired"), pa.array(~found.prompts()))
    outcome = pc.if_else(none, "model_cap", part.outcome)
    return replace(part, outcome=outcome, n=found.places(), chosen=found.high, rejected=found.low)
