"""Ratings in the store -> what became of every selected prompt, in the store. Calls no model."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

import orjson
import pyarrow as pa

from aif.config import Pipeline
from aif.intake import say_who_judges
from aif.pairs import OUTCOMES as PAIR_OUTCOMES
from aif.pairs import Paired, Policy, counts, pair_parts
from aif.records import CARRIED
from aif.results import Results
from aif.rubric import Rubric
from aif.scoring import Scores
from aif.store import Store

# What keeps a prompt from being compared at all, beside the reasons pairs gives.
UNPAIRED = ("pending", "too_few_completions", "judgement_failed")
OUTCOMES = (*PAIR_OUTCOMES, *UNPAIRED)


def make_pairs(pipeline: Pipeline, rubric: Rubric, store: Store) -> dict[str, int]:
    """Puts down an outcome for every selected prompt, its pairs, and a score for every completion that has one.

    Reads only ratings that the present rubric and judges gave of the present plan's completions. Returns prompts by
    outcome, each of OUTCOMES, 0 where none; they add up to the number selected. Raises BadInput where the policy asks
    for a score the rubric doesn't give.
    """
    say_who_judges(pipeline, rubric, store)
    policy, found = policy_of(pipeline), Counter[str]()
    with Results.of(store) as reader:

        def parts() -> Iterator[dict[str, pa.Table]]:
            for paired in _paired(pipeline, rubric, reader, policy):
                found.update(counts(paired))
                yield {
                    "outcomes": paired.outcomes(),
                    "preferences": paired.preferences(),
                    "scores": paired.scores(),
                    "judge_scores": paired.judge_scores(),
                }
            unpaired = reader.unpaired()
            found.update(unpaired.column("outcome").to_pylist())
            yield {"outcomes": unpaired}

        store.keep_outcomes(parts(), orjson.dumps(asdict(policy)).decode())
    return {outcome: found[outcome] for outcome in OUTCOMES}


def _paired(pipeline: Pipeline, rubric: Rubric, reader: Results, policy: Policy) -> Iterator[Paired]:
    """What became of the prompts, a part after the other. (800,000 completions took 1,255 MB at once, and take 747.)"""
    all_pairs = policy.name in ("all", "on_policy")
    return pair_parts(reader.scores_by_part(*_weights(pipeline, rubric), all_pairs), policy)


def scores_of(pipeline: Pipeline, rubric: Rubric, reader: Results) -> Scores:
    """The ratings in the store, with the weights that rubric and pipeline give aspects and judges."""
    return reader.scores(*_weights(pipeline, rubric))


def _weights(pipeline: Pipeline, rubric: Rubric) -> tuple[dict[str, float], dict[str, float]]:
    """By aspect and by judge."""
    aspects = {name: aspect.weight for name, aspect in rubric.sheet.aspects.items()}
    judges = {name: judge.weight for name, judge in pipeline.judges.items()}
    return aspects, judges or {CARRIED: 1.0}


def policy_of(pipeline: Pipeline) -> Policy:
    """The pipeline's `pairs`, and its seed, as pairs takes them."""
    said = pipeline.pairs
    return Policy(
        said.policy,
        said.score,
        said.min_margin,
        said.missing,
        pipeline.seed,
        said.model,
        said.max_pairs_per_prompt,
        said.max_length_ratio,
        said.max_per_model,
        pipeline.completions.min_completions,
    )
