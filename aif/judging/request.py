"""Build the requests for completions and judgements, and the changed request after an unusable reply. Pure."""

from collections.abc import Sequence
from dataclasses import replace

import orjson

from aif.config.sections import Judge
from aif.core.types import Principle, Prompt, Sampling, Stage
from aif.judging.rubric import Rubric, render, spec_digest
from aif.planning.plan import SystemMode, sent_messages
from aif.providers.base import CallError, Kind, Request
from aif.providers.retry import RetryPolicy

# Upper bounds of the tokens that a provider adds. FRAME: per turn, for its delimiters and role (OpenAI 4, ChatML 5).
# TEMPLATE: once, for instructions of a chat template or about a schema (the most known: 346, Anthropic's about tools).
FRAME, TEMPLATE = 16, 512
MAX_TOKEN_FACTOR = 4  # a truncated judgement gets twice the tokens each time, up to this multiple of its max_tokens


def completion_request(
    prompt: Prompt, principle: Principle | None, system: SystemMode, sampling: Sampling, seed: int
) -> Request:
    """Return the request to a model of the pool for one completion of a prompt.

    principle: a text that tells the model how to answer, which joins the system turn; None for none.
    system: where the system turn goes: into a `role` of its own, or before the first user turn (`fold_into_user`).
        `none` also puts it there, but drops the principle.
    sampling: max_tokens, temperature and further settings.
    seed: the seed that is sent.
    """
    return Request(
        sent_messages(prompt, principle, system),
        sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        reasoning_effort=sampling.reasoning_effort,
        extra=sampling.extra,
    )


def judging_request(
    rubric: Rubric, request: str, prompt: Prompt, texts: Sequence[str], judge: Judge, seed: int
) -> Request:
    """Return the request that asks a judge to rate completions of a prompt.

    request: the name of one of the rubric's requests.
    texts: the completions in the order shown to the judge.
    judge: gives the form of the reply and the sampling settings.
    seed: the seed that is sent.
    """
    rendered = render(rubric, request, prompt, texts, judge.reply)
    sampling = judge.sampling
    return Request(
        rendered.messages,
        sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        reasoning_effort=sampling.reasoning_effort,
        extra=sampling.extra,
        schema=rubric.schema(request, len(texts)) if judge.reply == "schema" else None,
        shared=rendered.shared if rubric.shares_prefix(request) else 0,  # else no other request would use the cache
    )


def judging_spec(rubric: Rubric, request: str, n: int, judge: Judge) -> str:
    """Return the digest of everything that a judge is sent in a request, except the prompt and the completions.

    request: the name of one of the rubric's requests.
    n: the number of completions.
    judge: gives the form of the reply and the sampling settings.
    """
    return spec_digest(rubric, request, n, judge.reply, judge.sampling.identity)


def resampled_request(request: Request, resamples: int, failure: CallError | None) -> Request:
    """Return the changed request to send after `resamples` unusable replies: with a new seed (unless it is sent without
    a seed) and, if the last reply was a truncated judgement, with a larger max_tokens.

    `failure` is the error of the last unusable reply. If it is None there was no such reply, and the request is
    returned unchanged.
    """
    if failure is None:
        return request
    factor = _token_factor(resamples) if failure.kind == Kind.TRUNCATED else 1
    seed = None if request.seed is None else (request.seed + resamples) % 2**31
    return replace(request, seed=seed, max_tokens=request.max_tokens * factor)


def _token_factor(resamples: int) -> int:
    """Return the factor for max_tokens after `resamples` unusable replies, if the last was a truncated judgement. It
    doubles with each reply, from 1 (`resamples` is 0) to at most 4."""
    return min(MAX_TOKEN_FACTOR, 1 << resamples)


def max_billed_replies(stage: Stage) -> tuple[int, int]:
    """Return two maxima for an item (a completion or judgement) in a run: the number of replies that can be billed, and
    the tokens of all these replies together, as a multiple of max_tokens.

    An item is requested again while its replies are unusable, up to a limit. After a truncated judgement the next
    request has a larger max_tokens. Failed calls without a reply are not counted.
    """
    times = RetryPolicy().resamples
    return times, sum(map(_token_factor, range(times))) if stage == "judgement" else times


def estimate_tokens(request: Request) -> int:
    """Return the tokens of a request as providers estimate them for their rate limits: its characters divided by 4,
    plus `max_tokens`."""
    return request.chars // 4 + request.max_tokens


def max_input_tokens(request: Request) -> int:
    """Return an upper bound of a request's input tokens: one for each byte, since no tokenizer makes more, and some for
    what a provider puts around the messages."""
    texts = sum(FRAME + len(message.content.encode()) for message in request.messages)
    return TEMPLATE + texts + (len(orjson.dumps(request.schema)) if request.schema else 0)
