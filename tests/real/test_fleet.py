"""Real vLLM servers that `aif run` launches, swaps on the one CPU, and stops: two tiny models, then their judge."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from aif.config.pipeline import load
from aif.core.errors import Exit
from aif.core.resources import shipped
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from tests.real.tiny_model import build
from trials.reliability.server_failures import kill_real_vllm

MARK = "AIF_REAL_FLEET"  # in the environment of every process that a server consists of
PROMPTS = 12
ARGS = [
    "--max-num-seqs", "32", "--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "32768",
    "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
]  # fmt: skip


def _pipeline(folder: Path, models: dict[str, Path]) -> Path:
    rows = shipped("data", "prompts", "quickstart.jsonl").read_text().splitlines()[:PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(f"{row}\n" for row in rows))
    env = {
        MARK: str(folder), "VLLM_CPU_KVCACHE_SPACE": 1, "VLLM_CACHE_ROOT": str(folder / "cache"),
        "VLLM_NO_USAGE_STATS": 1, "HF_HUB_OFFLINE": 1,
    }  # fmt: skip
    launched = {
        name: {
            "provider": "vllm",
            "model": name,
            "launch": {"model": str(path), "max_model_len": 8192, "args": ARGS, "env": env},
        }
        for name, path in models.items()
    }
    judge = {"max_tokens": 3000, "temperature": 1.0, **launched.pop("judge")}
    pipeline: dict[str, Any] = {
        "name": "fleet",
        "store": str(folder / "feedback.duckdb"),
        "prompts": [{"file": "prompts.jsonl", "source_field": "source"}],
        "completions": {"max_tokens": 64},
        "models": {name: {"samples": 2, **one} for name, one in launched.items()},
        "judges": {"judge": judge},
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(pipeline))
    return path


def _servers(folder: Path) -> dict[int, dict[str, str]]:
    """The environment of every process of a server, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # no process, not ours, or ended meanwhile
            continue
        environ = dict(pair.partition("=")[::2] for pair in pairs)
        if environ.get(MARK) == str(folder):
            found[int(entry.name)] = environ
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole run, with what was seen of its servers meanwhile."""
    folder = tmp_path_factory.mktemp("fleet")
    path = _pipeline(folder, {name: build(folder / name, seed) for seed, name in enumerate(("one", "two", "judge"))})
    environ = {**os.environ, "OPENAI_API_KEY": "sk-not-for-servers", "HF_TOKEN": "hf_for-gated-models"}
    environ["CUDA_VISIBLE_DEVICES"] = ""
    seen: dict[int, dict[str, str]] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            seen.update(_servers(folder))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "aif", "run", path], env=environ, capture_output=True, text=True, timeout=900
        )
    finally:
        over.set()
        watching.join()
    return {"path": path, "folder": folder, "done": done, "seen": seen, "left": _servers(folder)}


def test_everything_is_answered_and_judged_by_servers_that_follow_one_another(finished: dict[str, Any]) -> None:
    assert finished["done"].returncode in (Exit.DONE, Exit.FAILURES), finished["done"].stderr
    with Reader.open(load(finished["path"]).store) as reader:
        tallies = reader.tallies()
        calls = reader._query(
            "SELECT endpoint, kind, min(started) AS began, max(started) AS ended FROM calls GROUP BY ALL"
        )
    # a random model now and then says nothing, or runs into its limit; nothing else goes wrong
    assert {call["kind"] for call in calls} <= {None, "empty", "truncated", "unreadable"}
    assert sum(tally.pending for tally in tallies.values()) == 0
    assert tallies["completion", "one"].answered + tallies["completion", "two"].answered >= 0.9 * 4 * PROMPTS
    assert tallies["judgement", "judge"].answered >= 0.9 * PROMPTS
    times = {call["endpoint"]: (call["began"], call["ended"]) for call in calls if call["kind"] is None}
    assert times["one"][1] < times["two"][0]
    assert times["two"][1] < times["judge"][0]


def test_no_process_is_left(finished: dict[str, Any]) -> None:
    assert len(finished["seen"]) >= 3 * 2, "each server is several processes"
    assert finished["left"] == {}


def test_no_key_reaches_a_server_and_the_hub_s_token_does(finished: dict[str, Any]) -> None:
    for environ in finished["seen"].values():
        assert "OPENAI_API_KEY" not in environ
        assert environ["HF_TOKEN"] == "hf_for-gated-models"
    everything = [file for file in finished["folder"].rglob("*") if file.is_file()]
    assert not any(b"sk-not-for-servers" in file.read_bytes() for file in everything)


def test_each_server_has_its_log(finished: dict[str, Any]) -> None:
    logs = {log.name: log.read_text() for log in StorePaths(load(finished["path"]).store).logs.iterdir()}

    assert set(logs) == {"one-1.log", "two-1.log", "judge-1.log"}
    assert all(log.count("=== ") >= 1 and "/health" in log for log in logs.values())


def test_what_vllm_can_not_start_is_told_by_its_own_error(finished: dict[str, Any], tmp_path: Path) -> None:
    """The fourth start, a short one: it ends while the arguments are read."""
    broken = yaml.safe_load(finished["path"].read_text())
    broken["models"]["one"]["launch"]["max_model_len"] = 10**6
    broken["store"] = str(tmp_path / "feedback.duckdb")
    for name in ("two", "judge"):
        entry = broken["models"].get(name) or broken["judges"][name]
        del entry["launch"], entry["model"]
        entry["base_url"] = "http://127.0.0.1:9/v1"
    path = finished["folder"] / "broken.yaml"
    path.write_text(yaml.safe_dump(broken))
    done = subprocess.run(
        [sys.executable, "-m", "aif", "run", path, "--limit", "1"], capture_output=True, text=True, timeout=300
    )

    assert done.returncode == Exit.REFUSED
    assert "one: its server ended before it was ready" in done.stderr
    assert "max_model_len" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_that_is_killed_is_started_again_and_all_is_answered(tmp_path: Path) -> None:
    killed = kill_real_vllm(tmp_path / "killed", sys.executable)

    assert killed["code"] in (Exit.DONE, Exit.FAILURES)
    assert killed["restarts"] == 1
    assert killed["without_answer"] == 0
    assert killed["left"] == 0
