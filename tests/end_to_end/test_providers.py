"""Complete runs through each provider's API, against a simulator that refuses what the provider refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aif.config.pipeline import load
from aif.core.types import Message, Prompt, prompt_id
from aif.engine.doctor import run_checks
from aif.engine.prepare import rubric_of
from aif.judging.request import completion_request, judging_request
from aif.providers import chat_completions
from aif.providers.base import Options
from aif.simulator import SimulatedModels
from tests.engine.test_orchestrator import ask, run, write
from tests.support.serving import POOL, Served

Serve = Callable[..., Served]

TURNS = (Message("user", "Explain tides."),)
PROMPT = Prompt(prompt_id(TURNS), TURNS, "test")
PRICE = {"input": 3.0, "cached_input": 0.3, "cache_write": 3.75, "output": 15.0}


def pool(served: Served, **declared: dict[str, Any]) -> dict[str, Any]:
    """The usual pool, with other entries in the place of some."""
    return {name: {"provider": "vllm", "base_url": served.base_url} for name in POOL} | {
        name: {"base_url": served.base_url} | one for name, one in declared.items()
    }


def anthropic(folder: Path, served: Served, **judge: Any) -> Path:
    """A pipeline of four long prompts with a model and a judge of Anthropic's, one listwise request for each aspect and
    one for each completion's critique."""
    path = write(
        folder,
        served,
        4,
        models=pool(served, large={"provider": "anthropic", "price": PRICE, "reasoning_effort": "low"}),
        judges={"judge": {"provider": "anthropic", "base_url": served.base_url, "price": PRICE, **judge}},
        rubric="ultrafeedback",
    )
    rows = [
        {"prompt": f"Explain device number {n}. " + "It measures rainfall, and must not rust. " * 80} for n in range(4)
    ]
    folder.joinpath("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_anthropic_writes_and_judges(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_KEY", "open-sesame")
    served = serve(require_key="open-sesame")
    path = anthropic(tmp_path, served, concurrency=1)
    path.write_text(path.read_text().replace("base_url:", "api_key_env: THEIR_KEY\n    base_url:"))
    pipeline, ended = run(path)

    assert not ended.incomplete
    assert sum(ended.outcomes.values()) == 4
    assert served.stats()["by_model"] == dict.fromkeys(POOL, 4) | {"judge": 32}
    assert ask(pipeline, "SELECT DISTINCT sent::VARCHAR AS sent FROM calls WHERE endpoint = 'large'") == [
        {"sent": '{"model":"large","max_tokens":512,"output_config":{"effort":"low"}}'}
    ]
    judged = ask(
        pipeline,
        "SELECT sent::VARCHAR AS sent, count(*) AS n FROM calls WHERE endpoint = 'judge' GROUP BY ALL ORDER BY ALL",
    )
    settings = '{"model":"judge","max_tokens":2048,"output_config":{"format":"json_schema"}'
    assert judged == [{"sent": settings + ',"cache_control":"ephemeral"}', "n": 16}, {"sent": settings + "}", "n": 16}]
    assert ask(pipeline, "SELECT count(*) AS n FROM ratings") == [{"n": 4 * 4 * 5}]


def test_what_a_judge_s_requests_share_is_written_to_the_cache_once(tmp_path: Path, serve: Serve) -> None:
    """Also where there is room to ask them all at once."""
    pipeline, _ = run(anthropic(tmp_path, serve(latency_s=0.02), concurrency=16))
    calls = ask(
        pipeline,
        "SELECT prompt_id, list(cache_write_tokens > 0 ORDER BY started) AS wrote, "
        "list(cached_tokens > 0 ORDER BY started) AS read FROM calls "
        "WHERE endpoint = 'judge' AND sent ->> 'cache_control' IS NOT NULL GROUP BY prompt_id",
    )
    (spent,) = ask(pipeline, "SELECT * FROM spend WHERE endpoint = 'judge'")

    assert [row["wrote"] for row in calls] == [[True, False, False, False]] * 4
    assert [row["read"] for row in calls] == [[False, True, True, True]] * 4
    plain = spent["input_tokens"] - spent["cached_tokens"] - spent["cache_write_tokens"]
    assert spent["usd"] == pytest.approx(
        (plain * 3.0 + spent["cached_tokens"] * 0.3 + spent["cache_write_tokens"] * 3.75 + spent["output_tokens"] * 15)
        / 1e6
    )


def test_nothing_is_written_to_a_cache_that_nobody_would_read(tmp_path: Path, serve: Serve) -> None:
    """A rubric of one request: the breakpoint would cost a quarter more and gain nothing."""
    served = serve()
    judge = {"provider": "anthropic", "base_url": served.base_url}
    pipeline, ended = run(write(tmp_path, served, 2, judges={"judge": judge}, rubric="unified"))

    assert not ended.incomplete
    assert ask(pipeline, "SELECT sum(cache_write_tokens) AS n FROM calls WHERE endpoint = 'judge'") == [{"n": 0}]
    (judged,) = ask(pipeline, "SELECT DISTINCT sent::VARCHAR AS sent FROM calls WHERE endpoint = 'judge'")
    assert "cache_control" not in judged["sent"]


async def test_doctor_asks_anthropic_too(tmp_path: Path, serve: Serve) -> None:
    path = anthropic(tmp_path, serve())
    path.write_text(path.read_text().replace("reasoning_effort: low", "reasoning_effort: minimal"))
    findings = {one.subject: one async for one in run_checks(load(path))}

    assert "effort" in findings["large"].text
    assert not findings["large"].ok
    assert findings["judge"].text == "rates by schema: 2 ratings of 2 completions parsed"


async def test_doctor_says_that_a_judgement_is_cut(tmp_path: Path, serve: Serve) -> None:
    pipeline = load(write(tmp_path, serve()), ["judges.judge.max_tokens=16"])
    (found,) = [finding async for finding in run_checks(pipeline) if not finding.ok]

    assert found.subject == "judge"
    assert found.text.startswith("truncated: the judgement was cut at max_tokens, 16 → raise the judge's max_tokens")


async def test_doctor_says_that_a_price_is_missing(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    judge = {"provider": "anthropic", "base_url": served.base_url}
    findings = [one async for one in run_checks(load(write(tmp_path, served, judges={"judge": judge})))]

    assert ["price unknown" in one.text for one in findings if one.subject == "judge"] == [False, True]


def test_openai_s_reasoning_models_write_and_judge(tmp_path: Path, serve: Serve) -> None:
    served = serve(cast=SimulatedModels({}, {}, 7, open=True))
    path = write(
        tmp_path,
        served,
        4,
        models=pool(served, large={"provider": "openai", "model": "gpt-5"}),
        judges={"judge": {"provider": "openai", "model": "o3", "reasoning_effort": "low", "base_url": served.base_url}},
    )
    pipeline, ended = run(path)

    assert not ended.incomplete
    assert ask(pipeline, "SELECT count(*) AS n FROM calls WHERE verdict <> 'answered'") == [{"n": 0}]
    sent = {row["endpoint"]: row["sent"] for row in ask(pipeline, "SELECT endpoint, sent::VARCHAR AS sent FROM calls")}
    assert '"reasoning_effort":"low"' in sent["judge"]
    assert "temperature" not in sent["judge"] + sent["large"]
    assert '"temperature":1.0' in sent["medium"]


def test_a_simulated_model_of_a_reasoning_model_s_name_is_asked_as_one(tmp_path: Path, serve: Serve) -> None:
    names = ("o3", "gpt-5", "a", "b")
    path = write(
        tmp_path,
        serve(),
        2,
        completions={"temperature": 0.7, "max_tokens": 512},
        models={name: {"provider": "simulator"} for name in names},
        judges={"o4-mini": {"provider": "simulator"}},
    )
    _, ended = run(path)

    assert not ended.incomplete


def test_openai_s_own_address_gets_what_its_reasoning_models_take(tmp_path: Path, serve: Serve) -> None:
    path = write(
        tmp_path,
        serve(),
        judges={"judge": {"provider": "openai", "model": "o3", "reasoning_effort": "low", "max_tokens": 99}},
        models={name: {"provider": "openai", "model": f"gpt-5-{name}"} for name in POOL},
    )
    pipeline = load(path)
    model, judge = pipeline.models["large"], pipeline.judges["judge"]
    written = completion_request(PROMPT, None, model.system, pipeline.sampling(model), seed=1)
    judged = judging_request(rubric_of(pipeline), "ratings", PROMPT, ["a", "b"], judge, seed=1)

    for request, more in ((written, {"max_completion_tokens": 512}), (judged, {"max_completion_tokens": 99})):
        body = chat_completions.request_body(request, "o3", Options("openai"))
        assert body.items() >= more.items()
        assert not body.keys() & {"temperature", "top_p", "max_tokens"}
    assert chat_completions.request_body(judged, "o3", Options("openai"))["reasoning_effort"] == "low"
