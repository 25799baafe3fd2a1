"""Try a rubric on stored completions: call only the judges, then compare old and new ratings.

The judgements are stored like those of any run, so a pipeline that switches to the rubric reuses them and pays nothing
again. Afterwards the store again has the pipeline's own judging requests and pairs.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt

from aif.config.pipeline import Pipeline, request_options
from aif.core.environment import ENVIRON
from aif.core.errors import BadInput
from aif.core.formatting import counted, dollars
from aif.core.types import Usage
from aif.engine.make_pairs import scores_of
from aif.engine.orchestrator import PAGE
from aif.engine.prepare import prepare, rubric_of
from aif.engine.progress import Display
from aif.engine.run import CallingResult, StopRequest, call_endpoints, report_programs_and_secrets
from aif.judging.lint import longest_reply
from aif.judging.request import judging_request
from aif.judging.rubric import Rubric, ScoreName, shown_order
from aif.pairing.scores import PromptRows, compute_scores, tolerance
from aif.providers.base import Request
from aif.providers.retry import RetryPolicy
from aif.store.database import Store
from aif.store.journaled_store import JournaledStore
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from aif.store.report_queries import UnratedJudgements
from aif.store.result_queries import ResultReader


@dataclass(frozen=True, slots=True)
class TrialCost:
    """The estimated cost of a rubric trial.

    requests: number of requests to judges.
    input_tokens: their tokens, by four characters per token.
    output_tokens: tokens of their replies, if each is as long as the rubric allows.
    usd: cost in USD without provider cache and retries; None if a price is unknown.
    left: the rest of the budget in USD; None without a budget.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    left: float | None = None


@dataclass(frozen=True, slots=True)
class RatedCompletion:
    """What a completion got under one rubric.

    model: the model that wrote it.
    score: its score; NaN if there is none.
    aspects: its rating by aspect, the mean over the judges; NaN where a rating is missing.
    """

    model: str
    score: float
    aspects: Mapping[str, float]


Ratings = Mapping[str, Mapping[str, RatedCompletion]]  # by prompt id and completion key


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The result of a trial of a rubric.

    names: the names of the pipeline's rubric and the tried rubric.
    before: ratings by the pipeline's rubric, by prompt id and completion key.
    after: ratings by the tried rubric, by prompt id and completion key.
    failures: numbers of unanswered judgements by judge and error kind, with an example of each.
    calling: how the calls of the trial ended.
    """

    names: tuple[str, str]
    before: Ratings
    after: Ratings
    failures: Sequence[UnratedJudgements]
    calling: CallingResult


def try_rubric(
    pipeline: Pipeline,
    rubric: Rubric,
    display: Display,
    consent: Callable[[TrialCost], bool],
    *,
    limit: int,
    judge: str | None = None,
    policy: RetryPolicy | None = None,
) -> TrialResult | None:
    """Have the pipeline's judges rate completions by `rubric`. Return these ratings together with those by the
    pipeline's own rubric.

    consent: called with the cost before anything is requested. If it returns False, nothing is sent and None is
        returned.
    limit: only the first `limit` prompts whose completions are ready to be judged are rated.
    judge: the only judge to call; None: all judges.
    policy: when failed calls are retried; None: the default policy.

    Raises AifError if pipeline, store or rubric can't be used.
    """

    tell = display.print_line
    current, judging = rubric_of(pipeline), _with_judges(pipeline, judge)
    report_programs_and_secrets(judging.model_copy(update={"models": {}}), tell)
    _score(pipeline, rubric)
    if not StorePaths(pipeline.store).any:
        raise BadInput(f"{pipeline.store}: no store here yet; `aif run {pipeline.path}` makes it")
    agreed, stop = False, StopRequest()  # both stay if the store is rebuilt during the trial

    def with_store(journaled: JournaledStore) -> TrialResult | None:
        nonlocal agreed
        try:
            prepare(judging, journaled, current, tell, reread=False)
            with Reader.of(journaled.store) as reader:
                end = reader.judgeable_limit(limit)
            if not end:
                missing = f"{pipeline.store}: no prompt has all its completions yet"
                raise BadInput(f"{missing}; `aif run {pipeline.path}` makes them")
            before = _ratings(judging, current, journaled.store, end)
            prepare(judging, journaled, rubric, tell, reread=False)
            cost = _cost(judging, rubric, journaled.store, end)
            if cost.requests and not agreed and not consent(cost):
                return None
            agreed = True
            judges_only = judging.model_copy(update={"models": {}})
            calling = asyncio.run(
                call_endpoints(judges_only, journaled, rubric, display, tell, end, policy or RetryPolicy(), stop)
            )
            after = _ratings(judging, rubric, journaled.store, end)
            with Reader.of(journaled.store) as reader:
                failures = reader.unrated_judgements(end)
        finally:
            prepare(pipeline, journaled, current, tell, reread=False)
        return TrialResult((current.sheet.name, rubric.sheet.name), before, after, failures, calling)

    return JournaledStore.use(pipeline.store, tell, current, with_store, tags=pipeline.reasoning_tags)


def _with_judges(pipeline: Pipeline, judge: str | None) -> Pipeline:
    """Return the pipeline with only `judge`, or all its judges if None. Raises BadInput if there is no such judge, or
    if a judge's API key is missing."""
    names = ", ".join(pipeline.judges)
    if not names:
        raise BadInput(f"{pipeline.path}: the pipeline has no judge; add one under judges")
    if judge is not None and judge not in pipeline.judges:
        raise BadInput(f"--judge {judge}: {pipeline.path} has no such judge; it has {names}")
    judges = {name: declared for name, declared in pipeline.judges.items() if judge in (None, name)}
    for declared in judges.values():
        request_options(declared, ENVIRON)
    return pipeline.model_copy(update={"judges": judges})


def _score(pipeline: Pipeline, rubric: Rubric) -> ScoreName:
    """Return the score to compare completions by: the pipeline's if the rubric gives it, else the first that the rubric
    gives. Raises BadInput if it gives none."""
    if not (scores := rubric.scores()):
        raise BadInput(f"{rubric.where}: gives no score; give an aspect a weight above 0, or name one `overall`")
    return pipeline.pairs.score if pipeline.pairs.score in scores else scores[0]


def _cost(pipeline: Pipeline, rubric: Rubric, store: Store, end: int) -> TrialCost:
    store.list_pending(end)
    requests = input_tokens = output_tokens = 0
    usd: float | None = 0.0
    with Reader.of(store) as reader:
        after = 0
        while rows := reader.judgeable_prompts(after, PAGE):
            after = rows[-1].seq
            for ready in rows:
                for need in ready.needs:
                    judge = pipeline.judges[need.judge]
                    shown = shown_order(ready.prompt.prompt_id, need.answers, need.judge_pass)
                    texts = [ready.texts[key] for key in shown]
                    request = judging_request(rubric, need.request, ready.prompt, texts, judge, seed=0)
                    reply = min(judge.max_tokens, longest_reply(rubric, need.request, len(shown)))
                    usage = Usage(_input_tokens(request), reply)
                    cost = judge.cost(usage)
                    requests += 1
                    input_tokens, output_tokens = input_tokens + usage.input, output_tokens + usage.output
                    usd = None if usd is None or cost is None else usd + cost
        left = None if pipeline.budget_usd is None else reader.spent().left(pipeline.budget_usd)
    return TrialCost(requests, input_tokens, output_tokens, usd, left)


def _input_tokens(request: Request) -> int:
    schema = len(str(request.schema)) if request.schema else 0
    return (sum(len(message.content) for message in request.messages) + schema) // 4


def _ratings(pipeline: Pipeline, rubric: Rubric, store: Store, end: int) -> Ratings:
    """Return the stored ratings by `rubric` of the first `end` selected prompts, by prompt id and completion key. The
    rating of an aspect is the mean over the judges."""
    with ResultReader.of(store) as reader:
        scores = scores_of(pipeline, rubric, reader)
        within = reader.prompt_ids_before(end)
    by = _score(pipeline, rubric)
    means = compute_scores(scores, PromptRows.from_columns(scores), by, pipeline.pairs.missing).means
    rated: dict[str, dict[str, RatedCompletion]] = {prompt_id: {} for prompt_id in within}
    rows = zip(*(column.to_pylist() for column in (scores.prompt_ids, scores.completions, scores.models)), strict=True)
    for (prompt_id, key, model), mean, ratings in zip(rows, means, scores.ratings, strict=True):
        if prompt_id in rated:
            by_aspect = list(zip(scores.aspects, map(float, ratings), strict=True))
            aspects = {
                name: _mean(rating for aspect, rating in by_aspect if aspect == name) for name in rubric.sheet.aspects
            }
            rated[prompt_id][key] = RatedCompletion(model, float(mean), aspects)
    return {prompt_id: completions for prompt_id, completions in rated.items() if completions}


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not isnan(value)]
    return sum(known) / len(known) if known else nan


# --- old and new -----------------------------------------------------------------------------------------------------

ScorePairs = Sequence[tuple[float, float]]  # a prompt's completions: old and new score


def kendall(prompts: Iterable[ScorePairs]) -> float | None:
    """Return Kendall's tau-b between old and new scores, over pairs of completions of the same prompt. `prompts` has
    for each prompt the (old, new) scores of its completions.

    1: the same order; -1: the reverse order; 0: unrelated. None if within each prompt all old scores are tied, or
    within each prompt all new ones.
    """
    agreed = first = second = 0
    for both in prompts:
        for i, (old, new) in enumerate(both):
            for older, newer in both[:i]:
                a, b = _sign(old, older), _sign(new, newer)
                agreed, first, second = agreed + a * b, first + a * a, second + b * b
    return agreed / sqrt(first * second) if first and second else None


def _sign(a: float, b: float) -> int:
    return 0 if abs(a - b) <= tolerance(a, b) else 1 if a > b else -1


def count_changed_best(prompts: Iterable[ScorePairs]) -> int:
    """Return the number of prompts whose best completion changed: none of its completions has both the highest old and
    the highest new score. `prompts` has for each prompt the (old, new) scores of its completions."""
    return sum(not _best([old for old, _ in both]) & _best([new for _, new in both]) for both in prompts)


def _best(scores: Sequence[float]) -> set[int]:
    return {i for i, score in enumerate(scores) if rank(score, scores) == 1}


def rank(score: float, scores: Iterable[float]) -> int:
    """Return the rank of a score: 1 is the highest, equal scores share a rank."""
    return 1 + sum(bool(other > score + tolerance(other, score)) for other in scores)


def scores_of_both(tried: TrialResult, prompt_id: str) -> list[tuple[float, float]]:
    """Return (old, new) scores of a prompt's completions, for those that have both."""
    before, after = tried.before[prompt_id], tried.after[prompt_id]
    scores = [(before[key].score, after[key].score) for key in after if key in before]
    return [(old, new) for old, new in scores if not isnan(old) and not isnan(new)]


def aspects_of(ratings: Ratings) -> tuple[str, ...]:
    return next((tuple(rated.aspects) for completions in ratings.values() for rated in completions.values()), ())


def means_by_model(ratings: Ratings, among: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return for each model its mean rating of each aspect, and under the key "" its mean score, over the prompts whose
    ids are in `among`."""
    values: dict[str, dict[str, list[float]]] = {}
    for prompt_id in among:
        for rated in ratings.get(prompt_id, {}).values():
            for part, value in {"": rated.score, **rated.aspects}.items():
                values.setdefault(rated.model, {}).setdefault(part, []).append(value)
    return {model: {part: _mean(numbers) for part, numbers in parts.items()} for model, parts in values.items()}


def cost_text(cost: TrialCost) -> str:
    """Return a line with the number of requests, tokens and dollars of a trial, and what is left of the budget if that
    is too little."""
    usd = "price unknown" if cost.usd is None else f"about {dollars(cost.usd)}"
    tokens = f"about {cost.input_tokens:,} tokens in and {cost.output_tokens:,} out"
    short = cost.left is not None and (cost.usd or 0.0) > cost.left
    left = f", but {dollars(cost.left)} of the budget left" if short else ""
    return f"{counted(cost.requests, 'request')} to judge, {tokens}: {usd}{left}"
