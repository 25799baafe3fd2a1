"""What `aif pairs` tells: what a policy makes of the ratings in a store, and where another one's pairs differ."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aif.config.pipeline import Pipeline
from aif.core.errors import BadInput
from aif.engine.make_pairs import policy_of, scores_of
from aif.engine.outcome_text import OUTCOMES, rule_of
from aif.engine.prepare import is_prepared, rubric_of
from aif.pairing.pairs import Paired, PairPolicy, pair
from aif.pairing.scores import Floats, Ints
from aif.store.result_queries import ResultReader


@dataclass(frozen=True, slots=True)
class Preview:
    """What a policy would make: prompts by outcome, and the pairs; `lengths` are the characters of every row."""

    policy: PairPolicy
    outcomes: Mapping[str, int]
    paired: Paired
    lengths: Ints


def outlook(pipeline: Pipeline, reader: ResultReader) -> Preview:
    """Pairs by the pipeline's policy, from the store as it is. Writes nothing.

    Raises BadInput where the store was last planned or judged for a pipeline that differs in more than `pairs`.
    """
    rubric = rubric_of(pipeline)
    if not is_prepared(pipeline, rubric, reader):
        raise BadInput(
            f"{pipeline.path}: models, completions, principles, seed, judges or rubric are not those the store was "
            f"last brought to; `aif export {pipeline.path}` brings it to them and calls no model (--versus may change "
            "`pairs` and weights only)"
        )
    scores = scores_of(pipeline, rubric, reader)
    policy = policy_of(pipeline, rubric)
    paired = pair(scores, policy)
    outcomes = Counter(paired.outcome.to_pylist()) + Counter(reader.unpaired_prompts().column("outcome").to_pylist())
    return Preview(policy, outcomes, paired, scores.lengths)


def tell_outlook(console: Console, one: Preview, other: Preview | None, versus: Sequence[str]) -> None:
    """One policy, or two in columns and what differs between them."""
    shown = [one, other] if other else [one]
    heads = ["as it is", ", ".join(versus)] if other else [""]
    for head, each in zip(heads, shown, strict=True):
        console.print(f"{head + ': ' if head else ''}{each.policy.name}: {rule_of(each.policy)}", markup=False)
    _tell(console, "Prompts", heads, _outcomes(shown))
    _tell(console, "Pairs", heads, _numbers(shown))
    _tell(console, "Models, chosen / rejected", heads, _models(shown))
    if other:
        _tell(console, "Prompts by what differs", [""], [(words, [f"{n:,}"]) for words, n in differing(one, other)])


Rows = list[tuple[str, list[str]]]


def _tell(console: Console, title: str, heads: Sequence[str], rows: Rows) -> None:
    grid = Table(
        box=None, padding=(0, 2, 0, 0), title=f"\n{title}", title_justify="left", title_style="bold", show_edge=False
    )
    grid.show_header = any(heads)
    grid.add_column("", style="cyan", overflow="fold")
    for head in heads:
        grid.add_column(Text(head), justify="right")
    for words, cells in rows:
        grid.add_row(Text(words), *cells)
    console.print(grid)


def _outcomes(shown: Sequence[Preview]) -> Rows:
    met = [outcome for outcome in OUTCOMES if any(each.outcomes[outcome] for each in shown)]
    words = {outcome: OUTCOMES[outcome] for outcome in met} | {"paired": "with pairs"}
    rows = [(words[outcome], [f"{each.outcomes[outcome]:,}" for each in shown]) for outcome in met]
    return [*rows, ("all", [f"{sum(each.outcomes.values()):,}" for each in shown])]


def _numbers(shown: Sequence[Preview]) -> Rows:
    """Margins in points of the score, lengths in characters."""

    def row(words: str, number: Callable[[Preview], str]) -> tuple[str, list[str]]:
        return words, [number(each) if each.paired.n.size else "–" for each in shown]

    def margin(at: float) -> Callable[[Preview], str]:
        return lambda each: f"{np.quantile(each.paired.margins, at):.2f}"

    names = ("least", "a quarter below", "median", "a quarter above", "most")
    return [
        ("pairs", [f"{each.paired.n.size:,}" for each in shown]),
        *(row(f"margin, {name}", margin(at)) for name, at in zip(names, (0, 0.25, 0.5, 0.75, 1), strict=True)),
        row("margin, mean", lambda each: f"{each.paired.margins.mean():.2f}"),
        row("characters of chosen, median", lambda each: f"{np.median(_sides(each)[0]):,.0f}"),
        row("characters of rejected, median", lambda each: f"{np.median(_sides(each)[1]):,.0f}"),
        row("chosen is longer", lambda each: f"{np.mean(_sides(each)[0] > _sides(each)[1]):.1%}"),
        row("times as long as rejected", lambda each: f"{_times(*_sides(each)):.2f}"),
    ]


def _sides(each: Preview) -> tuple[Ints, Ints]:
    return each.lengths[each.paired.chosen], each.lengths[each.paired.rejected]


def _times(chosen: Ints, rejected: Ints) -> float:
    """How many times as long as rejected chosen is: the geometric mean."""
    ratios: Floats = np.log(np.maximum(chosen, 1) / np.maximum(rejected, 1))
    return float(np.exp(ratios.mean()))


def _models(shown: Sequence[Preview]) -> Rows:
    names = sorted({name for each in shown for name in each.paired.rows.models.to_pylist()})
    cells = [_by_model(each) for each in shown]
    return [(name, [of.get(name, "–") for of in cells]) for name in names]


def _by_model(each: Preview) -> dict[str, str]:
    """How often each model is on the one and on the other side."""
    rows, pairs = each.paired.rows, max(each.paired.n.size, 1)
    counts = [
        np.bincount(rows.model[side], minlength=len(rows.models)) for side in (each.paired.chosen, each.paired.rejected)
    ]
    names = rows.models.to_pylist()
    return {name: " / ".join(f"{of[at]:,} ({of[at] / pairs:.1%})" for of in counts) for at, name in enumerate(names)}


def differing(one: Preview, other: Preview) -> list[tuple[str, int]]:
    """Prompts by how the two policies' pairs of them differ. Of a prompt with several pairs all of them count."""
    mine, theirs = _by_prompt(one), _by_prompt(other)
    both = mine.keys() & theirs.keys()
    same = {prompt for prompt in both if mine[prompt] == theirs[prompt]}
    chosen = {prompt for prompt in both - same if {a for a, _ in mine[prompt]} == {a for a, _ in theirs[prompt]}}
    return [
        ("the same pairs", len(same)),
        ("the same chosen, another rejected", len(chosen)),
        ("another chosen", len(both) - len(same) - len(chosen)),
        ("pairs by the first only", len(mine.keys() - theirs.keys())),
        ("pairs by the second only", len(theirs.keys() - mine.keys())),
    ]


def _by_prompt(each: Preview) -> dict[str, set[tuple[str, str]]]:
    """Chosen and rejected keys by prompt."""
    pairs: dict[str, set[tuple[str, str]]] = {}
    table = each.paired.preferences()
    for prompt, *two in zip(*(table[name].to_pylist() for name in ("prompt_id", "chosen", "rejected")), strict=True):
        pairs.setdefault(prompt, set()).add((two[0], two[1]))
    return pairs
