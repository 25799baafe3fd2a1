"""What a person types and reads: bad input gets a clear line and its exit code, never a traceback."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from aif.cli import main
from aif.config.pipeline import load
from aif.core.errors import Exit
from aif.simulator import Arrival, Fault, InjectedFault, SimulatedModels
from aif.store import records
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from tests.engine.test_orchestrator import write
from tests.support.serving import POOL, Served

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command; gives exit code, what was printed, and what was said beside it."""

    def enter(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["aif", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return enter


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"principels": "x"}, "pipeline.yaml:[0-9]+: principels.*did you mean 'principles'"),
        ({"models": None}, "models"),
        ({"rubric": "ultrafeedbak"}, "rubric 'ultrafeedbak' not found"),
        ({"principles": "nope"}, "principles 'nope.yaml' not found"),
        ({"prompts": [{"file": "gone.jsonl"}]}, "gone.jsonl"),
        ({"pairs": {"score": "overall"}}, "rubric unified gives no 'overall' score"),
        ({"budget_usd": 0}, "budget_usd: must be more than 0, got 0"),
        ({"completions": {"per_prompt": 9}}, "per_prompt is 9, but the pool can give 4"),
        ({"judges": {"j": {"provider": "openai"}}}, "OPENAI_API_KEY"),
    ],
)
def test_bad_input_is_named_with_its_place(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served], change: dict[str, Any], said: str
) -> None:
    code, out, err = typed("run", write(tmp_path, serve(), **change))

    assert code == Exit.BAD_INPUT
    assert re.search(said, err), err
    assert "Traceback" not in err + out


def test_a_file_that_is_named_from_another_folder_asks_nothing_again(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    path = write(tmp_path, served, count=2, store="mine/f.duckdb")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert typed("run", "pipeline.yaml")[0] == Exit.DONE
    calls = served.stats()["calls"]
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert typed("run", path)[0] == typed("export", "../pipeline.yaml")[0] == Exit.DONE
    assert served.stats()["calls"] == calls
    assert (tmp_path / "mine/dataset/README.md").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_no_command_passes_over_a_store_of_the_working_folder(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    path = write(tmp_path, served, count=2, store="runs/test/feedback.duckdb")
    here = tmp_path / "where it was called"
    here.mkdir()
    monkeypatch.chdir(here)
    assert typed("run", path)[0] == Exit.DONE
    calls = served.stats()["calls"]
    shutil.move(tmp_path / "runs", here / "runs")
    for command in ("run", "status", "failures", "estimate", "doctor", "pairs", "export", "rebuild", "reparse"):
        code, _, err = typed(command, path)
        assert code == Exit.BAD_INPUT, command
        assert "mv -n " in err, command
        assert f"'{here}/runs/test/feedback.duckdb'" in err, command
    for words in (["show", path, "1"], ["publish", path, "--repo", "a/b"], ["rubric", "try", "mt-bench", path]):
        assert typed(*words)[0] == Exit.BAD_INPUT
    subprocess.run(["sh", "-c", next(line for line in err.splitlines() if "mv" in line)], check=True)
    assert typed("run", path)[0] == typed("status", path)[0] == Exit.DONE
    assert served.stats()["calls"] == calls


def test_a_store_that_cant_be_written_names_its_key(typed: Typed, tmp_path: Path, serve: Callable[..., Served]) -> None:
    (tmp_path / "runs").write_text("no folder")
    path = write(tmp_path, serve(), store="runs/test/feedback.duckdb")
    code, _, err = typed("run", path)
    assert code == Exit.BAD_INPUT
    assert "runs/test: can't be written to: " in err
    assert "fix its permissions, or set `store:` to another path" in err
    assert "FAIL disk" in typed("doctor", path)[1]


@pytest.mark.parametrize("row", ['{"prompt": "fine"', '{"text": "no prompt here"}', '["a list"]', '{"prompt": 7}'])
def test_a_bad_row_is_named_before_anything_is_asked(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served], row: str
) -> None:
    served = serve()
    path = write(tmp_path, served)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "fine"}\n' + row + "\n")
    code, _, err = typed("run", path)

    assert code == Exit.BAD_INPUT
    assert "prompts.jsonl:2" in err
    assert served.stats()["calls"] == 0


@pytest.mark.parametrize(
    "words",
    [
        ["run", "gone.yaml"],
        ["status", "gone.yaml"],
        ["rubric", "show", "gone"],
        ["rubric", "render", "unified", "--form", "verse"],
        ["simulate", "--model", "large=much"],
        ["simulate", "--port", "65536"],
        ["frobnicate"],
        ["run"],
    ],
)
def test_wrong_words_are_refused(typed: Typed, words: list[str]) -> None:
    code, out, err = typed(*words)

    assert code == Exit.BAD_INPUT
    assert "Traceback" not in err + out


def test_a_run_is_told_and_its_prompts_can_be_shown(typed: Typed, tmp_path: Path, serve: Callable[..., Served]) -> None:
    path = write(tmp_path, serve(), count=6)
    code, out, _ = typed("run", path)
    assert code == Exit.DONE
    assert re.search(r"6 +rows read", out)
    assert f"export {path}" in out
    assert f"export {path} --set pairs.policy=all" in typed("run", path, "--set", "pairs.policy=all")[1]
    for model in ("large", "medium", "small", "tiny"):
        assert model in out

    code, out, _ = typed("export", path)
    assert code == Exit.DONE, out
    dataset = tmp_path / "dataset"
    assert (dataset / "README.md").exists()

    code, out, _ = typed("status", path)
    assert code == Exit.DONE
    assert re.search(r"judge +judgements +6 +6 +0 +0", out)

    code, out, _ = typed("failures", path)
    assert (code, out) == (Exit.DONE, "nothing failed\n")

    prompt_id = _first_id(path)
    code, out, _ = typed("show", path, prompt_id[:12])
    assert code == Exit.DONE
    assert "because" in out
    assert "order shown: 1 =" in out
    assert "the judge's reply" in out
    assert out.count("completion 1]]") >= 1

    code, _, err = typed("show", path, "zzz")
    assert code == Exit.BAD_INPUT
    assert "no prompt starts with 'zzz'; use the dataset's prompt_id column" in err


def refusing(name: str, fault: Fault) -> Callable[[Arrival], InjectedFault | None]:
    return lambda arrival: InjectedFault(fault) if arrival.model == name else None


def test_after_a_run_everything_without_an_answer_is_told_with_its_last_cause(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served]
) -> None:
    """Of what was asked and of what was not, since its model had been given up by then."""
    served = serve(faults=refusing("tiny", Fault.UNAUTHORIZED))
    path = write(tmp_path, served, count=12)
    code, summary, _ = typed("run", path, "--set", "models.tiny.concurrency=1")
    assert code == Exit.REFUSED
    with Reader.open(load(path).store) as reader:
        assert reader._query("SELECT count(*) AS n FROM calls WHERE endpoint = 'tiny'")[0]["n"] < 12
    refused = r"unauthorized: 12 \(no more calls until this is fixed\)\n    tiny\n    HTTP 401: .+\n    → set the key"
    for told in (summary, typed("failures", path)[1], typed("status", path)[1]):
        assert re.search(refused, told), told
        assert "waiting for pending completions: 12\n    judge\n" in told
        assert "nothing failed" not in told
    code, told, _ = typed("failures", path, "--set", "seed=5")
    assert "nothing failed" not in told


def test_a_run_with_failures_says_how_many_items_are_unanswered(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served]
) -> None:
    path = write(tmp_path, serve(faults=refusing("judge", Fault.REFUSAL)), count=2)
    code, out, err = typed("run", path)
    assert code == Exit.FAILURES
    assert err.endswith(f"finished with failures: 2 of 10 unanswered; see `aif failures {path}`\n")
    assert "blocked: 2 (retry with --retry-failed)\n    judge\n" in out


def test_what_was_not_reached_is_told_as_not_asked_yet(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served]
) -> None:
    path = write(tmp_path, serve(), count=6)
    code, summary, _ = typed("run", path, "--limit", "2")
    assert code == Exit.DONE
    for told in (summary, typed("failures", path)[1]):
        assert re.search(r"not sent yet: 16\n    (\w+ 4(, )?){4}\n", told), told
        assert all(f"{name} 4" in told for name in POOL)
        assert "waiting for pending completions: 4\n    judge\n" in told
        assert "nothing failed" not in told
    assert typed("run", path)[0] == Exit.DONE
    assert typed("failures", path)[1] == "nothing failed\n"


def test_nothing_is_said_of_prompts_that_are_not_planned_yet_or_of_answers_the_store_lacks(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served]
) -> None:
    path = write(tmp_path, serve(), count=3)
    assert typed("run", path)[0] == Exit.DONE
    older = Path(shutil.copy(tmp_path / "feedback.duckdb", tmp_path / "older.duckdb"))
    with JournaledStore.open(load(path).store, print) as journaled, Reader.of(journaled.store) as reader:
        (one,) = reader._query("SELECT min(prompt_id) AS id FROM prompts")
        journaled.keep([records.page(0, [(one["id"], "s")], []), records.selected("other", {})])
    _, told, _ = typed("failures", path)
    assert told == "1 prompt not planned yet: the next run plans them first\n"
    shutil.copy(older, tmp_path / "feedback.duckdb")
    _, told, err = typed("failures", path)
    assert told == ""
    assert "is behind its journal" in err


def test_policies_are_compared_over_the_ratings_there_are(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served = serve()
    path = write(tmp_path, served, count=6)
    code, _, err = typed("pairs", path)
    assert code == Exit.BAD_INPUT
    assert f"no store here yet; `aif run {path}` makes it" in err
    typed("run", path)
    calls = served.stats()["calls"]
    code, out, _ = typed("pairs", path, "--versus", "pairs.policy=all", "--versus", "pairs.max_pairs_per_prompt=2")
    assert code == Exit.DONE
    assert re.search(r"^pairs +6 +12 *$", out, re.MULTILINE)
    assert "same chosen, different rejected" in out
    code, _, err = typed("pairs", path, "--versus", "pairs.polcy=all")
    assert code == Exit.BAD_INPUT
    assert "did you mean 'policy'" in err
    code, _, err = typed("pairs", path, "--versus", "seed=3")
    assert code == Exit.BAD_INPUT
    assert "the store was last updated with other models" in err
    assert served.stats()["calls"] == calls


def test_without_prompts_pairs_names_the_command_that_reads_them(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served]
) -> None:
    path = write(tmp_path, serve(), count=1)
    prompts = tmp_path / "prompts.jsonl"
    rows = prompts.read_text()
    prompts.write_text("")
    assert typed("run", path)[0] == Exit.BAD_INPUT
    code, _, err = typed("pairs", path)
    assert code == Exit.BAD_INPUT
    assert f"the store has no prompts yet; `aif run {path}` reads them first" in err
    prompts.write_text(rows)
    assert typed("run", path)[0] == Exit.DONE


def test_several_pairs_and_judges_are_told(typed: Typed, tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve(cast=SimulatedModels(POOL, {"judge": 0.0, "wild": 0.9}))
    judge = {"provider": "openai", "base_url": served.base_url}
    path = write(tmp_path, served, count=8, judges={"judge": judge, "wild": judge}, pairs={"policy": "all"})
    code, out, _ = typed("run", path)
    assert code == Exit.DONE
    pairs = int(re.search(r"8 prompts, (\d+) pairs", out)[1])  # type: ignore[index]
    assert pairs > 8
    assert re.search(rf"{pairs} +pairs of these", out)
    assert re.search(r"judge, wild +32 +\d\.\d\d +-?\d\.\d\d", out)
    disputed = int(re.search(rf"(\d+) of {pairs} pairs: at least one judge prefers the rejected answer", out)[1])  # type: ignore[index]
    assert disputed > 0

    with Reader.open(load(path).store) as reader:
        (one,) = reader._query("SELECT * FROM dissent ORDER BY prompt_id, n LIMIT 1")
    _, out, _ = typed("show", path, one["prompt_id"])
    assert re.search(r"pair 1 of [2-6]", out)
    assert f"{one['judge']} prefers the rejected answer: {one['score_chosen']:.3f} < {one['score_rejected']:.3f}" in out
    assert len(re.findall(r"by judge judge \d\.\d{3}, wild \d\.\d{3}; spread", out)) == 4
    assert out.count("judgement") >= 2

    code, out, _ = typed("export", path)
    assert f"{pairs} pairs of 8 prompts" in out
    card = (tmp_path / "dataset" / "README.md").read_text()
    assert f"| {pairs} | pairs of these |" in card
    assert f"{disputed} of {pairs} pairs: at least one judge prefers the rejected answer." in card


def _first_id(path: Path) -> str:
    with Reader.open(load(path).store) as reader:
        return str(reader._query("SELECT prompt_id FROM outcomes WHERE outcome = 'paired'")[0]["prompt_id"])


def test_rebuild_and_reparse_give_the_same_store(typed: Typed, tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve()
    path = write(tmp_path, served, count=6)
    typed("run", path)
    for command in ("rebuild", "reparse"):
        code, out, _ = typed(command, path)
        assert code == Exit.DONE
        assert "6 unchanged, 0 changed, 0 newly readable, 0 no longer readable" in out
    assert typed("run", path)[0] == Exit.DONE
    assert served.stats()["calls"] == 30


def test_who_holds_the_store_is_told_to_whoever_wants_it(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served = serve()
    path = write(tmp_path, served, count=2)
    typed("run", path)
    calls = served.stats()["calls"]
    with JournaledStore.open(load(path).store, print):
        for command in ("status", "failures"):
            code, out, _ = typed(command, path)
            assert code == Exit.DONE
            assert f"held by process {os.getpid()} on {socket.gethostname()}" in out
            assert "it calls no model now" in out
        for command in ("run", "export", "rebuild", "reparse", "estimate"):
            code, out, err = typed(command, path)
            assert (code, out) == (Exit.LOCKED, "")
            assert f"held by process {os.getpid()} on {socket.gethostname()}" in err
            assert "`aif status` and `aif failures` work meanwhile" in err
    assert served.stats()["calls"] == calls


@pytest.mark.parametrize("command", ["status", "failures", "pairs", "show"])
def test_of_a_broken_store_is_said_what_to_do(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served], command: str
) -> None:
    path = write(tmp_path, serve(), count=2)
    typed("run", path)
    store = load(path).store
    store.write_bytes(store.read_bytes()[:4096])
    words = [command, path, "0"] if command == "show" else [command, path]
    code, _, err = typed(*words)
    assert code == Exit.DAMAGED
    assert f"`aif rebuild {path}` rebuilds it from the journal" in err
    shutil.rmtree(store.with_suffix(".journal"))
    assert "there is no journal to rebuild it from; set another `store`" in typed(*words)[2]


@pytest.mark.parametrize(
    "name", ["thesis.csv", "prompts.jsonl", "folder", "folder.duckdb", "text.duckdb", "own.duckdb"]
)
@pytest.mark.parametrize("command", ["run", "export", "rebuild", "status", "failures"])
def test_what_is_no_store_of_ours_is_left_alone(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served], name: str, command: str
) -> None:
    served = serve()
    path = write(tmp_path, served, count=3)
    foreign = tmp_path / name
    if name.startswith("folder"):
        foreign.mkdir()
        (foreign / "precious").write_text("all I have")
    elif name == "own.duckdb":
        with duckdb.connect(str(foreign)) as db:
            db.execute("CREATE TABLE mine AS SELECT 42 AS answer")
    elif name != "prompts.jsonl":
        foreign.write_text("all I have")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    code, out, err = typed(command, path, "--set", f"store={foreign}")

    assert code in (Exit.BAD_INPUT, Exit.DAMAGED), err
    assert "Traceback" not in out + err
    assert {file: file.read_bytes() for file in before} == before
    assert served.stats()["calls"] == 0


def test_a_refusal_is_told_by_failures_with_its_mend(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(require_key="sesame")
    models = {name: {"provider": "vllm", "base_url": served.base_url} for name in ("large", "medium", "small", "tiny")}
    path = write(tmp_path, served, count=3, models=models)
    code, _, err = typed("run", path)
    assert code == Exit.REFUSED
    assert "stopped; fix this and rerun `aif run" in err
    _, out, _ = typed("failures", path)
    assert "unauthorized: 12 (no more calls until this is fixed)\n    large 3, medium 3, small 3, tiny 3\n" in out


def test_a_port_that_is_taken_is_told_in_a_line(typed: Typed, serve: Callable[..., Served]) -> None:
    port = serve().base_url.rpartition(":")[2].partition("/")[0]
    code, _, err = typed("simulate", "--port", port)

    assert code == Exit.BAD_INPUT
    assert f"127.0.0.1:{port}: can't listen: " in err


def test_doctor_finds_what_is_wrong_and_says_how_to_mend_it(
    typed: Typed, tmp_path: Path, serve: Callable[..., Served]
) -> None:
    path = write(tmp_path, serve())
    code, out, _ = typed("doctor", path)
    assert code == Exit.DONE, out
    assert "judge: rates by schema: 8 ratings of 2 completions parsed" in out

    code, out, _ = typed("doctor", path, "--set", "models.tiny.model=huge", "--set", "judges.judge.api_key_env=GONE")
    assert code == Exit.BAD_INPUT
    assert "FAIL judge: no API key; set the environment variable GONE" in out
    assert "tiny: unknown_model" in out  # one missing key hides nothing else
    assert "large: answers as large" in out
    assert "prompts prompts: its first row is a prompt of 1 turn\n" in out

    code, out, _ = typed("doctor", path, "--set", "prompts=[{file: gone.jsonl}]")
    assert code == Exit.BAD_INPUT
    assert "FAIL prompts gone: prompt file 'gone.jsonl' not found" in out


def test_doctor_tells_names_as_they_are(typed: Typed, tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve()
    models = {f"{name} [red]": {"provider": "vllm", "base_url": served.base_url, "model": name} for name in POOL}
    _, out, _ = typed("doctor", write(tmp_path, served, models=models))

    assert "tiny [red]: answers as tiny" in out


def test_what_init_makes_runs(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed("init", "demo")[0] == Exit.DONE
    code, _, err = typed("run", "demo/pipeline.yaml")
    assert code == Exit.DONE, err
    assert typed("init", "demo")[0] == Exit.BAD_INPUT
    assert "run 'two words/pipeline.yaml'" in typed("init", "two words")[1]
    assert yaml.safe_load(Path("demo/pipeline.yaml").read_text())["name"] == "demo"
    assert Path("demo/runs/demo/feedback.duckdb").is_file()


def test_rubrics_can_be_looked_at(typed: Typed) -> None:
    assert "unified" in typed("rubric", "list")[1]
    assert "truthfulness" in typed("rubric", "show", "unified")[1]
    code, out, _ = typed("rubric", "render", "ultrafeedback")
    assert code == Exit.DONE
    assert out.count("completion 2]]") == 4  # four listwise requests; the critique sees one completion


def test_each_command_is_in_the_module_of_its_name() -> None:
    modules = {
        command.callback.__name__: command.callback.__module__.removeprefix("aif.cli.commands.")
        for command in main.app.registered_commands
        if command.callback
    }
    assert modules == {name: name for name in modules} | {"reparse": "rebuild"}
    assert len(modules) == 13


def test_help_names_every_command() -> None:
    told = subprocess.run([sys.executable, "-m", "aif", "--help"], capture_output=True, text=True, check=True).stdout
    for command in (
        "run",
        "status",
        "failures",
        "doctor",
        "show",
        "pairs",
        "export",
        "rebuild",
        "reparse",
        "simulate",
        "init",
    ):
        assert command in told


def test_a_store_that_no_prompt_has_reached_says_so(typed: Typed, tmp_path: Path, serve: Callable[..., Served]) -> None:
    path = write(tmp_path, serve())
    (tmp_path / "prompts.jsonl").unlink()
    assert typed("run", path)[0] == Exit.BAD_INPUT
    code, out, err = typed("status", path)
    assert code == 0
    assert f"the store has no prompts yet; `aif run {path}` reads them first" in err
    assert "no prompt is selected" in out
    assert "100" not in out


def test_a_store_that_is_behind_its_journal_says_so(typed: Typed, tmp_path: Path, serve: Callable[..., Served]) -> None:
    path = write(tmp_path, serve(), count=3)
    assert typed("run", path, "--limit", "1")[0] == Exit.DONE
    assert "is behind its journal" not in typed("status", path)[2]
    store = next(tmp_path.glob("*.duckdb"))
    before = store.read_bytes()
    assert typed("run", path)[0] == Exit.DONE
    store.write_bytes(before)

    assert "is behind its journal" in typed("status", path)[2]
    assert typed("export", path)[0] == Exit.DONE
    assert "is behind its journal" not in typed("status", path)[2]
