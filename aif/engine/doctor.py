"""One real request to each model and judge before anything is spent, each finding with the way to mend it."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from aif.config.pipeline import Pipeline, options
from aif.config.sections import DeclaredEndpoint as Declared
from aif.config.sections import Judge, Model, Source
from aif.core.environment import ENVIRON
from aif.core.errors import BadInput
from aif.core.types import Message, Principle, Prompt, Usage, prompt_id
from aif.core.words import counted
from aif.engine.advice import fix
from aif.engine.connect import open_endpoints
from aif.engine.context_windows import declared_endpoints, known_windows
from aif.engine.estimate import UNMEASURED, context_overflow, overflow_text
from aif.engine.prepare import principles_of, rubric_of
from aif.engine.workload import context_tokens
from aif.judging.parse import Unparseable, read
from aif.judging.request import completion_request, judging_request
from aif.judging.rubric import Rubric
from aif.providers.base import CallError, Kind
from aif.providers.endpoint import Endpoint
from aif.servers.command import (
    check_stranger,
    environment,
    gpus,
    lacks_vllm,
    launched,
    runs,
    secrets,
    sends,
    unreachable,
)
from aif.servers.placement import described, shifts
from aif.sources import load
from aif.sources.prompt_rows import Skipped

FIRST = 200  # prompts of each source that are looked at for what a model or judge holds
DISK_BYTES = 2 * 2**30  # a run of 64,000 prompts leaves about 1.5 GB of journal and store

_TURNS = (Message("user", "Name one use of a paper clip besides holding paper."),)
_PROMPT = Prompt(prompt_id(_TURNS), _TURNS, "doctor")
_COMPLETIONS = ("It can press the reset button of a small device.", "Paper clips are made of wire.")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: fine, or what is wrong and how to mend it."""

    subject: str
    ok: bool
    text: str


async def run_checks(pipeline: Pipeline) -> AsyncIterator[Check]:
    """Findings in the order of the pipeline file, as they are made."""
    rubric = rubric_of(pipeline)
    yield Check(
        "pipeline", True, f"{pipeline.path} is sound; rubric {rubric.sheet.name}, {len(pipeline.models)} models"
    )
    check_stranger(pipeline)
    for words in (*runs(pipeline), *sends(pipeline)):
        yield Check("pipeline", True, words)
    yield _disk(pipeline)
    for source in pipeline.prompts:
        yield _source(source, pipeline)
    for one in (*pipeline.models.values(), *pipeline.judges.values()):
        if why := _no_key(one):
            yield Check(one.name, False, why.removeprefix(f"{one.name}: "))
    async for finding in _servers(pipeline):
        yield finding
    for finding in await _unheld(pipeline, rubric):
        yield finding
    async with open_endpoints(_with_keys(pipeline)) as endpoints:
        up = [endpoint for endpoint in endpoints if endpoint.up.is_set()]
        tests = [asyncio.create_task(_test(pipeline, rubric, endpoint)) for endpoint in up]
        for test in tests:
            for finding in await test:
                yield finding


def _source(source: Source, pipeline: Pipeline) -> Check:
    """Whether a source can be read, by its first row."""
    what = f"prompts {source.source}"
    try:
        first = next(load.read(source, beside=pipeline.beside), None)
    except BadInput as error:
        return Check(what, False, str(error))
    if first is None:
        return Check(what, False, "holds no rows; see file: or hub: and split:")
    if isinstance(first, Skipped):
        return Check(what, True, f"{first.where}: its first row will be left out: {first.detail}")
    brought = f" with {counted(len(first.carried), 'completion')} of its own" if first.carried else ""
    return Check(what, True, f"its first row is a prompt of {counted(len(first.messages), 'turn')}{brought}")


def _no_key(one: Declared) -> str | None:
    try:
        options(one, ENVIRON)
    except BadInput as error:
        return str(error)
    return None


def _with_keys(pipeline: Pipeline) -> Pipeline:
    """The pipeline with those of its models and judges only that can be asked."""
    return pipeline.model_copy(
        update={
            "models": {name: one for name, one in pipeline.models.items() if not _no_key(one)},
            "judges": {name: one for name, one in pipeline.judges.items() if not _no_key(one)},
        }
    )


async def _servers(pipeline: Pipeline) -> AsyncIterator[Check]:
    """What aif would launch is not launched: that takes minutes, and a download of tens of GB, for each model. Told is
    whether it could be; `aif run --limit 1` is the trial of it."""
    try:
        every = [
            *(("completion", name) for name in pipeline.models),
            *(("judgement", name) for name in pipeline.judges),
        ]
        found = launched(pipeline, every)
        planned = shifts([one.wish for one in found], gpus(ENVIRON)) if found else ()
    except BadInput as error:
        yield Check("servers", False, str(error))
        return
    for one in found:
        environ = environment(one, ENVIRON, secrets(pipeline))
        why = await lacks_vllm(one, environ) or await unreachable(one, environ)
        yield Check(one.one.name, not why, why or f"can be launched: vLLM and {one.model} are there")
    for number, shift in enumerate(planned, 1):
        yield Check("servers", True, f"{number} of {len(planned)}, launched by `aif run`: {described(shift)}")


async def _unheld(pipeline: Pipeline, rubric: Rubric) -> list[Check]:
    """What is more than a model or judge holds, of the first prompts of each source. Completions to come are taken to
    be as long as their max_tokens allows, since none may be there yet."""
    every, prompts, found = declared_endpoints(pipeline), list[Prompt](), list[Check]()
    held = await known_windows(every, {})
    for source in pipeline.prompts if held else ():
        with suppress(BadInput):  # told already
            rows = islice(load.read(source, beside=pipeline.beside), FIRST)
            prompts += [row for row in rows if isinstance(row, Prompt)]
    for (stage, name), window in held.items():
        sizes = list(_sizes(pipeline, rubric, every[stage, name], prompts))
        if much := context_overflow(stage, every[stage, name], window, sizes, len(sizes), awaited=True):
            found.append(Check(name, True, f"of the first prompts, {overflow_text(much)}"))
    return found


def _sizes(pipeline: Pipeline, rubric: Rubric, one: Model | Judge, prompts: list[Prompt]) -> Iterator[float]:
    """The tokens of each request about these prompts and of its reply."""
    longest = max((pipeline.sampling(model).max_tokens for model in pipeline.models.values()), default=0)
    for prompt in prompts:
        texts = sorted((came.text for came in prompt.carried), key=len)
        coming = [] if texts else [longest] * pipeline.completions.per_prompt
        if isinstance(one, Model):
            asked = completion_request(prompt, None, one.system, pipeline.sampling(one), seed=0)
            yield from [context_tokens(asked, UNMEASURED)] if coming else []
            continue
        for name, ask in rubric.sheet.requests.items():
            most = None if ask.mode == "listwise" else -1  # of one at a time, the longest
            shown = texts[most:] or [""] * len(coming[most:])
            yield context_tokens(
                judging_request(rubric, name, prompt, shown, one, seed=0), UNMEASURED, sum(coming[most:])
            )


def _disk(pipeline: Pipeline) -> Check:
    folder = pipeline.store.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Check("disk", False, f"{folder} can't be written to; choose another `store`")
    free = shutil.disk_usage(folder).free
    words = f"{free / 2**30:.1f} GiB free at {folder}"
    return Check(
        "disk", free >= DISK_BYTES, words if free >= DISK_BYTES else f"only {words}; a large run needs about 2 GiB"
    )


async def _test(pipeline: Pipeline, rubric: Rubric, endpoint: Endpoint) -> list[Check]:
    one = pipeline.models[endpoint.name] if endpoint.stage == "completion" else pipeline.judges[endpoint.name]
    try:
        if isinstance(one, Model):
            words = await _complete(pipeline, one, endpoint)
        else:
            words = await _judge(rubric, one, endpoint)
    except CallError as error:
        what = fix(error.kind, error.message)
        return [Check(endpoint.name, False, f"{error.kind}: {error.message}{f' → {what}' if what else ''}")]
    except Unparseable as why:
        return [
            Check(
                endpoint.name, False, f"answers, but its ratings can't be read: {why} → try `reply: schema`, or `text`"
            )
        ]
    findings = [Check(endpoint.name, True, words)]
    if one.cost(Usage(0, 0)) is None:
        findings.append(Check(endpoint.name, True, "its price is not known, so spend can't be told; set `price`"))
    return findings


async def _complete(pipeline: Pipeline, model: Model, endpoint: Endpoint) -> str:
    principles = principles_of(pipeline)
    texts = [text for pool in principles.pools.values() for text in pool] if principles else []
    principle = Principle("", max(texts, key=len)) if texts and model.system != "none" else None
    reply = await endpoint.client.ask(
        completion_request(_PROMPT, principle, model.system, pipeline.sampling(model), seed=1)
    )
    served = reply.served.get("model") or "?"
    used = f"{reply.usage.input} + {reply.usage.output} tokens" if reply.usage else "the server counts no tokens"
    return f"answers as {served} ({used}{', with a principle' if principle else ''})"


async def _judge(rubric: Rubric, judge: Judge, endpoint: Endpoint) -> str:
    request = next(iter(rubric.sheet.requests))
    shown = _COMPLETIONS if rubric.sheet.requests[request].mode == "listwise" else _COMPLETIONS[:1]
    reply = await endpoint.client.ask(judging_request(rubric, request, _PROMPT, shown, judge, seed=1))
    if reply.cut:
        raise CallError(Kind.TRUNCATED, f"the judgement was cut at max_tokens, {judge.max_tokens}")
    ratings = read(rubric, request, [str(i) for i, _ in enumerate(shown)], reply.text, judge.reply)
    return f"rates by {judge.reply}: {len(ratings)} ratings of {len(shown)} completions read"
