"""What a model or a judge is asked: the request for a completion and for a judgement, and the one after a reply of no
use. Pure."""

from collections.abc import Sequence
from dataclasses import replace

import orjson

from aif.config.sections import Judge
from aif.core.types import Principle, Prompt, Sampling, Stage
from aif.judging.rubric import Rubric, render, spec_digest
from aif.planning.plan import SystemMode, sent_messages
from aif.providers.base import CallError, Kind, Request
from aif.providers.retry import RetryPolicy

# What a provider puts around what it is sent: the turns' marks and roles (OpenAI's 4 tokens, ChatML's 5), and once what
# a template or a schema's instructions say beside them (346 tokens where Anthropic's tells of tools, the most known).
FRAME, TEMPLATE = 16, 512
ROOM = 4  # a judgement cut at its limit gets twice the room each time, up to so many times the declared limit


def completion_request(
    prompt: Prompt, principle: Principle | None, system: SystemMode, sampling: Sampling, seed: int
) -> Request:
    """What a model of the pool is sent for a slot."""
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
    """What a judge is sent for one request of a rubric, about completions' texts in the order shown."""
    seen = render(rubric, request, prompt, texts, judge.reply)
    sampling = judge.sampling
    return Request(
        seen.messages,
        sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        reasoning_effort=sampling.reasoning_effort,
        extra=sampling.extra,
        schema=rubric.schema(request, len(texts)) if judge.reply == "schema" else None,
        shared=seen.shared if rubric.shares(request) else 0,  # nobody else would read it from a cache
    )


def judging_spec(rubric: Rubric, request: str, n: int, judge: Judge) -> str:
    """What of that reaches the wire beside prompt and completions, where it is about `n` of these."""
    return spec_digest(rubric, request, n, judge.reply, judge.sampling.identity)


def once_more(request: Request, reasks: int, failure: CallError | None) -> Request:
    """A request after so many replies that only another sample can mend: the seed moves on, and a judgement that was
    cut gets more room. What may pass by itself (a 429, a timeout) is asked for as it was."""
    if failure is None:
        return request
    room = _room(reasks) if failure.kind == Kind.TRUNCATED else 1
    seed = None if request.seed is None else (request.seed + reasks) % 2**31
    return replace(request, seed=seed, max_tokens=request.max_tokens * room)


def _room(reasks: int) -> int:
    """How many times its declared limit a judgement gets that was cut, after so many replies of no use."""
    return min(ROOM, 1 << reasks)


def replies_at_most(stage: Stage) -> tuple[int, int]:
    """How many replies an item may be billed for, where none can be used, and how many times `max_tokens` they hold
    together: a judgement may be cut each time. (What fails without a reply is not counted here.)"""
    times = RetryPolicy().reasks
    return times, sum(map(_room, range(times))) if stage == "judgement" else times


def tokens(request: Request) -> int:
    """What a request may come to, as providers reckon it beforehand: 4 characters a token, and all it may write."""
    return request.chars // 4 + request.max_tokens


def most_input(request: Request) -> int:
    """More tokens than what is sent can come to: no tokenizer makes more than one of a byte."""
    texts = sum(FRAME + len(message.content.encode()) for message in request.messages)
    return TEMPLATE + texts + (len(orjson.dumps(request.schema)) if request.schema else 0)
