"""All of `aif run`: prepare the store, make the pending calls, make pairs.

run_pipeline -> prepare (prompts, plan) -> call_endpoints -> Orchestrator.work (all calls) -> make_pairs.
"""

import asyncio
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aif.config.pipeline import Pipeline, request_options
from aif.core.environment import ENVIRON
from aif.core.formatting import counted
from aif.engine.advice import fix
from aif.engine.budget import BudgetShortfall
from aif.engine.connect import open_endpoints
from aif.engine.make_pairs import make_pairs
from aif.engine.orchestrator import Orchestrator
from aif.engine.prepare import prepare, rubric_of
from aif.engine.progress import Display, ProgressTracker, show_progress
from aif.judging.rubric import Rubric
from aif.providers.endpoint import Endpoint
from aif.providers.retry import RetryPolicy
from aif.servers.command import check_owner, programs_run, secret_destinations
from aif.servers.fleet import Fleet
from aif.servers.placement import EndpointKey
from aif.store import records
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from aif.store.report_queries import Tally

OTHER_FILES = 256  # open files besides connections of calls: store, journal, logs, libraries


@dataclass(frozen=True, slots=True)
class CallingResult:
    """How the calls of a run ended.

    stopped: whether a person, the budget or an error stopped the calls, maybe before all were made.
    refused: the models and judges that take no more calls, by name, each with the reason and the fix.
    budget_shortfall: what was spent and what the next call may cost, if the budget refused calls; else None.
    retry_after_s: the models and judges that asked for a pause, by name, each with the seconds left of the pause.
    """

    stopped: bool
    refused: dict[str, str]
    budget_shortfall: BudgetShortfall | None
    retry_after_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended.

    calling: how its calls ended.
    outcomes: the number of prompts by outcome: "paired", or the reason why a prompt has no pair.
    tallies: by (stage, model or judge), the numbers of its completions or judgements by state.
    seconds: the run's duration.
    """

    calling: CallingResult
    outcomes: dict[str, int]
    tallies: dict[tuple[str, str], Tally]
    seconds: float

    @property
    def incomplete(self) -> bool:
        """Whether any completion or judgement for the run's prompts has no answer."""
        return any(tally.answered < tally.wanted for tally in self.tallies.values())


@dataclass
class StopRequest:
    """Whether a person has asked the run to stop. If the run starts over on a rebuilt store, the request still holds,
    so that no new call is made."""

    stopped: bool = False


def run_pipeline(
    pipeline: Pipeline,
    display: Display,
    *,
    limit: int | None = None,
    retry_failed: bool = False,
    policy: RetryPolicy | None = None,
    consent: Callable[[JournaledStore, Rubric], None] | None = None,
) -> RunResult:
    """Make all pending calls of a pipeline, then its preference pairs; the results go to the pipeline's store.

    limit: calls are made for the first `limit` prompts only; None: for all.
    retry_failed: whether permanently failed items are requested again.
    policy: when failed calls are retried; None: the default policy.
    consent: called once all is prepared and before the first call; an exception that it raises ends the run.

    Raises AifError if the pipeline, its sources or its store can't be used.
    """
    began = time.monotonic()

    tell = display.print_line
    rubric = rubric_of(pipeline)
    report_programs_and_secrets(pipeline, tell)
    for endpoint in (*pipeline.models.values(), *pipeline.judges.values()):
        request_options(endpoint, ENVIRON)  # raises for a missing key, before anything is read
    agreed, stop = False, StopRequest()  # both stay if the store is rebuilt during the run

    def with_store(journaled: JournaledStore) -> RunResult:
        nonlocal agreed
        identities = prepare(pipeline, journaled, rubric, tell)
        if consent is not None and not agreed:
            consent(journaled, rubric)
        if identities:
            journaled.keep(identities)
        if retry_failed and not agreed:
            journaled.keep([records.retry(datetime.now(UTC))])
        agreed = True
        calling = call_endpoints(pipeline, journaled, rubric, display, tell, limit, policy or RetryPolicy(), stop)
        result = asyncio.run(calling)
        outcomes = make_pairs(pipeline, rubric, journaled.store)
        with Reader.of(journaled.store) as reader:
            tallies = reader.tallies(limit)
        return RunResult(result, outcomes, tallies, time.monotonic() - began)

    return JournaledStore.use(pipeline.store, tell, rubric, with_store, tags=pipeline.reasoning_tags)


def report_programs_and_secrets(pipeline: Pipeline, tell: Callable[[str], None]) -> None:
    """Report which programs a pipeline starts and which secrets it sends over an unsafe connection.

    Raises BadInput if another user may have written the pipeline file and it starts programs or sends any secrets.
    """
    check_owner(pipeline)
    for line in (*programs_run(pipeline), *secret_destinations(pipeline, unsafe=True)):
        tell(line)


async def call_endpoints(
    pipeline: Pipeline,
    journaled: JournaledStore,
    rubric: Rubric,
    display: Display,
    tell: Callable[[str], None],
    limit: int | None,
    policy: RetryPolicy,
    stop: StopRequest,
) -> CallingResult:
    """Make every pending call of a prepared store, and return how the calls ended. Starts servers, shows progress,
    handles Ctrl-C.

    `limit` restricts the calls to the first `limit` prompts. If `stop` is set already, no call is made.
    """
    async with open_endpoints(pipeline, policy=policy) as endpoints:
        with Reader.of(journaled.store) as reader:
            all_tallies = reader.tallies()
            tallies = all_tallies if limit is None else reader.tallies(limit)
            spent, budget = reader.spent(), pipeline.budget_usd
            tracker = ProgressTracker(endpoints, tallies, reader.permanent_failures(), spent=spent, budget=budget)
        for endpoint in endpoints:
            if tally := all_tallies.get((endpoint.stage, endpoint.name)):
                endpoint.answered = tally.answered
        fleet = await Fleet.plan(pipeline, endpoints, _pending(pipeline, tallies), journaled.paths.logs, tell)
        _raise_file_limit(endpoints, tell)
        orchestrator = Orchestrator(pipeline, journaled, rubric, endpoints, tracker, spent, limit)
        if stop.stopped:
            orchestrator.stop()
        ended = asyncio.Event()
        progress = asyncio.create_task(show_progress(tracker, display, journaled.paths.progress, ended))
        try:
            with _signals(orchestrator, display, stop):
                async with asyncio.TaskGroup() as group:
                    group.create_task(fleet.run())
                    await orchestrator.work()
        finally:
            ended.set()
            await progress
        refused = {e.name: _refusal(e) for e in endpoints if e.refused}
        retry_after_s = {e.name: wait_s for e in endpoints if (wait_s := e.retry_at - e.clock()) > 0}
        return CallingResult(orchestrator.stopping, refused, orchestrator.budget_shortfall, retry_after_s)


def _refusal(endpoint: Endpoint) -> str:
    """Return why an endpoint takes no more calls, and the fix."""
    advice = fix(endpoint.refusal, endpoint.refused or "") if endpoint.refusal else ""
    return f"{endpoint.refused}" + (f"\n    → {advice}" if advice else "")


def _raise_file_limit(endpoints: Sequence[Endpoint], tell: Callable[[str], None]) -> None:
    """Raise this process's limit of open files, as far as allowed, so that every call in flight can have a connection:
    many systems allow 256 or 1,024 files by default. If that isn't enough, a warning goes to `tell`."""
    wanted = sum(endpoint.concurrency for endpoint in endpoints) + OTHER_FILES
    limit, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= wanted:
        return
    limit = wanted if maximum == resource.RLIM_INFINITY else min(wanted, maximum)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, maximum))
    if limit < wanted:
        tell(f"this process may open {limit} files (ulimit -n), and needs up to {wanted}; lower `concurrency`")


def _pending(pipeline: Pipeline, tallies: dict[EndpointKey, Tally]) -> set[EndpointKey]:
    """Return the (stage, name) of the models and judges with pending items. If completions are pending, every judge is
    included, since it will have judgements."""
    pending = {key for key, tally in tallies.items() if tally.pending}
    generating = any(stage == "completion" for stage, _ in pending)
    return pending | {("judgement", name) for name in pipeline.judges if generating}


@contextmanager
def _signals(orchestrator: Orchestrator, display: Display, stop: StopRequest) -> Iterator[None]:
    """During the `with` block, handle Ctrl-C and SIGTERM: the first lets calls in flight finish, the second cancels
    them.

    SIGHUP lets calls in flight finish too, however often it comes: a closed terminal sends it twice, by the shell and
    the system. After a SIGHUP, or a stop by the budget or a full disk, the next Ctrl-C counts as the first.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    interrupted = False

    def finish() -> None:
        stop.stopped = True
        orchestrator.stop()

    def interrupt() -> None:
        nonlocal interrupted
        if interrupted:
            task.cancel()
            return
        interrupted = True
        finish()
        in_flight = sum(endpoint.in_flight for endpoint in orchestrator.endpoints)
        display.print_line(f"stopping: waiting for {counted(in_flight, 'call')} in flight (Ctrl-C again stops at once)")

    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: interrupt, signal.SIGHUP: finish}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup
        del handlers[signal.SIGHUP]
    previous = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number, handler_before in previous.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler_before)
