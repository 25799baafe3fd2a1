"""Fill a store as a finished run leaves it, without a server: of any size, in minutes."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import orjson

from aif.config.pipeline import Pipeline, load
from aif.core.types import Usage, fraction
from aif.engine.prepare import prepare, rubric_of
from aif.judging.rubric import Rubric
from aif.providers.base import Reply
from aif.store import records
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from aif.store.records import Record
from aif.store.run_queries import JudgeablePrompt, PendingJudgement, PendingSlot
from tests.support.building import STARTED, completion_item, judgement_item
from trials.performance.server import ANSWER, instance

PAGE = 2000


def fill(path: Path, limit: int | None = None) -> None:
    """Store an answer for everything the pipeline wants of its first `limit` prompts.

    Completions have 300 tokens; ratings differ by prompt and position; rationales have some 35 tokens.
    """
    pipeline = load(path)
    rubric = rubric_of(pipeline)
    with JournaledStore.open(pipeline.store, print) as journaled:
        prepare(pipeline, journaled, rubric, print)
        journaled.store.list_pending(limit)
        with Reader.of(journaled.store) as reader:
            for model in pipeline.models:
                for todos in _pages(lambda after, model=model: reader.pending_slots(model, after, PAGE)):
                    journaled.keep([_completion(pipeline, todo) for todo in todos])
        journaled.store.list_pending(limit)
        with Reader.of(journaled.store) as reader:
            for readies in _pages(lambda after: reader.judgeable_prompts(after, PAGE)):
                journaled.keep([_judgement(pipeline, rubric, ready, need) for ready in readies for need in ready.needs])


def _pages(page: Any) -> Iterator[Any]:
    after = 0
    while rows := page(after):
        after = rows[-1].seq
        yield rows


def _completion(pipeline: Pipeline, todo: PendingSlot) -> Record:
    return _call(completion_item(pipeline, todo), Reply(f"{todo.slot.model}: {ANSWER}", "stop", Usage(50, 300)))


def _judgement(pipeline: Pipeline, rubric: Rubric, ready: JudgeablePrompt, need: PendingJudgement) -> Record:
    item = judgement_item(pipeline, rubric, ready, need)
    schema = rubric.schema(need.request, len(need.answers))
    text = orjson.dumps(instance(schema, schema, int(5 * fraction(item.key)))).decode()
    return _call(item, Reply(text, "stop", Usage(2000, 600, cached=1000)))


_number = count()


def _call(item: records.CallItem, reply: Reply) -> Record:
    number = next(_number)
    started = STARTED + timedelta(seconds=number / 100)
    return records.call(
        item, id=f"filled-{number}", n=1, started=started, seconds=1.0, verdict="answered", reply=reply, error=None,
        usd=0.001,
    )  # fmt: skip
