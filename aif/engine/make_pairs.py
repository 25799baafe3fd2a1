"""Ratings in the store -> what became of every selected prompt, in the store. Calls no model."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace

import orjson
import pyarrow as pa

from aif.config.pipeline import Pipeline
from aif.core.errors import BadInput
from aif.core.types import CARRIED
from aif.engine.prepare import say_who_judges, unsourced
from aif.judging.rubric import Rubric
from aif.pairing.pairs import OUTCOMES as PAIR_OUTCOMES
from aif.pairing.pairs import Paired, PairPolicy, counts, pair_parts
from aif.pairing.scores import Scores
from aif.store.database import Store
from aif.store.result_queries import ResultReader

# What keeps a prompt from being compared at all, beside the reasons pairs gives.
UNPAIRED = ("pending", "too_few_completions", "judgement_failed")
OUTCOMES = (*PAIR_OUTCOMES, *UNPAIRED)


def make_pairs(pipeline: Pipeline, rubric: Rubric, store: Store) -> dict[str, int]:
    """Puts down an outcome for every selected prompt, its pairs, and a score for every completion that has one.

    Reads only ratings that the present rubric and judges gave of the present plan's completions. Returns prompts by
    outcome, each of OUTCOMES, 0 where none; they add up to the number selected. Raises BadInput where the policy asks
    for a score the rubric doesn't give, or scores might be of several scales and nothing tells.
    """
    say_who_judges(pipeline, rubric, store)
    policy, found = policy_of(pipeline, rubric), Counter[str]()
    with ResultReader.of(store) as reader:
        if unsourced(pipeline, reader):
            raise BadInput(
                f"{pipeline.path}: the version of aif that read the scores did not keep from which source each is, and "
                "those of two can't be compared; bring the sources back, and `aif run` reads them again"
            )

        def parts() -> Iterator[dict[str, pa.Table]]:
            for paired in _paired(pipeline, rubric, reader, policy):
                found.update(counts(paired))
                yield {
                    "outcomes": paired.outcomes(),
                    "preferences": paired.preferences(),
                    "scores": paired.scores(),
                    "judge_scores": paired.judge_scores(),
                }
            unpaired = reader.unpaired_prompts()
            found.update(unpaired.column("outcome").to_pylist())
            yield {"outcomes": unpaired}

        store.replace_outcomes(parts(), orjson.dumps(asdict(policy)).decode())
    return {outcome: found[outcome] for outcome in OUTCOMES}


def _paired(pipeline: Pipeline, rubric: Rubric, reader: ResultReader, policy: PairPolicy) -> Iterator[Paired]:
    """What became of the prompts, a part after the other. (800,000 completions took 1,255 MB at once, and take 747.)"""
    all_pairs = policy.name in ("all", "on_policy")
    parts = reader.scores_in_parts(*_weights(pipeline, rubric), all_pairs)
    return pair_parts((_ranged(scores, rubric) for scores in parts), policy)


def scores_of(pipeline: Pipeline, rubric: Rubric, reader: ResultReader) -> Scores:
    """The ratings in the store, with the weights that rubric and pipeline give aspects and judges."""
    return _ranged(reader.scores(*_weights(pipeline, rubric)), rubric)


def _ranged(scores: Scores, rubric: Rubric) -> Scores:
    return replace(scores, ranges=tuple(rubric.sheet.aspects[name].scale for name in scores.aspects))


def _weights(pipeline: Pipeline, rubric: Rubric) -> tuple[dict[str, float], dict[str, float]]:
    """By aspect and by judge."""
    aspects = {name: aspect.weight for name, aspect in rubric.sheet.aspects.items()}
    judges = {name: judge.weight for name, judge in pipeline.judges.items()}
    return aspects, judges or {CARRIED: 1.0}


def policy_of(pipeline: Pipeline, rubric: Rubric) -> PairPolicy:
    """The pipeline's `pairs`, and its seed, as pairs takes them of ratings by the rubric."""
    said = pipeline.pairs
    return PairPolicy(
        said.policy,
        said.score,
        said.min_margin,
        said.missing,
        pipeline.seed,
        said.model,
        said.max_pairs_per_prompt,
        said.max_length_ratio,
        said.max_per_model,
        said.score == "mean" and rubric.mixed,
        pipeline.completions.min_completions,
    )
