"""Which completions are exported one by one: the best of each prompt, and those that are desirable or not. Pure.

Columns in, columns out, as in pairs.py: no text, no I/O. `scored` is a row per completion that has a score, the rows of
a prompt together: prompt_id, source, completion (key), text_id (a digest of the text), model, score, truncated, scale
(whose the score is on, where scores of several sources came with completions).
`paired` is a row per pair: prompt_id, chosen, rejected (keys).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa

from aif.config.sections import Labels
from aif.core.types import fraction
from aif.pairing.scores import tolerance

BALANCED = (1.0, 4 / 3)  # desirable to undesirable, weighted: equation 8 of KTO (arXiv:2402.01306), as TRL checks it

# Why a scored completion has no label.
REASONS = (
    "in_no_pair",  # rule pairs
    "between",  # rule scores: above undesirable, below desirable
    "truncated",  # it would be desirable, but was cut at max_tokens
    "both_ways",  # its text is desirable in one place and undesirable in another
)


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows of `scored` with their `label` (true: desirable), and how many have none, each of REASONS that occurs.

    Rows stand in the order of their keys. Two of the same prompt are then rarely neighbours, which KTO needs: TRL
    estimates the KL term by giving each prompt its neighbour's completion.
    """

    rows: pa.Table
    left_out: dict[str, int]


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Completions by split and label (desirable, undesirable), and those without a label by reason."""

    labels: Mapping[str, Mapping[str, int]]
    left_out: Mapping[str, int]


def best_completions(scored: pa.Table, seed: int) -> pa.Table:
    """The row of each prompt's best completion that was not cut; none of a prompt of which all were cut. Where several
    are the best, each by its scale, one is drawn as pairs draw theirs.

    Not every chosen one is the best: `on_policy`, caps and length ratios pass over it.
    """
    picked = [
        _pick(rows, seed)
        for _, group in groupby(_rows(scored), key=lambda row: row["prompt_id"])
        if (rows := [row for row in group if not row["truncated"]])
    ]
    return scored.take(pa.array(picked, pa.int64()))


def _pick(rows: Sequence[Mapping[str, Any]], seed: int) -> int:
    tops: dict[str | None, float] = {}
    for row in rows:
        tops[row.get("scale")] = max(row["score"], tops.get(row.get("scale"), row["score"]))
    ahead = [row for row in rows if row["score"] >= (top := tops[row.get("scale")]) - tolerance(row["score"], top)]
    first = min(ahead, key=lambda row: fraction(seed, "chosen", row["prompt_id"], row["completion"]))
    return int(first["n"])


def _rows(scored: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows with their numbers, a batch at a time in memory."""
    n = 0
    for batch in scored.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            yield row | {"n": n}
            n += 1


def label_completions(scored: pa.Table, paired: pa.Table, rule: Labels) -> LabelledRows:
    """Labels by the declared rule. The labels and what is left out add up to the rows of `scored`.

    By `pairs` the chosen side of any pair is desirable and the rejected one is not; by `scores` what scores at least
    `desirable` is, and what scores at most `undesirable` is not. What was cut is never desirable. A text of a prompt
    that would be both is neither.
    """
    found = list(_by_pairs(scored, paired) if rule.rule == "pairs" else _by_scores(scored, rule))
    texts = list(zip(*(scored.column(name).to_pylist() for name in ("prompt_id", "text_id")), strict=True))
    said: dict[tuple[str, str], set[bool]] = {}
    for text, (labels, _) in zip(texts, found, strict=True):
        said.setdefault(text, set()).update(labels)
    left_out = Counter[str]()
    taken: list[bool | None] = []
    for text, (labels, why) in zip(texts, found, strict=True):
        clear = labels and len(said[text]) == 1
        taken.append(next(iter(labels)) if clear else None)
        left_out.update([] if clear else ["both_ways" if labels else why])
    rows = scored.append_column("label", pa.array(taken, pa.bool_()))
    rows = rows.filter(rows.column("label").is_valid()).sort_by("completion")
    return LabelledRows(rows, {why: left_out[why] for why in REASONS if left_out[why]})


_Said = tuple[set[bool], str]  # the labels of one completion, and why it has none


def _by_pairs(scored: pa.Table, paired: pa.Table) -> Iterator[_Said]:
    sides: dict[str, set[bool]] = {}
    for column, label in (("chosen", True), ("rejected", False)):
        for key in paired.column(column).unique().to_pylist():
            sides.setdefault(key, set()).add(label)
    for key in scored.column("completion").to_pylist():
        yield sides.get(key, set()), "in_no_pair"


def _by_scores(scored: pa.Table, rule: Labels) -> Iterator[_Said]:
    assert rule.desirable is not None
    assert rule.undesirable is not None
    for score, truncated in zip(*(scored.column(name).to_pylist() for name in ("score", "truncated")), strict=True):
        if score >= rule.desirable - tolerance(score, rule.desirable):
            yield set() if truncated else {True}, "truncated"
        else:
            yield {False} if score <= rule.undesirable + tolerance(score, rule.undesirable) else set(), "between"


def balancing_weight(desirable: int, undesirable: int) -> tuple[str, float, float] | None:
    """Which of TRL's two weights brings so many completions of each label into balance, and from where to where.

    None where they are balanced, or one label is missing and no weight helps.
    """
    low, high = BALANCED
    if not desirable or not undesirable or low <= desirable / undesirable <= high:
        return None
    if desirable < undesirable:
        return "desirable_weight", low * undesirable / desirable, high * undesirable / desirable
    return "undesirable_weight", desirable / undesirable / high, desirable / undesirable / low
