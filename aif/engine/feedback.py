"""The whole of `aif run`: from a pipeline to ratings and pairs in its store, watched by a person who may stop it."""

import asyncio
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aif.config.pipeline import Pipeline, options
from aif.core.environment import ENVIRON
from aif.core.words import counted
from aif.engine.advice import mend
from aif.engine.budget import Short
from aif.engine.connect import opened
from aif.engine.make_pairs import make_pairs
from aif.engine.orchestrator import Run
from aif.engine.prepare import prepare, rubric_of
from aif.engine.progress import Board, Screen, show
from aif.judging.rubric import Rubric
from aif.providers.endpoint import Endpoint
from aif.providers.retry import RetryPolicy
from aif.servers.command import check_stranger, runs, sends
from aif.servers.fleet import Fleet
from aif.servers.placement import Key
from aif.store import records
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from aif.store.report_queries import Tally

OTHER_FILES = 256  # open ones besides calls' connections: store, journal, logs, libraries


@dataclass(frozen=True, slots=True)
class Asked:
    """How the asking ended: whether it was stopped, the endpoints that take no call, with the reason and what to do,
    where the budget left something unasked, how short it was, and the seconds for which endpoints that have something
    pending asked to be left alone."""

    stopped: bool
    refused: dict[str, str]
    short: Short | None
    waits: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    asked: Asked
    outcomes: dict[str, int]
    tallies: dict[tuple[str, str], Tally]
    seconds: float

    @property
    def incomplete(self) -> bool:
        """Whether something wanted has no answer."""
        return any(tally.answered < tally.wanted for tally in self.tallies.values())


@dataclass
class Person:
    """Who watches a run and may stop it. What was asked for holds, too, where the run is begun once more on a store
    that was made again."""

    stopped: bool = False


def feedback(
    pipeline: Pipeline,
    screen: Screen,
    *,
    limit: int | None = None,
    retry_failed: bool = False,
    policy: RetryPolicy | None = None,
    consent: Callable[[JournaledStore, Rubric], None] | None = None,
) -> Ended:
    """Prompts in, ratings and pairs in the store: does what is pending, and tells how it ended.

    `consent` is called when all is prepared and nothing is asked yet; what it raises ends the run there. Raises
    AifError where the pipeline, its sources or its store can't be used.
    """
    began = time.monotonic()

    tell = screen.say
    rubric = rubric_of(pipeline)
    announce(pipeline, tell)
    for one in (*pipeline.models.values(), *pipeline.judges.values()):
        options(one, ENVIRON)  # a missing key is told before anything is read
    agreed, person = False, Person()  # both hold where the store is made again in mid-run

    def whole(ledger: JournaledStore) -> Ended:
        nonlocal agreed
        served = prepare(pipeline, ledger, rubric, tell)
        if consent is not None and not agreed:
            consent(ledger, rubric)
        if served:
            ledger.keep(served)
        if retry_failed and not agreed:
            ledger.keep([records.retry(datetime.now(UTC))])
        agreed = True
        flowing = flow(pipeline, ledger, rubric, screen, tell, limit, policy or RetryPolicy(), person)
        asked = asyncio.run(flowing)
        outcomes = make_pairs(pipeline, rubric, ledger.store)
        with Reader.of(ledger.store) as reader:
            tallies = reader.tallies(limit)
        return Ended(asked, outcomes, tallies, time.monotonic() - began)

    return JournaledStore.use(pipeline.store, tell, rubric, whole, tags=pipeline.tags)


def announce(pipeline: Pipeline, tell: Callable[[str], None]) -> None:
    """Says which program a pipeline will run and which secret it sends unsafely. Raises BadInput for a stranger's."""
    check_stranger(pipeline)
    for words in (*runs(pipeline), *sends(pipeline, unsafe=True)):
        tell(words)


async def flow(
    pipeline: Pipeline,
    ledger: JournaledStore,
    rubric: Rubric,
    screen: Screen,
    tell: Callable[[str], None],
    limit: int | None,
    policy: RetryPolicy,
    person: Person,
) -> Asked:
    """Does what the store says is pending, shown to the person who may stop it."""
    async with opened(pipeline, policy=policy) as endpoints:
        with Reader.of(ledger.store) as reader:
            whole = reader.tallies()
            within = whole if limit is None else reader.tallies(limit)
            spent, budget = reader.spent(), pipeline.budget_usd
            board = Board(endpoints, within, reader.permanent_failures(), spent=spent, budget=budget)
        for endpoint in endpoints:
            if tally := whole.get((endpoint.stage, endpoint.name)):
                endpoint.answered = tally.answered
        fleet = await Fleet.of(pipeline, endpoints, _pending(pipeline, within), ledger.paths.logs, tell)
        _make_room(endpoints, tell)
        run = Run(pipeline, ledger, rubric, endpoints, board, spent, limit)
        if person.stopped:
            run.stop()
        ended = asyncio.Event()
        drawing = asyncio.create_task(show(board, screen, ledger.paths.progress, ended))
        try:
            with _signals(run, screen, person):
                async with asyncio.TaskGroup() as group:
                    group.create_task(fleet.attend())
                    await run.work()
        finally:
            ended.set()
            await drawing
        waits = {e.name: wait_s for e in endpoints if (wait_s := e.back_s - e.clock()) > 0}
        return Asked(run.stopping, {e.name: _why(e) for e in endpoints if e.refused}, run.short, waits)


def _why(endpoint: Endpoint) -> str:
    """Why an endpoint takes no call, and what to do."""
    what = mend(endpoint.refusal, endpoint.refused or "") if endpoint.refusal else ""
    return f"{endpoint.refused}" + (f"\n    → {what}" if what else "")


def _make_room(endpoints: Sequence[Endpoint], tell: Callable[[str], None]) -> None:
    """Lets this process have a connection open for every call: many systems give 256 or 1,024 files unless asked."""
    wanted = sum(endpoint.concurrency for endpoint in endpoints) + OTHER_FILES
    given, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if given == resource.RLIM_INFINITY or given >= wanted:
        return
    had = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (had, most))
    if had < wanted:
        tell(f"only {had} files may be open here (ulimit -n), and {wanted} would be; lower `concurrency`")


def _pending(pipeline: Pipeline, tallies: dict[Key, Tally]) -> set[Key]:
    """Who has work: whoever has items without an answer, and while there are completions to come, every judge."""
    found = {key for key, tally in tallies.items() if tally.pending}
    coming = any(stage == "completion" for stage, _ in found)
    return found | {("judgement", name) for name in pipeline.judges if coming}


@contextmanager
def _signals(run: Run, screen: Screen, person: Person) -> Iterator[None]:
    """Ctrl-C or SIGTERM once: finish what is in flight. Twice: leave now; what is in flight is asked again. A run that
    stops by itself (its budget, a full disk) or since its terminal closes (SIGHUP, which comes from the shell and from
    the system) was not asked to: the first Ctrl-C loses nothing that is in flight then, either."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    before = False

    def stop() -> None:
        person.stopped = True
        run.stop()

    def asked() -> None:
        nonlocal before
        if before:
            task.cancel()
            return
        before = True
        stop()
        flying = sum(endpoint.in_flight for endpoint in run.endpoints)
        screen.say(f"stopping: waiting for {counted(flying, 'call')} in flight (again to leave at once)")

    signals = {signal.SIGINT: asked, signal.SIGTERM: asked, signal.SIGHUP: stop}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup
        del signals[signal.SIGHUP]
    handlers = {one: signal.getsignal(one) for one in signals}
    for one, then in signals.items():
        loop.add_signal_handler(one, then)
    try:
        yield
    finally:
        for one, then_again in handlers.items():
            loop.remove_signal_handler(one)
            signal.signal(one, then_again)
