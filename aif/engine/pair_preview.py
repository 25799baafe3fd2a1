"""The pairs a policy would make of the ratings in a store, without writing them, and how two policies differ."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from aif.config.pipeline import Pipeline
from aif.core.errors import BadInput
from aif.engine.make_pairs import policy_of, scores_of
from aif.engine.prepare import is_prepared, rubric_of
from aif.pairing.pairs import PairingResult, PairPolicy, pair_prompts
from aif.pairing.scores import Ints
from aif.store.result_queries import ResultReader


@dataclass(frozen=True, slots=True)
class PairPreview:
    """The pairs that a policy would make.

    policy: the rules by which pairs are made.
    outcomes: the number of prompts by outcome: "paired", or the reason why a prompt has no pair.
    paired: the pairs; `paired.chosen` and `paired.rejected` are indices into `lengths`.
    lengths: each completion's number of characters.
    """

    policy: PairPolicy
    outcomes: Mapping[str, int]
    paired: PairingResult
    lengths: Ints


def preview(pipeline: Pipeline, reader: ResultReader) -> PairPreview:
    """Return the pairs that the pipeline's policy would make of the store's ratings. Writes nothing.

    Raises BadInput if the store has no prompts, or was last updated with a pipeline that differs in more than `pairs`
    and judges' weights.
    """
    if reader.get_mark("sources") is None:
        raise BadInput(f"the store has no prompts yet; `aif run {pipeline.path}` reads them first")
    rubric = rubric_of(pipeline)
    if not is_prepared(pipeline, rubric, reader):
        raise BadInput(
            f"{pipeline.path}: the store was last updated with other models, completions, principles, seed, judges or "
            f"rubric; `aif export {pipeline.path}` updates it and calls no model (--versus can change only `pairs` and "
            "weights)"
        )
    scores = scores_of(pipeline, rubric, reader)
    policy = policy_of(pipeline, rubric)
    paired = pair_prompts(scores, policy)
    outcomes = Counter(paired.outcome.to_pylist()) + Counter(reader.unpaired_prompts().column("outcome").to_pylist())
    return PairPreview(policy, outcomes, paired, scores.lengths)


def differing(first: PairPreview, second: PairPreview) -> list[tuple[str, int]]:
    """Compare the pairs of two policies. Return (result in words, number of prompts) for each of these results:

    - same pairs
    - same chosen, different rejected
    - different chosen
    - pairs only with the first policy
    - pairs only with the second policy

    Prompts without pairs by either policy are not counted.
    """
    firsts, seconds = _pairs_by_prompt(first), _pairs_by_prompt(second)
    both = firsts.keys() & seconds.keys()
    same = {prompt for prompt in both if firsts[prompt] == seconds[prompt]}
    chosen = {prompt for prompt in both - same if {a for a, _ in firsts[prompt]} == {a for a, _ in seconds[prompt]}}
    return [
        ("same pairs", len(same)),
        ("same chosen, different rejected", len(chosen)),
        ("different chosen", len(both) - len(same) - len(chosen)),
        ("pairs only with the first", len(firsts.keys() - seconds.keys())),
        ("pairs only with the second", len(seconds.keys() - firsts.keys())),
    ]


def _pairs_by_prompt(previewed: PairPreview) -> dict[str, set[tuple[str, str]]]:
    """Return the pairs of each prompt, by prompt id, as (chosen, rejected) completion keys. Prompts without pairs are
    left out."""
    pairs: dict[str, set[tuple[str, str]]] = {}
    table = previewed.paired.preferences()
    columns = (table[name].to_pylist() for name in ("prompt_id", "chosen", "rejected"))
    for prompt, chosen, rejected in zip(*columns, strict=True):
        pairs.setdefault(prompt, set()).add((chosen, rejected))
    return pairs
