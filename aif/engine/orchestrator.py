"""The orchestrator: generation and judging side by side over journal and store.

Each model and judge has a pager that brings its pending work out of the store into a line (line.py), and as many
workers as calls may be in flight. Every attempt goes to the one writer, which also notices the prompts that have become
ready to be judged. An item's error is a row; a programming error ends the run.
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
from aif.core.errors import StoreDamaged, StoreStarved
from aif.core.types import UNSPENT, Principle, Rating, Spent, digest, text_id
from aif.engine.budget import Budget, Short
from aif.engine.work_queue import Queue, QueueItem, serve
from aif.engine.writer import Writer
from aif.judging.parse import Unparseable, read
from aif.judging.request import completion_request, judging_request, judging_spec, once_more
from aif.judging.rubric import Rubric, judgement_key, order
from aif.providers.base import CallError, Kind, Reply, Request
from aif.providers.endpoint import Endpoint, Halted
from aif.providers.retry import Verdict
from aif.store import records
from aif.store.ingest import Entry
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from aif.store.run_queries import JudgeablePrompt, PendingJudgement, PendingSlot

PAGE = 512
# So many calls of an endpoint in a row that the budget did not cover, and it is asked no more. The first says little:
# requests differ in size, and a smaller one may still fit.
UNCOVERED = 200

T = TypeVar("T")


class Observer(Protocol):
    """Who watches a run."""

    def kept(self, entries: Sequence[Entry]) -> None:
        """These are synced to disk."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One item of work: what it is, how to ask for it after so many replies of no use, how to read the reply, and what
    is asked in its place where it is too long, if anything is."""

    item: records.CallItem
    request: Callable[[int, CallError | None], Request]
    read: Callable[[Reply], tuple[Rating, ...] | None]
    place: tuple[int, int] | None = None
    parts: Callable[[], Awaitable[list[QueueItem["Job"]]]] | None = None
    apart: bool = False  # what is too long is asked in parts, or is such a part: no sign of what others will get


@dataclass
class Run:
    """One run of a pipeline. `stop()` asks it to finish what is in flight and end. `spent` is what the store's calls
    cost before; `short` tells afterwards whether the budget left something unasked."""

    pipeline: Pipeline
    ledger: JournaledStore
    rubric: Rubric
    endpoints: list[Endpoint]
    observer: Observer
    spent: Spent = UNSPENT
    limit: int | None = None

    def __post_init__(self) -> None:
        self.stopping = False
        self._id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self._calls = 0
        self._budget = Budget(self.pipeline.budget_usd, self.spent, self._reserve)
        self.more_ready = {e.name: asyncio.Event() for e in self.endpoints if e.stage == "judgement"}
        self.generated = False

    def stop(self) -> None:
        """No new call is made from here on."""
        self.stopping = True
        for endpoint in self.endpoints:
            endpoint.stop()
        self._budget.stop()
        self._wake_judges()

    @property
    def short(self) -> Short | None:
        return self._budget.short

    def _wake_judges(self) -> None:
        for event in self.more_ready.values():
            event.set()

    async def work(self) -> None:
        """Does everything that is pending, once. What could not be done is in the store's `failures`."""
        self.ledger.store.list_pending(self.limit)
        least = self.pipeline.completions
        self._writer = Writer(
            self.ledger, least.per_prompt, least.min_completions, self._kept, self._wake_judges, self.stop
        )
        # the thread ends first: a reader must not be closed while it is asked
        with Reader.of(self.ledger.store) as reader, ThreadPoolExecutor(1, "reader") as thread, _settled():
            self.reader, self._thread = reader, thread
            async with asyncio.TaskGroup() as group:
                group.create_task(self._writer.run())
                models = [e for e in self.endpoints if e.stage == "completion"]
                judges = [e for e in self.endpoints if e.stage == "judgement"]
                judging = [group.create_task(self._serve(e, _Judgements(self, e))) for e in judges]
                generating = [group.create_task(self._serve(e, _Completions(self, e))) for e in models]
                await _ended(generating)
                await self._writer.flush()
                self.generated = True
                self._wake_judges()
                await _ended(judging)
                await self._budget.close()
                await self._writer.close()

    # --- one endpoint -------------------------------------------------------------------------------------------------

    async def _serve(self, endpoint: Endpoint, pager: "_Pager") -> None:
        line = Queue(endpoint, lambda: self._guarded(pager.elsewhere()))

        async def page() -> None:
            await self._guarded(pager.bring(line))

        await serve(endpoint, line, page, partial(self._once, endpoint, line))

    async def _guarded(self, asked: Awaitable[T]) -> T | None:
        """What the store says. Where it is of no more use, the workers finish what they have."""
        try:
            return await asked
        except (StoreDamaged, StoreStarved, OSError) as trouble:
            self._writer.give_up(trouble)
            return None

    async def _once(self, endpoint: Endpoint, line: Queue[Job], item: QueueItem[Job]) -> Verdict | None:
        """One attempt, kept; what becomes of the item, or None where no call was to be made."""
        clock = asyncio.get_running_loop().time
        job, course = item.job, item.course
        call, error, parts = _Call(), None, None
        item.caller.parts = job.apart
        request = job.request(course.reasked, course.unmended)
        try:
            async with endpoint.turn(request, item.caller) as turn:
                call.bound = endpoint.bound(request)
                await self._afford(endpoint, call.bound or 0.0)
                course.n += 1
                call.started, began = datetime.now(UTC), clock()
                try:
                    call.reply = await turn.ask()
                finally:
                    call.seconds = clock() - began
                call.ratings = job.read(call.reply)
        except Halted:
            return None
        except CallError as failure:
            error, verdict = failure, endpoint.verdict(failure, item.caller, course)
            if job.parts and failure.kind is Kind.CONTEXT_OVERFLOW:
                parts = await self._guarded(job.parts()) or []
        else:
            verdict = "answered"
        if parts is None:
            await self._keep(endpoint, item, call, error, verdict)
            return verdict
        await self._keep(endpoint, item, call, error, "failed", len(parts))
        line.bring(parts)
        return "failed"

    async def _afford(self, endpoint: Endpoint, bound: float) -> None:
        """Returns when a call is reserved. Raises Halted where it is not to be made; once the budget covers no call of
        any endpoint that costs something, the run stops."""
        reserved = await self._budget.reserve(bound)
        if reserved and not endpoint.halt.is_set():
            endpoint.uncovered = 0
            return
        if reserved:
            await self._budget.settle(bound, 0.0)
        elif not endpoint.halt.is_set():
            endpoint.uncovered += 1
            if endpoint.uncovered >= UNCOVERED:
                endpoint.stop()
            if all(one.halt.is_set() or one.done.is_set() for one in self.endpoints if one.paid):
                self.stop()
        raise Halted

    async def _reserve(self, n: int, usd: float) -> None:
        await self._writer.keep(Entry(records.reserve(self._id, n, usd)))

    def _kept(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.record["t"] == "reserve":
                self._budget.synced(entry.record["usd"])
        self.observer.kept([entry for entry in entries if entry.record["t"] == "call"])

    async def _keep(
        self,
        endpoint: Endpoint,
        item: QueueItem[Job],
        call: "_Call",
        error: CallError | None,
        verdict: Verdict,
        parts: int | None = None,
    ) -> None:
        reply = None if error else call.reply
        had = error.reply if error else reply
        used, tier = (had.usage, had.served.get("service_tier")) if had else (None, None)
        usd = 0.0 if error and error.unbilled else endpoint.cost(used, tier)
        await self._budget.settle(call.bound or 0.0, usd)
        self._calls += 1
        record = records.call(
            item.job.item,
            id=f"{self._id}-{self._calls}",
            n=item.course.n,
            started=call.started,
            seconds=call.seconds,
            verdict=verdict,
            reply=reply,
            error=error,
            usd=usd,
            bound=call.bound,
        )
        await self._writer.keep(Entry(record, call.ratings if not error else None, item.job.place, parts))

    async def ask(self, question: Callable[..., T], *args: Any) -> T:
        """Asks the store, in the reader's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, question, *args)

    # --- completions --------------------------------------------------------------------------------------------------

    def completion(self, todo: PendingSlot) -> Job:
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
        return Job(item, partial(once_more, request), lambda reply: None, (todo.position, slot.slot))

    # --- judgements ---------------------------------------------------------------------------------------------------

    def in_turn(self, needs: Iterable[PendingJudgement]) -> Iterable[list[PendingJudgement]]:
        """Judgements by those that begin alike: a prefix is in a provider's cache once the first reply has begun, so
        asked together each would pay for all of it, and at Anthropic's for writing it, too."""
        alike: dict[Any, list[PendingJudgement]] = {}
        for need in needs:
            one = need.judge_pass, self.rubric.sheet.requests[need.request].mode, need.answers
            alike.setdefault(one if self.rubric.shares(need.request) else need, []).append(need)
        return alike.values()

    def judgement(self, ready: JudgeablePrompt, need: PendingJudgement) -> Job:
        judge = self.pipeline.judges[need.judge]
        shown = order(ready.prompt.prompt_id, need.answers, need.judge_pass)
        texts = [ready.texts[k] for k in shown]
        ids = list(map(text_id, texts))
        others = ids if need.outdated else []
        key = judgement_key(shown, need.identity, need.judge_pass, need.spec, need.material, others)
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
            if reply.cut:
                raise CallError(Kind.TRUNCATED, "the judgement was cut at its limit", reply=reply)
            try:
                return read(self.rubric, need.request, shown, reply.text, judge.reply)
            except Unparseable as why:
                raise CallError(Kind.UNREADABLE, str(why), reply=reply) from why

        apart = judge.on_overflow == "single"
        parts = partial(self._one_by_one, ready, need) if apart and len(shown) > 1 else None
        return Job(item, partial(once_more, request), ratings, parts=parts, apart=apart)

    async def _one_by_one(self, ready: JudgeablePrompt, need: PendingJudgement) -> list[QueueItem[Job]]:
        """The judgements of one completion each that take the place of one of all together, but for those there are."""
        spec = judging_spec(self.rubric, need.request, 1, self.pipeline.judges[need.judge])
        rest = need.identity, need.judge_pass, spec, need.material
        ids = {key: [text_id(ready.texts[key])] for key in need.answers}
        each = {key: [judgement_key((key,), *rest, texts) for texts in ([], ids[key])] for key in need.answers}
        done = await self.ask(self.reader.finished_judgements, [one for both in each.values() for one in both])
        needs = [
            replace(need, spec=spec, answers=(key,), outdated=done.get(both[0], (False, None))[0])
            for key, both in each.items()
            if not any(one in done and done[one][1] in (None, ids[key]) for one in both)
        ]
        return [QueueItem(partial(self.judgement, ready, one)) for one in needs]


def slot_request(pipeline: Pipeline, todo: PendingSlot) -> Request:
    """What the model of a slot is sent."""
    model = pipeline.models[todo.slot.model]
    principle = Principle("", todo.principle) if todo.principle else None
    return completion_request(todo.prompt, principle, model.system, pipeline.sampling(model), todo.slot.seed)


@contextmanager
def _settled() -> Iterator[None]:
    """What is there by now, half a million objects of libraries, came to stay: to look through them for cycles again
    and again would hold up all calls for 0.1 s each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    """Returns when these are over, however; there may be none."""
    if tasks:
        await asyncio.wait(tasks)


@dataclass
class _Call:
    """One attempt: when and how long it was made, the most it can have cost (USD; None without a price), and what came
    of it."""

    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    seconds: float = 0.0
    bound: float | None = None
    reply: Reply | None = None
    ratings: tuple[Rating, ...] | None = None


class _Pager:
    """Brings the pending items of one endpoint into its line, in order, and one from elsewhere among those to come."""

    def __init__(self, run: Run, endpoint: Endpoint) -> None:
        self._run = run
        self._endpoint = endpoint
        self._after = 0  # the number of the last that was brought in order
        self._taken: set[int] = set()  # of those behind it

    async def bring(self, line: Queue[Job]) -> None:
        raise NotImplementedError

    async def elsewhere(self) -> QueueItem[Job] | None:
        raise NotImplementedError

    def _between(self, last: int) -> int | None:
        """A number of one to come, up to the last there is, which is taken from here on; None where none is found."""
        for _ in range(8):
            if last > self._after and (seq := random.randint(self._after + 1, last)) not in self._taken:
                self._taken.add(seq)
                return seq
        return None


class _Completions(_Pager):
    async def bring(self, line: Queue[Job]) -> None:
        while not self._endpoint.halt.is_set() and (rows := await self._page(self._after, PAGE)):
            self._after = rows[-1].seq
            line.bring(self._item(todo) for todo in rows if todo.seq not in self._taken)
            await line.room()

    async def elsewhere(self) -> QueueItem[Job] | None:
        seq = self._between(await self._run.ask(self._run.reader.last_pending_slot, self._endpoint.name))
        return self._item((await self._page(seq - 1, 1))[0]) if seq is not None else None

    async def _page(self, after: int, limit: int) -> list[PendingSlot]:
        return await self._run.ask(self._run.reader.pending_slots, self._endpoint.name, after, limit)

    def _item(self, todo: PendingSlot) -> QueueItem[Job]:
        return QueueItem(partial(self._run.completion, todo))


class _Judgements(_Pager):
    _line: Queue[Job] | None = None

    async def bring(self, line: Queue[Job]) -> None:
        self._line, more = line, self._run.more_ready[self._endpoint.name]
        while not self._endpoint.halt.is_set():
            more.clear()
            done = self._run.generated  # read before asking: what comes to be ready later sets the event again
            if rows := await self._page(self._after, PAGE):
                self._after = rows[-1].seq
                for ready in rows:
                    line.bring(self._items(ready) if ready.seq not in self._taken else ())
                await line.room()
            elif done:
                return
            else:
                await more.wait()

    async def elsewhere(self) -> QueueItem[Job] | None:
        seq = self._between(await self._run.ask(self._run.reader.last_judgeable_prompt))
        if self._line is None or seq is None:
            return None
        items = self._items((await self._page(seq - 1, 1))[0])
        self._line.bring(items[1:])
        return items[0] if items else None

    async def _page(self, after: int, limit: int) -> list[JudgeablePrompt]:
        return await self._run.ask(self._run.reader.judgeable_prompts, after, limit)

    def _items(self, ready: JudgeablePrompt) -> list[QueueItem[Job]]:
        needs = [need for need in ready.needs if need.judge == self._endpoint.name]
        made = ([partial(self._run.judgement, ready, need) for need in alike] for alike in self._run.in_turn(needs))
        return [QueueItem(first, then) for first, *then in made]
