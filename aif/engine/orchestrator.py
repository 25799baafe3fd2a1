"""The orchestrator: calls all models and judges in parallel for what is pending in the store.

An *item* is one completion or judgement to make. An *endpoint* is a model or judge. Each endpoint has:

- a *pager*, which moves pending items from the store into a queue, page by page;
- a queue (work_queue.py), which decides the item that is sent next;
- workers, as many as calls may be in flight, which send the items of the queue.

The one writer (writer.py) records every call. The writer also notices prompts that have become ready to be judged. A
failed call is recorded for its item; a programming error ends the run.
"""

import asyncio
import gc
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from aif.config.pipeline import Pipeline
from aif.core.errors import StoreDamaged, StoreOutOfMemory
from aif.core.types import UNSPENT, Principle, Rating, Spent, digest, text_id
from aif.engine.budget import Budget, BudgetShortfall
from aif.engine.work_queue import QueueItem, WorkQueue, run_workers
from aif.engine.writer import Writer
from aif.judging.parse import Unparseable, parse_reply
from aif.judging.request import completion_request, judging_request, judging_spec, resampled_request
from aif.judging.rubric import Rubric, judgement_key, shown_order
from aif.providers.base import CallError, Kind, Reply, Request
from aif.providers.endpoint import Endpoint, Halted
from aif.providers.retry import Verdict
from aif.store import records
from aif.store.ingest import Entry
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from aif.store.run_queries import JudgeablePrompt, PendingJudgement, PendingSlot

PAGE = 512  # items that a pager reads at once
# After this many calls in a row that the budget did not cover, an endpoint stops. The first says little: requests
# differ in size, and a smaller one may still fit.
MAX_UNCOVERED = 200

T = TypeVar("T")


class Observer(Protocol):
    """Receives the calls of a run as they end."""

    def on_calls(self, entries: Sequence[Entry]) -> None:
        """Handle calls that have ended and whose journal records are synced to disk."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One completion or judgement to request.

    item: identifies it in the journal: stage, key, prompt, model or judge, and details such as the sampling seed.
    request: called as `request(n, error)` after `n` unusable replies, the last of which caused `error`. Returns the
        request to send next.
    read: parses the reply; returns its ratings, or None for a completion.
    place: for a completion, (position of its prompt in the selection, its number within the prompt); else None.
    parts: returns the judgements of one completion each that replace a judgement of several completions, if it exceeds
        the context window. None if the job can't be replaced.
    apart: whether the judge has `on_overflow: single`. Then an overflow of this job says nothing about other items.
    """

    item: records.CallItem
    request: Callable[[int, CallError | None], Request]
    read: Callable[[Reply], tuple[Rating, ...] | None]
    place: tuple[int, int] | None = None
    parts: Callable[[], Awaitable[list[QueueItem["Job"]]]] | None = None
    apart: bool = False  # replaced by `parts` on overflow, or is a part: an overflow says nothing about other items


@dataclass
class Orchestrator:
    """Makes all calls of one run. After `stop()` no new call is made, and the run ends when those in flight have
    finished. Afterwards, `budget_shortfall` says whether the budget refused calls.

    endpoints: the models and judges to call.
    observer: receives each call once its journal record is on disk.
    spent: the store's spend before the run.
    limit: calls are made for the first `limit` prompts only; None: for all.
    """

    pipeline: Pipeline
    journaled: JournaledStore
    rubric: Rubric
    endpoints: list[Endpoint]
    observer: Observer
    spent: Spent = UNSPENT
    limit: int | None = None

    def __post_init__(self) -> None:
        self.stopping = False
        self._id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self._calls = 0
        self._budget = Budget(self.pipeline.budget_usd, self.spent, self._write_ceiling)
        self.more_ready = {e.name: asyncio.Event() for e in self.endpoints if e.stage == "judgement"}
        self.generated = False

    def stop(self) -> None:
        """Make no new calls; those in flight finish."""
        self.stopping = True
        for endpoint in self.endpoints:
            endpoint.stop()
        self._budget.stop()
        self._wake_judges()

    @property
    def budget_shortfall(self) -> BudgetShortfall | None:
        return self._budget.shortfall

    def _wake_judges(self) -> None:
        for event in self.more_ready.values():
            event.set()

    async def work(self) -> None:
        """Make every pending call, with retries. Items that failed are in the store's `failures`."""
        self.journaled.store.list_pending(self.limit)
        completions = self.pipeline.completions
        self._writer = Writer(
            self.journaled,
            completions.per_prompt,
            completions.min_completions,
            self._on_synced,
            self._wake_judges,
            self.stop,
        )
        # the thread ends first: a reader must not be closed during a query
        with Reader.of(self.journaled.store) as reader, ThreadPoolExecutor(1, "reader") as thread, _frozen_heap():
            self.reader, self._thread = reader, thread
            async with asyncio.TaskGroup() as group:
                group.create_task(self._writer.run())
                models = [e for e in self.endpoints if e.stage == "completion"]
                judges = [e for e in self.endpoints if e.stage == "judgement"]
                judging = [group.create_task(self._serve(e, _Judgements(self, e))) for e in judges]
                generating = [group.create_task(self._serve(e, _Completions(self, e))) for e in models]
                await _wait(generating)
                await self._writer.flush()
                self.generated = True
                self._wake_judges()
                await _wait(judging)
                await self._budget.close()
                await self._writer.close()

    # --- one endpoint -------------------------------------------------------------------------------------------------

    async def _serve(self, endpoint: Endpoint, pager: "_Pager") -> None:
        queue = WorkQueue(endpoint, lambda: self._guarded(pager.draw_distant()))

        async def fill() -> None:
            await self._guarded(pager.fill(queue))

        await run_workers(endpoint, queue, fill, partial(self._attempt, endpoint, queue))

    async def _guarded(self, query: Awaitable[T]) -> T | None:
        """Await a query of the store. If the store fails, record the error, which ends the run, and return None."""
        try:
            return await query
        except (StoreDamaged, StoreOutOfMemory, OSError) as error:
            self._writer.fail(error)
            return None

    async def _attempt(self, endpoint: Endpoint, queue: WorkQueue[Job], item: QueueItem[Job]) -> Verdict | None:
        """Make one call for an item of `queue` and record it. Return what happens to the item; None if no call was
        made, because the endpoint is stopped or the budget refused the call.

        A judgement of several completions that exceeds the context window may be replaced by judgements of one
        completion each, which are added to the queue.
        """
        clock = asyncio.get_running_loop().time
        job, state = item.job, item.retry_state
        call, error, parts = _Call(), None, None
        item.history.may_split = job.apart
        request = job.request(state.resampled, state.last_unusable)
        try:
            async with endpoint.attempt(request, item.history) as attempt:
                call.bound = endpoint.max_cost(request)
                await self._reserve(endpoint, call.bound or 0.0)
                state.n += 1
                call.started, began = datetime.now(UTC), clock()
                try:
                    call.reply = await attempt.send()
                finally:
                    call.seconds = clock() - began
                call.ratings = job.read(call.reply)
        except Halted:
            return None
        except CallError as failure:
            error, verdict = failure, endpoint.verdict(failure, item.history, state)
            if job.parts and failure.kind is Kind.CONTEXT_OVERFLOW:
                parts = await self._guarded(job.parts()) or []
        else:
            verdict = "answered"
        if parts is None:
            await self._record(endpoint, item, call, error, verdict)
            return verdict
        await self._record(endpoint, item, call, error, "failed", len(parts))
        queue.add(parts)
        return "failed"

    async def _reserve(self, endpoint: Endpoint, bound: float) -> None:
        """Reserve `bound` USD, the most that a call can cost, in the budget. Raises Halted if the call may not be made.
        Stops the endpoint after MAX_UNCOVERED refusals in a row, and the run once every paid endpoint is stopped or
        done."""
        reserved = await self._budget.reserve(bound)
        if reserved and not endpoint.halt.is_set():
            endpoint.uncovered = 0
            return
        if reserved:
            await self._budget.settle(bound, 0.0)
        elif not endpoint.halt.is_set():
            endpoint.uncovered += 1
            if endpoint.uncovered >= MAX_UNCOVERED:
                endpoint.stop()
            if all(e.halt.is_set() or e.done.is_set() for e in self.endpoints if e.paid):
                self.stop()
        raise Halted

    async def _write_ceiling(self, n: int, usd: float) -> None:
        await self._writer.write(Entry(records.reserve(self._id, n, usd)))

    def _on_synced(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.record["t"] == "reserve":
                self._budget.synced(entry.record["usd"])
        self.observer.on_calls([entry for entry in entries if entry.record["t"] == "call"])

    async def _record(
        self,
        endpoint: Endpoint,
        item: QueueItem[Job],
        call: "_Call",
        error: CallError | None,
        verdict: Verdict,
        parts: int | None = None,
    ) -> None:
        reply = None if error else call.reply
        received = error.reply if error else reply
        usage, tier = (received.usage, received.served.get("service_tier")) if received else (None, None)
        usd = 0.0 if error and error.unbilled else endpoint.cost(usage, tier)
        await self._budget.settle(call.bound or 0.0, usd)
        self._calls += 1
        record = records.call(
            item.job.item,
            id=f"{self._id}-{self._calls}",
            n=item.retry_state.n,
            started=call.started,
            seconds=call.seconds,
            verdict=verdict,
            reply=reply,
            error=error,
            usd=usd,
            bound=call.bound,
        )
        await self._writer.write(Entry(record, call.ratings if not error else None, item.job.place, parts))

    async def query(self, read: Callable[..., T], *args: Any) -> T:
        """Return `read(*args)`, a query of the store, called in the reader's thread so that calls continue
        meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, read, *args)

    # --- completions --------------------------------------------------------------------------------------------------

    def completion_job(self, todo: PendingSlot) -> Job:
        """Return the job for a pending completion."""
        slot = todo.slot
        model = self.pipeline.models[slot.model]
        request = slot_request(self.pipeline, todo)
        details = {
            "sample": slot.sample,
            "seed": slot.seed,
            "principle": digest(todo.principle) if todo.principle else None,
            "system": model.system,
        }
        item = records.CallItem("completion", slot.key, slot.prompt_id, slot.model, slot.identity, details)
        return Job(item, partial(resampled_request, request), lambda reply: None, (todo.position, slot.slot))

    # --- judgements ---------------------------------------------------------------------------------------------------

    def group_by_prefix(self, needs: Iterable[PendingJudgement]) -> Iterable[list[PendingJudgement]]:
        """Group the judgements of one prompt whose requests begin with the same text (the prefix). The requests of a
        group are to be sent one after another.

        A provider has a prefix in its cache once the first reply has begun. Requests sent at the same time would each
        pay the full price for the prefix.
        """
        groups: dict[Any, list[PendingJudgement]] = {}
        for need in needs:
            prefix = need.judge_pass, self.rubric.sheet.requests[need.request].mode, need.answers
            groups.setdefault(prefix if self.rubric.shares_prefix(need.request) else need, []).append(need)
        return groups.values()

    def judgement_job(self, ready: JudgeablePrompt, need: PendingJudgement) -> Job:
        """Return the job for a pending judgement of a prompt whose completions are ready."""
        judge = self.pipeline.judges[need.judge]
        shown = shown_order(ready.prompt.prompt_id, need.answers, need.judge_pass)
        texts = [ready.texts[k] for k in shown]
        ids = list(map(text_id, texts))
        texts_shown = ids if need.outdated else []
        key = judgement_key(shown, need.identity, need.judge_pass, need.spec, need.material, texts_shown)
        seed = int(key[:8], 16) % 2**31
        request = judging_request(self.rubric, need.request, ready.prompt, texts, judge, seed)
        details = {
            "pass": need.judge_pass,
            "request": need.request,
            "rubric": self.rubric.digest,
            "spec": need.spec,
            "material": need.material,
            "form": judge.reply,
            "completions": list(shown),
            "shown": ids,
        }
        item = records.CallItem("judgement", key, ready.prompt.prompt_id, need.judge, need.identity, details)

        def ratings(reply: Reply) -> tuple[Rating, ...]:
            if reply.truncated:
                raise CallError(Kind.TRUNCATED, "the judgement was cut at its limit", reply=reply)
            try:
                return parse_reply(self.rubric, need.request, shown, reply.text, judge.reply)
            except Unparseable as error:
                raise CallError(Kind.UNREADABLE, str(error), reply=reply) from error

        apart = judge.on_overflow == "single"
        parts = partial(self._one_by_one, ready, need) if apart and len(shown) > 1 else None
        return Job(item, partial(resampled_request, request), ratings, parts=parts, apart=apart)

    async def _one_by_one(self, ready: JudgeablePrompt, need: PendingJudgement) -> list[QueueItem[Job]]:
        """Return judgements of one completion each. They replace `need`, a judgement of several completions that
        exceeds the context window. Judgements that are final already (answered, or failed permanently) are left out."""
        spec = judging_spec(self.rubric, need.request, 1, self.pipeline.judges[need.judge])
        request = need.identity, need.judge_pass, spec, need.material
        ids = {key: [text_id(ready.texts[key])] for key in need.answers}
        # a judgement that replaces an outdated one has the texts' ids in its key
        keys = {key: [judgement_key((key,), *request, texts) for texts in ([], ids[key])] for key in need.answers}
        done = await self.query(self.reader.finished_judgements, [k for both in keys.values() for k in both])
        needs = [
            replace(need, spec=spec, answers=(key,), outdated=done.get(both[0], (False, None))[0])
            for key, both in keys.items()
            if not any(k in done and done[k][1] in (None, ids[key]) for k in both)
        ]
        return [QueueItem(partial(self.judgement_job, ready, single)) for single in needs]


def slot_request(pipeline: Pipeline, todo: PendingSlot) -> Request:
    """Return the request that is sent to the model for a pending completion."""
    model = pipeline.models[todo.slot.model]
    principle = Principle("", todo.principle) if todo.principle else None
    return completion_request(todo.prompt, principle, model.system, pipeline.sampling(model), todo.slot.seed)


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """During the `with` block, exclude the objects that exist already (about 500,000, from imports) from garbage
    collection: each full pass over them would stall all calls for 0.1 s."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _wait(tasks: list[asyncio.Task[None]]) -> None:
    if tasks:  # asyncio.wait refuses an empty list
        await asyncio.wait(tasks)


@dataclass
class _Call:
    """One attempt and its result.

    started: time at which the request was sent.
    seconds: time until the reply or the error.
    bound: the most that the call can cost in USD; None if the price is unknown.
    reply: the reply; None if the call failed.
    ratings: the ratings that a judge's reply gives; None for a completion or if the reply can't be parsed.
    """

    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    seconds: float = 0.0
    bound: float | None = None
    reply: Reply | None = None
    ratings: tuple[Rating, ...] | None = None


class _Pager:
    """Moves the pending items of one endpoint from the store into its queue."""

    def __init__(self, run: Orchestrator, endpoint: Endpoint) -> None:
        self._run = run
        self._endpoint = endpoint
        self._after = 0  # seq of the last item moved in order
        self._drawn: set[int] = set()  # seqs beyond it that were drawn

    async def fill(self, queue: WorkQueue[Job]) -> None:
        """Add all pending items in the store's order (`seq`), whenever the queue has room. Items that `draw_distant`
        has returned already are left out."""
        raise NotImplementedError

    async def draw_distant(self) -> QueueItem[Job] | None:
        """Return a random pending item that `fill` has not reached yet, to send it early; None if none is found."""
        raise NotImplementedError

    def _draw(self, last: int) -> int | None:
        """Return a random `seq` up to `last` that was not drawn before and that `fill` has not reached; None if eight
        tries find none.

        A `seq` is a number that the store gives, from 1, to each pending completion of a model, or to each prompt that
        is ready to be judged.
        """
        for _ in range(8):
            if last > self._after and (seq := random.randint(self._after + 1, last)) not in self._drawn:
                self._drawn.add(seq)
                return seq
        return None


class _Completions(_Pager):
    async def fill(self, queue: WorkQueue[Job]) -> None:
        while not self._endpoint.halt.is_set() and (rows := await self._page(self._after, PAGE)):
            self._after = rows[-1].seq
            queue.add(self._item(todo) for todo in rows if todo.seq not in self._drawn)
            await queue.wait_for_room()

    async def draw_distant(self) -> QueueItem[Job] | None:
        seq = self._draw(await self._run.query(self._run.reader.last_pending_slot, self._endpoint.name))
        return self._item((await self._page(seq - 1, 1))[0]) if seq is not None else None

    async def _page(self, after: int, limit: int) -> list[PendingSlot]:
        return await self._run.query(self._run.reader.pending_slots, self._endpoint.name, after, limit)

    def _item(self, todo: PendingSlot) -> QueueItem[Job]:
        return QueueItem(partial(self._run.completion_job, todo))


class _Judgements(_Pager):
    _queue: WorkQueue[Job] | None = None

    async def fill(self, queue: WorkQueue[Job]) -> None:
        self._queue, more = queue, self._run.more_ready[self._endpoint.name]
        while not self._endpoint.halt.is_set():
            more.clear()
            generated = self._run.generated  # read before the query: a prompt that gets ready later sets the event
            if rows := await self._page(self._after, PAGE):
                self._after = rows[-1].seq
                for ready in rows:
                    queue.add(self._items(ready) if ready.seq not in self._drawn else ())
                await queue.wait_for_room()
            elif generated:
                return
            else:
                await more.wait()

    async def draw_distant(self) -> QueueItem[Job] | None:
        seq = self._draw(await self._run.query(self._run.reader.last_judgeable_prompt))
        if self._queue is None or seq is None:
            return None
        items = self._items((await self._page(seq - 1, 1))[0])
        self._queue.add(items[1:])
        return items[0] if items else None

    async def _page(self, after: int, limit: int) -> list[JudgeablePrompt]:
        return await self._run.query(self._run.reader.judgeable_prompts, after, limit)

    def _items(self, ready: JudgeablePrompt) -> list[QueueItem[Job]]:
        needs = [need for need in ready.needs if need.judge == self._endpoint.name]
        groups = self._run.group_by_prefix(needs)
        jobs = ([partial(self._run.judgement_job, ready, need) for need in group] for group in groups)
        return [QueueItem(first, then) for first, *then in jobs]
