"""Requests that exceed a judge's context window: judged one completion at a time where configured, paid for once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from aif.cli.views.show import print_prompt
from aif.config.pipeline import Pipeline
from aif.engine.prepare import rubric_of
from aif.export.dataset import export
from aif.simulator.faults import Arrival, Fault, InjectedFault
from aif.store.estimate_queries import EstimateReader
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from aif.store.report_queries import Tally
from tests.engine.test_orchestrator import ask, run, write
from tests.support.serving import Served

Serve = Callable[..., Served]
WINDOW = (
    2200  # tokens of a judge: a request about four completions has some 1,500, about one 900, and 1,000 are to come
)


def tight(
    folder: Path, serve: Serve, window: int = WINDOW, count: int = 6, latency_s: float = 0.0, **judge: Any
) -> tuple[Path, Served]:
    """A pipeline whose judge has a server of its own with a small window."""
    narrow = serve(max_model_len=window, latency_s=latency_s)
    one = {"provider": "vllm", "base_url": narrow.base_url, "max_tokens": 1000, **judge}
    return write(folder, serve(), count=count, judges={"judge": one}), narrow


def test_by_default_what_does_not_fit_is_not_asked_otherwise(tmp_path: Path, serve: Serve) -> None:
    path, narrow = tight(tmp_path, serve)
    pipeline, ended = run(path)
    assert ended.outcomes["paired"] == 0
    assert narrow.stats()["calls"] == narrow.stats()["refused"]
    assert ask(pipeline, "SELECT count(*) AS n FROM judgements") == [{"n": 0}]


def test_what_does_not_fit_is_rated_one_completion_by_one(tmp_path: Path, serve: Serve) -> None:
    path, narrow = tight(tmp_path, serve, on_overflow="single")
    pipeline, ended = run(path)

    assert not ended.calling.refused, "that all are too long is no reason to give the judge up"
    assert not ended.incomplete
    assert ended.outcomes["paired"] + ended.outcomes["tie"] == 6
    assert narrow.stats()["calls"] == 6 + 6 * 4
    assert narrow.stats()["refused"] == 6
    assert ask(pipeline, "SELECT len(completions) AS shown, count(*) AS n FROM judgements GROUP BY ALL") == [
        {"shown": 1, "n": 24}
    ]
    assert ask(pipeline, "SELECT count(*) AS n FROM ratings") == [{"n": 6 * 4 * 4}]
    assert ended.tallies["judgement", "judge"] == Tally(24, 24, 0, 0)

    run(path)
    assert narrow.stats()["calls"] == 30, "a finished run asks nobody, and nothing that did not fit"
    with (
        JournaledStore.open(pipeline.store, print) as journaled,
        EstimateReader.of(journaled.store, retry_failed=True) as outlook,
    ):
        assert outlook.tallies()["judgement", "judge"].pending == 0, "nor is it told that a retry would"
    run(path, retry_failed=True)
    assert narrow.stats()["calls"] == 30


def test_what_fits_is_rated_together_beside_what_does_not(tmp_path: Path, serve: Serve) -> None:
    path, narrow = tight(tmp_path, serve, window=2800, on_overflow="single")
    long = "rain and more rain, " * 100
    write_prompts(tmp_path, *(f"{long if n % 2 else ''}Name {n} of these." for n in range(8)))
    pipeline, ended = run(path)

    assert not ended.incomplete
    assert forms(pipeline) == {1: 16, 4: 4}
    assert narrow.stats()["refused"] == 4
    (one,) = ask(pipeline, "SELECT prompt_id FROM judgements WHERE len(completions) = 1 LIMIT 1")
    with Reader.open(pipeline.store) as reader:
        print_prompt(console := Console(file=StringIO(), width=200), reader, one["prompt_id"])
        assert reader.judged_singly() == {"judge": 4}
    assert "judged alone: all completions together exceed the judge's context window" in console.file.getvalue()  # type: ignore[attr-defined]
    exported = card_of(pipeline, tmp_path / "out")
    assert "judge judged one completion at a time for 4 prompts" in " ".join(exported.split())


def test_a_failure_of_before_is_mended_by_the_key_and_going_back_loses_nothing(tmp_path: Path, serve: Serve) -> None:
    path, narrow = tight(tmp_path, serve, window=2800)
    long = "rain and more rain, " * 100
    write_prompts(tmp_path, *(f"{long if n % 2 else ''}Name {n} of these." for n in range(8)))
    run(path)
    refused = narrow.stats()["refused"]
    single = "judges.judge.on_overflow=single"
    pipeline, ended = run(path, single)
    assert not ended.incomplete
    assert narrow.stats()["refused"] == refused, "what did not fit is not asked again"
    assert forms(pipeline) == {1: 16, 4: 4}
    calls = narrow.stats()["calls"]

    pipeline, ended = run(path)
    assert ended.outcomes["judgement_failed"] == 4, "what the pipeline says now holds"
    assert narrow.stats()["calls"] == calls
    assert forms(pipeline) == {1: 16, 4: 4}
    _, ended = run(path, single)
    assert not ended.incomplete
    assert narrow.stats()["calls"] == calls


def test_all_together_comes_first_where_it_fits_in_the_end(tmp_path: Path, serve: Serve) -> None:
    path, narrow = tight(tmp_path, serve, on_overflow="single", count=2)
    run(path)
    wide = serve()
    sets = f"judges.judge.base_url={wide.base_url}", "judges.judge.on_overflow=fail"
    pipeline, ended = run(path, *sets, retry_failed=True)
    assert wide.stats()["calls"] == 2
    pipeline, ended = run(path)
    assert ask(
        pipeline, "SELECT DISTINCT len(j.completions) AS n FROM needed d JOIN judgements j ON judgement = key"
    ) == [{"n": 4}]
    assert ended.tallies["judgement", "judge"] == Tally(2, 2, 0, 0)
    assert narrow.stats()["calls"] == 2 + 8


def test_another_set_of_completions_pays_for_the_new_one_alone(tmp_path: Path, serve: Serve) -> None:
    """A completion that failed for good and is had later: three were rated one by one, and are not again."""
    path, narrow = tight(tmp_path, serve, window=2000, on_overflow="single", count=2)
    run(path, "completions.per_prompt=3", "models.tiny.samples=1")
    calls = narrow.stats()["calls"]
    assert calls == 2 + 6
    _, ended = run(path)
    assert not ended.incomplete
    assert narrow.stats()["calls"] == calls + 2 + 2


def test_a_completion_too_long_by_itself_is_left_out_and_the_others_make_pairs(tmp_path: Path, serve: Serve) -> None:
    long = serve(
        faults=lambda arrival: InjectedFault(Fault.SAYS, text="rain " * 900) if arrival.model == "large" else None
    )
    path, _ = tight(tmp_path, serve, on_overflow="single", count=3)
    pipeline, ended = run(path, f"models.large.base_url={long.base_url}", "pairs.policy=all")

    assert ended.incomplete
    assert ended.outcomes["paired"] + ended.outcomes["tie"] == 3
    assert ask(pipeline, "SELECT DISTINCT unrated FROM outcomes") == [{"unrated": 1}]
    assert ask(pipeline, "SELECT count(*) AS n FROM pairs WHERE 'large' IN (chosen_model, rejected_model)") == [
        {"n": 0}
    ]
    assert ask(pipeline, "SELECT kind, verdict, items FROM failures") == [
        {"kind": "context_overflow", "verdict": "failed", "items": 3}
    ]
    with Reader.open(pipeline.store) as reader:
        assert reader.prompt_counts().unrated == 3


def test_what_is_too_long_by_itself_stays_so_where_nothing_else_is_asked(tmp_path: Path, serve: Serve) -> None:
    long = serve(
        faults=lambda arrival: InjectedFault(Fault.SAYS, text="rain " * 900) if arrival.model == "large" else None
    )
    path, narrow = tight(tmp_path, serve, on_overflow="single", count=8)
    sets = f"models.large.base_url={long.base_url}", "pairs.policy=all"
    _, before = run(path, *sets)
    calls = narrow.stats()["calls"]
    _, ended = run(path, *sets, retry_failed=True)
    assert ended.outcomes == before.outcomes, "pairs of the others are kept"
    assert narrow.stats()["calls"] == calls + 8
    run(path, *sets)
    assert narrow.stats()["calls"] == calls + 8


def test_a_judgement_of_one_completion_that_fails_takes_no_aspect_from_the_others(tmp_path: Path, serve: Serve) -> None:
    """mt-bench asks about each by itself."""

    def befall(arrival: Arrival) -> InjectedFault | None:
        return InjectedFault(Fault.REFUSAL) if arrival.model == "judge" and int(arrival.key[:2], 16) < 64 else None

    served = serve(faults=befall)
    pipeline, _ = run(write(tmp_path, served, count=12, rubric="mt-bench", pairs={"policy": "all"}))
    failed = ask(pipeline, "SELECT prompt_id, count(*) AS n FROM failed GROUP BY ALL")
    assert any(row["n"] <= 2 for row in failed)
    told = {row["prompt_id"]: row for row in ask(pipeline, "SELECT * FROM outcomes")}
    for row in failed:
        one = told[row["prompt_id"]]
        if row["n"] < 4:
            assert one["unrated"] == row["n"]
            assert (one["outcome"] == "unrated") == (row["n"] == 3)
        else:
            assert one["outcome"] == "judgement_failed"


def test_a_kill_pays_for_nothing_twice_and_asks_nothing_again_that_did_not_fit(tmp_path: Path, serve: Serve) -> None:
    path, narrow = tight(tmp_path, serve, latency_s=0.2, on_overflow="single", concurrency=2)
    killed = 4
    for _ in range(killed):
        began = narrow.stats()["calls"]
        going = subprocess.Popen(
            [sys.executable, "-m", "aif", "run", path], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while going.poll() is None and narrow.stats()["calls"] < began + 5:
            time.sleep(0.01)
        os.kill(going.pid, signal.SIGKILL)
        going.wait()
    pipeline, ended = run(path)
    assert not ended.incomplete
    assert forms(pipeline) == {1: 24}
    told = narrow.stats()
    assert told["by_model"]["judge"] <= 24 + killed * 2, "paid for again: what was in flight at a kill"
    assert told["refused"] <= 6 + killed * 2


def write_prompts(folder: Path, *prompts: str) -> None:
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in prompts))


def forms(pipeline: Pipeline) -> dict[int, int]:
    """Judgements there are, by how many completions they are about."""
    rows = ask(pipeline, "SELECT len(completions) AS shown, count(*) AS n FROM judgements GROUP BY ALL ORDER BY ALL")
    return {row["shown"]: row["n"] for row in rows}


def card_of(pipeline: Pipeline, to: Path) -> str:
    rubric = rubric_of(pipeline)
    JournaledStore.use(pipeline.store, print, rubric, lambda journaled: export(pipeline, rubric, journaled, to, print))
    return (to / "README.md").read_text()
