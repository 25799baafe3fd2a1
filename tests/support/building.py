"""Build a store with prompts, completions and judgements through a JournaledStore, as a run does, without a server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import orjson

from aif.config.pipeline import Pipeline, parse
from aif.core.types import Usage, digest
from aif.engine.prepare import prepare, rubric_of
from aif.judging.rubric import Aspect, Rubric, judgement_key, shown_order
from aif.providers.base import CallError, Kind, Reply
from aif.store import records as events
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from aif.store.records import Record
from aif.store.run_queries import JudgeablePrompt, PendingJudgement, PendingSlot

STARTED = datetime(2026, 3, 1, 12, tzinfo=UTC)

PIPELINE = """
name: built
seed: 7
store: store/feedback.duckdb
prompts: [{file: prompts.jsonl, source_field: source}]
principles: ultrafeedback
completions: {per_prompt: 4, max_tokens: 512}
models:
  able: {provider: simulator, quality: 0.9}
  fair: {provider: simulator, quality: 0.6}
  plain: {provider: simulator, quality: 0.4}
  poor: {provider: simulator, quality: 0.1}
judges:
  strict: {provider: simulator}
rubric: unified
"""


class Fate(Enum):
    """How an item ends that gets no answer."""

    PENDING = "pending"
    FAILED = "failed"


@dataclass(frozen=True)
class Cut:
    """A completion that ends at `max_tokens`, or with an unknown finish reason."""

    text: str
    word: str = ""


Complete = Callable[[int, str], str | Cut | Fate]
Rate = Callable[[int, str, str], int | str | Fate]
Column = str | Sequence[dict[str, str]]


def ask(number: int) -> Column:
    """Return the prompt column of a row; every third prompt has a system turn and earlier turns."""
    if number % 3 < 2:
        return f"What is {number} and one?"
    return [
        {"role": "system", "content": f"You count for customer {number}."},
        {"role": "user", "content": f"Start at {number}."},
        {"role": "assistant", "content": f"{number}."},
        {"role": "user", "content": "Go on."},
    ]


def complete(number: int, model: str) -> str:
    return f"{model} says {number + 1} to prompt {number}."


def rate(number: int, model: str, aspect: str) -> int:
    """Return a rating that is higher for better models; no two are equal."""
    return {"able": 5, "fair": 4, "plain": 2, "poor": 1}[model]


def build(
    folder: Path,
    n_prompts: int = 12,
    *,
    sets: Sequence[str] = (),
    ask: Callable[[int], Column] = ask,
    complete: Complete = complete,
    rate: Rate = rate,
) -> tuple[Pipeline, Rubric, JournaledStore]:
    """Return a pipeline, its rubric and its open store, with `n_prompts` prompts of four judged completions each.

    `sets` are `--set` arguments. The hooks return each prompt (by its number), each completion (by prompt and model)
    and each rating (by prompt, model and aspect; "N/A" is possible). If one rating of a judgement is a Fate, the whole
    judgement has that fate. A second build in the same folder continues with what is there, as a second run does.
    """
    rows = [{"prompt": ask(number), "source": f"s{number % 2}"} for number in range(n_prompts)]
    (folder / "prompts.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    pipeline = parse(PIPELINE, folder / "pipeline.yaml", [f"store={folder}/store/feedback.duckdb", *sets])
    rubric = rubric_of(pipeline)
    journaled = JournaledStore.open(pipeline.store, _silent)
    prepare(pipeline, journaled, rubric, _silent)
    _keep(journaled, _completions(pipeline, journaled, complete))
    _keep(journaled, _judgements(pipeline, rubric, journaled, rate))
    return pipeline, rubric, journaled


def _silent(words: str) -> None:
    pass


def _keep(journaled: JournaledStore, records: list[Record]) -> None:
    for start in range(0, len(records), 2000):
        journaled.keep(records[start : start + 2000])


def _completions(pipeline: Pipeline, journaled: JournaledStore, complete: Complete) -> list[Record]:
    journaled.store.list_pending(None)
    with Reader.of(journaled.store) as reader:
        todos = [todo for name in pipeline.models for todo in reader.pending_slots(name, 0, 10**9)]
    found = [(todo, complete(todo.position, todo.slot.model)) for todo in todos]
    return [_completion(pipeline, todo, said) for todo, said in found if said is not Fate.PENDING]


def _completion(pipeline: Pipeline, todo: PendingSlot, said: str | Cut | Fate) -> Record:
    item = completion_item(pipeline, todo)
    if isinstance(said, Fate):
        return _call(item, todo.position, None, CallError(Kind.BLOCKED, "the provider's filter refused it"))
    text = said.text if isinstance(said, Cut) else said
    finish: Any = "length" if isinstance(said, Cut) else "stop"
    served = {"finish_reason": said.word} if isinstance(said, Cut) and said.word else {}
    return _call(item, todo.position, Reply(text, finish, Usage(20, len(text) // 4), served=served), None)


def completion_item(pipeline: Pipeline, todo: PendingSlot) -> events.CallItem:
    slot = todo.slot
    details = {
        "sample": slot.sample,
        "seed": slot.seed,
        "principle": digest(todo.principle) if todo.principle else None,
        "system": pipeline.models[slot.model].system,
    }
    return events.CallItem("completion", slot.key, slot.prompt_id, slot.model, slot.identity, details)


def _judgements(pipeline: Pipeline, rubric: Rubric, journaled: JournaledStore, rate: Rate) -> list[Record]:
    journaled.store.list_pending(None)
    with Reader.of(journaled.store) as reader:
        prompts = reader.judgeable_prompts(0, 10**9)
        places = {row["key"]: row for row in reader._query("SELECT key, model, position FROM slots")}
    records = [_judgement(pipeline, rubric, ready, need, places, rate) for ready in prompts for need in ready.needs]
    return [record for record in records if record]


def _judgement(
    pipeline: Pipeline,
    rubric: Rubric,
    ready: JudgeablePrompt,
    need: PendingJudgement,
    places: dict[str, dict[str, Any]],
    rate: Rate,
) -> Record | None:
    item = judgement_item(pipeline, rubric, ready, need)
    shown = item.details["completions"]
    aspects = rubric.sheet.requests[need.request].aspects
    said = {c: {a: rate(places[c]["position"], places[c]["model"], a) for a in aspects} for c in shown}
    fates = {value for ratings in said.values() for value in ratings.values() if isinstance(value, Fate)}
    if Fate.PENDING in fates:
        return None
    number = int(places[shown[0]]["position"])
    if fates:
        return _call(item, number, None, CallError(Kind.BLOCKED, "the provider's filter refused it"))
    leaves = {c: {a: _leaf(rubric.sheet.aspects[a], a, r) for a, r in said[c].items()} for c in shown}
    text = orjson.dumps(
        {str(i): leaves[c] if len(aspects) > 1 else leaves[c][aspects[0]] for i, c in enumerate(shown, 1)}
    ).decode()
    return _call(item, number, Reply(text, "stop", Usage(900, 120, cached=400)), None)


def judgement_item(
    pipeline: Pipeline, rubric: Rubric, ready: JudgeablePrompt, need: PendingJudgement
) -> events.CallItem:
    shown = shown_order(ready.prompt.prompt_id, need.answers, need.judge_pass)
    key = judgement_key(shown, need.identity, need.judge_pass, need.spec, need.material)
    details = {
        "pass": need.judge_pass,
        "request": need.request,
        "rubric": rubric.digest,
        "spec": need.spec,
        "material": need.material,
        "form": pipeline.judges[need.judge].reply,
        "completions": list(shown),
    }
    return events.CallItem("judgement", key, ready.prompt.prompt_id, need.judge, need.identity, details)


def _leaf(aspect: Aspect, name: str, rating: int | str | Fate) -> dict[str, Any]:
    types: dict[str, Any] = {"types": []} if aspect.types else {}
    return types | {"rationale": f"{name} was weighed.", "rating": str(rating)}


def _call(item: events.CallItem, number: int, reply: Reply | None, error: CallError | None) -> Record:
    return events.call(
        item,
        id=f"built-{item.key}",
        n=1,
        started=STARTED + timedelta(seconds=number),
        seconds=0.5,
        verdict="failed" if error else "answered",
        reply=reply,
        error=error,
        usd=0.001 if reply else None,
    )
