"""Servers as real processes: started, watched, restarted and stopped, and none of them left, however aif ends.

They run tests/fakes/vllm, which PYTHONPATH puts in place of vLLM.
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aif.config.pipeline import Pipeline, load
from aif.core.errors import BadInput, Exit, NotStarted
from aif.core.types import Message, digest
from aif.engine.connect import open_endpoints
from aif.providers.base import Request
from aif.servers import model_identity
from aif.servers.fleet import Fleet, Timings, _open_log, error_in_log
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from tests.engine.test_orchestrator import ask, run, write
from tests.support.fakes.vllm.entrypoints.openai.api_server import TRACEBACK
from tests.support.processes import alive, until
from tests.support.serving import Served

ROOT = Path(__file__).resolve().parents[2]
QUICK = Timings(poll_s=0.02, restart_after_s=(0.01, 0.01))


@pytest.fixture(autouse=True)
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Fakes"]:
    """Fake vLLM for every server, on a machine that seems to have no GPU; nothing of it left afterwards."""
    made = Fakes(tmp_path / "started", tmp_path / "some-model")
    made.folder.mkdir()
    made.model.mkdir()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-do-not-tell")
    monkeypatch.setenv("HF_TOKEN", "hf_for-gated-models")
    yield made
    until(lambda: not made.alive(), "the servers' end")


class Fakes:
    """The servers that were started, as they told of themselves."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model

    def launch(self, launch: dict[str, Any] | None = None, **env: str) -> dict[str, Any]:
        """An entry's `provider` and `launch`."""
        paths = {"PYTHONPATH": f"{ROOT / 'tests' / 'support' / 'fakes'}:{ROOT}", "FAKE_FOLDER": str(self.folder)}
        return {"provider": "vllm", "launch": {"model": str(self.model), **(launch or {}), "env": paths | env}}

    def started(self) -> list[dict[str, Any]]:
        records = [json.loads(file.read_text()) for file in self.folder.glob("*.json")]
        return sorted(records, key=lambda record: record["started"])

    def alive(self) -> list[int]:
        return [pid for record in self.started() for pid in (record["pid"], record["engine"]) if alive(pid)]


NOWHERE = Served("http://127.0.0.1:9/v1")


def pipeline(folder: Path, pool: dict[str, Any], judge: dict[str, Any], count: int = 6) -> Path:
    # two of each prompt's slots are one model's: a pool of two is enough
    models = {name: {"model": name, "samples": 4 // len(pool), **entry} for name, entry in pool.items()}
    return write(folder, NOWHERE, count, models=models, judges={"judge": {"model": "judge", **judge}})


def words(record: dict[str, Any], flag: str) -> str:
    return str(record["words"][record["words"].index(flag) + 1])


def aif(*arguments: str | Path, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "aif", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def test_with_gpus_enough_all_run_together_each_on_its_own(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f,7,8")
    monkeypatch.setenv("JUDGE_PASS", "also-a-key")
    judge = fakes.launch({"max_model_len": 4096, "args": ["--swap", "secret"], "replicas": 1}, EXTRA="1")
    path = pipeline(
        tmp_path, {"a": fakes.launch(), "b": fakes.launch({"gpus": 2})}, {**judge, "api_key_env": "JUDGE_PASS"}
    )
    made, ended = run(path)
    started = {words(record, "--served-model-name"): record for record in fakes.started()}

    assert not ended.incomplete
    assert not fakes.alive()
    assert {name: record["environ"]["CUDA_VISIBLE_DEVICES"] for name, record in started.items()} == {
        "a": "3", "b": "GPU-5f,7", "judge": "8",
    }  # fmt: skip
    for record in started.values():
        assert not {"OPENAI_API_KEY", "JUDGE_PASS"} & record["environ"].keys()
        assert record["environ"]["HF_TOKEN"] == "hf_for-gated-models"
        assert record["environ"]["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] == "60"
        assert words(record, "--generation-config") == "vllm"
        assert words(record, "--host") == "127.0.0.1"
    assert len({words(record, "--port") for record in started.values()}) == 3
    assert words(started["b"], "--tensor-parallel-size") == "2"
    assert "--tensor-parallel-size" not in started["a"]["words"]
    assert words(started["judge"], "--max-model-len") == "4096"
    assert started["judge"]["environ"]["EXTRA"] == "1"
    logs = {log.name: log.read_text() for log in StorePaths(made.store).logs.iterdir()}
    assert set(logs) == {"a-1.log", "b-1.log", "judge-1.log"}
    assert "judge is served" in logs["judge-1.log"]
    assert "--swap" in logs["judge-1.log"]
    assert "secret" not in logs["judge-1.log"]


def test_on_one_gpu_servers_run_in_turn_and_a_finished_run_starts_none(tmp_path: Path, fakes: Fakes) -> None:
    path = pipeline(tmp_path, {"a": fakes.launch(), "b": fakes.launch()}, fakes.launch())
    made, ended = run(path)

    assert not ended.incomplete
    assert [words(record, "--served-model-name") for record in fakes.started()] == ["a", "b", "judge"]
    assert [record["beside"] for record in fakes.started()] == [[], [], []]
    assert ask(made, "SELECT count(*) AS n FROM calls WHERE verdict != 'answered'") == [{"n": 0}]

    _, ended = run(path)
    assert not ended.incomplete
    assert len(fakes.started()) == 3

    # a prompt more, of which only one model and the judge have to say something
    run(write(tmp_path, NOWHERE, 7, models=_entries(path, "models"), judges=_entries(path, "judges")))
    assert len(fakes.started()) == 6


def _entries(path: Path, key: str) -> dict[str, Any]:
    import yaml

    entries: dict[str, Any] = yaml.safe_load(path.read_text())[key]
    return entries


def test_a_launched_judge_rates_completions_of_other_endpoints(tmp_path: Path, fakes: Fakes, serve: Any) -> None:
    served = serve()
    path = write(tmp_path, served, 6, judges={"judge": fakes.launch()})
    _, ended = run(path)

    assert not ended.incomplete
    assert len(fakes.started()) == 1


def test_no_server_is_started_for_a_judge_without_completions(tmp_path: Path, fakes: Fakes) -> None:
    _, ended = run(write(tmp_path, NOWHERE, 3, judges={"judge": fakes.launch()}))

    assert ended.incomplete
    assert fakes.started() == []


def test_a_server_that_ends_before_it_is_ready_stops_its_endpoint_alone(tmp_path: Path, fakes: Fakes) -> None:
    path = pipeline(tmp_path, {"a": fakes.launch(FAKE_ENDS="1"), "b": fakes.launch()}, fakes.launch())
    made, ended = run(path)

    assert list(ended.calling.refused) == ["a"]
    assert ended.calling.refused["a"].startswith("its server ended before it was ready: exit code 3; its log ")
    assert ended.calling.refused["a"].endswith("a-1.log ends with: ValueError: No room for the weights")
    answered = ask(made, "SELECT identity, count(*) AS n FROM completions GROUP BY identity")
    assert answered == [{"identity": "b", "n": 12}]
    assert [words(record, "--served-model-name") for record in fakes.started()] == ["a", "b"], "nothing to be judged"


def test_a_server_that_can_not_start_stops_its_endpoint_alone(tmp_path: Path, fakes: Fakes) -> None:
    path = pipeline(tmp_path, {"a": fakes.launch(), "b": fakes.launch()}, fakes.launch())
    (StorePaths(load(path).store).logs / "a-1.log").mkdir(parents=True)
    made, ended = run(path)

    assert list(ended.calling.refused) == ["a"]
    assert ended.calling.refused["a"].startswith("its server can't be started: [Errno 21] Is a directory")
    assert ask(made, "SELECT count(*) AS n FROM completions WHERE identity = 'b'") == [{"n": 12}]


def test_a_full_disk_names_the_log(tmp_path: Path, fakes: Fakes) -> None:
    (tmp_path / "feedback.logs").mkdir()
    (tmp_path / "feedback.logs" / "a-1.log").symlink_to("/dev/full")
    _, ended = run(pipeline(tmp_path, {"a": fakes.launch(), "b": fakes.launch()}, fakes.launch()))

    assert re.search("No space left on device: '.*feedback.logs/a-1.log'", ended.calling.refused["a"])


def test_a_server_that_is_not_ready_in_time_stops_its_endpoint(tmp_path: Path, fakes: Fakes) -> None:
    path = pipeline(tmp_path, {"a": fakes.launch({"ready_s": 0.3}, FAKE_STALLS="1")}, fakes.launch())
    _, ended = run(path)

    assert ended.calling.refused["a"].startswith("its server was not ready within launch.ready_s (0.3 s)")


def test_a_failed_download_stops_its_endpoint_and_others_download_before_they_start(
    tmp_path: Path, fakes: Fakes, hub: str
) -> None:
    there = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    pool = {name: fakes.launch({"model": f"org/{name}", "ready_s": 60}, **there) for name in ("gated", "small")}
    _, ended = run(pipeline(tmp_path, pool, fakes.launch(), 3))

    assert list(ended.calling.refused) == ["gated"]
    assert "accept its licence" in ended.calling.refused["gated"]
    assert [words(record, "--model") for record in fakes.started()] == ["org/small"]
    assert list((tmp_path / "home").rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        ({"gpus": 2}, "a: launch.gpus is 2, but this machine has no GPU"),
        ({"model": "./gone"}, "a: launch.model: there is no folder ./gone"),
        ({"args": ["--port=1"]}, "a: launch.args: --port is set by aif; take it out"),
        ({"args": ["--ho=0.0.0.0"]}, "a: launch.args: --ho is set by aif; take it out"),
        ({"python": "/no/such/python"}, "a: launch.python: /no/such/python can't be run: No such file or directory"),
    ],
)
def test_a_server_that_can_not_be_placed_is_reported_before_any_starts(
    tmp_path: Path, fakes: Fakes, launch: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        run(pipeline(tmp_path, {"a": fakes.launch(launch), "b": fakes.launch()}, fakes.launch()))
    assert fakes.started() == []


def test_a_python_without_vllm_is_reported(tmp_path: Path, fakes: Fakes) -> None:
    path = pipeline(tmp_path, {"a": fakes.launch(PYTHONPATH=str(tmp_path))}, fakes.launch())
    (tmp_path / "vllm").mkdir()  # a folder of that name is no vLLM
    with pytest.raises(BadInput, match=r"a: .* has no vLLM; `pip install vllm`"):
        run(path)


# --- which model was served -------------------------------------------------------------------------------------------

ANSWERS = (
    "SELECT s.model, c.identity, count(*) AS n FROM slots s JOIN completions c USING (key) GROUP BY ALL ORDER BY ALL"
)


def asked(made: Pipeline) -> int:
    return int(ask(made, "SELECT count(*) AS n FROM calls")[0]["n"])


def recorded(made: Pipeline) -> list[Any]:
    with Reader.open(made.store) as reader:
        return sorted(reader.texts("model").values(), key=lambda row: (row["endpoint"], row["n"]))


def test_other_weights_in_the_same_folder_are_called_and_the_first_are_recognized_again(
    tmp_path: Path, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for folder in (fakes.model, base):
        (folder / "model.safetensors").write_text("first")
    path = pipeline(
        tmp_path, {"a": fakes.launch(), "b": fakes.launch({"model": str(base)})}, fakes.launch({"model": str(base)})
    )
    made, _ = run(path)
    calls = asked(made)
    assert calls == 6 * 4 + 6
    assert [(row["endpoint"], row["n"]) for row in recorded(made)] == [("a", 0), ("b", 0), ("judge", 0)]

    (fakes.model / "README.md").write_text("words")
    run(path)
    assert asked(made) == calls

    (fakes.model / "model.safetensors").write_text("trained")
    made, ended = run(path)
    other = made.models["a"].identity
    assert not ended.incomplete
    assert other.startswith("a+sha256:")
    assert asked(made) == calls + 6 * 2 + 6
    assert ask(made, ANSWERS) == [{"model": "a", "identity": other, "n": 12}, {"model": "b", "identity": "b", "n": 12}]

    (fakes.model / "model.safetensors").write_text("first")
    made, ended = run(path)
    assert not ended.incomplete
    assert asked(made) == calls + 6 * 2 + 6
    assert [row["identity"] for row in ask(made, ANSWERS)] == ["a", "b"]
    assert [(row["endpoint"], row["n"]) for row in recorded(made)][:3] == [("a", 0), ("a", 1), ("a", 2)]


def test_changed_files_and_their_cost_are_reported_before_any_call(tmp_path: Path, fakes: Fakes) -> None:
    (fakes.model / "model.safetensors").write_text("first")
    path = pipeline(tmp_path, {"a": fakes.launch()}, fakes.launch({"args": ["--dtype", "half"]}))
    made, _ = run(path)
    exported = aif("export", path)
    exported.communicate()
    assert exported.returncode == 0

    (fakes.model / "model.safetensors").write_text("trained")
    changed = path.read_text().replace("half", "float32")
    path.write_text(changed)
    calls, records = asked(made), recorded(made)

    def no(journaled: Any, rubric: Any) -> None:
        raise NotStarted("no")

    with pytest.raises(NotStarted):
        run(path, consent=no)
    assert recorded(made) == records

    said = aif("estimate", path).communicate()[1]
    assert re.search(
        r"a: its server now loads a different model than in its last run: model.safetensors \(\w+ → \w+\)", said
    )
    assert re.search(r"It counts as model a\+sha256:\w{12}, which has 0 of 24 answers", said)
    assert "judge: its server now loads a different model than in its last run: --dtype ('half' → 'float32')" in said
    assert "pending now, in all: 24 completions, 6 judgements" in said
    assert asked(made) == calls
    assert recorded(made) == records

    path.write_text(path.read_text().replace("float32", "half"))
    again = aif("export", path)  # by what was asked, whatever lies there now
    told = again.communicate()
    assert again.returncode == 0, told
    card = (tmp_path / "dataset" / "README.md").read_text()
    run_json = json.loads((tmp_path / "dataset" / "run.json").read_text())
    assert f"a (sha256:{digest(records[0]['parts'])[:12]})" in card
    assert run_json["served"] == {row["endpoint"]: f"sha256:{digest(row['parts'])}" for row in records}
    assert str(tmp_path) not in json.dumps(run_json["served"])


def test_answers_of_an_earlier_version_are_not_asked_again(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fakes.model / "model.safetensors").write_text("first")
    path = pipeline(tmp_path, {"a": fakes.launch({"args": ["--quantization", "fp8"]})}, fakes.launch())
    with monkeypatch.context() as former:
        former.setattr(model_identity, "identify_models", lambda *_: [])
        made, _ = run(path)
    calls = asked(made)
    assert recorded(made) == []

    _, ended = run(path)
    assert not ended.incomplete
    assert asked(made) == calls
    assert [row["identity"] for row in recorded(made)] == ["a", "judge"]

    made.store.unlink()  # the journal has it
    (fakes.model / "model.safetensors").write_text("trained")
    made, _ = run(path)
    assert asked(made) == 2 * calls


def test_files_that_change_while_a_server_loads_them_stop_it(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fakes.model / "model.safetensors").write_text("first")
    path = pipeline(tmp_path, {"a": fakes.launch()}, fakes.launch())
    original = Fleet.plan

    async def plan(*given: Any, **options: Any) -> Fleet:
        (fakes.model / "model.safetensors").write_text("trained")
        return await original(*given, **options)

    monkeypatch.setattr(Fleet, "plan", plan)
    made, ended = run(path)

    assert ended.calling.refused["a"].startswith("its model's files have changed since the run was planned")
    assert not (fakes.folder / "calls.jsonl").read_text()
    made, ended = run(path)
    assert not ended.incomplete
    assert made.models["a"].identity.startswith("a+sha256:")


def test_files_deleted_while_a_server_loads_them_stop_it_alone(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fakes.model / "model.safetensors").write_text("first")
    path = pipeline(tmp_path, {"a": fakes.launch(), "b": fakes.launch({"model": str(tmp_path)})}, fakes.launch())

    def gone(endpoint: Any, *_: Any) -> bool:
        if endpoint.entry.name == "a":
            raise BadInput("a: model.safetensors: can't be read: No such file or directory; fix that")
        return False

    monkeypatch.setattr("aif.servers.fleet.loads_other_files", gone)
    _, ended = run(path)

    assert ended.calling.refused["a"].startswith("a: model.safetensors: can't be read")
    assert [json.loads(line)["model"] for line in (fakes.folder / "calls.jsonl").read_text().splitlines()] == ["b"] * 12


def test_calls_name_the_adapter_and_the_base_has_another_name(tmp_path: Path, fakes: Fakes) -> None:
    adapter = tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_text("first")
    launch = fakes.launch({"args": ["--enable-lora", "--lora-modules", f"a={adapter}"]})
    made, ended = run(pipeline(tmp_path, {"a": launch}, fakes.launch()))

    assert not ended.incomplete
    assert [words(record, "--served-model-name") for record in fakes.started()] == ["a.base", "judge"]
    told = [json.loads(line)["model"] for line in (fakes.folder / "calls.jsonl").read_text().splitlines()]
    assert set(told) == {"a", "judge"}
    assert "adapter adapter_model.safetensors" in recorded(made)[0]["parts"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
def test_a_log_on_a_full_disk_is_named() -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        _open_log(Path("/dev/full"), "a start")


async def test_a_server_that_is_being_stopped_is_not_starting(tmp_path: Path, fakes: Fakes) -> None:
    seen: list[str | None] = []
    async with attended(pipeline(tmp_path, {"a": fakes.launch()}, fakes.launch()), []) as endpoint:
        await _answered(endpoint)
        endpoint.done.set()

        def over() -> bool:
            seen.append(endpoint.server_status)
            return len(seen) > 1 and seen[-2:] == ["stopping", None]

        await _until(over)

    assert "starting" not in seen
    assert "stopping" in seen


# --- a server that dies -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def attended(path: Path, told: list[str], timings: Timings = QUICK) -> AsyncIterator[Any]:
    """The endpoints of a pipeline with a fleet that serves them, without a run."""
    made = load(path)
    async with open_endpoints(made) as endpoints, asyncio.TaskGroup() as group:
        keys = {(e.stage, e.name) for e in endpoints if e.name == "a"}
        fleet = await Fleet.plan(made, endpoints, keys, StorePaths(made.store).logs, told.append)
        fleet.timings = timings
        group.create_task(fleet.run())
        endpoint = next(e for e in endpoints if e.name == "a")
        endpoint.wanted.set()
        yield endpoint
        for endpoint in endpoints:
            endpoint.done.set()


REQUEST = Request((Message("user", "Name a use of rain."),), 32)


async def _answered(endpoint: Any) -> str:
    """An answer once a server is up."""
    assert await endpoint.ready()
    return str((await endpoint.client.ask(REQUEST)).text)


async def test_a_server_that_dies_is_restarted_after_its_engine_has_ended(tmp_path: Path, fakes: Fakes) -> None:
    told: list[str] = []
    async with attended(pipeline(tmp_path, {"a": fakes.launch()}, fakes.launch()), told) as endpoint:
        await _answered(endpoint)
        (first,) = fakes.started()
        os.kill(first["pid"], signal.SIGKILL)
        await _until(lambda: not endpoint.up.is_set())
        assert not alive(first["engine"])
        assert await _answered(endpoint)
        assert len(fakes.started()) == 2

    assert "a: its server ended: killed by signal 9, by the system if memory ran out" in told[1]
    assert told[1].endswith("ends with: a is served; starting it again in 0.01 s (1 of 2)")


async def test_a_server_that_keeps_dying_is_given_up(tmp_path: Path, fakes: Fakes) -> None:
    told: list[str] = []
    async with attended(pipeline(tmp_path, {"a": fakes.launch()}, fakes.launch()), told) as endpoint:
        while await endpoint.ready():
            os.kill(fakes.started()[-1]["pid"], signal.SIGKILL)
            await _until(lambda: not endpoint.up.is_set() or endpoint.refused)

    assert endpoint.refused.startswith("its server ended: killed by signal 9")
    assert len(fakes.started()) == 3


async def test_while_one_server_is_down_the_other_answers(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    async with attended(pipeline(tmp_path, {"a": fakes.launch()}, fakes.launch()), []) as endpoint:
        assert endpoint.concurrency == 2 * 64, "for each of two servers, since nothing else is said"
        await _until(lambda: len(endpoint.client._servers) == 2)
        os.kill(fakes.started()[0]["pid"], signal.SIGKILL)
        await _until(lambda: len(endpoint.client._servers) == 1)
        assert endpoint.up.is_set()
        assert await _answered(endpoint)


async def test_a_server_whose_health_check_hangs_is_restarted(tmp_path: Path, fakes: Fakes) -> None:
    told: list[str] = []
    timings = replace(QUICK, check_s=0.02, hung_s=0.1)
    async with attended(pipeline(tmp_path, {"a": fakes.launch()}, fakes.launch()), told, timings) as endpoint:
        await _answered(endpoint)
        (first,) = fakes.started()
        os.kill(first["pid"], signal.SIGSTOP)
        await _until(lambda: not endpoint.up.is_set())
        assert await _answered(endpoint)

    assert told[1].startswith("a: its server hangs, /health failed for 0.1 s: its log ")
    assert not alive(first["engine"])


async def test_a_healthy_server_that_answers_no_call_is_restarted(tmp_path: Path, fakes: Fakes) -> None:
    told: list[str] = []
    path = pipeline(tmp_path, {"a": {**fakes.launch(FAKE_LATENCY="60"), "timeout_s": 0.1}}, fakes.launch())
    async with attended(path, told, replace(QUICK, check_s=0.02)) as endpoint:
        assert await endpoint.ready()
        await asyncio.gather(*(endpoint.client.ask(REQUEST) for _ in range(3)), return_exceptions=True)
        await _until(lambda: len(fakes.started()) == 2)

    assert told[1].startswith("a: its server hangs, it answered no call within timeout_s: its log ")


async def test_an_endless_log_keeps_its_beginning_its_end_and_the_error(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aif.servers.fleet.LOG_KEPT", 100_000)
    told: list[str] = []
    path, timings = pipeline(tmp_path, {"a": fakes.launch()}, fakes.launch()), replace(QUICK, check_s=0.02)
    log = StorePaths(load(path).store).logs / "a-1.log"
    async with attended(path, told, timings) as endpoint:
        await _answered(endpoint)
        with log.open("ab", buffering=0) as server:
            server.write(b"INFO busy\n" * 100_000)
            await _until(lambda: log.stat().st_size < 300_000)
            server.write(b"ValueError: the end\n")
        os.kill(fakes.started()[0]["pid"], signal.SIGKILL)
        await _until(lambda: len(told) > 1)

    assert "ends with: ValueError: the end;" in told[1]
    assert log.read_bytes().startswith(b"\n=== 2")
    assert 200_000 < log.stat().st_size < 210_000
    assert b"\n=== a part was left out here" in log.read_bytes()


async def _until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(until, condition)


def test_a_run_continues_when_a_server_is_killed(tmp_path: Path, fakes: Fakes) -> None:
    path = pipeline(tmp_path, {"a": fakes.launch(FAKE_LATENCY="0.1")}, fakes.launch(), 10)
    process = aif("run", path, "--set", "models.a.concurrency=8")
    until(lambda: _answers(tmp_path) >= 8, "the first answers")
    os.kill(fakes.started()[0]["pid"], signal.SIGKILL)
    _, err = process.communicate(timeout=60)

    assert process.returncode == Exit.DONE, err
    assert "starting it again" in err
    assert [words(record, "--served-model-name") for record in fakes.started()] == ["a", "a", "judge"]


def _answers(folder: Path) -> int:
    return sum(file.read_text().count('"t":"call"') for file in folder.glob("feedback.journal/*"))


# --- aif that ends ----------------------------------------------------------------------------------------------------


def test_when_aif_is_killed_no_process_is_left(tmp_path: Path, fakes: Fakes) -> None:
    path = pipeline(tmp_path, {"a": fakes.launch(FAKE_LATENCY="0.1")}, fakes.launch(), 40)
    process = aif("run", path, "--set", "models.a.concurrency=2")
    until(lambda: _answers(tmp_path) >= 4, "the first answers")
    assert len(fakes.alive()) == 2
    process.kill()
    process.communicate()

    until(lambda: not fakes.alive(), "the servers' end")


def test_a_stop_finishes_calls_in_flight_and_stops_the_servers(tmp_path: Path, fakes: Fakes) -> None:
    path = pipeline(tmp_path, {"a": fakes.launch(FAKE_LATENCY="0.1")}, fakes.launch(), 40)
    process = aif("run", path, "--set", "models.a.concurrency=4", start_new_session=True)
    until(lambda: _answers(tmp_path) >= 4, "the first answers")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: the whole group hears it, the servers don't
    _, err = process.communicate(timeout=60)

    assert process.returncode == Exit.INTERRUPTED, err
    assert "resumes" in err
    assert not fakes.alive()
    assert {row["verdict"] for row in ask(load(path), "SELECT verdict FROM calls")} == {"answered"}


@pytest.mark.parametrize("asked", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_a_stop_while_servers_start_does_not_wait_for_them(
    tmp_path: Path, fakes: Fakes, asked: list[signal.Signals]
) -> None:
    process = aif("run", pipeline(tmp_path, {"a": fakes.launch(FAKE_STALLS="1")}, fakes.launch()))
    until(fakes.started, "the server's start")
    for one in asked:
        process.send_signal(one)
    _, err = process.communicate(timeout=60)

    assert process.returncode == Exit.INTERRUPTED, err
    assert "Traceback" not in err
    assert not fakes.alive()


def test_a_stop_during_a_download_does_not_wait_for_it(tmp_path: Path, fakes: Fakes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says a word
        there = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
        }
        process = aif("run", pipeline(tmp_path, {"a": fakes.launch({"model": "org/slow"}, **there)}, fakes.launch()))
        asked, _ = silent.accept()
        with asked:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)

    assert process.returncode == Exit.INTERRUPTED, err
    assert "resumes" in err
    assert "Traceback" not in err
    assert fakes.started() == []


# --- messages ---------------------------------------------------------------------------------------------------------


def test_the_error_shown_of_a_log_is_the_cause_not_its_consequences() -> None:
    assert error_in_log(TRACEBACK.splitlines()) == "ValueError: No room for the weights"
    said = "pydantic_core._pydantic_core.ValidationError: 1 error for ModelConfig\n  max_model_len is too long\nbye"
    assert error_in_log(said.splitlines()).endswith(
        "ValidationError: 1 error for ModelConfig max_model_len is too long"
    )
    assert error_in_log(["loading", "error: no such option --frob", "bye"]) == "error: no such option --frob"
    calm = "(APIServer pid=6) WARNING 11-21 13:16:11 [a.py:255] too few files, which can cause an OSError: [Errno 24]"
    assert error_in_log([calm, "INFO: 127.0.0.1 POST 200 OK"]) == "INFO: 127.0.0.1 POST 200 OK"
    # of vLLM 0.32 for a folder without weights
    missing = """\
\x1b[0;36m(Worker pid=11977)\x1b[0;0m ERROR 11-30 10:07:46 [multiproc_executor.py:953] WorkerProc failed to start.
(Worker pid=11977) ERROR 11-30 10:07:46 [multiproc_executor.py:953]     raise RuntimeError(
\x1b[0;36m(Worker pid=11977)\x1b[0;0m ERROR 11-30 10:07:46 [multiproc_executor.py:953] RuntimeError: Cannot find any
(EngineCore pid=11372) ERROR 11-30 10:07:51 [core.py:1510] Exception: WorkerProc initialization failed due to an \
exception in a background process. See stack trace for root cause.
Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"""
    assert error_in_log(missing.splitlines()) == "RuntimeError: Cannot find any"
    assert error_in_log(["loading", "Killed", ""]) == "Killed"
    assert error_in_log([]) == ""


def test_doctor_shows_what_would_be_launched_without_launching_it(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pipeline(
        tmp_path, {"a": fakes.launch({"model": "org/gone"}), "b": fakes.launch(PYTHONPATH="")}, fakes.launch()
    )
    out, _ = aif("doctor", path).communicate(timeout=60)

    assert "a: org/gone is not complete in the Hub's cache" in out
    assert re.search(r"FAIL b: \S+ has no vLLM", out)
    assert f"judge: can be launched: vLLM and {fakes.model} are there" in out
    assert "servers: 2 of 3, launched by `aif run`: b on the CPU" in out
    assert fakes.started() == []

    out, _ = aif("doctor", path, "--set", f"models.a.launch.python={sys.executable}").communicate(timeout=60)
    assert out.index(f"launch.python runs {sys.executable}") < out.index("a: org/gone is not complete")
    path.chmod(0o666)
    for command in ("doctor", "run"):
        out, err = aif(command, path).communicate(timeout=60)
        assert re.search("aif: everybody may write to .*, and you may not want what it does .*a: starts servers", err)
        assert "can be launched" not in out
    assert fakes.started() == []
    path.chmod(0o644)

    out, _ = aif("doctor", path, "--set", "models.b.launch.gpus=2").communicate(timeout=60)
    assert "FAIL servers: b: launch.gpus is 2, but this machine has no GPU" in out
