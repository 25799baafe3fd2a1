"""3. A real vLLM with `aif run`, compared with a bare aiohttp loop that sends the same requests to the same server.

It needs an environment with vLLM (`scripts/real-env.sh`). The model has 42 million random weights and is made by the
trial: it keeps two cores busy. (With the tests' model, which takes no time, vLLM's engine and worker both spin for the
next request: the same 600 requests took the bare loop itself 4.9 to 14.7 s.)
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import orjson

from aif.config.pipeline import load
from aif.engine.orchestrator import slot_request
from aif.engine.prepare import prepare, rubric_of
from aif.providers import chat_completions
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from trials.common import pipeline
from trials.harness import Figures
from trials.performance.measured_run import SPAN_S, aif, serving

NUMBER = 3
PROMISE = "Real vLLM: tokens a second through `aif run` at least 0.97 of a bare aiohttp loop's, from the same server"
GOAL = 0.97
STEADY = 1.2
MODEL, CONCURRENCY, ROUNDS = "tiny", 32, 3
WIDTH, LAYERS = 640, 10


def trial(folder: Path, full: bool) -> Figures:
    prompts, tokens = (150, 128) if full else (6, 16)
    with _server(folder, *((WIDTH, LAYERS) if full else ())) as url, serving(0, 0) as judge:
        paths = (_pipeline(folder / str(n), url, judge.base_url, prompts, tokens) for n in range(ROUNDS if full else 1))
        _bare(url, _bodies(_pipeline(folder / "first", url, judge.base_url, prompts, tokens)))  # warms up the server
        rounds = [_round(path, url, ours_first=n % 2 == 1) for n, path in enumerate(paths)]
    return {"prompts": prompts, "concurrency": CONCURRENCY, "max_tokens": tokens, "rounds": rounds}


def _round(path: Path, url: str, ours_first: bool) -> dict[str, Any]:
    """Send a pipeline's requests both ways, once each."""
    bodies = _bodies(path)
    results: dict[str, Any] = {}
    for way in ("ours", "bare") if ours_first else ("bare", "ours"):
        calls, written, seconds = _bare(url, bodies) if way == "bare" else _ours(path)
        results[way] = {"calls": calls, "tokens": written, "seconds": round(seconds, 2)}
    return results


def _pipeline(folder: Path, url: str, judge: str, prompts: int, tokens: int) -> Path:
    """Write a pipeline with four samples a prompt of one model; the judge is cheap and in a process of its own."""
    questions = [
        f"Question {n}: please explain how it relates to the tides, in two paragraphs." for n in range(prompts)
    ]
    base = {
        "name": "served",
        "completions": {"per_prompt": 4, "max_tokens": tokens},
        "models": {MODEL: {"provider": "vllm", "base_url": url, "concurrency": CONCURRENCY, "samples": 4}},
        "judges": {"judge": {"provider": "vllm", "base_url": judge, "concurrency": 4}},
    }
    return pipeline(folder, questions, base, {})


def _bodies(path: Path) -> list[bytes]:
    """Return the request bodies that `aif run` will post, in the same order. The prepared prompts stay in the store."""
    loaded = load(path)
    rubric = rubric_of(loaded)
    with JournaledStore.open(loaded.store, print, rubric) as journaled:
        prepare(loaded, journaled, rubric, print)
        journaled.store.list_pending(None)
        with Reader.of(journaled.store) as reader:
            todos = reader.pending_slots(MODEL, 0, 100_000)
    requests = (slot_request(loaded, todo) for todo in todos)
    return [orjson.dumps(chat_completions.request_body(request, MODEL)) for request in requests]


def _bare(url: str, bodies: Sequence[bytes]) -> tuple[int, int, float]:
    """Post the bodies in a bare loop; return calls, completion tokens, and seconds from first request to last reply."""
    return asyncio.run(_loop(url, bodies))


async def _loop(url: str, bodies: Sequence[bytes]) -> tuple[int, int, float]:
    written: list[int] = []
    bodies_left = iter(bodies)
    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:

        async def work() -> None:
            for body in bodies_left:
                async with session.post(f"{url}/chat/completions", data=body) as answer:
                    answer.raise_for_status()
                    written.append(orjson.loads(await answer.read())["usage"]["completion_tokens"])

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        return len(written), sum(written), time.perf_counter() - began


def _ours(path: Path) -> tuple[int, int, float]:
    """Do the same with `aif run`, which also journals and judges. Empty replies are retried, and their tokens count."""
    aif("run", path)
    with Reader.open(load(path).store) as reader:
        row = reader._query(
            "SELECT count(DISTINCT key) AS calls, sum(output_tokens)::BIGINT AS tokens, "
            f"{SPAN_S} AS seconds FROM calls WHERE stage = 'completion'"
        )[0]
    return row["calls"], row["tokens"], row["seconds"]


@contextmanager
def _server(folder: Path, *size: int) -> Iterator[str]:
    from tests.real.tiny_model import build
    from tests.real.vllm_server import vllm

    flags = ("--no-enable-prefix-caching",)  # otherwise the second of the two would find the prompts cached
    with vllm(build(folder / "model", 0, *size), folder / "vllm.log", (MODEL,), flags=flags) as server:
        yield server.base_url


def measurement_errors(figures: Figures) -> list[str]:
    wanted = figures["prompts"] * 4
    return [
        f"{way} made {result['calls']} calls of {wanted}, {result['tokens']} tokens"
        for ways in figures["rounds"]
        for way, result in ways.items()
        if result["calls"] != wanted or not result["tokens"]
    ] + _unsteady([ways["bare"]["seconds"] for ways in figures["rounds"]])


def _unsteady(seconds: Sequence[float]) -> list[str]:
    """Return an error if the server's own speed varied too much between rounds to compare anything."""
    if max(seconds) <= STEADY * min(seconds):
        return []
    return [f"the bare loop itself took {min(seconds)} to {max(seconds)} s for the same, so this tells nothing"]


def _rate(result: dict[str, Any]) -> float:
    return float(result["tokens"] / result["seconds"])


def _share(ways: dict[str, Any]) -> float:
    return _rate(ways["ours"]) / _rate(ways["bare"])


def violations(figures: Figures) -> list[str]:
    share = median(map(_share, figures["rounds"]))
    return measurement_errors(figures) + ([f"{share:.3f} of the bare loop"] if share < GOAL else [])


def summary(figures: Figures) -> str:
    shares = sorted(map(_share, figures["rounds"]))
    rates = "; ".join(f"{_rate(ways['ours']):,.0f} beside {_rate(ways['bare']):,.0f}" for ways in figures["rounds"])
    return (
        f"{figures['prompts'] * 4:,} calls of up to {figures['max_tokens']} tokens, "
        f"{figures['concurrency']} in flight: {', '.join(f'{share:.3f}' for share in shares)} of the bare loop's "
        f"tokens a second (aif and loop: {rates})"
    )
