"""Compute the score of each completion from columns of ratings, overall and by judge. Pure: no text, no I/O, no model.

The scores of a prompt's completions must be comparable. So scores are computed in this order:

1. Completions without any rating are left out.
2. A judge's ratings of an aspect count only if the judge rated the aspect for all remaining completions of the prompt.
3. The value of an aspect is the weighted mean over the judges whose ratings count.
4. The score is the weighted mean over the aspects, or the value of the aspect `overall`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from aif.core.errors import BadInput
from aif.core.types import fraction

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DRAW_BATCH = 100_000
TOLERANCE = 1e-9  # relative to the larger score: means of equal ratings differ by about 1e-15


@dataclass(frozen=True, slots=True)
class RatingColumns:
    """The ratings of all fully judged prompts: a row per completion, a column per judge and aspect. The rows of a
    prompt are adjacent. Columns of strings are Arrow arrays or lists, without nulls.

    prompt_ids: per row, the prompt's id.
    completions: per row, the completion's key; no key occurs twice.
    models: per row, the model's name in the pool.
    text_ids: per row, a digest of the text.
    lengths: per row, the text's number of characters.
    truncated: per row, whether the completion reached max_tokens.
    ratings: rows x columns; NaN where a rating is not_applicable or missing.
    aspects: per column, the aspect.
    judges: per column, the judge.
    weights: per column, the weight of the aspect, at least 0 (0: not in the mean).
    judge_weights: per column, the weight of the judge, above 0.
    ranges: per column, the lowest and highest possible rating; empty if all columns have the same.
    scales: per row, a name; only scores of rows with the same name are compared. None: all are compared.
    """

    prompt_ids: Any
    completions: Any
    models: Any
    text_ids: Any
    lengths: Ints
    truncated: Bools
    ratings: Floats
    aspects: tuple[str, ...]
    judges: tuple[str, ...]
    weights: tuple[float, ...]
    judge_weights: tuple[float, ...]
    ranges: tuple[tuple[float, float], ...] = ()
    scales: Any = None


def tolerance(score: Any, other: Any) -> Any:
    """Return how far two scores, or arrays of scores, may differ and still count as equal, because of rounding."""
    return TOLERANCE * np.maximum(np.abs(score), np.abs(other))


@dataclass(frozen=True, slots=True)
class PromptRows:
    """The rows of RatingColumns (a row per completion) with integers in place of ids, for array operations by prompt. A
    *group* is the rows of one prompt whose scores are on one scale, so that they can be compared.

    prompt_ids: the ids of the prompts, without duplicates.
    completions: per row, the completion's key.
    models: the names of the models, without duplicates.
    prompt: per row, the index of its prompt in `prompt_ids`.
    text: per row, an integer that is equal for equal texts.
    model: per row, the index of its model in `models`.
    starts: per prompt, the number of its first row.
    sizes: per prompt, its number of rows.
    group: per row, the number of its group.
    order: the row numbers, sorted by group.
    firsts: per group, the position in `order` where it begins.
    """

    prompt_ids: pa.Array
    completions: pa.Array
    models: pa.Array
    prompt: Ints
    text: Ints
    model: Ints
    starts: Ints
    sizes: Ints
    group: Ints
    order: Ints
    firsts: Ints

    @classmethod
    def from_columns(cls, columns: RatingColumns) -> "PromptRows":
        """Return the rows of `columns`, grouped by prompt and scale. Raises ValueError if columns differ in length or
        have nulls, if a completion key occurs twice, if a prompt's rows are not adjacent, or if `truncated` isn't
        boolean."""
        prompts, completions, models, texts = map(
            _strings, (columns.prompt_ids, columns.completions, columns.models, columns.text_ids)
        )
        shapes = {(len(column),) for column in (prompts, completions, models, texts)}
        shapes |= {columns.truncated.shape, columns.lengths.shape}
        if shapes != {columns.ratings.shape[:1]} or columns.ratings.shape[1:] != (len(columns.aspects),):
            details = f"ratings {columns.ratings.shape} for aspects {columns.aspects}, other columns {sorted(shapes)}"
            raise ValueError(f"columns don't fit: {details}")
        if columns.truncated.dtype != np.bool_:  # ~1 is -2: true
            raise ValueError(f"truncated must be booleans, not {columns.truncated.dtype}")
        if pc.count_distinct(completions).as_py() != len(completions):
            raise ValueError("a completion key is in more than one row")
        ids, prompt = _numbered(
            prompts
        )  # in order of appearance: ascending exactly if all rows of a prompt are adjacent
        if np.any(np.diff(prompt) < 0):
            raise ValueError("the rows of a prompt must be together")
        starts = np.flatnonzero(np.diff(prompt, prepend=-1))
        sizes = np.diff(starts, append=len(prompt))
        names, model = _numbered(models)
        group = prompt
        if columns.scales is not None:
            scales, scale = _numbered(_strings(columns.scales))
            group = prompt if len(scales) < 2 else np.unique(prompt * len(scales) + scale, return_inverse=True)[1]
        order = np.argsort(group, kind="stable")
        firsts = np.flatnonzero(np.diff(group[order], prepend=-1))
        return cls(ids, completions, names, prompt, _numbered(texts)[1], model, starts, sizes, group, order, firsts)

    def any_per_prompt(self, rows: Bools) -> Bools:
        """Return per prompt whether the mask `rows` is true for any of its rows. If the mask has two dimensions (rows x
        columns), so has the result (prompts x columns)."""
        result: Bools = np.logical_or.reduceat(rows, self.starts, axis=0)
        return result

    def reduce_groups(self, function: np.ufunc, rows: Bools, means: Floats, otherwise: float = np.nan) -> Floats:
        """Reduce the means of each group to one value by `function`, such as np.fmax. Rows that are not in the mask
        `rows` have the value `otherwise` instead of their mean."""
        result: Floats = function.reduceat(np.where(rows, means, otherwise)[self.order], self.firsts)
        return result

    def any_group(self, groups: Bools) -> Bools:
        """Return per prompt whether the mask `groups` is true for any of its groups."""
        return self.any_per_prompt(groups[self.group])

    def count_per_prompt(self, rows: Bools) -> Ints:
        """Return per prompt the number of its rows that are in the mask `rows`."""
        return np.bincount(self.prompt, rows, len(self.starts)).astype(np.int64)

    def highest(self, rows: Bools, means: Floats) -> Bools:
        """Among the rows selected by the mask `rows`, return a mask of those with the highest mean of their group (a
        prompt's completions on one scale), ties included."""
        top = self.reduce_groups(np.maximum, rows, means, -np.inf)[self.group]
        result: Bools = rows & (means >= top - tolerance(means, top))
        return result

    def draw_one(self, candidates: Bools, seed: int, role: str) -> Ints:
        """Return per prompt the row number of a row in the mask `candidates`, drawn by hash if there are several; -1 if
        there is none. `role` says what the row is drawn for, such as "chosen"; it is part of the hash."""
        rows = np.flatnonzero(candidates)
        prompt = self.prompt[rows]
        several = np.bincount(prompt, minlength=len(self.starts))[prompt] > 1
        drawn = np.zeros(len(rows))
        drawn[several] = self.draw(seed, role, rows[several])
        order = np.lexsort((drawn, prompt))
        prompts, first = np.unique(prompt[order], return_index=True)
        chosen = np.full(len(self.starts), -1)
        chosen[prompts] = rows[order][first]
        return chosen

    def draw(self, seed: int, role: str, *sides: Ints) -> list[float]:
        """Return a pseudo-random number in [0, 1) for each row number in `sides`, or for each pair of rows if `sides`
        are two arrays.

        It is a hash of seed, role (what the draw is for, such as "chosen"), prompt and completions. Computed in
        batches, since the keys of 2,000,000 pairs take 500 MB.
        """
        numbers: list[float] = []
        for start in range(0, len(sides[0]), DRAW_BATCH):
            batch = [side[start : start + DRAW_BATCH] for side in sides]
            prompts = self.prompt_ids.take(pa.array(self.prompt[batch[0]])).to_pylist()
            keys = [self.completions.take(pa.array(side)).to_pylist() for side in batch]
            numbers += [fraction(seed, role, prompt, *row) for prompt, *row in zip(prompts, *keys, strict=True)]
        return numbers


def _strings(column: Any) -> pa.Array:
    """Convert a column of strings to one Arrow array. Raises ValueError if it has nulls."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    array = pc.cast(column, pa.string()) if isinstance(column, pa.Array) else pa.array(column, pa.string())
    if array.null_count:
        raise ValueError("a column of strings has nulls")
    return array


def _numbered(names: pa.Array) -> tuple[pa.Array, Ints]:
    """Return the distinct names in order of appearance, and each row's index into them."""
    encoded = names.dictionary_encode()
    return encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)


# --- the score --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CompletionScores:
    """The score of every completion, overall and by judge. NaN stands for a score if no rating counts.

    used: mask (prompts x columns) of the ratings that count.
    incomplete: mask of the prompts that are dropped because a rating is missing.
    unrated: mask of the rows of completions without any rating, though others of the prompt have some.
    too_few_rated: mask of the prompts that are dropped because some completions are unrated and too few are rated.
    means: per row, the completion's score.
    judge_means: the completion's score by each judge (rows x `judges`).
    judges: the names of the judges.
    """

    used: Bools
    incomplete: Bools
    unrated: Bools
    too_few_rated: Bools
    means: Floats
    judge_means: Floats
    judges: tuple[str, ...]


def compute_scores(
    columns: RatingColumns,
    rows: PromptRows,
    by: Literal["mean", "overall"],
    missing: Literal["leave_out", "drop"],
    least: int = 2,
) -> CompletionScores:
    """Return each completion's score. Completions without any rating have none.

    by: the score is the weighted mean over the aspects, or the aspect `overall` alone.
    missing: if a completion has ratings, but lacks a judge's rating of an aspect, ignore that judge's ratings of the
        aspect for the whole prompt, or drop the prompt.
    least: if some completions of a prompt have no rating, how many must have one (never fewer than 2); otherwise no
        completion of the prompt has a score.

    An aspect's value is the weighted mean over the judges whose ratings of it count. If the aspects differ in range,
    each value is a fraction of the aspect's range, from 0 to 1. Otherwise an aspect rated from 0 to 40 would outweigh
    three rated from 1 to 5.

    Raises BadInput if `by` is `overall` and there is no such aspect, or `by` is `mean` and no aspect has a weight above
    0. Raises ValueError if columns and weights don't fit.
    """
    weights = _weights(columns, by)
    lacks = np.isnan(columns.ratings) & (weights > 0)
    none = lacks.sum(axis=1) == np.count_nonzero(weights)
    unrated: Bools = none & rows.any_per_prompt(~none)[rows.prompt]
    too_few: Bools = rows.any_per_prompt(unrated) & (rows.count_per_prompt(~none) < max(2, least))
    lacking = rows.any_per_prompt(lacks & ~unrated[:, None])
    incomplete: Bools = np.logical_and(lacking.any(axis=1), missing == "drop")
    used: Bools = (weights > 0) & ~lacking & ~(incomplete | too_few)[:, None]
    ratings = np.where(used[rows.prompt], columns.ratings, np.nan)
    if len({ends for ends, weight in zip(columns.ranges, weights, strict=bool(columns.ranges)) if weight > 0}) > 1:
        low, high = np.array(columns.ranges).T
        ratings = (ratings - low) / (high - low)
    judge_weights = np.array(columns.judge_weights)

    def mean(numbers: Sequence[int], weights: Floats) -> Floats:
        return _mean(len(ratings), ((ratings[:, number], weights[number]) for number in numbers))

    aspects = _columns_of(columns.aspects)
    aspect_means = ((mean(numbers, judge_weights), weights[numbers[0]]) for numbers in aspects.values())
    judges = _columns_of(columns.judges)
    judge_means = np.empty((len(ratings), len(judges)))
    for judge, numbers in enumerate(judges.values()):
        judge_means[:, judge] = mean(numbers, weights)
    means = _mean(len(ratings), aspect_means)
    return CompletionScores(used, incomplete, unrated, too_few, means, judge_means, tuple(judges))


def _columns_of(names: Sequence[str]) -> dict[str, list[int]]:
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        columns.setdefault(name, []).append(column)
    return columns


def _mean(rows: int, columns: Iterable[tuple[Floats, float]]) -> Floats:
    """Return per row the weighted mean of the values that are not NaN; NaN if all are. `columns` has (values of a
    column, weight of the column).

    Summed column by column, so that equal ratings give equal bits in every row.
    """
    total, share = np.zeros(rows), np.zeros(rows)
    for column, weight in columns:
        present = ~np.isnan(column)
        total += np.where(present, weight * column, 0.0)
        share += np.where(present, weight, 0.0)
    means: Floats = np.divide(total, share, out=np.full(rows, np.nan), where=share > 0)
    return means


def _weights(columns: RatingColumns, by: Literal["mean", "overall"]) -> Floats:
    """Return per column the weight of its aspect in the score, 0 if the score doesn't use the aspect. Raises BadInput
    if `by` is `overall` and there is no such aspect, or `by` is `mean` and no aspect has a weight above 0. Raises
    ValueError if columns and weights don't fit."""
    _check(columns.aspects, columns.weights, "weights", all(0 <= weight < np.inf for weight in columns.weights))
    _check(columns.judges, columns.judge_weights, "judge_weights", all(0 < w < np.inf for w in columns.judge_weights))
    if len(set(zip(columns.aspects, columns.judges, strict=True))) != len(columns.aspects):
        raise ValueError(f"columns must differ in aspect or judge: {columns.aspects}, {columns.judges}")
    rated = ", ".join(dict.fromkeys(columns.aspects)) or "none"
    if by == "overall":
        if "overall" not in columns.aspects:
            raise BadInput(f"pairs.score is overall, but the rubric has no such aspect ({rated}): set it to mean")
        return np.array([float(aspect == "overall") for aspect in columns.aspects])
    if not any(columns.weights):
        raise BadInput(f"pairs.score is mean, but no aspect of the rubric ({rated}) has a positive weight: give one")
    return np.array(columns.weights, dtype=float)


def _check(names: Sequence[str], weights: Sequence[float], field: str, valid: bool) -> None:
    """Raise ValueError unless there is a weight for each name, and equal names have equal weights. Also raise it if
    `valid`, the result of the caller's own check of the weights, is false. The message calls the weights `field`."""
    fit = len(weights) == len(names) and len(set(zip(names, weights, strict=True))) == len(set(names))
    if not fit or not valid:
        raise ValueError(
            f"{field} must be one positive number for each name (0: an aspect left out), not {weights} for {names}"
        )
