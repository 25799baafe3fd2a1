"""Select single completions for export: the best of each prompt (SFT), and desirable or undesirable ones (KTO). Pure.

Columns in, columns out, as in pairs.py: no text, no I/O.

The table `scored` has a row per completion with a score; the rows of a prompt are adjacent. Its columns:

prompt_id, source: of the prompt.
completion: the completion's key.
text_id: digest of the completion's text.
model: the model that wrote the completion.
score: the completion's score.
truncated: whether the completion reached max_tokens.
scale: if the score came with the completion, the name of its scale: only scores on the same scale are comparable.

The table `paired` has a row per pair. Its columns:

prompt_id: of the prompt.
chosen, rejected: the keys of the completions.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa

from aif.config.sections import KtoLabels
from aif.core.types import fraction
from aif.pairing.scores import tolerance

BALANCED = (1.0, 4 / 3)  # weighted ratio of desirable to undesirable: equation 8 of KTO (arXiv:2402.01306), as in TRL

# Why a completion with a score has no label.
REASONS = (
    "in_no_pair",  # rule pairs
    "between",  # rule scores: between the two bounds
    "truncated",  # it would be desirable, but reached max_tokens
    "both_ways",  # the same text is desirable in one row and undesirable in another
)


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """The rows that got a label, and how many got none.

    rows: the labelled completions, with their score, model and so on, and the column `label` (true: desirable).
    left_out: the number of completions without a label, by the reason why, such as "truncated" or "in_no_pair".

    Rows are sorted by completion key (a digest), so that two completions of the same prompt are rarely adjacent. KTO
    needs that: TRL estimates the KL term by pairing each prompt with the next row's completion.
    """

    rows: pa.Table
    left_out: dict[str, int]


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Numbers of completions with and without a label.

    labels: the number of completions by split of the dataset and by label (desirable, undesirable).
    left_out: the number of completions without a label, by the reason why, such as "truncated" or "in_no_pair".
    """

    labels: Mapping[str, Mapping[str, int]]
    left_out: Mapping[str, int]


def best_completions(scored: pa.Table, seed: int) -> pa.Table:
    """Return the row of each prompt's best completion that isn't truncated. A prompt with only truncated completions
    has no row.

    A *scale* is the scores that may be compared with each other, such as those of one source. If a prompt's scores are
    on several scales, the best completions of all scales count as tied. Ties are broken by a seeded draw, as for pairs.

    A pair's chosen completion may be another one: `on_policy`, caps and length ratios may exclude the best.
    """
    best = [
        _best_row(rows, seed)
        for _, group in groupby(_numbered_rows(scored), key=lambda row: row["prompt_id"])
        if (rows := [row for row in group if not row["truncated"]])
    ]
    return scored.take(pa.array(best, pa.int64()))


def _best_row(rows: Sequence[Mapping[str, Any]], seed: int) -> int:
    highest: dict[str | None, float] = {}
    for row in rows:
        highest[row.get("scale")] = max(row["score"], highest.get(row.get("scale"), row["score"]))
    best = [row for row in rows if row["score"] >= (top := highest[row.get("scale")]) - tolerance(row["score"], top)]
    first = min(best, key=lambda row: fraction(seed, "chosen", row["prompt_id"], row["completion"]))
    return int(first["n"])


def _numbered_rows(scored: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield each row as a dict, with its row number as `n`. Holds one batch of rows in memory at a time."""
    n = 0
    for batch in scored.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            yield row | {"n": n}
            n += 1


def label_completions(scored: pa.Table, paired: pa.Table, rule: KtoLabels) -> LabelledRows:
    """Label completions as desirable or undesirable, by the pipeline's rule:

    - Rule `pairs`: chosen completions are desirable, rejected ones undesirable.
    - Rule `scores`: scores of at least `rule.desirable` are desirable, scores of at most `rule.undesirable`
      undesirable. A truncated completion that would be desirable gets no label.
    - By both rules, a text that would get both labels in one prompt gets none.

    Labelled and unlabelled rows add up to the rows of `scored`.
    """
    decided = list(_by_pairs(scored, paired) if rule.rule == "pairs" else _by_scores(scored, rule))
    texts = list(zip(*(scored.column(name).to_pylist() for name in ("prompt_id", "text_id")), strict=True))
    by_text: dict[tuple[str, str], set[bool]] = {}
    for text, (labels, _) in zip(texts, decided, strict=True):
        by_text.setdefault(text, set()).update(labels)
    left_out = Counter[str]()
    column: list[bool | None] = []
    for text, (labels, reason) in zip(texts, decided, strict=True):
        clear = labels and len(by_text[text]) == 1
        column.append(next(iter(labels)) if clear else None)
        left_out.update([] if clear else ["both_ways" if labels else reason])
    rows = scored.append_column("label", pa.array(column, pa.bool_()))
    rows = rows.filter(rows.column("label").is_valid()).sort_by("completion")
    return LabelledRows(rows, {reason: left_out[reason] for reason in REASONS if left_out[reason]})


_Decision = tuple[set[bool], str]  # the labels of a completion, and the reason if there is none


def _by_pairs(scored: pa.Table, paired: pa.Table) -> Iterator[_Decision]:
    sides: dict[str, set[bool]] = {}
    for column, label in (("chosen", True), ("rejected", False)):
        for key in paired.column(column).unique().to_pylist():
            sides.setdefault(key, set()).add(label)
    for key in scored.column("completion").to_pylist():
        yield sides.get(key, set()), "in_no_pair"


def _by_scores(scored: pa.Table, rule: KtoLabels) -> Iterator[_Decision]:
    assert rule.desirable is not None
    assert rule.undesirable is not None
    for score, truncated in zip(*(scored.column(name).to_pylist() for name in ("score", "truncated")), strict=True):
        if score >= rule.desirable - tolerance(score, rule.desirable):
            yield set() if truncated else {True}, "truncated"
        else:
            yield {False} if score <= rule.undesirable + tolerance(score, rule.undesirable) else set(), "between"


def balancing_weight(desirable: int, undesirable: int) -> tuple[str, float, float] | None:
    """Return the weight of TRL's KTOConfig that balances these numbers of completions, as (name, lowest value, highest
    value).

    The name is "desirable_weight" or "undesirable_weight". None if the numbers are balanced already, or if one label is
    missing, so that no weight helps.
    """
    low, high = BALANCED
    if not desirable or not undesirable or low <= desirable / undesirable <= high:
        return None
    if desirable < undesirable:
        return "desirable_weight", low * undesirable / desirable, high * undesirable / desirable
    return "undesirable_weight", desirable / undesirable / high, desirable / undesirable / low
