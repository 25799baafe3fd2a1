"""Runs against a simulator over loopback HTTP: which calls are made, what is stored, how a run ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.config.pipeline import Pipeline, load
from aif.core.errors import Exit, StoreLocked
from aif.engine.run import RunResult, run_pipeline
from aif.providers.retry import RetryPolicy
from aif.simulator import SimulatedModels
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from tests.support.serving import POOL, Served

Serve = Callable[..., Served]


def write(folder: Path, served: Served, count: int = 12, **changes: Any) -> Path:
    """Write a pipeline file with `count` prompts over a served pool."""
    rows = [
        {"prompt": f"Explain how device number {n} measures rainfall, and name two limits of it."} for n in range(count)
    ]
    folder.joinpath("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline: dict[str, Any] = {
        "name": "test",
        "store": str(folder / "feedback.duckdb"),
        "prompts": [{"file": "prompts.jsonl"}],
        "principles": "ultrafeedback",
        "completions": {"max_tokens": 512},
        "models": {name: {"provider": "vllm", "base_url": served.base_url} for name in POOL},
        "judges": {"judge": {"provider": "openai", "base_url": served.base_url}},
        **changes,
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(pipeline))
    return path


def run(path: Path, *sets: str, **options: Any) -> tuple[Pipeline, RunResult]:
    pipeline = load(path, sets)
    quick = RetryPolicy(attempts=2, first_wait_s=0.01, longest_wait_s=0.02, silent_s=0.2)
    return pipeline, run_pipeline(pipeline, Terminal(Console(quiet=True)), policy=quick, **options)


def ask(pipeline: Pipeline, query: str) -> list[dict[str, Any]]:
    with Reader.open(pipeline.store) as reader:
        return reader._query(query)


def aif(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aif", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_every_prompt_is_completed_judged_and_accounted_for(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    pipeline, ended = run(write(tmp_path, served))

    assert not ended.incomplete
    assert sum(ended.outcomes.values()) == 12
    assert ended.outcomes["paired"] >= 9
    assert served.stats()["calls"] == 12 * 4 + 12
    assert ask(pipeline, "SELECT count(*) AS n FROM calls WHERE verdict = 'answered'") == [{"n": 60}]
    assert ask(pipeline, "SELECT count(*) AS n FROM ratings") == [{"n": 12 * 4 * 4}]


def test_a_finished_run_makes_no_call(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(tmp_path, served)
    run(path)
    before = served.stats()["calls"]
    _, ended = run(path)

    assert served.stats()["calls"] == before
    assert not ended.incomplete


def test_scores_over_200_prompts_give_the_declared_order_of_models(tmp_path: Path, serve: Serve) -> None:
    """Ratings assigned by position instead of by the number shown would not give that order."""
    pipeline, _ = run(write(tmp_path, serve(), count=200))
    rows = ask(
        pipeline,
        "SELECT j.completions, j.ratings, list(s.key ORDER BY s.slot) AS places, "
        "list(s.model ORDER BY s.slot) AS models "
        "FROM judgements j JOIN slots s ON j.prompt_id = s.prompt_id GROUP BY j.key, j.completions, j.ratings",
    )

    def order(mapped: bool) -> list[str]:
        scores: dict[str, list[float]] = {name: [] for name in POOL}
        for row in rows:
            owner = dict(zip(row["places"], row["models"], strict=True))
            unmapped = dict(zip(row["completions"], row["models"], strict=True))
            for rating in row["ratings"]:
                scores[(owner if mapped else unmapped)[rating["completion"]]].append(rating["score"])
        means = {name: sum(values) / len(values) for name, values in scores.items()}
        assert mapped or max(means.values()) - min(means.values()) < 0.6  # the difference of two points is gone
        return sorted(means, key=lambda name: -means[name])

    assert order(mapped=True) == list(POOL)
    assert [row["model"] for row in ask(pipeline, "SELECT model FROM leaderboard")] == list(POOL)
    order(mapped=False)


def test_a_longer_source_pays_for_its_new_prompts_only(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    run(write(tmp_path, served, count=6))
    before = served.stats()["calls"]
    run(write(tmp_path, served, count=8))

    assert served.stats()["calls"] - before == 2 * 5


def test_a_new_model_pays_for_the_prompts_whose_set_changes(tmp_path: Path, serve: Serve) -> None:
    served = serve(cast=SimulatedModels({**POOL, "extra": 0.5}, {"judge": 0.1}))
    path = write(tmp_path, served)
    run(path)
    before = served.stats()["by_model"]
    text = yaml.safe_load(path.read_text())
    text["models"]["extra"] = {"provider": "vllm", "base_url": served.base_url}
    path.write_text(yaml.safe_dump(text))
    _, ended = run(path)
    after = served.stats()["by_model"]
    changed = after["extra"]

    assert 0 < changed <= 12
    assert {name: after[name] for name in POOL} == {name: before[name] for name in POOL}
    assert after["judge"] - before["judge"] == changed
    assert not ended.incomplete


def test_a_second_judge_pays_only_for_itself_and_both_are_parsed(tmp_path: Path, serve: Serve) -> None:
    """The second replies in labelled lines instead of JSON; its ratings are stored with those of the first."""
    served = serve(cast=SimulatedModels(POOL, {"judge": 0.1, "second": 0.6}))
    path = write(tmp_path, served)
    run(path)
    before = served.stats()["by_model"]
    judge = {"provider": "openai", "base_url": served.base_url}
    two = {"judge": judge, "second": {**judge, "reply": "text", "weight": 2.0}}
    pipeline, ended = run(write(tmp_path, served, judges=two))

    assert not ended.incomplete
    assert served.stats()["by_model"] == before | {"second": 12}
    assert ask(pipeline, "SELECT judge, count(*) AS n FROM ratings GROUP BY judge ORDER BY judge") == [
        {"judge": "judge", "n": 192},
        {"judge": "second", "n": 192},
    ]
    assert {row["form"] for row in ask(pipeline, "SELECT form FROM judgements")} == {"schema", "text"}
    assert ask(pipeline, "SELECT count(*) AS n FROM agreement WHERE completions = 48") == [{"n": 4}]
    wrong = (
        "SELECT count(*) AS n FROM scores x JOIN judge_scores a ON a.completion = x.completion AND a.judge = 'judge' "
        "JOIN judge_scores b ON b.completion = x.completion AND b.judge = 'second' "
        "WHERE abs(x.score - (a.score + 2 * b.score) / 3) > 1e-9 OR abs(x.spread - abs(a.score - b.score)) > 1e-9"
    )
    assert ask(pipeline, wrong) == [{"n": 0}]

    _, ended = run(path)
    assert served.stats()["calls"] == 60 + 12, "removing it again makes no call"
    assert not ended.incomplete


def test_another_policy_makes_no_call(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(tmp_path, served)
    run(path)
    before = served.stats()["calls"]
    _, ended = run(path, "pairs.policy=best_vs_worst", "pairs.min_margin=9")

    assert served.stats()["calls"] == before
    assert ended.outcomes["paired"] == 0
    assert ended.outcomes["margin"] + ended.outcomes["tie"] == 12


def test_ultrafeedback_requests_each_aspect_and_a_critique_of_each_completion(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    pipeline, ended = run(write(tmp_path, served, count=3, rubric="ultrafeedback", pairs={"score": "overall"}))

    assert not ended.incomplete
    assert served.stats()["by_model"]["judge"] == 3 * (4 + 4)
    rows = ask(pipeline, "SELECT aspect, count(*) AS n, max(score) AS top FROM ratings GROUP BY aspect ORDER BY aspect")
    assert {row["aspect"]: row["n"] for row in rows} == dict.fromkeys(
        ["helpfulness", "honesty", "instruction_following", "overall", "truthfulness"], 12
    )
    assert max(row["top"] for row in rows) > 5  # the critique's scale goes to 10


def test_ratings_requested_as_text_are_parsed(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    judge = {"judge": {"provider": "openai", "base_url": served.base_url, "reply": "text"}}
    pipeline, ended = run(write(tmp_path, served, judges=judge))

    assert not ended.incomplete
    assert ask(pipeline, "SELECT DISTINCT form FROM judgements") == [{"form": "text"}]


def test_only_a_prompt_too_long_for_the_model_fails(tmp_path: Path, serve: Serve) -> None:
    served = serve(max_model_len=6000)
    path = write(tmp_path, served)
    long = {"prompt": "Summarise this: " + "rain and more rain, " * 2000}
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps(long) + "\n")
    pipeline, ended = run(path)

    assert ended.outcomes["too_few_completions"] == 1
    assert ask(pipeline, "SELECT kind, items, verdict FROM failures ORDER BY ALL LIMIT 1") == [
        {"kind": "context_overflow", "items": 1, "verdict": "failed"}
    ]
    before = served.stats()["calls"]
    run(path)
    assert served.stats()["calls"] == before, "permanent failures need --retry-failed"
    run(path, retry_failed=True)
    # twice, if other items could still show whose fault it is
    assert before + 4 <= served.stats()["calls"] <= before + 8


def test_a_refused_key_stops_that_provider_and_the_others_continue(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, guarded = serve(), serve(require_key="sesame")
    models = {name: {"provider": "vllm", "base_url": served.base_url} for name in POOL}
    judge = {"provider": "openai", "base_url": guarded.base_url, "api_key_env": "JUDGE_KEY", "concurrency": 4}
    path = write(tmp_path, served, models=models, judges={"judge": judge})
    monkeypatch.setenv("JUDGE_KEY", "sesam-0pen")
    _, ended = run(path)

    assert list(ended.calling.refused) == ["judge"]
    assert guarded.stats()["calls"] <= 4
    assert served.stats()["calls"] == 48
    assert ended.outcomes["pending"] == 12
    assert not any(b"sesam-0pen" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())

    monkeypatch.setenv("JUDGE_KEY", "sesame")
    _, ended = run(path)
    assert not ended.calling.refused
    assert not ended.incomplete
    assert served.stats()["calls"] == 48


def test_a_server_that_is_down_leaves_its_items_pending(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(tmp_path, served, count=4)
    pipeline, ended = run(path, "models.tiny.base_url=http://127.0.0.1:9/v1")

    assert ended.outcomes["pending"] == 4
    failures = ask(pipeline, "SELECT endpoint, kind, verdict, items FROM failures ORDER BY endpoint")
    assert failures == [
        {"endpoint": "judge", "kind": None, "verdict": "waiting", "items": 4},
        {"endpoint": "tiny", "kind": "connection", "verdict": "later", "items": 4},
    ]

    _, ended = run(path)
    assert not ended.incomplete
    assert served.stats()["calls"] == 4 * 5


def test_a_limit_runs_only_the_first_prompts(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(tmp_path, served)
    _, ended = run(path, limit=5)

    assert served.stats()["calls"] == 25
    assert ended.outcomes["pending"] == 7
    _, ended = run(path)
    assert not ended.incomplete
    assert served.stats()["calls"] == 60


def test_a_second_run_says_who_holds_the_store(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve())
    with (
        JournaledStore.open(load(path).store, print),
        pytest.raises(StoreLocked, match=f"process {os.getpid()} on .* since"),
    ):
        run(path)


def test_kill_9_during_a_run_loses_and_repeats_only_calls_in_flight(tmp_path: Path, serve: Serve) -> None:
    served = serve(latency_s=0.05)
    path = write(tmp_path, served, count=60)
    sets = [f"--set=models.{name}.concurrency=4" for name in POOL] + ["--set=judges.judge.concurrency=4"]
    kills = 0
    for wanted in (40, 120, 200):
        process = subprocess.Popen(
            [sys.executable, "-m", "aif", "run", path, *sets], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while served.stats()["calls"] < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    done = aif("run", path, *sets)
    stats = served.stats()

    assert kills == 3
    assert done.returncode == Exit.DONE, done.stderr
    assert stats["requests"]["distinct"] == 60 * 5
    # A call may be repeated if it was in flight, or was answered just before the kill.
    assert stats["calls"] - 300 <= kills * (5 * 4 + 60)
    pipeline = load(path)
    assert ask(pipeline, "SELECT count(*) AS n, count(DISTINCT key) AS keys FROM completions") == [
        {"n": 240, "keys": 240}
    ]
    assert ask(pipeline, "SELECT count(*) AS n FROM judgements") == [{"n": 60}]


@pytest.mark.parametrize(
    ("asked", "heard"),
    [
        ([signal.SIGINT], True),
        ([signal.SIGTERM], True),
        ([signal.SIGINT], False),
        ([signal.SIGHUP, signal.SIGHUP], False),
        ([signal.SIGHUP, signal.SIGINT], True),  # this is the first SIGINT, whatever stopped the run before
    ],
)
def test_a_stop_finishes_calls_in_flight_and_the_same_command_resumes(
    tmp_path: Path, serve: Serve, asked: list[signal.Signals], heard: bool
) -> None:
    """Also if nobody reads its output: in `aif run | tee` a Ctrl-C ends tee first, and a terminal may close."""
    served = serve(latency_s=0.2)
    path = write(tmp_path, served, count=40)
    sets = [f"--set=models.{name}.concurrency=4" for name in POOL]
    process = subprocess.Popen([sys.executable, "-m", "aif", "run", path, *sets], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while served.stats()["calls"] < 30 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.stderr is not None
    if not heard:
        process.stderr.close()
    for number in asked:
        process.send_signal(number)
    message = "resumes" if process.stderr.closed else process.communicate(timeout=30)[1]
    process.wait(30)
    answered = served.stats()["calls"]

    assert process.returncode == Exit.INTERRUPTED or not heard
    assert "resumes" in message
    assert len(ask(load(path), "SELECT 1 FROM calls")) == answered, "all calls in flight were stored"
    assert aif("run", path, *sets).returncode == Exit.DONE
    assert served.stats()["calls"] == 40 * 5, "no call was repeated"


def test_prompts_are_judged_while_others_are_still_being_completed(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(latency_s=0.05), count=60)
    pipeline, _ = run(path, *[f"models.{name}.concurrency=2" for name in POOL])
    (row,) = ask(
        pipeline,
        "SELECT count(*) FILTER (stage = 'judgement' AND started < (SELECT max(started) FROM calls "
        "WHERE stage = 'completion')) AS early FROM calls",
    )

    assert row["early"] >= 30
