"""The `aif` command: arguments -> one call -> what to print. What is heavy is imported where it is used."""

import asyncio
import gc
import io
import os
import re
import shlex
import signal
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeVar

import typer
from typer.core import TyperGroup

from aif.cli import rubric as cli_rubric
from aif.cli.common import File, Sets, Yes, err, load, me, new_name, out, tell
from aif.core.errors import FULL, AifError, BadInput, BudgetReached, Exit, ProviderRefused, StoreDamaged, StoreLocked
from aif.core.file_permissions import PRIVATE, shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from aif.config.pipeline import Pipeline
    from aif.engine.feedback import Ended
    from aif.judging.rubric import Rubric
    from aif.store.journaled_store import JournaledStore
    from aif.store.reader import Reader

T = TypeVar("T")

# Python looks for cycles each 700 objects unless told otherwise, and each time through more that came to stay. Looked
# for so seldom, and what was there before a run left out of it (see engine/run.py), a call takes a quarter less CPU.
SELDOM = 20_000, 20, 20


class _Commands(TyperGroup):
    """Tells of Ctrl-C, SIGTERM and SIGHUP wherever no command has an answer of its own to them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is closed; Python at its end would die of another
            err.print("\naif: stopped; what was there before is kept, and the same command goes on", soft_wrap=True)
            raise typer.Exit(Exit.INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    name="aif",
    help="Prompts in, a preference dataset that trains out: completions, ratings by a judge, chosen and rejected.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_rubric.app, name="rubric")


def _version(asked: bool) -> None:
    if asked:
        from aif import __version__

        out.print(f"aif {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Tell the version.")
    ] = False,
) -> None:
    """Prompts in, a preference dataset that trains out: completions, ratings by a judge, chosen and rejected."""


@app.command()
def run(
    pipeline: File,
    limit: Annotated[int | None, typer.Option(min=1, help="Work on the first so many prompts only.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed for good.")] = False,
    yes: Yes = False,
    sets: Sets = None,
) -> None:
    """Complete, judge and pair what is pending. The same command goes on after any stop."""
    one = _to_write(pipeline, sets)
    from aif.cli.views.progress import Terminal
    from aif.cli.views.summary import tell_places, tell_summary
    from aif.engine.feedback import feedback
    from aif.store.reader import Reader

    consent = _consent(one, limit, retry_failed, yes)
    ended = feedback(one, Terminal(err), limit=limit, retry_failed=retry_failed, consent=consent)
    with Reader.open(one.store) as reader:
        tell_summary(out, reader, ended.seconds, one.budget_usd)
        example = reader.example_prompt_id()
    tell_places(out, one.store)
    typed = _typed(pipeline, sets)
    _tell_next(typed, ended, example)
    _leave(typed, ended)


def _to_write(file: Path, sets: list[str] | None) -> "Pipeline":
    """The pipeline, where no other process holds its store: told at once, before anything heavy is loaded."""
    from aif.store.lock import busy_message, holder_text, is_held
    from aif.store.paths import StorePaths

    one = load(file, sets)
    lock = StorePaths(one.store).lock
    if is_held(lock):
        raise StoreLocked(busy_message(one.store, holder_text(lock)))
    return one


def _consent(
    pipeline: "Pipeline", limit: int | None, retry_failed: bool, yes: bool
) -> "Callable[[JournaledStore, Rubric], None]":
    """Tells and asks about what a run is going to spend, where anything can be spent."""

    def consent(ledger: "JournaledStore", rubric: "Rubric") -> None:
        if all(one.free for one in (*pipeline.models.values(), *pipeline.judges.values())):
            return
        from aif.cli.views.estimate import ask
        from aif.engine.workload import estimated
        from aif.store.estimate_queries import EstimateReader

        with EstimateReader.of(ledger.store, retry_failed) as outlook:
            estimate = estimated(pipeline, rubric, outlook, limit)
        if estimate.calls:
            ask(err, estimate, pipeline.confirm_usd, yes=yes)

    return consent


@app.command()
def estimate(
    pipeline: File,
    limit: Annotated[int | None, typer.Option(min=1, help="Estimate the first so many prompts only.")] = None,
    probe: Annotated[
        int | None, typer.Option(min=1, help="Ask about the first so many prompts for real, to measure; all is kept.")
    ] = None,
    yes: Yes = False,
    sets: Sets = None,
) -> None:
    """What a run would ask and what that comes to: calls, tokens, dollars, time. No model is called without --probe."""
    one = _to_write(pipeline, sets)
    from aif.cli.views.estimate import ask_for_probe, tell_estimate
    from aif.engine.workload import foresee

    if probe is not None:
        from aif.cli.views.progress import Terminal
        from aif.core.words import counted
        from aif.engine.feedback import feedback

        first = min(probe, limit or probe)
        told = foresee(one, first, tell)
        err.print(f"the probe, the first {counted(first, 'prompt')}: ", end="")
        if told.calls:
            ask_for_probe(err, told, yes=yes)
            ended = feedback(one, Terminal(err), limit=first)
            if ended.asked.stopped or ended.asked.refused or ended.asked.short:
                _leave(_typed(pipeline, sets), ended)
        else:
            err.print("nothing to ask")
    tell_estimate(out, foresee(one, limit, tell))


def _typed(file: Path, sets: list[str] | None) -> str:
    """A pipeline file and what was set, as another command takes them."""
    return shlex.join([str(file), *_repeated("--set", sets)])


def _tell_next(typed: str, ended: "Ended", example: str) -> None:
    """What to do next. `typed` is the pipeline file and what was set, as the other commands take them."""
    steps = []
    if any(tally.pending for tally in ended.tallies.values()):
        steps.append(("run", typed, "goes on with what is pending"))
    if any(tally.failed or tally.pending for tally in ended.tallies.values()):
        steps.append(("failures", typed, "what has no answer, why, and what to do"))
    if example:
        steps.append(("export", typed, "pairs and a dataset with its card; no model is called"))
        steps.append(("show", f"{typed} {example}", "how a pair came to be"))
    if steps:
        out.print("\n[bold]Next[/bold]")
    for command, words, meaning in steps:
        out.print(f"  {me()} {command} {words}", soft_wrap=True, markup=False)
        out.print(f"      {meaning}", style="dim")


def _leave(typed: str, ended: "Ended") -> None:
    """The exit code of a run, said with its reason."""
    from aif.core.words import clock
    from aif.engine.outcome_text import reached

    asked = ended.asked
    if asked.short:
        said = reached(asked.short, f"aif run {re.sub('budget_usd=[^ ]*', 'budget_usd=…', typed)}")
        if not asked.refused:
            raise BudgetReached(said)
        tell(said)
    if asked.refused:
        lines = "\n".join(f"  {name}: {why}" for name, why in asked.refused.items())
        raise ProviderRefused(f"given up until something is mended:\n{lines}\nthen `aif run {typed}` goes on")
    if asked.stopped:
        tell(f"stopped; everything answered is kept. `aif run {typed}` goes on")
        raise typer.Exit(Exit.INTERRUPTED)
    if ended.incomplete:
        waits = "".join(f"; {name} asks to be left alone for {clock(wait_s)}" for name, wait_s in asked.waits.items())
        tell(f"done, but not all was answered: `aif failures {typed}` says why{waits}")
        raise typer.Exit(Exit.FAILURES)


Asked = TypeVar("Asked", bound="Reader")


@contextmanager
def _open(of: "type[Asked]", one: "Pipeline", file: Path, sets: list[str] | None) -> "Iterator[Asked]":
    """The store of a pipeline, where no run holds it. What to do is said where it is broken."""
    from aif.store.paths import StorePaths

    try:
        with of.open(one.store) as reader:
            yield reader
    except StoreDamaged as error:
        typed = _typed(file, sets)
        if StorePaths(one.store).journal.exists():
            mend = f"`aif rebuild {typed}` makes it again from the journal beside it, and so does the next `aif run`"
        else:
            mend = "there is no journal beside it to rebuild it from: set `store` to another path"
        raise StoreDamaged(f"{error}; {mend}") from error


@contextmanager
def _reading(
    one: "Pipeline", file: Path, sets: list[str] | None, held: "Callable[[Console, Path], bool]"
) -> "Iterator[Reader | None]":
    """The store of a pipeline; None where a run holds it, of which `held` has told."""
    if held(out, one.store):
        yield None
        return
    from aif.store.reader import Reader

    with ExitStack() as stack:
        try:
            reader = stack.enter_context(_open(Reader, one, file, sets))
        except StoreLocked:  # a run has begun this moment
            if not held(out, one.store):
                raise
            yield None
            return
        _tell_if_another(one, reader, _typed(file, sets))
        yield reader


@app.command()
def status(pipeline: File, sets: Sets = None) -> None:
    """How far a run is, also while it goes on: done, failed and pending, how fast, what it cost, what is wrong."""
    from aif.cli.views.status import tell_left_behind, tell_progress

    one = load(pipeline, sets)
    with _reading(one, pipeline, sets, tell_progress) as reader:
        if reader:
            from aif.cli.views.summary import tell_status

            tell_left_behind(err, one.store)
            _tell_if_behind(one, reader)
            tell_status(out, reader, one.budget_usd)


def _tell_if_behind(one: "Pipeline", reader: "Reader") -> bool:
    """Whether the journal holds more than a store tells, which is said: a run was killed, or its disk was full."""
    from aif.store.journal import Damage, replay
    from aif.store.paths import StorePaths

    beyond = replay(StorePaths(one.store).journal, reader.journal_position())
    if behind := any(not isinstance(found, Damage) for _, found in beyond):
        tell(f"{one.store}: is behind its journal, which has more answers; the next run or export takes them in")
    return behind


def _tell_if_another(one: "Pipeline", reader: "Reader", typed: str) -> None:
    """Says so where what a store tells is of another pipeline: this one edited since, or a trial that was killed."""
    from aif.engine.prepare import is_prepared, rubric_of

    if reader.get_mark("sources") is None:
        tell(f"the store holds no prompts yet: `aif run {typed}` begins with reading them")
        return
    try:
        prepared = is_prepared(one, rubric_of(one), reader)
    except BadInput:  # its rubric or principles can't be read now: then they are not what the store has, either
        prepared = False
    if not prepared:
        err.print(
            f"the store is as another state of {one.path} left it, or an `aif rubric try` that was killed; "
            f"`aif export {typed}` brings it to what the file says now and calls no model",
            soft_wrap=True, markup=False, highlight=False,
        )  # fmt: skip


@app.command()
def failures(pipeline: File, sets: Sets = None) -> None:
    """What has no answer, by kind, with an example and what to do; also while a run goes on."""
    from aif.cli.views.failures import tell_failures
    from aif.cli.views.status import tell_failures_so_far

    one = load(pipeline, sets)
    with _reading(one, pipeline, sets, tell_failures_so_far) as reader:
        if reader:
            from aif.cli.views.summary import tell_marks
            from aif.engine.outcome_text import unplanned

            balance, behind = reader.item_counts(), _tell_if_behind(one, reader)
            tell_failures(out, balance.missing)
            tell_marks(out, reader)
            if balance.unplanned:
                out.print(unplanned(balance))
            elif balance.prompts and not balance.missing and not behind:
                out.print("nothing failed")


@app.command()
def doctor(pipeline: File, sets: Sets = None) -> None:
    """One real request to every model and judge: key, access, template, schema, disk, each with the way to mend it."""
    from aif.engine.doctor import examine

    one = load(pipeline, sets)

    async def tell() -> bool:
        fine = True
        async for finding in examine(one):
            fine &= finding.fine
            mark = "[green]ok[/green]  " if finding.fine else "[red]mend[/red]"
            out.print(mark, end=" ")
            out.print(f"{finding.what}: {finding.words}", markup=False, soft_wrap=True)
        return fine

    if not asyncio.run(tell()):
        raise typer.Exit(Exit.BAD_INPUT)


@app.command()
def show(
    pipeline: File,
    prompt_id: Annotated[str, typer.Argument(help="The id of a prompt, or its first digits.")],
    sets: Sets = None,
) -> None:
    """From a published row back to everything: messages, order, raw replies, ratings, why these two."""
    from aif.cli.views.show import tell_story
    from aif.store.reader import Reader

    one = load(pipeline, sets)
    with _open(Reader, one, pipeline, sets) as reader:
        _tell_if_another(one, reader, _typed(pipeline, sets))
        tell_story(out, reader, prompt_id)


@app.command()
def pairs(
    pipeline: File,
    sets: Sets = None,
    versus: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--versus", metavar="KEY=VALUE", help="Compare with this key changed, such as pairs.policy=all."),
    ] = None,
) -> None:
    """What a policy makes of the ratings there are, beside another. Nothing is written, no model is called."""
    from aif.cli.views.pairs import outlook, tell_outlook
    from aif.store.result_queries import ResultReader

    one = load(pipeline, sets)
    other = load(pipeline, [*(sets or []), *versus]) if versus else None
    with _open(ResultReader, one, pipeline, sets) as reader:
        seen = outlook(one, reader)
        beside = outlook(other, reader) if other else None
    tell_outlook(out, seen, beside, versus or [])


def _made(one: "Pipeline", typed: str, work: "Callable[[Rubric, JournaledStore], T]") -> "T":
    """What `work` makes of a store that a run has made, brought to what the pipeline says now; its prompts are those it
    has."""
    from aif.engine.prepare import prepare, rubric_of
    from aif.store.journaled_store import JournaledStore
    from aif.store.paths import StorePaths

    if not StorePaths(one.store).any:
        raise BadInput(f"{one.store}: no store here yet; `aif run {typed}` makes it")
    rubric = rubric_of(one)

    def prepared(ledger: JournaledStore) -> "T":
        prepare(one, ledger, rubric, tell, reread=False)
        return work(rubric, ledger)

    return JournaledStore.use(one.store, tell, rubric, prepared, tags=one.tags)


@app.command()
def export(
    pipeline: File,
    to: Annotated[Path | None, typer.Option("--out", help="The folder to make; beside the store if left out.")] = None,
    sets: Sets = None,
) -> None:
    """Pairs by the pipeline's policy, as a dataset with its card. No model is called."""
    one = _to_write(pipeline, sets)
    from aif.cli.views.export import tell_exported
    from aif.export.dataset import export as write

    place = to or one.store.parent / "dataset"
    exported = _made(one, _typed(pipeline, sets), lambda rubric, ledger: write(one, rubric, ledger, place, tell))
    tell_exported(out, exported)


@app.command()
def publish(
    pipeline: File,
    repo: Annotated[str, typer.Option(metavar="ORG/NAME", help="The dataset on the Hub; made if it isn't there.")],
    public: Annotated[bool, typer.Option("--public", help="For everyone to see; private if left out.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Send without asking.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="The folder that was exported; beside the store if left out.")
    ] = None,
    sets: Sets = None,
) -> None:
    """The exported dataset to the Hub, in one commit, after showing what will be sent. Safe to repeat."""
    one = _to_write(pipeline, sets)
    from aif.cli.views.export import question, tell_plan, tell_published
    from aif.export.publish import exported, send, survey

    place = folder or one.store.parent / "dataset"
    mend = shlex.join(
        ["aif", "export", str(pipeline), *(["--out", str(folder)] if folder else []), *_repeated("--set", sets)]
    )
    found = _made(one, _typed(pipeline, sets), lambda rubric, ledger: exported(one, rubric, ledger, place, mend))
    plan = survey(one, place, found, repo, public)
    tell_plan(out, plan)
    if plan.head and not plan.sent and not plan.removed:
        out.print("\nnothing to send: this is what stands there")
        tell_published(out, plan, plan.head)
        return
    if not yes and not _agreed(question(plan)):
        err.print("nothing was sent")
        raise typer.Exit(Exit.INTERRUPTED)
    tell_published(out, plan, send(plan, tell, bars=err.is_terminal))


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise BadInput("nothing was sent: there is no terminal to ask at; --yes sends it unasked")
    return typer.confirm(f"\n{question}")


def _repeated(option: str, values: list[str] | None) -> list[str]:
    return [word for value in values or [] for word in (option, value)]


@app.command()
def rebuild(pipeline: File, sets: Sets = None) -> None:
    """Make the store again from the journal. The old one goes once nothing is left that only it holds."""
    _anew(_to_write(pipeline, sets), "made again from")


@app.command()
def reparse(pipeline: File, sets: Sets = None) -> None:
    """Read every kept reply again with today's reader. No model is called."""
    _anew(_to_write(pipeline, sets), "made again by today's reader from")


def _anew(pipeline: "Pipeline", done: str) -> None:
    from aif.engine.rebuild import again

    told = again(pipeline, tell)
    out.print(f"the store is {done} {told.calls:,} kept calls in {told.seconds:.1f} s; no model was called")
    if not told.alike + told.changed + told.lost:
        out.print(f"judgements: {told.gained:,} read; no earlier reading was there to compare them with")
        return
    out.print(
        f"judgements: {told.alike:,} read as before, {told.changed:,} otherwise, "
        f"{told.gained:,} only now, {told.lost:,} no longer"
    )


@app.command()
def simulate(
    model: Annotated[Optional[list[str]], typer.Option(metavar="NAME=QUALITY", help="A model, quality 0 to 1.")] = None,  # noqa: UP045
    judge: Annotated[Optional[list[str]], typer.Option(metavar="NAME=NOISE", help="A judge, noise from 0.")] = None,  # noqa: UP045
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    latency: Annotated[float, typer.Option(min=0, help="Seconds before each answer.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Other seeds write other texts.")] = 0,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help="What befalls a share of the calls, such as rate_limited=0.05."),
    ] = None,
    requests_per_minute: Annotated[Optional[int], typer.Option(min=1, help="What each model takes.")] = None,  # noqa: UP045
    tokens_per_minute: Annotated[Optional[int], typer.Option(min=1, help="What each model takes.")] = None,  # noqa: UP045
) -> None:
    """Serve models of declared quality, judges of declared noise, as providers do; any name, if none is given."""
    from aif.simulator import Cast, Fault, Faults, Simulator

    cast = Cast(_pairs(model, "--model"), _pairs(judge, "--judge"), seed, open=not (model or judge))
    shares = _pairs(fault, "--fault")
    if unknown := shares.keys() - set(Fault):
        raise BadInput(f"--fault {sorted(unknown)[0]}: no such fault; there are {', '.join(sorted(Fault))}")
    faults = Faults({Fault(name): share for name, share in shares.items()}, seed)
    limits: dict[str, Any] = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}

    async def serve() -> None:
        async with Simulator(cast, host=host, port=port, latency_s=latency, faults=faults, **limits) as simulator:
            out.print(f"serving at {simulator.base_url} (Ctrl-C ends it)")
            await asyncio.Event().wait()

    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        tell("\nno longer serving")
        raise typer.Exit(Exit.INTERRUPTED) from None
    except OSError as error:
        raise BadInput(
            f"{host}:{port}: can't be listened on: {error.strerror}; name another --port or --host"
        ) from error


def _pairs(values: list[str] | None, option: str) -> dict[str, float]:
    found = {}
    for value in values or []:
        name, _, number = value.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise BadInput(f"{option} {value}: expected NAME=NUMBER")
    return found


@app.command()
def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")]) -> None:
    """A folder to start from: a pipeline with every choice explained, and a few prompts."""
    from shutil import copytree

    from aif.core.resources import shipped

    name, file = new_name(folder), folder / "pipeline.yaml"
    with shared():
        copytree(shipped("data", "starter"), folder, dirs_exist_ok=True)
    file.write_text(file.read_text(encoding="utf-8").replace("name: demo", f'name: "{name}"', 1), encoding="utf-8")
    out.print(f"{file} and {folder / 'prompts.jsonl'} are there. Next:", soft_wrap=True)
    out.print(f"  {me()} run {shlex.quote(str(file))}", soft_wrap=True, markup=False)


def _leaf(error: BaseException) -> BaseException:
    """The first error inside a group of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> None:
    """The entry point: every error a person can mend is one line and an exit code."""
    gc.set_threshold(*SELDOM)
    os.umask(PRIVATE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal can't show is replaced
            stream.reconfigure(errors="replace")
    for one in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(one) is signal.SIG_DFL:  # else by nohup
            signal.signal(one, signal.default_int_handler)
    try:
        app()
    except Exception as raised:
        sys.exit(_code(_leaf(raised)))
    except asyncio.CancelledError:
        err.print("aif: left at once; what was answered is kept, and the same command goes on", soft_wrap=True)
        sys.exit(Exit.INTERRUPTED)


def _code(error: BaseException) -> int:
    if isinstance(error, AifError):
        err.print(f"aif: {error}", markup=False, soft_wrap=True)
        return int(error.exit)
    if isinstance(error, OSError) and error.strerror:
        full = error.errno in FULL
        then = "; make room, and the same command goes on" if full else ""
        where = f"{error.filename}: " if error.filename else ""
        err.print(f"aif: {where}{error.strerror}; what was answered before is kept{then}", markup=False, soft_wrap=True)
        return int(Exit.DISK if full else Exit.BUG)
    raise error


if __name__ == "__main__":
    main()
