"""How much a model holds: by its entry, by lists of models as servers word them, by errors; and what is told of it."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from rich.console import Console

from aif.cli.views.estimate import print_estimate, print_estimate_line
from aif.config.pipeline import load
from aif.config.sections import DeclaredEndpoint, Judge
from aif.engine.context_windows import listed, windows
from aif.engine.doctor import examine
from aif.engine.estimate import Estimate
from aif.engine.workload import foresee
from aif.simulator import Cast
from tests.engine.test_orchestrator import aif, run, write
from tests.serving import POOL, Served

Serve = Callable[..., Served]

# As the servers' references show them, cut to what matters; a model of another size stands beside.
LISTS: dict[str, Any] = {
    "vLLM": {
        "object": "list",
        "data": [{"id": "m", "root": "m", "max_model_len": 8192}, {"id": "n", "max_model_len": 4}],
    },
    "OpenRouter": {
        "data": [
            {"id": "n", "context_length": 4},
            {"id": "m", "context_length": 131072, "top_provider": {"context_length": 8192}},
        ]
    },
    "OpenRouter, not said of the provider": {
        "data": [{"id": "m", "context_length": 8192, "top_provider": {"context_length": None}}]
    },
    "Together": [{"id": "m", "object": "model", "context_length": 8192}, {"id": "n", "context_length": 4}],
    "Groq": {"data": [{"id": "m", "context_window": 8192, "max_completion_tokens": 4}]},
    "Mistral": {"data": [{"id": "m", "max_context_length": 8192}, {"id": "n", "max_context_length": 4}]},
    "LM Studio": {"data": [{"id": "m", "max_context_length": 131072, "loaded_context_length": 8192}]},
    "llama.cpp": {"data": [{"id": "/models/m.gguf", "meta": {"n_ctx_train": 131072, "n_ctx": 8192}}]},
    "llama.cpp, of before": {"data": [{"id": "/models/m.gguf", "meta": {"n_ctx_train": 8192}}]},
}
NONE: dict[str, Any] = {
    "OpenAI": {"data": [{"id": "m", "object": "model", "owned_by": "system"}]},
    "another model": {"data": [{"id": "n", "max_model_len": 4}, {"id": "o", "max_model_len": 5}]},
    "no numbers": {
        "data": [{"id": "m", "max_model_len": True, "context_length": "8k", "context_window": 0, "meta": []}]
    },
    "no list": {"error": {"message": "no such path"}},
    "odd": {"data": [None, 3, [4]]},
    "null": None,
}


@pytest.mark.parametrize("server", LISTS)
def test_a_list_of_models_says_how_much_one_holds(server: str) -> None:
    assert listed(LISTS[server], "m") == 8192


@pytest.mark.parametrize("said", NONE)
def test_a_list_that_does_not_say_it_says_nothing(said: str) -> None:
    assert listed(NONE[said], "m") is None


@contextmanager
def listing(body: bytes, status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A server that has nothing but a list of models; the paths and keys that it was asked with."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Authorization')}")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def judge(name: str = "m", **given: Any) -> Judge:
    one = Judge(**{"provider": "openai", "model": "m", **given})
    one._name = name
    return one


def held(*judges: Judge, erred: int | None = None) -> dict[str, int]:
    of: dict[Any, DeclaredEndpoint] = {("judgement", one.name): one for one in judges}
    return {name: n for (_, name), n in asyncio.run(windows(of, dict.fromkeys(of, erred))).items()}


def test_what_the_entry_says_comes_first_then_the_list_then_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHOSE", "sesame")
    with listing(json.dumps(LISTS["vLLM"]).encode()) as (url, asked):
        here = {"base_url": (f"{url}/v1",), "api_key_env": "WHOSE"}
        assert held(judge("a", **here, max_model_len=512), erred=2) == {"a": 512}
        assert not asked
        assert held(judge("a", **here), judge("b", **here), erred=2) == {"a": 8192, "b": 8192}
        assert asked == ["/v1/models Bearer sesame"], "one list tells of all models of a server"
        assert held(judge("a", **{**here, "model": "q"}), erred=2) == {"a": 2}
    assert held(judge("a", base_url=("http://127.0.0.1:9/v1",)), erred=2) == {"a": 2}
    assert held(judge("a")) == {}
    assert held(judge("a", provider="vllm", launch={"model": "m", "max_model_len": 64})) == {"a": 64}


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (404, b"{}"), (500, b""), (200, b"[" * 100_000)])
def test_a_server_without_a_list_is_no_error(status: int, body: bytes) -> None:
    with listing(body, status) as (url, _):
        assert held(judge(base_url=(url,))) == {}


# --- what is told before anything is asked ----------------------------------------------------------------------------


def told(estimate: Estimate) -> str:
    print_estimate(Console(file=(words := StringIO()), width=400), estimate)
    return words.getvalue()


def foreseen(path: Path, *sets: str) -> Estimate:
    return foresee(load(path, sets), None, lambda words: None)


def test_four_long_completions_are_foreseen_by_estimate_and_doctor(tmp_path: Path, serve: Serve) -> None:
    narrow = serve(max_model_len=8192, cast=Cast({}, {"judge": 0.1}, 7))
    one = {"provider": "openai", "base_url": narrow.base_url, "price": {"input": 1, "output": 1}}
    path = write(tmp_path, serve(), count=9, judges={"judge": one})
    long = "completions.max_tokens=2048"
    assert foreseen(path).tight == ()
    said = told(foreseen(path, long))
    assert "9 of 9 requests would not fit into judge's 8,192 tokens" in said
    for mend in ("`on_overflow: single`", "lower completions.max_tokens", "a longer window"):
        assert mend in said
    assert "are asked one completion by one" in told(foreseen(path, long, "judges.judge.on_overflow=single"))
    assert foreseen(path, long, "judges.judge.max_model_len=32768").tight == ()
    assert narrow.stats()["calls"] == 0

    async def findings(*sets: str) -> list[str]:
        return [found.words async for found in examine(load(path, sets)) if "would not fit" in found.words]

    assert asyncio.run(findings()) == []
    (words,) = asyncio.run(findings(long))
    assert "of the first prompts, 9 of 9 requests would not fit into judge's 8,192 tokens" in words

    print_estimate_line(Console(file=(opening := StringIO()), width=400), foreseen(path, long))
    assert "9 of 9 requests would not fit" in opening.getvalue()
    done = aif("run", path, "--yes", "--limit", "1", "--set", long)
    assert "1 of 1 request would not fit into judge's 8,192 tokens" in done.stderr


def test_what_was_had_so_far_counts_for_what_is_to_come(tmp_path: Path, serve: Serve) -> None:
    """The simulator writes some 150 tokens, whatever max_tokens allows."""
    served = serve(max_model_len=8192)
    path = write(tmp_path, served, count=20, completions={"max_tokens": 2048})
    assert [one.over for one in foreseen(path).tight] == [20]
    run(path, limit=10)
    assert foreseen(path).tight == ()


def test_a_model_is_told_of_too(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(), count=8)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "rain and more rain, " * 100}) + "\n")
    short = foreseen(path, "completions.max_tokens=64", "models.*.max_model_len=200")
    assert [(one.name, one.over, one.of, one.window) for one in short.tight if one.stage == "completion"] == [
        (name, 1, 9, 200) for name in POOL
    ]
    assert "lower that, or the source's max_chars" in told(short)


def test_what_an_error_said_is_remembered(tmp_path: Path, serve: Serve) -> None:
    narrow = serve(max_model_len=2200)
    path = write(tmp_path, serve(), count=4, judges={"judge": {"provider": "openai", "base_url": narrow.base_url}})
    run(path)
    with listing(b"{}") as (url, _):  # as of a provider that lists no windows
        (one,) = foreseen(path, f"judges.judge.base_url={url}/v1").tight
    assert (one.over, one.of, one.window) == (4, 4, 2200)
