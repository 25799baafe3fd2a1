"""What a run would ask and what that comes to: calls, tokens, dollars, time. Pure; workload.py brings the facts.

Every figure is two: what is expected, and what it is at most, if no reply can be used, so that each is asked for again,
and each is as long as its limit allows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aif.config.sections import DeclaredEndpoint, Judge, Model
from aif.core.types import UNSPENT, Spent, Stage, Usage
from aif.core.words import counted
from aif.judging.request import replies_at_most
from aif.judging.rubric import Rubric
from aif.store.estimate_queries import ReplyUsage
from aif.store.report_queries import Tally

BYTES_A_TOKEN = 4.0  # of English, and of most other scripts in UTF-8; what providers reckon with
FEWEST_BYTES_A_TOKEN = 2.0  # of digits, code and scripts that a tokenizer does not know
COMPLETION_TOKENS = 300  # of a completion nobody has measured; chat datasets' answers have 150 to 500
RATING_TOKENS = 15  # of keys, quotes and the rating itself around a rationale


@dataclass(frozen=True, slots=True)
class Span:
    """What is expected, and what it is at most."""

    expected: float
    most: float

    def __add__(self, other: "Span") -> "Span":
        return Span(self.expected + other.expected, self.most + other.most)

    def __mul__(self, times: float) -> "Span":
        return Span(self.expected * times, self.most * times)


NOTHING = Span(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens a byte of what is sent, and how that is known."""

    tokens: Span
    basis: str


UNMEASURED = Rate(Span(1 / BYTES_A_TOKEN, 1 / FEWEST_BYTES_A_TOKEN), f"{BYTES_A_TOKEN:g} bytes a token assumed")


@dataclass(frozen=True, slots=True)
class Length:
    """Tokens of one reply, how many of them a judge is shown (all but the reasoning), and how that is known."""

    tokens: Span
    shown: Span
    basis: str
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Tight:
    """Of what one model or judge is to be asked, how many requests its `window` (tokens) can't hold, their replies'
    `max_tokens` with them. `awaited`: completions still to come are among them. `apart`: these are then asked one
    completion by one."""

    stage: Stage
    name: str
    over: int
    of: int
    window: int
    awaited: bool = False
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What one model or judge has still to be asked; sizes are means of its calls.

    `tally` counts judgements as if every completion came through. `sent` is bytes, without the completions still to
    come that a judge will be shown: `awaited` counts those by model. `reckoned` is the tokens of a call as a limit per
    minute counts them. What only measuring tells: `tries`, calls an answer; `cached` and `written`, the parts of the
    input read from a provider's cache and written to one; `seconds` of a call.
    """

    stage: Stage
    name: str
    tally: Tally
    sent: float
    awaited: Mapping[str, float]
    rate: Rate
    reply: Length
    reckoned: float
    tries: float = 1.0
    cached: float = 0.0
    written: float = 0.0
    seconds: float | None = None
    tight: Tight | None = None


@dataclass(frozen=True, slots=True)
class EstimateLine:
    """What one model or judge comes to. `usd` is None where its price isn't known; `seconds` is None where nothing says
    how long it takes, and `at_least` that only its limits do."""

    stage: Stage
    name: str
    calls: int
    kept: int
    failed: int
    input: Span
    output: Span
    usd: Span | None
    seconds: float | None
    at_least: bool
    basis: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would come to, by model and judge; what was spent before, and the budget (USD) for both."""

    lines: tuple[EstimateLine, ...]
    tight: tuple[Tight, ...] = ()
    spent: Spent = UNSPENT
    budget: float | None = None

    @property
    def calls(self) -> int:
        return sum(line.calls for line in self.lines)

    @property
    def kept(self) -> int:
        """Answers that are had and wanted, so that nothing is paid for them again."""
        return sum(line.kept for line in self.lines)

    @property
    def failed(self) -> int:
        return sum(line.failed for line in self.lines)

    @property
    def input(self) -> Span:
        return _sum(line.input for line in self.lines)

    @property
    def output(self) -> Span:
        return _sum(line.output for line in self.lines)

    @property
    def usd(self) -> Span:
        """Of those whose price is known."""
        return _sum(line.usd for line in self.lines if line.usd is not None)

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Those to be asked whose price isn't known, so that `usd` is a lower bound."""
        return tuple(line.name for line in self.lines if line.calls and line.usd is None)

    @property
    def seconds(self) -> float | None:
        """Of the slowest, since all are asked side by side."""
        return max((line.seconds for line in self.lines if line.calls and line.seconds is not None), default=None)

    @property
    def at_least(self) -> bool:
        """Whether somebody's time is not measured, so that `seconds` is a lower bound."""
        return any(line.at_least for line in self.lines if line.calls)


def _sum(spans: Iterable[Span]) -> Span:
    return sum(spans, NOTHING)


def estimate(works: Sequence[Work], endpoints: Mapping[tuple[Stage, str], DeclaredEndpoint]) -> Estimate:
    """What the work comes to at the endpoints' prices and limits."""
    replies = {work.name: work.reply for work in works if work.stage == "completion"}
    lines = tuple(_line(work, endpoints[work.stage, work.name], replies) for work in works)
    return Estimate(lines, tuple(work.tight for work in works if work.tight))


def tight(
    stage: Stage, one: DeclaredEndpoint, window: int | None, sizes: Sequence[float], of: int, awaited: bool = False
) -> Tight | None:
    """What can't be held of so many requests, by the tokens that some of them may come to with their replies."""
    over = sum(size > window for size in sizes) if window else 0
    if not window or not over:
        return None
    apart = isinstance(one, Judge) and one.on_overflow == "single"
    return Tight(stage, one.name, max(1, round(of * over / len(sizes))), of, window, awaited, apart)


def _line(work: Work, one: DeclaredEndpoint, replies: Mapping[str, Length]) -> EstimateLine:
    calls = work.tally.pending
    coming = _sum(replies[model].shown * count for model, count in work.awaited.items())
    each, asked = work.rate.tokens * work.sent + coming, calls * work.tries
    most, limits = (calls * max(work.tries, times) for times in replies_at_most(work.stage))
    sent = Span(each.expected * asked, each.most * most)
    said = Span(work.reply.tokens.expected * asked, work.reply.tokens.most * limits)
    seconds = _seconds(work, one, calls, coming.expected) if calls else 0.0
    basis = (f"tokens in: {work.rate.basis}", f"out: {work.reply.basis}") if calls else ()
    return EstimateLine(
        work.stage, work.name, calls, work.tally.answered, work.tally.failed, sent, said,
        _usd(work, one, sent, said), seconds, calls > 0 and work.seconds is None, basis,
    )  # fmt: skip


def _usd(work: Work, one: DeclaredEndpoint, sent: Span, said: Span) -> Span | None:
    """At most, all input costs what is dearest of it: nothing is read from a cache, and all may be written to one."""
    parts = {"cached": round(sent.expected * work.cached), "written": round(sent.expected * work.written)}
    usual = one.cost(Usage(round(sent.expected), round(said.expected), **parts))
    most = one.bound(round(sent.most), round(said.most))
    return None if usual is None or most is None else Span(usual, most)


def _seconds(work: Work, one: DeclaredEndpoint, calls: int, coming: float) -> float | None:
    """As long as calls take by as many as may be in flight, and not less than the limits per minute allow."""
    least = []
    if work.seconds is not None:
        least.append(calls * work.tries * work.seconds / min(one.concurrency, calls))
    if one.requests_per_minute:
        least.append(calls * work.tries * 60 / one.requests_per_minute)
    if one.tokens_per_minute:
        least.append(calls * work.tries * (work.reckoned + coming) * 60 / one.tokens_per_minute)
    return max(least, default=None)


# --- how long replies are ---------------------------------------------------------------------------------------------


def completion_length(model: Model, max_tokens: int, had: ReplyUsage | None) -> Length:
    """What a model writes: as measured under this `max_tokens`, else a typical answer."""
    if had and had.items:
        # what reasoning took is billed, and no judge sees it
        tokens, shown = had.output / had.calls, (had.output - had.reasoning) / had.calls
        basis = f"measured on {had.calls:,} calls, {tokens:,.0f} tokens each"
        return Length(Span(tokens, max_tokens), Span(shown, max_tokens), basis, measured=True)
    shown = min(COMPLETION_TOKENS, max_tokens)
    tokens = max_tokens if model.reasons else shown
    return Length(Span(tokens, max_tokens), Span(shown, max_tokens), _assumed(tokens, model))


def judgement_length(
    rubric: Rubric, judge: Judge, asked: Sequence[tuple[str, int]], had: Mapping[str, ReplyUsage]
) -> Length:
    """What a judge writes: the mean over `asked`, requests with the number of completions they show. Of a request that
    was measured its tokens a completion, else what the rubric gives room for."""
    if not asked:
        return Length(NOTHING, NOTHING, "")
    tokens = sum(_judged(rubric, judge, request, n, had.get(request)) for request, n in asked) / len(asked)
    requests = list(dict.fromkeys(request for request, _ in asked))
    known = [had[request].calls for request in requests if request in had]
    if not known:
        basis = _assumed(tokens, judge)
    else:
        basis = f"measured on {sum(known):,} calls, {tokens:,.0f} tokens each"
        new = [request for request in requests if request not in had]
        basis += f" ({', '.join(new)} by the rubric)" if new else ""
    span = Span(tokens, judge.max_tokens)
    return Length(span, span, basis)


def _judged(rubric: Rubric, judge: Judge, request: str, n: int, had: ReplyUsage | None) -> float:
    if had and had.shown:
        return min(judge.max_tokens, had.output / had.calls * had.items * n / had.shown)
    if judge.reasons:
        return judge.max_tokens
    aspects = (rubric.sheet.aspects[name] for name in rubric.sheet.requests[request].aspects)
    return min(judge.max_tokens, n * sum(one.rationale_chars / BYTES_A_TOKEN + RATING_TOKENS for one in aspects))


def _assumed(tokens: float, one: Model | Judge) -> str:
    if one.reasons:
        return f"max_tokens assumed ({tokens:,.0f} each), since it reasons"
    rubric = "by the rubric's room for rationales" if isinstance(one, Judge) else "assumed"
    return f"{tokens:,.0f} tokens each {rubric}"


def unfit(tight: Tight) -> str:
    """What does not fit, and what to do."""
    said = f"{tight.over:,} of {counted(tight.of, 'request')} would not fit into {tight.name}'s {tight.window:,} tokens"
    if tight.stage == "completion":
        return f"{said}, with max_tokens: lower that, or the source's max_chars"
    come = ", and completions to come as long as those so far, or else their max_tokens" if tight.awaited else ""
    then = (
        "they are asked one completion by one, more calls than told"
        if tight.apart
        else "`on_overflow: single` asks one completion by one"
    )
    mend = "a lower completions.max_tokens or a longer window lets it see all together"
    return f"{said}, with its max_tokens{come}: {then}; {mend}"
