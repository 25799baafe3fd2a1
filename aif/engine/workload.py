"""Read from the store what estimate.py needs: pending calls, and measurements of past calls. Calls no model."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from aif.config.pipeline import Pipeline
from aif.config.sections import DeclaredEndpoint, Judge, Model
from aif.core.types import Message, Principle, Stage
from aif.engine.context_windows import declared_endpoints, known_windows
from aif.engine.estimate import (
    UNMEASURED,
    ZERO,
    EndpointWork,
    Estimate,
    ReplyLength,
    Span,
    TokenRate,
    completion_length,
    context_overflow,
    estimate_cost,
    judgement_length,
)
from aif.engine.prepare import prepare, rubric_of
from aif.judging.request import completion_request, estimate_tokens, judging_request
from aif.judging.rubric import Rubric, render
from aif.providers.base import Request
from aif.providers.error_replies import context_window_in
from aif.servers.tokenizer import local_tokenizer
from aif.store.estimate_queries import CompletionCall, EstimateReader, ReplyUsage
from aif.store.journal_batches import Rubrics
from aif.store.journaled_store import JournaledStore
from aif.store.report_queries import Tally

SAMPLE = 1000  # pending calls whose requests are built to measure their size: the mean of 64,000 within about 3 %
MEASURED = 200  # answered calls whose bytes are compared with their tokens; requests that are tokenized
FRAME = 4  # tokens that a chat template puts around each message

Messages = Sequence[Message]


def prepare_and_estimate(pipeline: Pipeline, limit: int | None, tell: Callable[[str], None]) -> Estimate:
    """Read new prompts, plan completions, and return the estimate for a run of all prompts, or of the first `limit`.
    `tell` is called with each message for the user."""
    rubric = rubric_of(pipeline)

    def with_store(journaled: JournaledStore) -> Estimate:
        prepare(pipeline, journaled, rubric, tell)
        with EstimateReader.of(journaled.store) as reader:
            return estimate_run(pipeline, rubric, reader, limit)

    return JournaledStore.use(pipeline.store, tell, rubric, with_store, tags=pipeline.reasoning_tags)


def estimate_run(pipeline: Pipeline, rubric: Rubric, reader: EstimateReader, limit: int | None) -> Estimate:
    """Estimate a run of all prompts, or of the first `limit`. The store must be prepared: the prompts are read, the
    completions are planned, and the judging requests are listed."""
    tallies = reader.tallies(limit)
    endpoints = declared_endpoints(pipeline)
    pending = {key: endpoint for key, endpoint in endpoints.items() if key in tallies and tallies[key].pending}
    windows = asyncio.run(
        known_windows(pending, {key: context_window_in(reader.overflow_message(*key)) for key in pending})
    )
    works = []
    for (stage, name), endpoint in endpoints.items():
        tally = tallies.get((stage, name), Tally(0, 0, 0, 0))
        if not tally.pending:
            works.append(_work(stage, name, tally, [], [], UNMEASURED, ReplyLength(ZERO, ZERO, ""), []))
        elif isinstance(endpoint, Model):
            works.append(_model_work(pipeline, endpoint, tally, reader, limit, windows.get((stage, name))))
        else:
            lengths = {work.name: _shown_tokens(work.reply) for work in works if work.stage == "completion"}
            works.append(_judge_work(rubric, endpoint, tally, reader, limit, windows.get((stage, name)), lengths))
    return replace(estimate_cost(works, endpoints), spent=reader.spent(), budget=pipeline.budget_usd)


def _shown_tokens(reply: ReplyLength) -> float:
    """Return how many tokens of a pending completion to expect in a judging request: the measured mean, else the most
    allowed."""
    return reply.shown.expected if reply.measured else reply.shown.most


def _model_work(
    pipeline: Pipeline, model: Model, tally: Tally, reader: EstimateReader, limit: int | None, window: int | None
) -> EndpointWork:
    sampling = pipeline.sampling(model)

    def request(call: CompletionCall) -> Request:
        principle = Principle("", call.principle) if call.principle else None
        return completion_request(call.prompt, principle, call.system or model.system, sampling, seed=0)

    requests = [request(call) for call in reader.slots_to_ask(model.name, limit, SAMPLE)]
    answered = [(request(call).messages, call.tokens or 0) for call in reader.slots_asked(model.identity, MEASURED)]
    replies = reader.completion_usage(model.identity, sampling.max_tokens)
    length = completion_length(model, sampling.max_tokens, replies)
    rate = _rate(model, answered, requests)
    sizes = [context_tokens(request, rate) for request in requests]
    overflow = context_overflow("completion", model, window, sizes, tally.pending)
    return replace(_work("completion", model.name, tally, requests, [], rate, length, [replies]), overflow=overflow)


def context_tokens(request: Request, rate: TokenRate, completion_tokens: float = 0.0) -> float:
    """Return the tokens of a request with its longest reply (`max_tokens`). `completion_tokens` is added for the
    pending completions that a judging request will show and doesn't contain yet."""
    return _bytes(request.messages) * rate.tokens.expected + completion_tokens + request.max_tokens


def _judge_work(
    rubric: Rubric,
    judge: Judge,
    tally: Tally,
    reader: EstimateReader,
    limit: int | None,
    window: int | None,
    completion_tokens: Mapping[str, float],
) -> EndpointWork:
    pending = reader.judgements_to_ask(judge.name, limit, SAMPLE)
    # a pending completion is shown as an empty text; its length is added in tokens
    requests = [
        judging_request(rubric, call.request, call.prompt, [*call.texts, *("" for _ in call.awaited)], judge, seed=0)
        for call in pending
    ]
    rate = _rate(judge, _answered_judgements(rubric, reader, judge), requests)
    replies = reader.judgement_usage(judge.name)
    shown = [(call.request, len(call.texts) + len(call.awaited)) for call in pending]
    length = judgement_length(rubric, judge, shown, replies)
    awaited = [model for call in pending for model in call.awaited]
    sizes = [
        context_tokens(request, rate, sum(completion_tokens[model] for model in call.awaited))
        for call, request in zip(pending, requests, strict=True)
    ]
    overflow = context_overflow("judgement", judge, window, sizes, tally.pending, awaited=bool(awaited))
    work = _work("judgement", judge.name, tally, requests, awaited, rate, length, list(replies.values()))
    return replace(work, overflow=overflow)


def _answered_judgements(rubric: Rubric, reader: EstimateReader, judge: Judge) -> list[tuple[Messages, int]]:
    """Return (messages, input tokens) of a judge's answered judging requests, at most MEASURED. Each is built with the
    rubric it was sent with, `rubric` or an earlier one."""
    calls = reader.judgements_asked(judge.identity, MEASURED)
    rubrics = Rubrics(loaded={rubric.digest: rubric})
    if any(call.rubric != rubric.digest for call in calls):
        rubrics.files.update(reader.texts("rubric"))
    return [
        (render(sent_with, call.request, call.prompt, call.texts, call.form).messages, call.tokens)
        for call in calls
        if (sent_with := rubrics.get(call.rubric))
    ]


def _work(
    stage: Stage,
    name: str,
    tally: Tally,
    requests: Sequence[Request],
    awaited: Sequence[str],
    rate: TokenRate,
    length: ReplyLength,
    replies: Sequence[ReplyUsage],
) -> EndpointWork:
    items, calls = sum(r.items for r in replies), sum(r.calls for r in replies)
    input_tokens = sum(r.input for r in replies)
    return EndpointWork(
        stage,
        name,
        tally,
        sent=fmean(_bytes(request.messages) for request in requests) if requests else 0.0,
        awaited={model: n / len(requests) for model, n in Counter(awaited).items()},
        rate=rate,
        reply=length,
        limit_tokens=fmean(estimate_tokens(request) for request in requests) if requests else 0.0,
        tries=calls / items if items else 1.0,
        cached=sum(r.cached for r in replies) / input_tokens if input_tokens else 0.0,
        written=sum(r.written for r in replies) / input_tokens if input_tokens else 0.0,
        seconds=sum(r.seconds for r in replies) / calls if calls else None,
    )


# --- tokens of requests -----------------------------------------------------------------------------------------------


def _rate(
    endpoint: DeclaredEndpoint, answered: Sequence[tuple[Messages, int]], requests: Sequence[Request]
) -> TokenRate:
    """Return tokens per byte, as measured on `answered`: (messages, input tokens) of earlier calls. Without any, the
    model's tokenizer counts the tokens of `requests` if it is on this machine; else the rate is assumed."""
    if answered:
        input_tokens = sum(n for _, n in answered)
        return _measured_rate(input_tokens, (sent for sent, _ in answered), f"measured on {len(answered):,} calls")
    if requests and (tokenizer := local_tokenizer(endpoint)):
        sample = [request.messages for request in requests[:: (len(requests) - 1) // MEASURED + 1]]
        texts = [message.content for messages in sample for message in messages]
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return _measured_rate(sum(FRAME + len(e.ids) for e in encodings), sample, "by the model's tokenizer")
    return UNMEASURED


def _measured_rate(input_tokens: int, sent: Iterable[Messages], basis: str) -> TokenRate:
    rate = input_tokens / sum(map(_bytes, sent))
    return TokenRate(Span(rate, rate), basis)


def _bytes(messages: Messages) -> int:
    return sum(len(message.content.encode()) for message in messages)
