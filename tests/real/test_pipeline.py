"""The product on a real vLLM: bundled prompts in, a dataset out that TRL trains on; killed in mid-run and gone on."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, load_dataset

from aif.config.pipeline import load
from aif.core.errors import Exit
from aif.core.resources import shipped
from aif.store.reader import Reader
from tests.real.test_trl import train
from tests.real.vllm_server import Server

MT_BENCH = Path(__file__).resolve().parents[3] / "shared" / "data" / "mt_bench_questions.jsonl"
CALLS = 4 + 1  # a prompt: four samples, one judgement


def _prompts(folder: Path) -> int:
    """The bundled prompts, and MT-Bench's questions where they lie beside the project. Returns how many."""
    rows = [json.loads(line) for line in shipped("data", "prompts", "quickstart.jsonl").read_text().splitlines()]
    if MT_BENCH.exists():
        found = [json.loads(line) for line in MT_BENCH.read_text().splitlines()]
        rows += [{"prompt": row["turns"][0], "source": row["category"]} for row in found]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def _pipeline(folder: Path, server: Server) -> Path:
    pipeline: dict[str, Any] = {
        "name": "real",
        "store": str(folder / "feedback.duckdb"),
        "prompts": [{"file": "prompts.jsonl", "source_field": "source"}],
        "principles": "ultrafeedback",
        "completions": {"max_tokens": 64},
        "models": {
            name: {"provider": "vllm", "base_url": server.base_url, "samples": 2, "concurrency": 8}
            for name in ("tiny-a", "tiny-b")
        },
        # At temperature 0 a random model gives every completion one and the same rating.
        "judges": {
            "judge": {
                "provider": "openai",
                "base_url": server.base_url,
                "concurrency": 8,
                "max_tokens": 3000,
                "temperature": 1.0,
            }
        },
        "rubric": "unified",
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(pipeline))
    return path


def _aif(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aif", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def _ask(path: Path, query: str) -> list[dict[str, Any]]:
    with Reader.open(load(path).store) as reader:
        return reader._query(query)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, vllm_server: Server) -> dict[str, Any]:
    """A run that was killed with -9 in mid-run, and the same command again."""
    folder = tmp_path_factory.mktemp("real")
    prompts = _prompts(folder)
    path = _pipeline(folder, vllm_server)
    before = vllm_server.calls()
    with subprocess.Popen([sys.executable, "-m", "aif", "run", path], stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 300
            while vllm_server.calls() - before < prompts * 2 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            alive = process.poll() is None
        finally:
            process.kill()
    at_kill = vllm_server.calls() - before
    done = _aif("run", path)
    exported = _aif("export", path)
    assert exported.returncode == Exit.DONE, exported.stderr
    return {
        "path": path, "prompts": prompts, "alive": alive, "at_kill": at_kill, "done": done,
        "calls": vllm_server.calls() - before, "dataset": folder / "dataset",
    }  # fmt: skip


def test_killed_in_mid_run_nothing_stored_is_asked_again(finished: dict[str, Any]) -> None:
    wanted = finished["prompts"] * CALLS
    attempts = _ask(
        finished["path"],
        "SELECT count(*) AS n, count(*) FILTER (verdict = 'answered') AS good FROM calls "
        "WHERE output_tokens IS NOT NULL",
    )[0]
    # Whatever the server answered and the store lacks was in flight at the kill, or answered just before it.
    repeated = finished["calls"] - attempts["n"]

    assert finished["alive"], "the run ended before it was killed"
    assert attempts["good"] == wanted - _missing(finished["path"])
    assert 0 <= repeated <= 3 * 8 + 40, f"{repeated} of {finished['calls']} calls are not in the store"


def _missing(path: Path) -> int:
    return int(_ask(path, "SELECT count(*) AS n FROM failed")[0]["n"])


def test_every_slot_is_answered_and_nearly_every_judgement_read(finished: dict[str, Any]) -> None:
    """A random model's ratings are noise, but by the schema they are ratings; a few may run into their limit."""
    path = finished["path"]
    slots = _ask(path, "SELECT state, count(*) AS n FROM slot_states GROUP BY state")
    judged = {row["state"]: row["n"] for row in _ask(path, "SELECT state, count(*) AS n FROM needed GROUP BY state")}

    # Now and then a random model stops at once, three times in a row.
    assert {row["kind"] for row in _ask(path, "SELECT kind FROM failed WHERE stage = 'completion'")} <= {"empty"}
    assert {row["state"]: row["n"] for row in slots}["answered"] >= 0.97 * finished["prompts"] * 4
    assert judged["answered"] >= 0.95 * finished["prompts"], finished["done"].stderr
    assert finished["done"].returncode in (Exit.DONE, Exit.FAILURES)


def test_a_finished_run_asks_nobody(finished: dict[str, Any], vllm_server: Server) -> None:
    before = vllm_server.calls()
    _aif("run", finished["path"])

    assert vllm_server.calls() == before


def test_seeds_went_over_the_wire_and_samples_differ(finished: dict[str, Any]) -> None:
    rows = _ask(finished["path"], "SELECT prompt_id, count(DISTINCT text) AS texts FROM completions GROUP BY prompt_id")
    assert sum(row["texts"] == 4 for row in rows) >= 0.9 * len(rows)
    seeds = _ask(
        finished["path"],
        "SELECT count(*) AS n, count(*) FILTER ((c.sent->>'$.seed')::BIGINT = d.seed) AS same "
        "FROM calls c JOIN completions d ON c.id = d.call_id WHERE c.n = 1",
    )[0]
    assert seeds["n"] == seeds["same"] >= 0.9 * finished["prompts"] * 4


def test_every_exported_side_traces_back_to_its_score(finished: dict[str, Any]) -> None:
    rows = load_dataset(str(finished["dataset"]), "trl", split="train")
    scores = _ask(
        finished["path"],
        "SELECT s.prompt_id, s.model, c.text, x.score FROM slots s JOIN completions c ON s.key = c.key "
        "JOIN scores x ON s.key = x.completion",
    )
    kept = {(row["prompt_id"], row["model"], row["text"], row["score"]) for row in scores}

    assert len(rows) >= 0.5 * finished["prompts"]
    for row in rows:
        assert row["score_chosen"] > row["score_rejected"]
        for side in ("chosen", "rejected"):
            assert (row["prompt_id"], row[f"{side}_model"], row[side][0]["content"], row[f"score_{side}"]) in kept


def test_trl_overfits_sixteen_exported_pairs(finished: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    rows = load_dataset(str(finished["dataset"]), "trl", split="train")
    metrics = train(tiny_model, _shortest(rows), tmp_path)

    assert metrics["rewards/accuracies"] >= 0.9


def test_the_handbook_s_columns_of_h4_train(finished: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    rows = load_dataset(str(finished["dataset"]), "h4", split="train_prefs")
    assert {"prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected"} <= set(
        rows.column_names
    )
    metrics = train(tiny_model, _shortest(rows).select_columns(["chosen", "rejected"]), tmp_path)

    assert metrics["rewards/accuracies"] >= 0.9


def _shortest(rows: Dataset) -> Dataset:
    """Sixteen pairs that fit the trainer's default length whole: a longer prompt it would drop."""
    sizes = [len(json.dumps([row["chosen"], row["rejected"], row.get("prompt")])) for row in rows]
    return rows.select(sorted(range(len(rows)), key=lambda n: sizes[n])[:16])


def test_rebuilt_from_its_journal_the_store_is_the_same(finished: dict[str, Any]) -> None:
    before = _ask(finished["path"], "SELECT * FROM pairs ORDER BY prompt_id")
    told = _aif("rebuild", finished["path"])

    assert told.returncode == Exit.DONE, told.stderr
    assert "0 changed, 0 newly readable, 0 no longer readable" in told.stdout
    assert _ask(finished["path"], "SELECT * FROM pairs ORDER BY prompt_id") == before


def test_doctor_finds_the_real_servers_in_order(finished: dict[str, Any]) -> None:
    told = _aif("doctor", finished["path"])

    assert told.returncode == Exit.DONE, told.stdout
    assert "judge: rates by schema" in told.stdout
