"""8. What judging a prompt costs, by rubric and provider, and what caching, merging and short rationales each save.

Tokens are counted by OpenAI's o200k_base in what is sent: rendered messages and schema. `make bench` downloads the
vocabulary. Prices and caching rules are those that providers publish; they change, and are all in the table below.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from aif.config.pipeline import parse
from aif.config.sections import Judge
from aif.core.types import Message, Prompt
from aif.engine.prepare import rubric_of
from aif.judging.request import judging_request
from aif.judging.rubric import Rubric
from aif.simulator import SimulatedModels
from aif.store.reader import Reader
from tests.support.serving import serving
from trials.harness import Figures
from trials.performance.measured_run import aif, pipeline

NUMBER = 8
PROMISE = (
    "Judge tokens: at most 30 % of the cost of UltraFeedback's method with `unified`, 55 % with one request an aspect; "
    "90 % of the cache hits that the layout allows"
)
GOALS = {"unified": 0.30, "aspects": 0.55}
HITS = 0.90
COMPLETION, ASKED = 305, 185  # tokens: UltraFeedback's means of a completion and a prompt
RATIONALE, VERBOSE, CRITIQUE = 35, 77, 143  # tokens: our rationale; UltraFeedback's; its critique
# UltraFeedback's own bill: about 11,000 tokens in and 1,800 out a prompt, at 2 and 8 USD a million


@dataclass(frozen=True, slots=True)
class Provider:
    """Prices in USD per million tokens, and the cache: `least` is its shortest prefix in tokens, `step` its unit."""

    name: str
    input: float
    output: float
    read: float
    write: float
    least: int
    step: int = 1


PROVIDERS = (
    Provider("OpenAI gpt-4.1", 2.00, 8.00, 0.50, 2.00, 1024, 128),
    Provider("OpenAI, writes billed", 2.00, 8.00, 0.20, 2.50, 1024, 128),
    Provider("Anthropic, from 1,024", 2.00, 10.00, 0.20, 2.50, 1024),
    Provider("Anthropic, from 4,096", 2.00, 10.00, 0.20, 2.50, 4096),
)

PIPELINE = """
name: tokens
prompts: [{file: prompts.jsonl}]
models: {a: {provider: simulator}, b: {provider: simulator}, c: {provider: simulator}, d: {provider: simulator}}
judges: {judge: {provider: openai, model: gpt-4.1, base_url: "http://127.0.0.1:9/v1"}}
rubric: %s
pairs: {score: mean}
"""


@dataclass(frozen=True, slots=True)
class RequestTokens:
    """Token counts of one request: sent, of these shared with the beginning of other requests, and received."""

    sent: int
    shared: int
    received: int


def trial(folder: Path, full: bool) -> Figures:
    count = _counter()
    way = {
        "ultrafeedback": _requests(folder, "ultrafeedback", count, VERBOSE, CRITIQUE),
        "brief": _requests(folder, "ultrafeedback", count, RATIONALE, RATIONALE),
        "aspects": _requests(folder, "ultrafeedback", count, RATIONALE, None),
        "unified": _requests(folder, "unified", count, RATIONALE, None),
    }
    bills = {
        name: {
            provider.name: {
                "cached": round(_usd(requests, provider, cached=True), 5),
                "uncached": round(_usd(requests, provider, cached=False), 5),
            }
            for provider in PROVIDERS
        }
        for name, requests in way.items()
    }
    tokens = {
        name: {"requests": len(asked), "sent": sum(a.sent for a in asked), "received": sum(a.received for a in asked)}
        for name, asked in way.items()
    }
    return {"tokens": tokens, "usd": bills, "simulator": _hits(folder / "hits", 40 if full else 4)}


def _counter() -> Callable[[str], int]:
    try:
        import tiktoken

        encoding = tiktoken.get_encoding("o200k_base")
    except (ImportError, OSError) as error:
        raise RuntimeError(f"no vocabulary of o200k_base ({error}); `make bench` fetches it") from error
    return lambda text: len(encoding.encode(text, disallowed_special=()))


def _requests(
    folder: Path, rubric: str, count: Callable[[str], int], rationale: int, critique: int | None
) -> list[RequestTokens]:
    """Return the requests that judge one prompt. `critique` is a critique's tokens; None leaves the critiques out."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = parse(PIPELINE % rubric, folder / "pipeline.yaml")
    judge, rubric_read = pipeline.judges["judge"], rubric_of(pipeline)
    prompt = Prompt("p", (Message("user", _text(ASKED, count)),), "benchmark")
    texts = [_text(COMPLETION, count, n) for n in range(4)]
    requests: list[RequestTokens] = []
    for name, ask in rubric_read.sheet.requests.items():
        shown: list[Sequence[str]] = [texts] if ask.mode == "listwise" else [[text] for text in texts]
        if ask.mode == "single" and critique is None:
            continue
        words = rationale if ask.mode == "listwise" else critique or 0
        requests += [
            _request_tokens(rubric_read, name, judge, prompt, part, words * len(ask.aspects), count) for part in shown
        ]
    return requests


def _request_tokens(
    rubric: Rubric,
    name: str,
    judge: Judge,
    prompt: Prompt,
    texts: Sequence[str],
    words: int,
    count: Callable[[str], int],
) -> RequestTokens:
    request = judging_request(rubric, name, prompt, texts, judge, 0)
    schema = orjson.dumps(request.schema).decode() if request.schema else ""
    whole = schema + "".join(message.content for message in request.messages)
    last = request.messages[-1].content
    own = last[request.shared :] if request.shared else whole
    frame = len(orjson.dumps({str(n): {"rating": "5"} for n in range(len(texts))}).decode()) // 3
    return RequestTokens(count(whole), count(whole) - count(own), words * len(texts) + frame)


def _text(tokens: int, count: Callable[[str], int], seed: int = 0) -> str:
    """Return a text of `tokens` tokens."""
    words = [f"tide {n * (seed + 3) % 97} comes in" for n in range(tokens)]
    while count(" ".join(words)) > tokens:
        words.pop()
    return " ".join(words)


def _usd(requests: Sequence[RequestTokens], provider: Provider, cached: bool) -> float:
    """Return the cost of a prompt: the first request with a shared beginning writes the cache, the others read it."""
    total, warm = 0.0, False
    for request in requests:
        cached_tokens = (
            request.shared // provider.step * provider.step if cached and request.shared >= provider.least else 0
        )
        price = provider.read if warm else provider.write
        total += (
            (request.sent - cached_tokens) * provider.input + cached_tokens * price + request.received * provider.output
        )
        warm = warm or bool(cached_tokens)
    return total / 1e6


def _hits(folder: Path, prompts: int) -> dict[str, Any]:
    """Count cache hits in the simulator, which bills as Anthropic does, and those that the layout allows.

    The layout allows three of the four requests of a prompt that begin alike.
    """
    with serving(SimulatedModels({}, {}, 7, open=True)) as server:
        path = pipeline(
            folder, server.base_url, prompts, 32,
            judges={"provider": "anthropic", "base_url": server.base_url.removesuffix("/v1")},
            rubric="ultrafeedback", completions={"per_prompt": 4, "max_tokens": 400},
        )  # fmt: skip
        aif("run", path)
    with Reader.open(folder / "store" / "feedback.duckdb") as reader:
        rows = reader._query(
            "SELECT prompt_id, sum(cached_tokens) AS got, 3 * max(cache_write_tokens) AS allowed, "
            "sum(cache_write_tokens) AS written FROM calls WHERE stage = 'judgement' GROUP BY prompt_id"
        )
    allowed = sum(int(row["allowed"]) for row in rows)
    return {"prompts": prompts, "allowed": allowed, "got": sum(int(row["got"]) for row in rows)}


def _share(figures: Figures, way: str, provider: str) -> float:
    return float(figures["usd"][way][provider]["cached"] / figures["usd"]["ultrafeedback"][provider]["uncached"])


def measurement_errors(figures: Figures) -> list[str]:
    problems = [
        f"{way} costs nothing"
        for way, tokens in figures["tokens"].items()
        if not tokens["sent"] or not tokens["received"]
    ]
    return problems + ([] if figures["simulator"]["allowed"] else ["nothing could be cached"])


def violations(figures: Figures) -> list[str]:
    problems = measurement_errors(figures)
    first = PROVIDERS[0].name
    for way, goal in GOALS.items():
        if (share := _share(figures, way, first)) > goal:
            problems.append(f"{way}: {share:.0%} of the cost")
    if (hits := figures["simulator"]["got"] / figures["simulator"]["allowed"]) < HITS:
        problems.append(f"{hits:.0%} of the cache hits")
    return problems


def summary(figures: Figures) -> str:
    original, first = figures["tokens"]["ultrafeedback"], PROVIDERS[0].name
    usd = {way: figures["usd"][way][first] for way in figures["usd"]}
    shares = "; ".join(
        f"{provider.name}: unified {_share(figures, 'unified', provider.name):.0%}, an aspect each "
        f"{_share(figures, 'aspects', provider.name):.0%}"
        for provider in PROVIDERS
    )
    base = usd["ultrafeedback"]["uncached"]
    steps = {
        "caching alone": usd["ultrafeedback"]["cached"] / base,
        "brevity alone": usd["brief"]["uncached"] / base,
        "without critiques alone": usd["aspects"]["uncached"] / usd["brief"]["uncached"],
        "merging alone": usd["unified"]["uncached"] / usd["aspects"]["uncached"],
    }
    apart = ", ".join(f"{change} {share:.0%}" for change, share in steps.items())
    hits = figures["simulator"]["got"] / figures["simulator"]["allowed"]
    return (
        f"UltraFeedback's method: {original['requests']} requests, {original['sent']:,} tokens in and "
        f"{original['received']:,} out, ${base:.4f} at {first}'s prices. Share of that: {shares}. Each change by "
        f"itself: {apart}. Cache hits in the simulator: {hits:.0%} of what the layout allows."
    )
