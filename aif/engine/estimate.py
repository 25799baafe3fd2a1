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
from aif.store.forecast import Replies
from aif.store.reader import Tally

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


ZERO = Span(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class TokenRate:
    """Tokens a byte of what is sent, and how that is known."""

    tokens: Span
    basis: str


UNMEASURED = TokenRate(Span(1 / BYTES_A_TOKEN, 1 / FEWEST_BYTES_A_TOKEN), f"{BYTES_A_TOKEN:g} bytes a token assumed")


@dataclass(frozen=True, slots=True)
class ReplyLength:
    """Tokens of one reply, how many of them a judge is shown (all but the reasoning), and how that is known."""

    tokens: Span
    shown: Span
    basis: str
    measured: bool = False


@dataclass(frozen=True, slots=True)
class ContextOverflow:
    """Of what one model or judge is to be asked, how many requests its `window` (tokens) can't hold, their replies'
    `max_tokens` with them. `awaited`: completions still to come are among them. `apart`: these are then asked one
    completion by one."""

    stage: Stage
    name: str
    over: int
    total: int
    window: int
    awaited: bool = False
    apart: bool = False


@dataclass(frozen=True, slots=True)
class EndpointWork:
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
    rate: TokenRate
    reply: ReplyLength
    reckoned: float
    tries: float = 1.0
    cached: float = 0.0
    written: float = 0.0
    seconds: float | None = None
    overflow: ContextOverflow | None = None


@dataclass(frozen=True, slots=True)
class EstimateLine:
    """What one model or judge comes to. `usd` is None where its price isn't known; `seconds` is None where nothing says
    how long it takes, and `at_least` that only its limits do."""

    stage: Stage
    name: str
    calls: int
    stored: int
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
    overflows: tuple[ContextOverflow, ...] = ()
    spent: Spent = UNSPENT
    budget: float | None = None

    @property
    def calls(self) -> int:
        return sum(line.calls for line in self.lines)

    @property
    def stored(self) -> int:
        """Answers that are had and wanted, so that nothing is paid for them again."""
        return sum(line.stored for line in self.lines)

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
    return sum(spans, ZERO)


def estimate_cost(works: Sequence[EndpointWork], endpoints: Mapping[tuple[Stage, str], DeclaredEndpoint]) -> Estimate:
    """What the work comes to at the endpoints' prices and limits."""
    replies = {work.name: work.reply for work in works if work.stage == "completion"}
    lines = tuple(_line(work, endpoints[work.stage, work.name], replies) for work in works)
    return Estimate(lines, tuple(work.overflow for work in works if work.overflow))


def context_overflow(
    stage: Stage, one: DeclaredEndpoint, window: int | None, sizes: Sequence[float], of: int, awaited: bool = False
) -> ContextOverflow | None:
    """What can't be held of so many requests, by the tokens that some of them may come to with their replies."""
    over = sum(size > window for size in sizes) if window else 0
    if not window or not over:
        return None
    apart = isinstance(one, Judge) and one.on_overflow == "single"
    return ContextOverflow(stage, one.name, max(1, round(of * over / len(sizes))), of, window, awaited, apart)


def _line(work: EndpointWork, one: DeclaredEndpoint, replies: Mapping[str, ReplyLength]) -> EstimateLine:
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


def _usd(work: EndpointWork, one: DeclaredEndpoint, sent: Span, said: Span) -> Span | None:
    """At most, all input costs what is dearest of it: nothing is read from a cache, and all may be written to one."""
    parts = {"cached": round(sent.expected * work.cached), "written": round(sent.expected * work.written)}
    usual = one.cost(Usage(round(sent.expected), round(said.expected), **parts))
    most = one.bound(round(sent.most), round(said.most))
    return None if usual is None or most is None else Span(usual, most)


def _seconds(work: EndpointWork, one: DeclaredEndpoint, calls: int, coming: float) -> float | None:
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


def completion_length(model: Model, max_tokens: int, had: Replies | None) -> ReplyLength:
    """What a model writes: as measured under this `max_tokens`, else a typical answer."""
    if had and had.items:
        # what reasoning took is billed, and no judge sees it
        tokens, shown = had.output / had.calls, (had.output - had.reasoning) / had.calls
        basis = f"measured on {had.calls:,} calls, {tokens:,.0f} tokens each"
        return ReplyLength(Span(tokens, max_tokens), Span(shown, max_tokens), basis, measured=True)
    shown = min(COMPLETION_TOKENS, max_tokens)
    tokens = max_tokens if model.reasons else shown
    return ReplyLength(Span(tokens, max_tokens), Span(shown, max_tokens), _assumed(tokens, model))


def judgement_length(
    rubric: Rubric, judge: Judge, asked: Sequence[tuple[str, int]], had: Mapping[str, Replies]
) -> ReplyLength:
    """What a judge writes: the mean over `asked`, requests with the number of completions they show. Of a request that
    was measured its tokens a completion, else what the rubric gives room for."""
    if not asked:
        return ReplyLength(ZERO, ZERO, "")
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
    return ReplyLength(span, span, basis)


def _judged(rubric: Rubric, judge: Judge, request: str, n: int, had: Replies | None) -> float:
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


def overflow_text(overflow: ContextOverflow) -> str:
    """Return a sentence that says how many requests don't fit the context window, and what to change."""
    requests = f"{overflow.over:,} of {counted(overflow.total, 'request')}"
    message = f"{requests} would not fit into {overflow.name}'s {overflow.window:,} tokens"
    if overflow.stage == "completion":
        return f"{message}, with max_tokens: lower max_tokens, or the source's max_chars"
    pending = ", and pending completions as long as those so far, or else their max_tokens" if overflow.awaited else ""
    then = (
        "they are judged one completion at a time, which takes more calls than estimated"
        if overflow.apart
        else "`on_overflow: single` judges one completion at a time"
    )
    return (
        f"{message}, with its max_tokens{pending}: {then}; with a lower completions.max_tokens or a larger context "
        "window it can judge all completions together"
    )
