"""Estimate a run from what is known about its calls: calls, tokens, dollars, time. No I/O; workload.py reads the store.

Every figure has an expected value and a maximum. The maximum assumes that no reply can be used, so that every item is
requested as often as allowed, and that every reply is as long as its limit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aif.config.sections import DeclaredEndpoint, Judge, Model
from aif.core.formatting import counted
from aif.core.types import UNSPENT, Spent, Stage, Usage
from aif.judging.request import max_billed_replies
from aif.judging.rubric import Rubric
from aif.store.estimate_queries import ReplyUsage
from aif.store.report_queries import Tally

BYTES_A_TOKEN = 4.0  # of English, and of most other scripts in UTF-8; providers assume it too
FEWEST_BYTES_A_TOKEN = 2.0  # of digits, code and scripts that a tokenizer does not know
COMPLETION_TOKENS = 300  # of a completion without a measurement; answers in chat datasets have 150 to 500
RATING_TOKENS = 15  # of the keys, quotes and the rating itself around a rationale


@dataclass(frozen=True, slots=True)
class Span:
    """An estimated amount: the expected value, and the most it can be."""

    expected: float
    most: float

    def __add__(self, other: "Span") -> "Span":
        return Span(self.expected + other.expected, self.most + other.most)

    def __mul__(self, times: float) -> "Span":
        return Span(self.expected * times, self.most * times)


ZERO = Span(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class TokenRate:
    """Tokens per byte of a request. `basis` says in words where the figure comes from."""

    tokens: Span
    basis: str


UNMEASURED = TokenRate(Span(1 / BYTES_A_TOKEN, 1 / FEWEST_BYTES_A_TOKEN), f"{BYTES_A_TOKEN:g} bytes a token assumed")


@dataclass(frozen=True, slots=True)
class ReplyLength:
    """The length of one reply: the mean, and the most.

    tokens: all tokens of the reply, reasoning included.
    shown: the tokens that a judge is shown: all but the reasoning.
    basis: where the figures come from, in words.
    measured: whether the figures come from a model's earlier completions.
    """

    tokens: Span
    shown: Span
    basis: str
    measured: bool = False


@dataclass(frozen=True, slots=True)
class ContextOverflow:
    """How many requests to one model or judge don't fit its context window together with their `max_tokens`.

    over: the number of requests that don't fit, as estimated from a sample.
    total: the number of all these requests.
    window: the context window in tokens.
    awaited: whether some requests will show completions that are still pending, whose length is estimated.
    apart: whether the judge rates the completions of a request that doesn't fit one at a time (`on_overflow: single`).
    """

    stage: Stage
    name: str
    over: int
    total: int
    window: int
    awaited: bool = False
    apart: bool = False


@dataclass(frozen=True, slots=True)
class EndpointWork:
    """The pending calls of one model or judge, with measurements of its earlier calls.

    tally: the numbers of its completions or judgements by state, as if every pending completion will be answered.
    sent: mean bytes of a request's messages, without the texts of completions that are still pending.
    awaited: by model, the mean number of its pending completions that one request to the judge will show.
    rate: tokens per byte of a request.
    reply: the mean length of a reply.
    limit_tokens: mean tokens of a request that count towards a tokens-per-minute limit, without pending completions.
    tries: mean number of calls until an item is answered.
    cached: the share (0 to 1) of input tokens that is read from a provider's prompt cache.
    written: the share (0 to 1) of input tokens that is written to a provider's prompt cache.
    seconds: mean seconds of a call; None if no call was measured.
    overflow: how many requests exceed the context window; None if all fit or the window is unknown.
    """

    stage: Stage
    name: str
    tally: Tally
    sent: float
    awaited: Mapping[str, float]
    rate: TokenRate
    reply: ReplyLength
    limit_tokens: float
    tries: float = 1.0
    cached: float = 0.0
    written: float = 0.0
    seconds: float | None = None
    overflow: ContextOverflow | None = None


@dataclass(frozen=True, slots=True)
class EstimateLine:
    """The estimate for one model or judge: the totals of its pending calls.

    calls: completions or judgements to request; retries don't count.
    stored: completions or judgements that are answered already.
    failed: completions or judgements that failed permanently and are not requested again.
    input: input tokens, retries included.
    output: output tokens, retries included.
    usd: cost in USD; None if the price is unknown.
    seconds: duration of the calls; None if no call was measured and no limit per minute is declared.
    at_least: whether `seconds` may be too low, because no call was measured.
    basis: where the figures come from, in words.
    """

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
    """The estimate for a run.

    lines: one entry per model and judge.
    overflows: the models and judges for which some requests exceed the context window.
    spent: the store's spend before the run.
    budget: the limit in USD for all spend of the store, this run included; None without a limit.
    """

    lines: tuple[EstimateLine, ...]
    overflows: tuple[ContextOverflow, ...] = ()
    spent: Spent = UNSPENT
    budget: float | None = None

    @property
    def calls(self) -> int:
        return sum(line.calls for line in self.lines)

    @property
    def stored(self) -> int:
        """Number of completions and judgements of the current plan that are answered already; they cost nothing."""
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
        """Estimated cost of the run in USD, without the models and judges whose price is unknown."""
        return _sum(line.usd for line in self.lines if line.usd is not None)

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Names of models and judges with calls to make and no known price; if there are any, `usd` is a lower
        bound."""
        return tuple(line.name for line in self.lines if line.calls and line.usd is None)

    @property
    def seconds(self) -> float | None:
        """Estimated seconds of the run: those of the slowest model or judge, since all work in parallel; None if no
        time is known."""
        return max((line.seconds for line in self.lines if line.calls and line.seconds is not None), default=None)

    @property
    def at_least(self) -> bool:
        """Whether `seconds` is a lower bound, because no call of some model or judge was measured."""
        return any(line.at_least for line in self.lines if line.calls)


def _sum(spans: Iterable[Span]) -> Span:
    return sum(spans, ZERO)


def estimate_cost(works: Sequence[EndpointWork], endpoints: Mapping[tuple[Stage, str], DeclaredEndpoint]) -> Estimate:
    """Return the estimate of tokens, dollars and time of the pending calls in `works`, by the prices and limits that
    `endpoints` declare. Spend and budget are left out."""
    replies = {work.name: work.reply for work in works if work.stage == "completion"}
    lines = tuple(_line(work, endpoints[work.stage, work.name], replies) for work in works)
    return Estimate(lines, tuple(work.overflow for work in works if work.overflow))


def context_overflow(
    stage: Stage,
    endpoint: DeclaredEndpoint,
    window: int | None,
    sizes: Sequence[float],
    total: int,
    awaited: bool = False,
) -> ContextOverflow | None:
    """Return how many of `total` requests exceed a context window of `window` tokens; None if all fit, or the window is
    unknown.

    sizes: tokens of each request in a sample, with the longest reply. The share of the sample that exceeds the window
        is applied to `total`.
    awaited: whether some requests will show completions that are still pending, so that their sizes are estimated.
    """
    over = sum(size > window for size in sizes) if window else 0
    if not window or not over:
        return None
    apart = isinstance(endpoint, Judge) and endpoint.on_overflow == "single"
    return ContextOverflow(
        stage, endpoint.name, max(1, round(total * over / len(sizes))), total, window, awaited, apart
    )


def _line(work: EndpointWork, endpoint: DeclaredEndpoint, replies: Mapping[str, ReplyLength]) -> EstimateLine:
    pending = work.tally.pending
    completions = _sum(replies[model].shown * count for model, count in work.awaited.items())
    request, calls = work.rate.tokens * work.sent + completions, pending * work.tries
    most_calls, most_replies = (pending * max(work.tries, times) for times in max_billed_replies(work.stage))
    input = Span(request.expected * calls, request.most * most_calls)
    output = Span(work.reply.tokens.expected * calls, work.reply.tokens.most * most_replies)
    seconds = _seconds(work, endpoint, pending, completions.expected) if pending else 0.0
    basis = (f"tokens in: {work.rate.basis}", f"out: {work.reply.basis}") if pending else ()
    return EstimateLine(
        work.stage, work.name, pending, work.tally.answered, work.tally.failed, input, output,
        _usd(work, endpoint, input, output), seconds, pending > 0 and work.seconds is None, basis,
    )  # fmt: skip


def _usd(work: EndpointWork, endpoint: DeclaredEndpoint, input: Span, output: Span) -> Span | None:
    """Return the cost in USD of `input` and `output` tokens, None if the price is unknown. The maximum takes the
    highest of the prices for plain, cached and cache-written input, for all input tokens."""
    parts = {"cached": round(input.expected * work.cached), "written": round(input.expected * work.written)}
    expected = endpoint.cost(Usage(round(input.expected), round(output.expected), **parts))
    most = endpoint.max_cost(round(input.most), round(output.most))
    return None if expected is None or most is None else Span(expected, most)


def _seconds(work: EndpointWork, endpoint: DeclaredEndpoint, pending: int, completion_tokens: float) -> float | None:
    """Return the seconds that `pending` calls take: at full concurrency, or by the limits per minute, whichever is
    longer; None if neither is known. `completion_tokens` is the expected total length of the pending completions that a
    request will show."""
    times = []
    if work.seconds is not None:
        times.append(pending * work.tries * work.seconds / min(endpoint.concurrency, pending))
    if endpoint.requests_per_minute:
        times.append(pending * work.tries * 60 / endpoint.requests_per_minute)
    if endpoint.tokens_per_minute:
        times.append(pending * work.tries * (work.limit_tokens + completion_tokens) * 60 / endpoint.tokens_per_minute)
    return max(times, default=None)


# --- how long replies are ---------------------------------------------------------------------------------------------


def completion_length(model: Model, max_tokens: int, measured: ReplyUsage | None) -> ReplyLength:
    """Return the length of a model's completions: the mean of its earlier completions with this `max_tokens`.
    `measured` has the totals of those earlier completions. If there are none, a typical length is assumed; for a
    reasoning model, `max_tokens`."""
    if measured and measured.items:
        # reasoning is billed, but no judge is shown it
        tokens = measured.output / measured.calls
        shown = (measured.output - measured.reasoning) / measured.calls
        basis = f"measured on {measured.calls:,} calls, {tokens:,.0f} tokens each"
        return ReplyLength(Span(tokens, max_tokens), Span(shown, max_tokens), basis, measured=True)
    shown = min(COMPLETION_TOKENS, max_tokens)
    tokens = max_tokens if model.is_reasoning_model else shown
    return ReplyLength(Span(tokens, max_tokens), Span(shown, max_tokens), _assumed(tokens, model))


def judgement_length(
    rubric: Rubric, judge: Judge, requests: Sequence[tuple[str, int]], measured: Mapping[str, ReplyUsage]
) -> ReplyLength:
    """Return the mean length of a judge's replies.

    requests: the replies to estimate, as (name of the rubric's request, number of completions shown).
    measured: by name of the request, the totals of earlier replies. The mean tokens per completion shown are used.

    For a request without earlier replies, the length follows from the rubric's rationale lengths. If the judge is a
    reasoning model, the length is max_tokens instead.
    """
    if not requests:
        return ReplyLength(ZERO, ZERO, "")
    lengths = (_judgement_tokens(rubric, judge, name, n, measured.get(name)) for name, n in requests)
    tokens = sum(lengths) / len(requests)
    names = list(dict.fromkeys(name for name, _ in requests))
    calls = [measured[name].calls for name in names if name in measured]
    if not calls:
        basis = _assumed(tokens, judge)
    else:
        basis = f"measured on {sum(calls):,} calls, {tokens:,.0f} tokens each"
        unmeasured = [name for name in names if name not in measured]
        basis += f" ({', '.join(unmeasured)} by the rubric)" if unmeasured else ""
    span = Span(tokens, judge.max_tokens)
    return ReplyLength(span, span, basis)


def _judgement_tokens(rubric: Rubric, judge: Judge, request: str, n: int, measured: ReplyUsage | None) -> float:
    if measured and measured.shown:
        return min(judge.max_tokens, measured.output / measured.calls * measured.items * n / measured.shown)
    if judge.is_reasoning_model:
        return judge.max_tokens
    aspects = (rubric.sheet.aspects[name] for name in rubric.sheet.requests[request].aspects)
    return min(judge.max_tokens, n * sum(aspect.rationale_chars / BYTES_A_TOKEN + RATING_TOKENS for aspect in aspects))


def _assumed(tokens: float, endpoint: Model | Judge) -> str:
    if endpoint.is_reasoning_model:
        return f"max_tokens assumed ({tokens:,.0f} each), since the model reasons"
    source = "by the rubric's rationale lengths" if isinstance(endpoint, Judge) else "assumed"
    return f"{tokens:,.0f} tokens each {source}"


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
