"""What `aif pairs` prints: the pairs a policy would make, alone or beside those of another."""

from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aif.cli.console import print_text
from aif.engine.outcome_text import OUTCOME_TEXTS, policy_text
from aif.engine.pair_preview import PairPreview, differing
from aif.pairing.scores import Floats, Ints

Rows = list[tuple[str, list[str]]]


def print_preview(console: Console, first: PairPreview, second: PairPreview | None, versus: Sequence[str]) -> None:
    """Print statistics of the pairs of one policy, or of two policies side by side.

    first: the pairs that the pipeline file's policy would make.
    second: the pairs that another policy would make; None to show one policy. If given, the number of prompts whose
        pairs are the same or differ is printed too.
    versus: the `--versus` overrides that make the second policy, such as "pairs.policy=all".
    """
    shown = [first, second] if second else [first]
    heads = ["as configured", ", ".join(versus)] if second else [""]
    for head, previewed in zip(heads, shown, strict=True):
        policy = previewed.policy
        print_text(console, f"{f'{head} ({policy.name})' if head else policy.name}: {policy_text(policy)}")
    _print_table(console, "Prompts", heads, _outcomes(shown))
    _print_table(console, "Pairs", heads, _pair_statistics(shown))
    _print_table(console, "Models, chosen / rejected", heads, _models(shown))
    if second:
        rows = [(words, [f"{n:,}"]) for words, n in differing(first, second)]
        _print_table(console, "Prompts by difference", [""], rows)


def _print_table(console: Console, title: str, heads: Sequence[str], rows: Rows) -> None:
    grid = Table(
        box=None, padding=(0, 2, 0, 0), title=f"\n{title}", title_justify="left", title_style="bold", show_edge=False
    )
    grid.show_header = any(heads)
    grid.add_column("")
    for head in heads:
        grid.add_column(Text(head), justify="right")
    for name, cells in rows:
        grid.add_row(Text(name, "cyan", no_wrap=True, overflow="ellipsis"), *cells)
    console.print(grid)


def _outcomes(shown: Sequence[PairPreview]) -> Rows:
    present = [outcome for outcome in OUTCOME_TEXTS if any(each.outcomes[outcome] for each in shown)]
    words = {outcome: OUTCOME_TEXTS[outcome] for outcome in present} | {"paired": "with pairs"}
    rows = [(words[outcome], [f"{each.outcomes[outcome]:,}" for each in shown]) for outcome in present]
    return [*rows, ("all", [f"{sum(each.outcomes.values()):,}" for each in shown])]


def _pair_statistics(shown: Sequence[PairPreview]) -> Rows:
    """Return table rows (name, a cell for each preview) with the number of pairs, their score margins, and the lengths
    of their texts in characters."""

    def row(name: str, number: Callable[[PairPreview], str]) -> tuple[str, list[str]]:
        return name, [number(each) if each.paired.n.size else "–" for each in shown]

    def margin(quantile: float) -> Callable[[PairPreview], str]:
        return lambda each: f"{np.quantile(each.paired.margins, quantile):.2f}"

    quantiles = {"min": 0, "p25": 0.25, "median": 0.5, "p75": 0.75, "max": 1}
    return [
        ("pairs", [f"{each.paired.n.size:,}" for each in shown]),
        *(row(f"margin, {name}", margin(quantile)) for name, quantile in quantiles.items()),
        row("margin, mean", lambda each: f"{each.paired.margins.mean():.2f}"),
        row("characters of chosen, median", lambda each: f"{np.median(_lengths(each)[0]):,.0f}"),
        row("characters of rejected, median", lambda each: f"{np.median(_lengths(each)[1]):,.0f}"),
        row("chosen is longer", lambda each: f"{np.mean(_lengths(each)[0] > _lengths(each)[1]):.1%}"),
        row("chosen / rejected length, mean", lambda each: f"{_ratio(*_lengths(each)):.2f}"),
    ]


def _lengths(each: PairPreview) -> tuple[Ints, Ints]:
    return each.lengths[each.paired.chosen], each.lengths[each.paired.rejected]


def _ratio(chosen: Ints, rejected: Ints) -> float:
    """Return the geometric mean of the ratios of chosen to rejected length. The arguments are each pair's lengths in
    characters; a length of 0 counts as 1."""
    ratios: Floats = np.log(np.maximum(chosen, 1) / np.maximum(rejected, 1))
    return float(np.exp(ratios.mean()))


def _models(shown: Sequence[PairPreview]) -> Rows:
    names = sorted({name for each in shown for name in each.paired.rows.models.to_pylist()})
    cells = [_counts_by_model(each) for each in shown]
    return [(name, [counts.get(name, "–") for counts in cells]) for name in names]


def _counts_by_model(each: PairPreview) -> dict[str, str]:
    """Return a text for each model: how often it is chosen / rejected, with the shares of all pairs, such as "12
    (30.0%) / 3 (7.5%)"."""
    rows, pairs = each.paired.rows, max(each.paired.n.size, 1)
    counts = [
        np.bincount(rows.model[side], minlength=len(rows.models)) for side in (each.paired.chosen, each.paired.rejected)
    ]
    names = rows.models.to_pylist()
    return {name: " / ".join(f"{n[at]:,} ({n[at] / pairs:.1%})" for n in counts) for at, name in enumerate(names)}
