"""Ratings in the store -> what became of every selected prompt, in the store. Calls no model."""

from collections import Counter
from dataclasses import asdict

import numpy as np
import orjson
import pyarrow as pa

from aif.config import Pipeline
from aif.intake import say_who_judges
from aif.pairs import OUTCOMES as PAIR_OUTCOMES
from aif.pairs import Paired, Policy, Scores, pair
from aif.queries import Reader
from aif.rubric import Rubric
from aif.store import Store

# What keeps a prompt from being compared at all, beside the reasons pairs gives.
UNPAIRED = ("pending", "too_few_completions", "judgement_failed")
OUTCOMES = (*PAIR_OUTCOMES, *UNPAIRED)


def make_pairs(pipeline: Pipeline, rubric: Rubric, store: Store) -> dict[str, int]:
    """Puts down an outcome for every selected prompt and a score for every completion that has one.

    Reads only ratings that the present rubric and judges gave of the present plan's completions. Returns prompts by
    outcome, each of OUTCOMES, 0 where none; they add up to the number selected. Raises BadInput where the policy asks
    for a score the rubric doesn't give.
    """
    say_who_judges(pipeline, rubric, store)
    aspects = rubric.sheet.aspects
    with Reader.of(store) as reader:
        scores = reader.scores(tuple(aspects), tuple(aspect.weight for aspect in aspects.values()))
        unpaired = reader.unpaired()
    paired = pair(scores, policy_of(pipeline))
    outcomes = pa.concat_tables([paired.to_arrow(), unpaired], promote_options="default")
    store.keep_outcomes(outcomes, _scored(scores, paired), orjson.dumps(asdict(policy_of(pipeline))).decode())
    found = Counter(outcomes.column("outcome").to_pylist())
    return {outcome: found[outcome] for outcome in OUTCOMES}


def policy_of(pipeline: Pipeline) -> Policy:
    """The pipeline's `pairs`, and its seed, as pairs takes them."""
    said = pipeline.pairs
    return Policy(said.policy, said.score, said.min_margin, said.missing, pipeline.seed)


def _scored(scores: Scores, paired: Paired) -> pa.Table:
    table = pa.table({"completion": scores.completions, "score": paired.means})
    return table.filter(pa.array(~np.isnan(paired.means)))
