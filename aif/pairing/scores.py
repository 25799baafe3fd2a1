"""Columns of ratings in; the score of each completion out, and each judge's own. Pure: no text, no I/O, no model.

A prompt's completions are scored over the same ratings of the same judges or not at all: what one judge said of one
aspect enters a prompt only if that judge rated that aspect for all of its completions. One that has no rating at all is
left out, and the others are compared.
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

DRAWN = 100_000
TOLERANCE = 1e-9  # of the larger of two scores' size: means of the same ratings differ by about 1e-15 of it


@dataclass(frozen=True, slots=True)
class Scores:
    """One row per completion of every prompt that is fully judged; the rows of a prompt stand together.

    `prompt_ids`, `completions` (keys, each once), `models` (names in the pool) and `text_ids` (a digest of the text)
    are strings per row, without nulls: Arrow arrays, chunked or not, or lists. `lengths` (rows) are characters of the
    text; `truncated` (rows) marks what was cut at max_tokens.

    `scores` (rows x columns) is NaN where a rating is not_applicable or missing. A column is what one judge said of one
    aspect: `aspects` and `judges` name the two, `weights` and `judge_weights` say how much each counts. A weight is at
    least 0, a judge's more than 0; an aspect of weight 0 is not in the mean. `ranges` are the lowest and the highest
    rating of each; without them all are the same.

    `scales` (strings per row) tells which scores are on one scale, and may be compared; without it all are.
    """

    prompt_ids: Any
    completions: Any
    models: Any
    text_ids: Any
    lengths: Ints
    truncated: Bools
    scores: Floats
    aspects: tuple[str, ...]
    judges: tuple[str, ...]
    weights: tuple[float, ...]
    judge_weights: tuple[float, ...]
    ranges: tuple[tuple[float, float], ...] = ()
    scales: Any = None


def tolerance(one: Any, other: Any) -> Any:
    """How far apart two scores, or two columns of them, may be and still be equal but for rounding."""
    return TOLERANCE * np.maximum(np.abs(one), np.abs(other))


@dataclass(frozen=True, slots=True)
class ScoreRows:
    """The rows of `Scores` by prompt: `prompt` (rows) numbers each row's prompt, `starts` and `sizes` (prompts) say
    where it lies, `text` and `model` (rows) number texts and models. `group` (rows) numbers, prompt by prompt, those of
    a prompt that are on one scale; `order` brings the rows of each together, and `firsts` says where they begin."""

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
    def from_scores(cls, scores: Scores) -> "ScoreRows":
        """Raises ValueError where columns differ in length, hold nulls, or rows of a prompt stand apart."""
        prompts, completions, models, texts = map(
            _strings, (scores.prompt_ids, scores.completions, scores.models, scores.text_ids)
        )
        shapes = {(len(column),) for column in (prompts, completions, models, texts)}
        shapes |= {scores.truncated.shape, scores.lengths.shape}
        if shapes != {scores.scores.shape[:1]} or scores.scores.shape[1:] != (len(scores.aspects),):
            fit = f"scores {scores.scores.shape} for aspects {scores.aspects}, other columns {sorted(shapes)}"
            raise ValueError(f"columns don't fit: {fit}")
        if scores.truncated.dtype != np.bool_:  # ~1 is -2: true
            raise ValueError(f"truncated must be booleans, not {scores.truncated.dtype}")
        if pc.count_distinct(completions).as_py() != len(completions):
            raise ValueError("a completion key stands in more than one row")
        ids, prompt = _numbered(prompts)  # in order of appearance: sorted exactly if none stand apart
        if np.any(np.diff(prompt) < 0):
            raise ValueError("the rows of a prompt must stand together")
        starts = np.flatnonzero(np.diff(prompt, prepend=-1))
        sizes = np.diff(starts, append=len(prompt))
        names, model = _numbered(models)
        group = prompt
        if scores.scales is not None:
            named, scale = _numbered(_strings(scores.scales))
            group = prompt if len(named) < 2 else np.unique(prompt * len(named) + scale, return_inverse=True)[1]
        order = np.argsort(group, kind="stable")
        firsts = np.flatnonzero(np.diff(group[order], prepend=-1))
        return cls(ids, completions, names, prompt, _numbered(texts)[1], model, starts, sizes, group, order, firsts)

    def any(self, rows: Bools) -> Bools:
        """Per prompt whether any of its rows is true, column by column if there are several."""
        found: Bools = np.logical_or.reduceat(rows, self.starts, axis=0)
        return found

    def over(self, of: np.ufunc, rows: Bools, means: Floats, without: float = np.nan) -> Floats:
        """By group the scores of these rows as one: their np.fmax, np.fmin, …"""
        found: Floats = of.reduceat(np.where(rows, means, without)[self.order], self.firsts)
        return found

    def per_prompt(self, groups: Bools) -> Bools:
        """Whether any of a prompt's groups is true."""
        return self.any(groups[self.group])

    def count(self, rows: Bools) -> Ints:
        """Per prompt how many of its rows are true."""
        return np.bincount(self.prompt, rows, len(self.starts)).astype(np.int64)

    def best(self, rows: Bools, means: Floats) -> Bools:
        """Those of these rows that no other of them in their group is above."""
        top = self.over(np.maximum, rows, means, -np.inf)[self.group]
        found: Bools = rows & (means >= top - tolerance(means, top))
        return found

    def pick(self, candidates: Bools, seed: int, role: str) -> Ints:
        """Per prompt one of its candidate rows, drawn by hash where there are several; -1 where there is none."""
        rows = np.flatnonzero(candidates)
        prompt = self.prompt[rows]
        several = np.bincount(prompt, minlength=len(self.starts))[prompt] > 1
        drawn = np.zeros(len(rows))
        drawn[several] = self.draw(seed, role, rows[several])
        order = np.lexsort((drawn, prompt))
        owners, first = np.unique(prompt[order], return_index=True)
        picked = np.full(len(self.starts), -1)
        picked[owners] = rows[order][first]
        return picked

    def draw(self, seed: int, role: str, *sides: Ints) -> list[float]:
        """A number for each of these rows, or for each pair of rows of one prompt. (In parts: the names of 2,000,000
        pairs are 500 MB.)"""
        found: list[float] = []
        for start in range(0, len(sides[0]), DRAWN):
            some = [side[start : start + DRAWN] for side in sides]
            prompts = self.prompt_ids.take(pa.array(self.prompt[some[0]])).to_pylist()
            keys = [self.completions.take(pa.array(side)).to_pylist() for side in some]
            found += [fraction(seed, role, prompt, *of) for prompt, *of in zip(prompts, *keys, strict=True)]
        return found


def _strings(column: Any) -> pa.Array:
    """One Arrow array of strings, whatever the column came as."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    array = pc.cast(column, pa.string()) if isinstance(column, pa.Array) else pa.array(column, pa.string())
    if array.null_count:
        raise ValueError("a column of names holds nulls")
    return array


def _numbered(names: pa.Array) -> tuple[pa.Array, Ints]:
    """The distinct names in order of appearance, and the place of each row's among them."""
    encoded = names.dictionary_encode()
    return encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)


# --- the score --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scored:
    """The score of every row, `means`, and each judge's own, `own` (rows x `judges`); NaN without any rating that
    entered. `used` (prompts x columns) marks what entered; `incomplete` (prompts) where `missing` is "drop" and
    something is; `unrated` (rows) what is left out beside others that are rated, and `few` (prompts) where these are
    too few."""

    used: Bools
    incomplete: Bools
    unrated: Bools
    few: Bools
    means: Floats
    own: Floats
    judges: tuple[str, ...]


def compute_scores(
    scores: Scores,
    rows: ScoreRows,
    by: Literal["mean", "overall"],
    missing: Literal["leave_out", "drop"],
    least: int = 2,
) -> Scored:
    """The weighted mean over the aspects of positive weight, or the aspect `overall` alone; of each aspect the weighted
    mean over the judges whose ratings of it entered. `missing`, and whether a row is rated, are about these aspects
    only. Where some rows are not rated, `least` others are compared. Where the aspects differ in range, each counts as
    a share of its own, from 0 to 1: else one from 0 to 40 would decide over three from 1 to 5.

    Raises BadInput where these aspects don't give the score asked for, ValueError where columns and weights don't fit.
    """
    weights = _weights(scores, by)
    lacks = np.isnan(scores.scores) & (weights > 0)
    none = lacks.sum(axis=1) == np.count_nonzero(weights)
    unrated: Bools = none & rows.any(~none)[rows.prompt]
    few: Bools = rows.any(unrated) & (rows.count(~none) < max(2, least))
    lacking = rows.any(lacks & ~unrated[:, None])
    incomplete: Bools = np.logical_and(lacking.any(axis=1), missing == "drop")
    used: Bools = (weights > 0) & ~lacking & ~(incomplete | few)[:, None]
    entered = np.where(used[rows.prompt], scores.scores, np.nan)
    if len({ends for ends, weight in zip(scores.ranges, weights, strict=bool(scores.ranges)) if weight > 0}) > 1:
        low, high = np.array(scores.ranges).T
        entered = (entered - low) / (high - low)
    trust = np.array(scores.judge_weights)

    def mean(columns: Sequence[int], weights: Floats) -> Floats:
        return _mean(len(entered), ((entered[:, column], weights[column]) for column in columns))

    aspects = _columns_of(scores.aspects)
    of_aspects = ((mean(columns, trust), weights[columns[0]]) for columns in aspects.values())
    judges = _columns_of(scores.judges)
    own = np.empty((len(entered), len(judges)))
    for place, columns in enumerate(judges.values()):
        own[:, place] = mean(columns, weights)
    return Scored(used, incomplete, unrated, few, _mean(len(entered), of_aspects), own, tuple(judges))


def _columns_of(names: Sequence[str]) -> dict[str, list[int]]:
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        columns.setdefault(name, []).append(column)
    return columns


def _mean(rows: int, columns: Iterable[tuple[Floats, float]]) -> Floats:
    """Per row the weighted mean of the columns that are not NaN there, NaN without any. Added up column by column, so
    that equal ratings give equal bits wherever the row stands."""
    total, share = np.zeros(rows), np.zeros(rows)
    for column, weight in columns:
        there = ~np.isnan(column)
        total += np.where(there, weight * column, 0.0)
        share += np.where(there, weight, 0.0)
    means: Floats = np.divide(total, share, out=np.full(rows, np.nan), where=share > 0)
    return means


def _weights(scores: Scores, by: Literal["mean", "overall"]) -> Floats:
    """The weight of each column's aspect in the score, 0 where it has no part in it."""
    _check(scores.aspects, scores.weights, "weights", all(0 <= weight < np.inf for weight in scores.weights))
    _check(scores.judges, scores.judge_weights, "judge_weights", all(0 < w < np.inf for w in scores.judge_weights))
    if len(set(zip(scores.aspects, scores.judges, strict=True))) != len(scores.aspects):
        raise ValueError(f"columns must differ in aspect or judge: {scores.aspects}, {scores.judges}")
    rated = ", ".join(dict.fromkeys(scores.aspects)) or "none"
    if by == "overall":
        if "overall" not in scores.aspects:
            raise BadInput(f"pairs.score is overall, but the rubric has no such aspect ({rated}): set it to mean")
        return np.array([float(aspect == "overall") for aspect in scores.aspects])
    if not any(scores.weights):
        raise BadInput(f"pairs.score is mean, but no aspect of the rubric ({rated}) has a positive weight: give one")
    return np.array(scores.weights, dtype=float)


def _check(names: Sequence[str], weights: Sequence[float], called: str, sound: bool) -> None:
    """Raises ValueError where not every name has one weight, and a `sound` one."""
    fit = len(weights) == len(names) and len(set(zip(names, weights, strict=True))) == len(set(names))
    if not fit or not sound:
        raise ValueError(
            f"{called} must be one positive number for each name (0: an aspect left out), not {weights} for {names}"
        )
