"""Check a pipeline before a run: files, disk, keys, servers, and one real request to each model and judge."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from aif.config.pipeline import Pipeline, request_options
from aif.config.sections import DeclaredEndpoint, Judge, Model, Source
from aif.core.environment import ENVIRON
from aif.core.errors import BadInput
from aif.core.formatting import counted
from aif.core.types import Message, Principle, Prompt, Usage, prompt_id
from aif.engine.advice import fix
from aif.engine.connect import open_endpoints
from aif.engine.context_windows import declared_endpoints, known_windows
from aif.engine.estimate import UNMEASURED, context_overflow, overflow_text
from aif.engine.prepare import principles_of, rubric_of
from aif.engine.workload import context_tokens
from aif.judging.parse import Unparseable, parse_reply
from aif.judging.request import completion_request, judging_request
from aif.judging.rubric import Rubric
from aif.providers.base import CallError, Kind
from aif.providers.endpoint import Endpoint
from aif.servers.command import (
    available_gpus,
    check_owner,
    download_problem,
    launched_endpoints,
    programs_run,
    secret_destinations,
    secret_variables,
    server_environment,
    vllm_problem,
)
from aif.servers.placement import describe_shift, plan_shifts
from aif.sources.load import read_prompts
from aif.sources.prompt_rows import Skipped

FIRST = 200  # prompts of each source that are compared with the context windows
DISK_BYTES = 2 * 2**30  # a run of 64,000 prompts leaves about 1.5 GB of journal and store

_TURNS = (Message("user", "Name one use of a paper clip besides holding paper."),)
_PROMPT = Prompt(prompt_id(_TURNS), _TURNS, "doctor")
_COMPLETIONS = ("It can press the reset button of a small device.", "Paper clips are made of wire.")


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    subject: what was checked, such as a model's name.
    ok: whether the check passed.
    text: the finding in words; if the check failed, also the fix.
    """

    subject: str
    ok: bool
    text: str


async def run_checks(pipeline: Pipeline) -> AsyncIterator[Check]:
    """Check a pipeline and yield each result as it is ready. Sends one request to each model and judge."""
    rubric = rubric_of(pipeline)
    yield Check(
        "pipeline", True, f"{pipeline.path} is valid; rubric {rubric.sheet.name}, {len(pipeline.models)} models"
    )
    check_owner(pipeline)
    for line in (*programs_run(pipeline), *secret_destinations(pipeline)):
        yield Check("pipeline", True, line)
    yield _check_disk(pipeline)
    for source in pipeline.prompts:
        yield _check_source(source, pipeline)
    for endpoint in (*pipeline.models.values(), *pipeline.judges.values()):
        if problem := _missing_key(endpoint):
            yield Check(endpoint.name, False, problem.removeprefix(f"{endpoint.name}: "))
    async for check in _check_launches(pipeline):
        yield check
    for check in await _check_context_windows(pipeline, rubric):
        yield check
    async with open_endpoints(_with_keys(pipeline)) as endpoints:
        up = [endpoint for endpoint in endpoints if endpoint.up.is_set()]
        tasks = [asyncio.create_task(_check_endpoint(pipeline, rubric, endpoint)) for endpoint in up]
        for task in tasks:
            for check in await task:
                yield check


def _check_source(source: Source, pipeline: Pipeline) -> Check:
    subject = f"prompts {source.source}"
    try:
        first = next(read_prompts(source, base=pipeline.folder), None)
    except BadInput as error:
        return Check(subject, False, str(error))
    if first is None:
        return Check(subject, False, "holds no rows; see file: or hub: and split:")
    if isinstance(first, Skipped):
        return Check(subject, True, f"{first.where}: its first row will be left out: {first.detail}")
    carried = f" with {counted(len(first.provided), 'completion')} of its own" if first.provided else ""
    return Check(subject, True, f"its first row is a prompt of {counted(len(first.messages), 'turn')}{carried}")


def _missing_key(endpoint: DeclaredEndpoint) -> str | None:
    try:
        request_options(endpoint, ENVIRON)
    except BadInput as error:
        return str(error)
    return None


def _with_keys(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline without the models and judges whose API key is missing."""
    return pipeline.model_copy(
        update={
            "models": {name: model for name, model in pipeline.models.items() if not _missing_key(model)},
            "judges": {name: judge for name, judge in pipeline.judges.items() if not _missing_key(judge)},
        }
    )


async def _check_launches(pipeline: Pipeline) -> AsyncIterator[Check]:
    """Check that vLLM, the models and GPUs are there for the servers that `aif run` would launch. Starts no server:
    that takes minutes and a download of tens of GB for each model. `aif run --limit 1` tests a real start."""
    try:
        keys = [
            *(("completion", name) for name in pipeline.models),
            *(("judgement", name) for name in pipeline.judges),
        ]
        servers = launched_endpoints(pipeline, keys)
        plan = plan_shifts([server.gpu_request for server in servers], available_gpus(ENVIRON)) if servers else ()
    except BadInput as error:
        yield Check("servers", False, str(error))
        return
    for server in servers:
        environ = server_environment(server, ENVIRON, secret_variables(pipeline))
        problem = await vllm_problem(server, environ) or await download_problem(server, environ)
        text = problem or f"can be launched: vLLM and {server.model} are there"
        yield Check(server.entry.name, not problem, text)
    for number, shift in enumerate(plan, 1):
        yield Check("servers", True, f"{number} of {len(plan)}, launched by `aif run`: {describe_shift(shift)}")


async def _check_context_windows(pipeline: Pipeline, rubric: Rubric) -> list[Check]:
    """Return a warning (a check that counts as passed) for each model and judge whose context window is too small for
    some request. Only requests about the first FIRST rows of each source are measured. Completions that models are yet
    to write count as max_tokens long."""
    endpoints, prompts, checks = declared_endpoints(pipeline), list[Prompt](), list[Check]()
    windows = await known_windows(endpoints, {})
    for source in pipeline.prompts if windows else ():
        with suppress(BadInput):  # reported by _check_source
            rows = islice(read_prompts(source, base=pipeline.folder), FIRST)
            prompts += [row for row in rows if isinstance(row, Prompt)]
    for (stage, name), window in windows.items():
        endpoint = endpoints[stage, name]
        sizes = list(_sizes(pipeline, rubric, endpoint, prompts))
        if overflow := context_overflow(stage, endpoint, window, sizes, len(sizes), awaited=True):
            checks.append(Check(name, True, f"of the first prompts, {overflow_text(overflow)}"))
    return checks


def _sizes(pipeline: Pipeline, rubric: Rubric, endpoint: Model | Judge, prompts: list[Prompt]) -> Iterator[float]:
    """Yield the size in tokens of each request to `endpoint` about these prompts, including the longest reply
    (max_tokens). For a judge that rates completions one at a time, only the request for a prompt's longest completion
    is measured."""
    longest = max((pipeline.sampling(model).max_tokens for model in pipeline.models.values()), default=0)
    for prompt in prompts:
        texts = sorted((carried.text for carried in prompt.provided), key=len)
        pending = [] if texts else [longest] * pipeline.completions.per_prompt
        if isinstance(endpoint, Model):
            request = completion_request(prompt, None, endpoint.system, pipeline.sampling(endpoint), seed=0)
            yield from [context_tokens(request, UNMEASURED)] if pending else []
            continue
        for name, spec in rubric.sheet.requests.items():
            first = None if spec.mode == "listwise" else -1  # a single completion: the longest
            shown = texts[first:] or [""] * len(pending[first:])
            request = judging_request(rubric, name, prompt, shown, endpoint, seed=0)
            yield context_tokens(request, UNMEASURED, sum(pending[first:]))


def _check_disk(pipeline: Pipeline) -> Check:
    folder = pipeline.store.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Check("disk", False, f"{folder} can't be written to; choose another `store`")
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free at {folder}"
    return Check(
        "disk", free >= DISK_BYTES, text if free >= DISK_BYTES else f"only {text}; a large run needs about 2 GiB"
    )


async def _check_endpoint(pipeline: Pipeline, rubric: Rubric, endpoint: Endpoint) -> list[Check]:
    name = endpoint.name
    declared = pipeline.models[name] if endpoint.stage == "completion" else pipeline.judges[name]
    try:
        if isinstance(declared, Model):
            text = await _complete(pipeline, declared, endpoint)
        else:
            text = await _judge(rubric, declared, endpoint)
    except CallError as error:
        advice = fix(error.kind, error.message)
        return [Check(name, False, f"{error.kind}: {error.message}{f' → {advice}' if advice else ''}")]
    except Unparseable as error:
        text = f"answers, but its ratings are unparseable: {error} → try `reply: schema`, or `text`"
        return [Check(name, False, text)]
    checks = [Check(name, True, text)]
    if declared.cost(Usage(0, 0)) is None:
        checks.append(Check(name, True, "price unknown, so its spend can't be counted; set `price`"))
    return checks


async def _complete(pipeline: Pipeline, model: Model, endpoint: Endpoint) -> str:
    principles = principles_of(pipeline)
    texts = [text for pool in principles.pools.values() for text in pool] if principles else []
    principle = Principle("", max(texts, key=len)) if texts and model.system != "none" else None
    reply = await endpoint.client.ask(
        completion_request(_PROMPT, principle, model.system, pipeline.sampling(model), seed=1)
    )
    served = reply.served.get("model") or "?"
    used = f"{reply.usage.input} + {reply.usage.output} tokens" if reply.usage else "the server reports no token counts"
    return f"answers as {served} ({used}{', with a principle' if principle else ''})"


async def _judge(rubric: Rubric, judge: Judge, endpoint: Endpoint) -> str:
    request = next(iter(rubric.sheet.requests))
    shown = _COMPLETIONS if rubric.sheet.requests[request].mode == "listwise" else _COMPLETIONS[:1]
    reply = await endpoint.client.ask(judging_request(rubric, request, _PROMPT, shown, judge, seed=1))
    if reply.truncated:
        raise CallError(Kind.TRUNCATED, f"the judgement was cut at max_tokens, {judge.max_tokens}")
    ratings = parse_reply(rubric, request, [str(i) for i, _ in enumerate(shown)], reply.text, judge.reply)
    return f"rates by {judge.reply}: {len(ratings)} ratings of {len(shown)} completions parsed"
