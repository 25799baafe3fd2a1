"""Context windows from the pipeline, from servers' lists of models and from errors; requests that don't fit."""

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
from aif.engine.context_windows import known_windows, listed_window
from aif.engine.doctor import run_checks
from aif.engine.estimate import Estimate
from aif.engine.workload import prepare_and_estimate
from aif.simulator import SimulatedModels
from tests.engine.test_orchestrator import aif, run, write
from tests.support.serving import POOL, Served

Serve = Callable[..., Served]

# As in the servers' references, shortened; each has a second model of another size.
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
    "OpenRouter, not stated for the provider": {
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
def test_a_list_of_models_gives_the_context_window(server: str) -> None:
    assert listed_window(LISTS[server], "m") == 8192


@pytest.mark.parametrize("server", NONE)
def test_a_list_without_the_window_gives_none(server: str) -> None:
    assert listed_window(NONE[server], "m") is None


@contextmanager
def listing(body: bytes, status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """Serve only a list of models; yields the paths and keys of the requests."""
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
    judge = Judge(**{"provider": "openai", "model": "m", **given})
    judge._name = name
    return judge


def held(*judges: Judge, erred: int | None = None) -> dict[str, int]:
    of: dict[Any, DeclaredEndpoint] = {("judgement", j.name): j for j in judges}
    return {name: n for (_, name), n in asyncio.run(known_windows(of, dict.fromkeys(of, erred))).items()}


def test_a_declared_window_comes_first_then_the_list_then_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHOSE", "sesame")
    with listing(json.dumps(LISTS["vLLM"]).encode()) as (url, asked):
        here = {"base_url": (f"{url}/v1",), "api_key_env": "WHOSE"}
        assert held(judge("a", **here, max_model_len=512), erred=2) == {"a": 512}
        assert not asked
        assert held(judge("a", **here), judge("b", **here), erred=2) == {"a": 8192, "b": 8192}
        assert asked == ["/v1/models Bearer sesame"], "one list serves all models of a server"
        assert held(judge("a", **{**here, "model": "q"}), erred=2) == {"a": 2}
    assert held(judge("a", base_url=("http://127.0.0.1:9/v1",)), erred=2) == {"a": 2}
    assert held(judge("a")) == {}
    assert held(judge("a", provider="vllm", launch={"model": "m", "max_model_len": 64})) == {"a": 64}


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (404, b"{}"), (500, b""), (200, b"[" * 100_000)])
def test_a_server_without_a_list_is_no_error(status: int, body: bytes) -> None:
    with listing(body, status) as (url, _):
        assert held(judge(base_url=(url,))) == {}


# --- what is reported before the first call---------------------------------------------------------------------------


def shown(estimate: Estimate) -> str:
    print_estimate(Console(file=(words := StringIO()), width=400), estimate)
    return words.getvalue()


def foreseen(path: Path, *sets: str) -> Estimate:
    return prepare_and_estimate(load(path, sets), None, lambda words: None)


def test_estimate_and_doctor_report_that_four_long_completions_do_not_fit(tmp_path: Path, serve: Serve) -> None:
    narrow = serve(max_model_len=8192, cast=SimulatedModels({}, {"judge": 0.1}, 7))
    judge = {"provider": "openai", "base_url": narrow.base_url, "price": {"input": 1, "output": 1}}
    path = write(tmp_path, serve(), count=9, judges={"judge": judge})
    long = "completions.max_tokens=2048"
    assert foreseen(path).overflows == ()
    text = shown(foreseen(path, long))
    assert "9 of 9 requests would not fit into judge's 8,192 tokens" in text
    for fix in ("`on_overflow: single`", "lower completions.max_tokens", "a larger context window"):
        assert fix in text
    assert "are judged one completion at a time" in shown(foreseen(path, long, "judges.judge.on_overflow=single"))
    assert foreseen(path, long, "judges.judge.max_model_len=32768").overflows == ()
    assert narrow.stats()["calls"] == 0

    async def findings(*sets: str) -> list[str]:
        return [check.text async for check in run_checks(load(path, sets)) if "would not fit" in check.text]

    assert asyncio.run(findings()) == []
    (words,) = asyncio.run(findings(long))
    assert "of the first prompts, 9 of 9 requests would not fit into judge's 8,192 tokens" in words

    print_estimate_line(Console(file=(opening := StringIO()), width=400), foreseen(path, long))
    assert "9 of 9 requests would not fit" in opening.getvalue()
    done = aif("run", path, "--yes", "--limit", "1", "--set", long)
    assert "1 of 1 request would not fit into judge's 8,192 tokens" in done.stderr


def test_pending_completions_count_as_long_as_those_so_far(tmp_path: Path, serve: Serve) -> None:
    """The simulator writes about 150 tokens, whatever max_tokens allows."""
    served = serve(max_model_len=8192)
    path = write(tmp_path, served, count=20, completions={"max_tokens": 2048})
    assert [o.over for o in foreseen(path).overflows] == [20]
    run(path, limit=10)
    assert foreseen(path).overflows == ()


def test_a_model_whose_prompts_do_not_fit_is_reported_too(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(), count=8)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "rain and more rain, " * 100}) + "\n")
    short = foreseen(path, "completions.max_tokens=64", "models.*.max_model_len=200")
    assert [(o.name, o.over, o.total, o.window) for o in short.overflows if o.stage == "completion"] == [
        (name, 1, 9, 200) for name in POOL
    ]
    assert "lower max_tokens, or the source's max_chars" in shown(short)


def test_a_window_stated_by_an_error_is_remembered(tmp_path: Path, serve: Serve) -> None:
    narrow = serve(max_model_len=2200)
    path = write(tmp_path, serve(), count=4, judges={"judge": {"provider": "openai", "base_url": narrow.base_url}})
    run(path)
    with listing(b"{}") as (url, _):  # like a provider that lists no windows
        (o,) = foreseen(path, f"judges.judge.base_url={url}/v1").overflows
    assert (o.over, o.total, o.window) == (4, 4, 2200)
