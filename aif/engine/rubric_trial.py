"""A rubric tried on completions that are there already: a run of judges alone, then old and new ratings side by side.

The judgements are kept as those of any run, by what was asked, so that a pipeline which takes the rubric up finds them
and pays nothing again. What the store holds of the pipeline itself (what is asked, pairs) is as before afterwards.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt

from aif.config.pipeline import Pipeline, options
from aif.core.environment import ENVIRON
from aif.core.errors import BadInput
from aif.core.types import Usage
from aif.core.words import counted, dollars
from aif.engine.feedback import Asked, Person, announce, flow
from aif.engine.make_pairs import scores_of
from aif.engine.orchestrator import PAGE
from aif.engine.prepare import prepare, rubric_of
from aif.engine.progress import Screen
from aif.judging.lint import longest_reply
from aif.judging.request import judging_request
from aif.judging.rubric import Rubric, Score, order
from aif.pairing.scores import ScoreRows, score, slack
from aif.providers.base import Request
from aif.providers.retry import RetryPolicy
from aif.store.database import Store
from aif.store.journaled_store import JournaledStore
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from aif.store.report_queries import UnratedJudgements
from aif.store.result_queries import ResultReader


@dataclass(frozen=True, slots=True)
class Bill:
    """What is to be asked, before it is: tokens at four characters each, replies at the rubric's longest, no cache
    counted, nothing asked again. `left` is what is left of the budget (USD)."""

    requests: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    left: float | None = None


@dataclass(frozen=True, slots=True)
class Rated:
    """A completion as a rubric's judges rate it; NaN where they don't."""

    model: str
    score: float
    aspects: Mapping[str, float]


Ratings = Mapping[str, Mapping[str, Rated]]  # by prompt and completion


@dataclass(frozen=True, slots=True)
class Tried:
    """How a trial ended: ratings by the pipeline's rubric and by the one tried, and what has no rating, by endpoint,
    kind and an example."""

    names: tuple[str, str]
    before: Ratings
    after: Ratings
    failures: Sequence[UnratedJudgements]
    asked: Asked


def attempt(
    pipeline: Pipeline,
    rubric: Rubric,
    screen: Screen,
    agreed: Callable[[Bill], bool],
    *,
    limit: int,
    judge: str | None = None,
    policy: RetryPolicy | None = None,
) -> Tried | None:
    """Asks the pipeline's judges (or the one named) for what `rubric` wants of the first `limit` prompts whose
    completions are all there, if `agreed` says so of its cost. None where it doesn't.

    Raises AifError where pipeline, store or rubric can't be used.
    """

    tell = screen.say
    present, asked = rubric_of(pipeline), _asking(pipeline, judge)
    announce(asked.model_copy(update={"models": {}}), tell)
    _score(pipeline, rubric)
    if not StorePaths(pipeline.store).any:
        raise BadInput(f"{pipeline.store}: no store here yet; `aif run {pipeline.path}` makes it")
    consented, person = False, Person()  # both hold where the store is made again in mid-run

    def whole(ledger: JournaledStore) -> Tried | None:
        nonlocal consented
        try:
            prepare(asked, ledger, present, tell, reread=False)
            with Reader.of(ledger.store) as reader:
                reach = reader.judgeable_limit(limit)
            if not reach:
                raise BadInput(f"{pipeline.store}: no prompt has all its completions yet; `aif run` goes on with them")
            before = _ratings(asked, present, ledger.store, reach)
            prepare(asked, ledger, rubric, tell, reread=False)
            bill = _bill(asked, rubric, ledger.store, reach)
            if bill.requests and not consented and not agreed(bill):
                return None
            consented = True
            judging = asked.model_copy(update={"models": {}})
            flowed = asyncio.run(flow(judging, ledger, rubric, screen, tell, reach, policy or RetryPolicy(), person))
            after = _ratings(asked, rubric, ledger.store, reach)
            with Reader.of(ledger.store) as reader:
                failures = reader.unrated_judgements(reach)
        finally:
            prepare(pipeline, ledger, present, tell, reread=False)
        return Tried((present.sheet.name, rubric.sheet.name), before, after, failures, flowed)

    return JournaledStore.use(pipeline.store, tell, present, whole, tags=pipeline.tags)


def _asking(pipeline: Pipeline, judge: str | None) -> Pipeline:
    """The pipeline with the judges that are asked, whose keys are there."""
    names = ", ".join(pipeline.judges)
    if not names:
        raise BadInput(f"{pipeline.path}: the pipeline has no judge to ask; name one under judges")
    if judge is not None and judge not in pipeline.judges:
        raise BadInput(f"--judge {judge}: {pipeline.path} has no such judge; it has {names}")
    judges = {name: one for name, one in pipeline.judges.items() if judge in (None, name)}
    for one in judges.values():
        options(one, ENVIRON)
    return pipeline.model_copy(update={"judges": judges})


def _score(pipeline: Pipeline, rubric: Rubric) -> Score:
    """The score that completions are compared by: the pipeline's, where the rubric gives it."""
    if not (given := rubric.scores()):
        raise BadInput(f"{rubric.where}: gives no score; give an aspect a weight above 0, or name one `overall`")
    return pipeline.pairs.score if pipeline.pairs.score in given else given[0]


def _bill(pipeline: Pipeline, rubric: Rubric, store: Store, reach: int) -> Bill:
    store.list_pending(reach)
    requests = input_tokens = output_tokens = 0
    usd: float | None = 0.0
    with Reader.of(store) as reader:
        after = 0
        while rows := reader.judgeable_prompts(after, PAGE):
            after = rows[-1].seq
            for ready in rows:
                for need in ready.needs:
                    judge = pipeline.judges[need.judge]
                    shown = order(ready.prompt.prompt_id, need.answers, need.judge_pass)
                    texts = [ready.texts[key] for key in shown]
                    request = judging_request(rubric, need.request, ready.prompt, texts, judge, seed=0)
                    reply = min(judge.max_tokens, longest_reply(rubric, need.request, len(shown)))
                    usage = Usage(_sent(request), reply)
                    cost = judge.cost(usage)
                    requests += 1
                    input_tokens, output_tokens = input_tokens + usage.input, output_tokens + usage.output
                    usd = None if usd is None or cost is None else usd + cost
        left = None if pipeline.budget_usd is None else reader.spent().left(pipeline.budget_usd)
    return Bill(requests, input_tokens, output_tokens, usd, left)


def _sent(request: Request) -> int:
    schema = len(str(request.schema)) if request.schema else 0
    return (sum(len(message.content) for message in request.messages) + schema) // 4


def _ratings(pipeline: Pipeline, rubric: Rubric, store: Store, reach: int) -> Ratings:
    """What the pipeline's judges said by a rubric of the completions of the first prompts, where all is said. Of an
    aspect that several judges rated, the mean."""
    with ResultReader.of(store) as reader:
        scores = scores_of(pipeline, rubric, reader)
        within = reader.prompt_ids_before(reach)
    means = score(scores, ScoreRows.of(scores), _score(pipeline, rubric), pipeline.pairs.missing).means
    found: dict[str, dict[str, Rated]] = {prompt_id: {} for prompt_id in within}
    rows = zip(*(column.to_pylist() for column in (scores.prompt_ids, scores.completions, scores.models)), strict=True)
    for (prompt_id, key, model), mean, ratings in zip(rows, means, scores.scores, strict=True):
        if prompt_id in found:
            said = list(zip(scores.aspects, map(float, ratings), strict=True))
            aspects = {
                name: _mean(rating for aspect, rating in said if aspect == name) for name in rubric.sheet.aspects
            }
            found[prompt_id][key] = Rated(model, float(mean), aspects)
    return {prompt_id: rated for prompt_id, rated in found.items() if rated}


def _mean(values: Iterable[float]) -> float:
    """The mean of those that are numbers, NaN where none is."""
    known = [value for value in values if not isnan(value)]
    return sum(known) / len(known) if known else nan


# --- old and new -----------------------------------------------------------------------------------------------------

Both = Sequence[tuple[float, float]]  # a prompt's completions: old and new score


def kendall(prompts: Iterable[Both]) -> float | None:
    """Kendall's tau-b over all pairs of completions of a same prompt: 1 where both order them alike, -1 where the other
    way round, 0 where one says nothing of the other. None where one of both finds no two that differ."""
    agreed = first = second = 0
    for both in prompts:
        for i, (old, new) in enumerate(both):
            for older, newer in both[:i]:
                a, b = _sign(old, older), _sign(new, newer)
                agreed, first, second = agreed + a * b, first + a * a, second + b * b
    return agreed / sqrt(first * second) if first and second else None


def _sign(one: float, other: float) -> int:
    return 0 if abs(one - other) <= slack(one, other) else 1 if one > other else -1


def another_best(prompts: Iterable[Both]) -> int:
    """Of how many prompts none of the best by the old score is among the best by the new one."""
    return sum(not _best([old for old, _ in both]) & _best([new for _, new in both]) for both in prompts)


def _best(scores: Sequence[float]) -> set[int]:
    return {i for i, score in enumerate(scores) if rank(score, scores) == 1}


def rank(score: float, scores: Iterable[float]) -> int:
    """1 for the highest; equal scores share a rank."""
    return 1 + sum(bool(other > score + slack(other, score)) for other in scores)


def scores_of_both(tried: Tried, prompt_id: str) -> list[tuple[float, float]]:
    """The scores of the completions that have both."""
    before, after = tried.before[prompt_id], tried.after[prompt_id]
    found = [(before[key].score, after[key].score) for key in after if key in before]
    return [(old, new) for old, new in found if not isnan(old) and not isnan(new)]


def aspects_of(ratings: Ratings) -> tuple[str, ...]:
    return next((tuple(one.aspects) for rated in ratings.values() for one in rated.values()), ())


def means_by_model(ratings: Ratings, among: Sequence[str]) -> dict[str, dict[str, float]]:
    """By model: the mean score under "", and the mean rating of each aspect."""
    values: dict[str, dict[str, list[float]]] = {}
    for prompt_id in among:
        for one in ratings.get(prompt_id, {}).values():
            for part, value in {"": one.score, **one.aspects}.items():
                values.setdefault(one.model, {}).setdefault(part, []).append(value)
    return {model: {part: _mean(found) for part, found in parts.items()} for model, parts in values.items()}


def told(bill: Bill) -> str:
    """A bill in a line."""
    usd = "price unknown" if bill.usd is None else f"about {dollars(bill.usd)}"
    tokens = f"about {bill.input_tokens:,} tokens in and {bill.output_tokens:,} out"
    short = bill.left is not None and (bill.usd or 0.0) > bill.left
    left = f", but {dollars(bill.left)} of the budget left" if short else ""
    return f"{counted(bill.requests, 'request')} to judge, {tokens}: {usd}{left}"
