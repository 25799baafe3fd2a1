"""What there is to ask, and what is known of asking it: a store's facts for estimate.py. No model is called."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from aif.config.pipeline import Pipeline
from aif.config.sections import DeclaredEndpoint, Judge, Model
from aif.core.types import Message, Principle, Stage
from aif.engine.context_windows import everyone, windows
from aif.engine.estimate import (
    UNMEASURED,
    Estimate,
    Length,
    Rate,
    Span,
    Work,
    completion_length,
    estimate,
    judgement_length,
    tight,
)
from aif.engine.prepare import prepare, rubric_of
from aif.judging.request import completion_request, judging_request, tokens
from aif.judging.rubric import Rubric, render
from aif.providers.base import Request
from aif.providers.error_replies import holds
from aif.servers.tokenizer import tokenizer_of
from aif.store.estimate_queries import CompletionCall, EstimateReader, ReplyUsage
from aif.store.journal_batches import Rubrics
from aif.store.journaled_store import JournaledStore
from aif.store.report_queries import Tally

SAMPLE = 1000  # calls whose requests are made to see how large they are: the mean of 64,000 within about 3 %
MEASURED = 200  # answered calls whose bytes are set against their tokens; requests that are tokenized
FRAME = 4  # tokens that a chat template puts around each message

Messages = Sequence[Message]


def foresee(pipeline: Pipeline, limit: int | None, tell: Callable[[str], None]) -> Estimate:
    """Takes in what is new of the sources, plans, and estimates what a run would come to."""
    rubric = rubric_of(pipeline)

    def whole(ledger: JournaledStore) -> Estimate:
        prepare(pipeline, ledger, rubric, tell)
        with EstimateReader.of(ledger.store) as reader:
            return estimated(pipeline, rubric, reader, limit)

    return JournaledStore.use(pipeline.store, tell, rubric, whole, tags=pipeline.tags)


def estimated(pipeline: Pipeline, rubric: Rubric, reader: EstimateReader, limit: int | None) -> Estimate:
    """What a run would come to, by a store that is prepared for it."""
    tallies = reader.tallies(limit)
    endpoints = everyone(pipeline)
    asked = {key: one for key, one in endpoints.items() if key in tallies and tallies[key].pending}
    held = asyncio.run(windows(asked, {key: holds(reader.overflow_message(*key)) for key in asked}))
    works = []
    for (stage, name), one in endpoints.items():
        tally = tallies.get((stage, name), Tally(0, 0, 0, 0))
        if not tally.pending:
            works.append(_work(stage, name, tally, [], [], UNMEASURED, Length(Span(0, 0), Span(0, 0), ""), []))
        elif isinstance(one, Model):
            works.append(_model_work(pipeline, one, tally, reader, limit, held.get((stage, name))))
        else:
            coming = {work.name: _coming(work.reply) for work in works if work.stage == "completion"}
            works.append(_judge_work(rubric, one, tally, reader, limit, held.get((stage, name)), coming))
    return replace(estimate(works, endpoints), spent=reader.spent(), budget=pipeline.budget_usd)


def _coming(reply: Length) -> float:
    """How long a completion is taken to be that a judge is shown: as those so far, else as long as it may be."""
    return reply.shown.expected if reply.measured else reply.shown.most


def _model_work(
    pipeline: Pipeline, model: Model, tally: Tally, reader: EstimateReader, limit: int | None, window: int | None
) -> Work:
    sampling = pipeline.sampling(model)

    def request(call: CompletionCall) -> Request:
        principle = Principle("", call.principle) if call.principle else None
        return completion_request(call.prompt, principle, call.system or model.system, sampling, seed=0)

    requests = [request(call) for call in reader.slots_to_ask(model.name, limit, SAMPLE)]
    had = [(request(call).messages, call.tokens or 0) for call in reader.slots_asked(model.identity, MEASURED)]
    used = reader.completion_usage(model.identity, sampling.max_tokens)
    length = completion_length(model, sampling.max_tokens, used)
    rate = _rate(model, had, requests)
    found = tight("completion", model, window, [size(one, rate) for one in requests], tally.pending)
    return replace(_work("completion", model.name, tally, requests, [], rate, length, [used]), tight=found)


def size(request: Request, rate: Rate, coming: float = 0.0) -> float:
    """The tokens of a request and its reply, with completions still to come."""
    return _bytes(request.messages) * rate.tokens.expected + coming + request.max_tokens


def _judge_work(
    rubric: Rubric,
    judge: Judge,
    tally: Tally,
    reader: EstimateReader,
    limit: int | None,
    window: int | None,
    coming: Mapping[str, float],
) -> Work:
    waiting = reader.judgements_to_ask(judge.name, limit, SAMPLE)
    # what is still to come is shown as nothing: its length is reckoned in tokens
    requests = [
        judging_request(rubric, call.request, call.prompt, [*call.texts, *("" for _ in call.awaited)], judge, seed=0)
        for call in waiting
    ]
    rate = _rate(judge, _judged(rubric, reader, judge), requests)
    used = reader.judgement_usage(judge.name)
    asked = [(call.request, len(call.texts) + len(call.awaited)) for call in waiting]
    length = judgement_length(rubric, judge, asked, used)
    awaited = [model for call in waiting for model in call.awaited]
    sizes = [
        size(request, rate, sum(coming[model] for model in call.awaited))
        for call, request in zip(waiting, requests, strict=True)
    ]
    found = tight("judgement", judge, window, sizes, tally.pending, awaited=bool(awaited))
    return replace(
        _work("judgement", judge.name, tally, requests, awaited, rate, length, list(used.values())), tight=found
    )


def _judged(rubric: Rubric, reader: EstimateReader, judge: Judge) -> list[tuple[Messages, int]]:
    """Judgements that were asked for, as they were sent by the rubric of then."""
    calls = reader.judgements_asked(judge.identity, MEASURED)
    rubrics = Rubrics(loaded={rubric.digest: rubric})
    if any(call.rubric != rubric.digest for call in calls):
        rubrics.files.update(reader.texts("rubric"))
    return [
        (render(then, call.request, call.prompt, call.texts, call.form).messages, call.tokens)
        for call in calls
        if (then := rubrics.get(call.rubric))
    ]


def _work(
    stage: Stage,
    name: str,
    tally: Tally,
    requests: Sequence[Request],
    awaited: Sequence[str],
    rate: Rate,
    length: Length,
    used: Sequence[ReplyUsage],
) -> Work:
    items, calls = sum(one.items for one in used), sum(one.calls for one in used)
    sent = sum(one.input for one in used)
    return Work(
        stage,
        name,
        tally,
        sent=fmean(_bytes(request.messages) for request in requests) if requests else 0.0,
        awaited={model: n / len(requests) for model, n in Counter(awaited).items()},
        rate=rate,
        reply=length,
        reckoned=fmean(tokens(request) for request in requests) if requests else 0.0,
        tries=calls / items if items else 1.0,
        cached=sum(one.cached for one in used) / sent if sent else 0.0,
        written=sum(one.written for one in used) / sent if sent else 0.0,
        seconds=sum(one.seconds for one in used) / calls if calls else None,
    )


# --- tokens of what is sent -------------------------------------------------------------------------------------------


def _rate(one: DeclaredEndpoint, had: Sequence[tuple[Messages, int]], requests: Sequence[Request]) -> Rate:
    """By this store's own calls; else by the model's tokenizer, where it is at hand; else assumed."""
    if had:
        return _by(sum(n for _, n in had), (messages for messages, _ in had), f"measured on {len(had):,} calls")
    if requests and (tokenizer := tokenizer_of(one)):
        some = [request.messages for request in requests[:: (len(requests) - 1) // MEASURED + 1]]
        texts = [message.content for messages in some for message in messages]
        counted = sum(FRAME + len(each.ids) for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        return _by(counted, some, "by the model's tokenizer")
    return UNMEASURED


def _by(counted: int, sent: Iterable[Messages], basis: str) -> Rate:
    rate = counted / sum(map(_bytes, sent))
    return Rate(Span(rate, rate), basis)


def _bytes(messages: Messages) -> int:
    return sum(len(message.content.encode()) for message in messages)
