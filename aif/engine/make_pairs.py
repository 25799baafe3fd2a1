"""Make preference pairs from the ratings in the store. Calls no model."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace

import orjson
import pyarrow as pa

from aif.config.pipeline import Pipeline
from aif.core.errors import BadInput
from aif.core.types import PROVIDED_JUDGE
from aif.engine.prepare import set_judging_specs
from aif.engine.read_prompts import has_unsourced_scores
from aif.judging.rubric import Rubric
from aif.pairing.pairs import OUTCOMES, PairingResult, PairPolicy, count_outcomes, pair_prompts_by_part
from aif.pairing.scores import RatingColumns
from aif.store.database import Store
from aif.store.result_queries import ResultReader

# Why a prompt has no ratings to compare.
UNPAIRED = ("pending", "too_few_completions", "judgement_failed")
ALL_OUTCOMES = (*OUTCOMES, *UNPAIRED)


def make_pairs(pipeline: Pipeline, rubric: Rubric, store: Store) -> dict[str, int]:
    """Make the pairs of all selected prompts and store them. Also stores the scores of completions, and for every
    prompt its outcome: "paired", or the reason why it has no pair.

    Uses the ratings that the current rubric and judges gave to the current plan's completions. Returns the number of
    prompts by outcome, for every outcome of ALL_OUTCOMES; they add up to the number selected.

    Raises BadInput in two cases:

    - The policy pairs by a score that the rubric doesn't give, such as `overall` without an aspect of that name.
    - The sources have scores that must not be compared with each other, and for some stored scores the source is
      unknown.
    """
    set_judging_specs(pipeline, rubric, store)
    policy, outcomes = policy_of(pipeline, rubric), Counter[str]()
    with ResultReader.of(store) as reader:
        if has_unsourced_scores(pipeline, reader):
            raise BadInput(
                f"{pipeline.path}: an older version of aif read the scores and did not store the source of each, and "
                f"scores of two sources can't be compared; put the sources back, and `aif run {pipeline.path}` reads "
                "them again"
            )

        def parts() -> Iterator[dict[str, pa.Table]]:
            for paired in _paired(pipeline, rubric, reader, policy):
                outcomes.update(count_outcomes(paired))
                yield {
                    "outcomes": paired.outcomes(),
                    "preferences": paired.preferences(),
                    "scores": paired.scores(),
                    "judge_scores": paired.judge_scores(),
                }
            unpaired = reader.unpaired_prompts()
            outcomes.update(unpaired.column("outcome").to_pylist())
            yield {"outcomes": unpaired}

        store.replace_outcomes(parts(), orjson.dumps(asdict(policy)).decode())
    return {outcome: outcomes[outcome] for outcome in ALL_OUTCOMES}


def _paired(pipeline: Pipeline, rubric: Rubric, reader: ResultReader, policy: PairPolicy) -> Iterator[PairingResult]:
    """Pair the prompts in parts, and yield the result of each part. This saves memory: 800,000 completions take 747 MB
    in parts, and 1,255 MB at once."""
    all_pairs = policy.name in ("all", "on_policy")
    parts = reader.scores_in_parts(*_weights(pipeline, rubric), all_pairs)
    return pair_prompts_by_part((_ranged(scores, rubric) for scores in parts), policy)


def scores_of(pipeline: Pipeline, rubric: Rubric, reader: ResultReader) -> RatingColumns:
    """Return the ratings in the store, with the weights of aspects (from the rubric) and judges (from the pipeline)."""
    return _ranged(reader.scores(*_weights(pipeline, rubric)), rubric)


def _ranged(scores: RatingColumns, rubric: Rubric) -> RatingColumns:
    return replace(scores, ranges=tuple(rubric.sheet.aspects[name].scale for name in scores.aspects))


def _weights(pipeline: Pipeline, rubric: Rubric) -> tuple[dict[str, float], dict[str, float]]:
    """Return the weights by aspect (of the rubric) and by judge (of the pipeline)."""
    aspects = {name: aspect.weight for name, aspect in rubric.sheet.aspects.items()}
    judges = {name: judge.weight for name, judge in pipeline.judges.items()}
    return aspects, judges or {PROVIDED_JUDGE: 1.0}


def policy_of(pipeline: Pipeline, rubric: Rubric) -> PairPolicy:
    """Return the pairing policy of a pipeline file's `pairs` section and seed, for ratings by this rubric."""
    section = pipeline.pairs
    return PairPolicy(
        section.policy,
        section.score,
        section.min_margin,
        section.missing,
        pipeline.seed,
        section.model,
        section.max_pairs_per_prompt,
        section.max_length_ratio,
        section.max_per_model,
        section.score == "mean" and rubric.ranges_differ,
        pipeline.completions.min_completions,
    )
