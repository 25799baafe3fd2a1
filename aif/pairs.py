"""Columns of scores in; per prompt which two completions make a pair, or why none do. Pure: no text, no I/O, no model.

A prompt's completions are compared over the same aspects or not at all, every choice among equals is drawn from
sha256 of (seed, role, prompt, completion), and every prompt ends in exactly one outcome. So the result for a prompt
depends on neither the order of its rows nor on any other prompt.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from aif.errors import BadInput
from aif.records import fraction

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TOLERANCE = 1e-9  # scores closer than this are equal: means of the same ratings differ by about 1e-15

# A prompt that meets several reasons is counted under the first.
REASONS = (
    "too_few",  # fewer than two completions
    "missing_aspect",  # Policy.missing is "drop", and a completion lacks an aspect
    "no_common_aspect",  # no aspect is rated for every completion
    "all_truncated",  # no completion may be chosen
    "best_truncated",  # none is lower than the best complete one, but a truncated one is higher
    "tie",  # none is lower, none is higher
    "margin",  # some are lower, none by min_margin
    "identical",  # those lower by min_margin have the text of the chosen one
)
OUTCOMES = ("paired", *REASONS)


@dataclass(frozen=True, slots=True)
class Policy:
    """How two completions are picked.

    `score` is the weighted mean of the aspects of positive weight, or the aspect named `overall` alone; `missing` and
    `used` are about these aspects only. `min_margin` is in points of that score, at least 0.
    """

    name: Literal["best_vs_random", "best_vs_worst", "all", "on_policy"]
    score: Literal["mean", "overall"]
    min_margin: float
    missing: Literal["leave_out", "drop"]
    seed: int


@dataclass(frozen=True, slots=True)
class Scores:
    """One row per completion of every prompt that is fully judged; the rows of a prompt stand together.

    `prompt_ids`, `completions` (keys, each once), `models` (names in the pool) and `text_ids` (a digest of the text)
    are strings per row, without nulls: Arrow arrays, chunked or not, or lists. `truncated` (rows) marks what was cut at
    max_tokens. `scores` (rows x aspects) is NaN where a rating is not_applicable or missing. `weights` has one number,
    at least 0, per aspect; one of weight 0 is not in the mean.
    """

    prompt_ids: Any
    completions: Any
    models: Any
    text_ids: Any
    truncated: Bools
    scores: Floats
    aspects: tuple[str, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Paired:
    """One entry per prompt, in the order of the input; `means` alone has one per row of the input.

    `outcome` is "paired" or one of REASONS. `chosen` and `rejected` are completion keys, null where there is no pair;
    their scores are NaN there. `used` (prompts x aspects) marks what entered the score. `means` is the score of each
    completion, NaN where the prompt has none (missing_aspect, no_common_aspect).
    """

    prompt_ids: pa.Array
    outcome: pa.Array
    chosen: pa.Array
    rejected: pa.Array
    score_chosen: Floats
    score_rejected: Floats
    aspects: tuple[str, ...]
    used: Bools
    means: Floats

    def to_arrow(self) -> pa.Table:
        """A row per prompt; scores are null where there is no pair, `aspects` lists the names of those used."""
        offsets = np.concatenate(([0], np.cumsum(self.used.sum(axis=1)))).astype(np.int32)
        names = pa.array(self.aspects, pa.string()).take(pa.array(np.nonzero(self.used)[1]))
        return pa.table(
            {
                "prompt_id": self.prompt_ids,
                "outcome": self.outcome,
                "chosen": self.chosen,
                "rejected": self.rejected,
                "score_chosen": pa.array(self.score_chosen, from_pandas=True),
                "score_rejected": pa.array(self.score_rejected, from_pandas=True),
                "aspects": pa.ListArray.from_arrays(pa.array(offsets), names),
            }
        )


def counts(paired: Paired) -> dict[str, int]:
    """Prompts by outcome, each of OUTCOMES in its order, 0 where none; they add up to the number of prompts."""
    found = {entry["values"]: entry["counts"] for entry in pc.value_counts(paired.outcome).to_pylist()}
    return {outcome: found.get(outcome, 0) for outcome in OUTCOMES}


def pair(scores: Scores, policy: Policy) -> Paired:
    """Pick chosen and rejected for every prompt.

    The chosen one is the best of those that are not truncated, drawn where several are. The rejected one is lower by
    more than 0 and by at least `min_margin`, may be truncated, and has another text: drawn from all such, or the
    lowest, drawn where several are.

    Raises BadInput where the policy asks for a score these aspects don't give, ValueError where columns don't fit.
    """
    rows = _Rows.of(scores)
    weights = _weights(scores, policy)
    entering = weights > 0
    lacking = rows.any(np.isnan(scores.scores)) & entering
    incomplete: Bools = np.logical_and(lacking.any(axis=1), policy.missing == "drop")
    used: Bools = entering & ~lacking & ~incomplete[:, None]
    means = _means(scores.scores, used[rows.prompt], weights)

    top = rows.maximum(np.where(scores.truncated | np.isnan(means), -np.inf, means))
    ahead = top[rows.prompt]
    lower = means < ahead - TOLERANCE
    wide = lower & (ahead - means >= policy.min_margin - TOLERANCE)
    best = ~scores.truncated & (means >= ahead - TOLERANCE)
    # drawn only where a pair is in reach: 200,000 draws are half of the 0.5 s that 64,000 prompts of four take
    chosen = rows.pick(best & rows.any(wide)[rows.prompt], policy.seed, "chosen")
    rivals = wide & (rows.text != rows.text[chosen][rows.prompt])
    if policy.name == "best_vs_worst":
        bottom = -rows.maximum(np.where(rivals, -means, -np.inf))
        rivals &= means <= bottom[rows.prompt] + TOLERANCE
    rejected = rows.pick(rivals, policy.seed, "rejected")

    outcome = np.select(
        [
            rows.sizes < 2,
            incomplete,
            ~used.any(axis=1),
            np.isneginf(top),
            ~rows.any(lower) & rows.any(means > ahead + TOLERANCE),
            ~rows.any(lower),
            ~rows.any(wide),
            rejected < 0,
        ],
        np.arange(1, len(OUTCOMES)),
        0,
    )
    pairless = outcome != 0
    return Paired(
        prompt_ids=rows.prompt_ids,
        outcome=pa.array(OUTCOMES).take(pa.array(outcome)),
        chosen=rows.completions.take(pa.array(chosen, mask=pairless)),
        rejected=rows.completions.take(pa.array(rejected, mask=pairless)),
        score_chosen=np.where(pairless, np.nan, means[chosen]),
        score_rejected=np.where(pairless, np.nan, means[rejected]),
        aspects=scores.aspects,
        used=used,
        means=means,
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows by prompt: `prompt` (rows) numbers each row's prompt, `starts` and `sizes` (prompts) where it lies,
    `text` (rows) numbers the texts."""

    prompt_ids: pa.Array
    completions: pa.Array
    prompt: Ints
    text: Ints
    starts: Ints
    sizes: Ints

    @classmethod
    def of(cls, scores: Scores) -> "_Rows":
        """Raises ValueError where columns differ in length, hold nulls, or rows of a prompt stand apart."""
        prompts, completions, models, texts = map(
            _strings, (scores.prompt_ids, scores.completions, scores.models, scores.text_ids)
        )
        shapes = {(len(column),) for column in (prompts, completions, models, texts)} | {scores.truncated.shape}
        if shapes != {scores.scores.shape[:1]} or scores.scores.shape[1:] != (len(scores.aspects),):
            fit = f"scores {scores.scores.shape} for aspects {scores.aspects}, other columns {sorted(shapes)}"
            raise ValueError(f"columns don't fit: {fit}")
        if scores.truncated.dtype != np.bool_:  # ~1 is -2: true
            raise ValueError(f"truncated must be booleans, not {scores.truncated.dtype}")
        if pc.count_distinct(completions).as_py() != len(completions):
            raise ValueError("a completion key stands in more than one row")
        encoded = prompts.dictionary_encode()  # numbered in order of appearance: sorted exactly if none stand apart
        prompt = encoded.indices.to_numpy().astype(np.int64)
        if np.any(np.diff(prompt) < 0):
            raise ValueError("the rows of a prompt must stand together")
        starts = np.flatnonzero(np.diff(prompt, prepend=-1))
        text = texts.dictionary_encode().indices.to_numpy().astype(np.int64)
        sizes = np.diff(starts, append=len(prompt))
        return cls(encoded.dictionary, completions, prompt, text, starts, sizes)

    def any(self, rows: Bools) -> Bools:
        """Per prompt whether any of its rows is true, column by column if there are several."""
        found: Bools = np.logical_or.reduceat(rows, self.starts, axis=0)
        return found

    def maximum(self, rows: Floats) -> Floats:
        """Per prompt the highest of its rows."""
        found: Floats = np.maximum.reduceat(rows, self.starts)
        return found

    def pick(self, candidates: Bools, seed: int, role: str) -> Ints:
        """Per prompt one of its candidate rows, drawn by hash where there are several; -1 where there is none."""
        rows = np.flatnonzero(candidates)
        prompt = self.prompt[rows]
        several = np.bincount(prompt, minlength=len(self.starts))[prompt] > 1
        drawn = np.zeros(len(rows))
        drawn[several] = self._draw(rows[several], seed, role)
        order = np.lexsort((drawn, prompt))
        owners, first = np.unique(prompt[order], return_index=True)
        picked = np.full(len(self.starts), -1)
        picked[owners] = rows[order][first]
        return picked

    def _draw(self, rows: Ints, seed: int, role: str) -> list[float]:
        prompts = self.prompt_ids.take(pa.array(self.prompt[rows])).to_pylist()
        keys = self.completions.take(pa.array(rows)).to_pylist()
        return [fraction(seed, role, prompt, key) for prompt, key in zip(prompts, keys, strict=True)]


def _strings(column: Any) -> pa.Array:
    """One Arrow array of strings, whatever the column came as."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    array = pc.cast(column, pa.string()) if isinstance(column, pa.Array) else pa.array(column, pa.string())
    if array.null_count:
        raise ValueError("a column of names holds nulls")
    return array


def _weights(scores: Scores, policy: Policy) -> Floats:
    """The weight of each aspect in the policy's score, 0 where it has no part in it."""
    if len(scores.weights) != len(scores.aspects) or not all(0 <= weight < np.inf for weight in scores.weights):
        raise ValueError(f"weights must be one number, at least 0, per aspect: {scores.weights} for {scores.aspects}")
    if not policy.min_margin >= 0:
        raise ValueError(f"min_margin must be at least 0, not {policy.min_margin}")
    rated = ", ".join(scores.aspects) or "none"
    if policy.score == "overall":
        if "overall" not in scores.aspects:
            raise BadInput(f"pairs.score is overall, but the rubric has no such aspect ({rated}): set it to mean")
        return np.array([float(aspect == "overall") for aspect in scores.aspects])
    if not any(scores.weights):
        raise BadInput(f"pairs.score is mean, but no aspect of the rubric ({rated}) has a positive weight: give one")
    return np.array(scores.weights, dtype=float)


def _means(scores: Floats, used: Bools, weights: Floats) -> Floats:
    """Per row the weighted mean over the aspects used for it (rows x aspects), NaN without any. Added up aspect by
    aspect, so that equal ratings give equal bits wherever the row stands."""
    total, share = np.zeros(len(used)), np.zeros(len(used))
    for column, weight in enumerate(weights):
        total += np.where(used[:, column], weight * scores[:, column], 0.0)
        share += np.where(used[:, column], weight, 0.0)
    means: Floats = np.divide(total, share, out=np.full(len(used), np.nan), where=share > 0)
    return means
