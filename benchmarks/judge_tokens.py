"""What a judge costs a prompt, by rubric and provider, and what caching, merging and brevity save each.

Tokens are counted by OpenAI's o200k_base over what is really sent: rendered messages and schema. `make bench` fetches
the vocabulary. Prices and caching rules are those the providers publish; they change, and stand here in one table.
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
from benchmarks.house import aif, pipeline
from measured import Figures
from tests.serving import serving

NUMBER = 8
PROMISE = (
    "Judge tokens: at most 30 % of the dollars of UltraFeedback's way with `unified`, 55 % with one request an aspect; "
    "90 % of the cache hits that the layout allows"
)
GOALS = {"unified": 0.30, "aspects": 0.55}
HITS = 0.90
COMPLETION, ASKED = 305, 185  # tokens: means of UltraFeedback
RATIONALE, VERBOSE, CRITIQUE = 35, 77, 143  # ours, and UltraFeedback's: a rating with its rationale, a critique
# UltraFeedback's own bill: about 11,000 tokens in and 1,800 out a prompt, at 2 and 8 USD a million


@dataclass(frozen=True, slots=True)
class Provider:
    """USD per million tokens, and its cache: the shortest prefix kept, in steps of so many tokens."""

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
class Asked:
    """One request: tokens sent, those of its beginning that others share, tokens received."""

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
) -> list[Asked]:
    """What a prompt's judgements come to. Without `critique`, the critiques are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    one = parse(PIPELINE % rubric, folder / "pipeline.yaml")
    judge, made = one.judges["judge"], rubric_of(one)
    prompt = Prompt("p", (Message("user", _text(ASKED, count)),), "benchmark")
    texts = [_text(COMPLETION, count, n) for n in range(4)]
    found: list[Asked] = []
    for name, ask in made.sheet.requests.items():
        shown: list[Sequence[str]] = [texts] if ask.mode == "listwise" else [[text] for text in texts]
        if ask.mode == "single" and critique is None:
            continue
        words = rationale if ask.mode == "listwise" else critique or 0
        found += [_asked(made, name, judge, prompt, part, words * len(ask.aspects), count) for part in shown]
    return found


def _asked(
    rubric: Rubric,
    name: str,
    judge: Judge,
    prompt: Prompt,
    texts: Sequence[str],
    words: int,
    count: Callable[[str], int],
) -> Asked:
    request = judging_request(rubric, name, prompt, texts, judge, 0)
    schema = orjson.dumps(request.schema).decode() if request.schema else ""
    whole = schema + "".join(message.content for message in request.messages)
    last = request.messages[-1].content
    own = last[request.shared :] if request.shared else whole
    frame = len(orjson.dumps({str(n): {"rating": "5"} for n in range(len(texts))}).decode()) // 3
    return Asked(count(whole), count(whole) - count(own), words * len(texts) + frame)


def _text(tokens: int, count: Callable[[str], int], seed: int = 0) -> str:
    """A text of so many tokens."""
    words = [f"tide {n * (seed + 3) % 97} comes in" for n in range(tokens)]
    while count(" ".join(words)) > tokens:
        words.pop()
    return " ".join(words)


def _usd(requests: Sequence[Asked], provider: Provider, cached: bool) -> float:
    """USD of a prompt: the first request with a shared beginning writes it, the others read it."""
    total, warm = 0.0, False
    for one in requests:
        kept = one.shared // provider.step * provider.step if cached and one.shared >= provider.least else 0
        price = provider.read if warm else provider.write
        total += (one.sent - kept) * provider.input + kept * price + one.received * provider.output
        warm = warm or bool(kept)
    return total / 1e6


def _hits(folder: Path, prompts: int) -> dict[str, Any]:
    """What the simulator's cache, which bills as Anthropic's does, gave of what the layout allows: of every prompt's
    four requests that begin alike, three."""
    with serving(SimulatedModels({}, {}, 7, open=True)) as one:
        path = pipeline(
            folder, one.base_url, prompts, 32,
            judges={"provider": "anthropic", "base_url": one.base_url.removesuffix("/v1")},
            rubric="ultrafeedback", completions={"per_prompt": 4, "max_tokens": 400},
        )  # fmt: skip
        aif("run", path)
    with Reader.open(folder / "store" / "feedback.duckdb") as reader:
        rows = reader.sql(
            "SELECT prompt_id, sum(cached_tokens) AS got, 3 * max(cache_write_tokens) AS allowed, "
            "sum(cache_write_tokens) AS written FROM calls WHERE stage = 'judgement' GROUP BY prompt_id"
        )
    allowed = sum(int(row["allowed"]) for row in rows)
    return {"prompts": prompts, "allowed": allowed, "got": sum(int(row["got"]) for row in rows)}


def _share(figures: Figures, way: str, provider: str) -> float:
    return float(figures["usd"][way][provider]["cached"] / figures["usd"]["ultrafeedback"][provider]["uncached"])


def unsound(figures: Figures) -> list[str]:
    wrong = [f"{way} costs nothing" for way, of in figures["tokens"].items() if not of["sent"] or not of["received"]]
    return wrong + ([] if figures["simulator"]["allowed"] else ["nothing could be cached"])


def broken(figures: Figures) -> list[str]:
    wrong = unsound(figures)
    first = PROVIDERS[0].name
    for way, goal in GOALS.items():
        if (share := _share(figures, way, first)) > goal:
            wrong.append(f"{way}: {share:.0%} of the dollars")
    if (hits := figures["simulator"]["got"] / figures["simulator"]["allowed"]) < HITS:
        wrong.append(f"{hits:.0%} of the hits")
    return wrong


def told(figures: Figures) -> str:
    theirs, first = figures["tokens"]["ultrafeedback"], PROVIDERS[0].name
    usd = {way: figures["usd"][way][first] for way in figures["usd"]}
    shares = "; ".join(
        f"{one.name}: unified {_share(figures, 'unified', one.name):.0%}, an aspect each "
        f"{_share(figures, 'aspects', one.name):.0%}"
        for one in PROVIDERS
    )
    base = usd["ultrafeedback"]["uncached"]
    steps = {
        "caching alone": usd["ultrafeedback"]["cached"] / base,
        "brevity alone": usd["brief"]["uncached"] / base,
        "without critiques alone": usd["aspects"]["uncached"] / usd["brief"]["uncached"],
        "merging alone": usd["unified"]["uncached"] / usd["aspects"]["uncached"],
    }
    apart = ", ".join(f"{what} {share:.0%}" for what, share in steps.items())
    hits = figures["simulator"]["got"] / figures["simulator"]["allowed"]
    return (
        f"UltraFeedback's way: {theirs['requests']} requests, {theirs['sent']:,} tokens in and {theirs['received']:,} "
        f"out, ${base:.4f} at {first}'s prices. Left of it: {shares}. Apart (what remains): {apart}. "
        f"Cache hits in the simulator: {hits:.0%} of what the layout allows."
    )
