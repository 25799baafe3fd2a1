"""Trying a rubric: which calls are made and stored, what stays unchanged, how old and new ratings are compared."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from math import nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from aif.cli.views.rubric import print_trial
from aif.config.pipeline import load as load_pipeline
from aif.core.errors import BadInput, Exit
from aif.core.resources import shipped
from aif.engine.progress import NoDisplay
from aif.engine.rubric_trial import (
    RatedCompletion,
    TrialCost,
    TrialResult,
    cost_text,
    count_changed_best,
    kendall,
    rank,
    try_rubric,
)
from aif.engine.run import CallingResult
from aif.judging.rubric import Rubric, load
from aif.providers.retry import RetryPolicy
from aif.store.reader import Reader
from tests.cli.test_main import Typed, typed
from tests.engine.test_orchestrator import ask, run, write
from tests.support.processes import until
from tests.support.serving import Served

__all__ = ["typed"]  # a fixture

Serve = Callable[..., Served]

MT_BENCH = load(shipped("prompts", "rubrics", "mt-bench"))
ULTRAFEEDBACK = load(shipped("prompts", "rubrics", "ultrafeedback"))
QUICK = RetryPolicy(attempts=2, first_wait_s=0.01, longest_wait_s=0.02, silent_s=0.2)
STATE = ("specs", "outcomes", "scores", "slots", "marks", "selection")


def tried(path: Path, rubric: Rubric = MT_BENCH, *sets: str, limit: int = 20, **options: Any) -> TrialResult | None:
    options = {"consent": lambda cost: True, **options}
    return try_rubric(load_pipeline(path, sets), rubric, NoDisplay(), limit=limit, policy=QUICK, **options)


def state(path: Path) -> dict[str, list[dict[str, Any]]]:
    with Reader.open(load_pipeline(path).store) as reader:
        return {table: sorted(reader._query(f"SELECT * FROM {table}"), key=str) for table in STATE}


# --- calls and stored judgements --------------------------------------------------------------------------------------


def test_a_trial_rates_stored_completions_and_leaves_the_pipeline_unchanged(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(tmp_path, served)
    run(path)
    before, calls = state(path), served.stats()["calls"]
    result = tried(path, limit=5)

    assert result is not None
    assert state(path) == before
    assert served.stats()["calls"] == calls + 5 * 4
    assert result.names == ("unified", "mt-bench")
    assert len(result.before) == len(result.after) == 5
    assert [*result.before] == [*result.after]
    for prompt_id, rated in result.after.items():
        assert rated.keys() == result.before[prompt_id].keys()
        assert all(c.aspects == {"overall": c.score} and 1 <= c.score <= 10 for c in rated.values())
    assert (result.failures, result.calling.stopped, result.calling.refused) == ([], False, {})
    tau = kendall([(result.before[p][k].score, c.score) for k, c in result.after[p].items()] for p in result.after)
    assert tau is not None
    assert tau > 0.3  # the same completions, judged by a judge that is noisy by 0.1


def test_judgements_of_a_trial_are_never_requested_again(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(tmp_path, served)
    run(path)
    calls = served.stats()["calls"]
    tried(path, limit=5)
    costs: list[TrialCost] = []
    again = tried(path, limit=5, consent=costs.append)
    assert again is not None
    assert not costs  # there is no cost to consent to
    assert served.stats()["calls"] == calls + 5 * 4

    pipeline, ended = run(path, "rubric=mt-bench", "pairs.score=overall")
    assert served.stats()["calls"] == calls + 12 * 4
    assert not ended.incomplete
    kept = ask(pipeline, "SELECT prompt_id, completion, score FROM ratings ORDER BY ALL")
    assert {(row["prompt_id"], row["completion"], row["score"]) for row in kept} >= {
        (prompt_id, key, c.score) for prompt_id, rated in again.after.items() for key, c in rated.items()
    }


def test_judgements_of_a_trial_are_rebuilt_from_the_journal(typed: Typed, tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(), count=4)
    run(path)
    first = tried(path)
    code, out, _ = typed("rebuild", path)
    assert code == Exit.DONE
    assert "20 unchanged, 0 changed, 0 newly readable, 0 no longer readable" in out
    assert tried(path, consent=lambda cost: pytest.fail("calls were repeated")) == first


def test_no_call_is_made_without_consent(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(tmp_path, served)
    run(path)
    before, calls = state(path), served.stats()["calls"]

    def refuse(cost: TrialCost) -> bool:
        raise BadInput("no")

    assert tried(path, consent=lambda cost: False) is None
    with pytest.raises(BadInput, match=r"^no$"):
        tried(path, consent=refuse)
    assert served.stats()["calls"] == calls
    assert state(path) == before


def test_only_prompts_with_all_completions_are_tried(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(tmp_path, served)
    run(path, limit=3)
    calls = served.stats()["calls"]
    result = tried(path)
    assert result is not None
    assert len(result.after) == 3
    assert served.stats()["calls"] == calls + 3 * 4


def test_a_custom_rubric_is_tried_by_the_score_it_gives(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(), count=4)
    run(path)
    sheet = MT_BENCH.files["rubric.yaml"].replace("scale: [1, 10]", "scale: [1, 10]\n    weight: 0")
    overall = Rubric.from_files({**MT_BENCH.files, "rubric.yaml": sheet}, "mine")
    assert overall.scores() == ("overall",)  # the pipeline's is the mean
    result = tried(path, overall)
    assert result is not None
    assert all(c.score == c.aspects["overall"] for rated in result.after.values() for c in rated.values())


def test_consent_is_given_the_cost(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(), count=4)
    run(path)
    costs: list[TrialCost] = []

    def decline(cost: TrialCost) -> bool:
        costs.append(cost)
        return False

    tried(path, ULTRAFEEDBACK, limit=3, consent=decline)
    priced = "judges.judge.price={input: 2, output: 8}"
    tried(path, ULTRAFEEDBACK, priced, limit=3, consent=decline)

    unknown, known = costs
    assert unknown.requests == known.requests == 3 * 8
    assert unknown.usd is None
    assert known.usd == pytest.approx((2 * known.input_tokens + 8 * known.output_tokens) / 1e6)
    assert cost_text(unknown).endswith("out: price unknown")
    assert cost_text(replace(known, usd=1.5)).endswith("out: about $1.50")

    result = tried(path, ULTRAFEEDBACK, limit=3)
    assert result is not None
    (spent,) = ask(
        load_pipeline(path), "SELECT sum(output_tokens) AS used FROM calls WHERE endpoint = 'judge' AND n = 1"
    )
    assert 0 < spent["used"] < 6 * known.output_tokens


def test_missing_ratings_are_reported_with_their_reason(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(), count=3)
    run(path)
    few = tried(path, MT_BENCH, "judges.judge.base_url=http://127.0.0.1:9/v1", limit=1)
    assert few is not None
    assert few.after == {}
    assert [(row.endpoint, row.kind, row.items) for row in few.failures] == [("judge", "connection", 4)]

    result = tried(path, MT_BENCH, "judges.judge.base_url=http://127.0.0.1:9/v1")
    assert result is not None
    assert result.after == {}
    assert "connection: 127.0.0.1:9" in result.calling.refused["judge"], "when all items fail, the endpoint is at fault"


def test_a_judge_that_refuses_is_reported(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, serve(), count=3)
    run(path)
    before = state(path)
    monkeypatch.setenv("WRONG", "wrong")
    locked = serve(require_key="sesame")
    result = tried(path, MT_BENCH, f"judges.judge.base_url={locked.base_url}", "judges.judge.api_key_env=WRONG")
    assert result is not None
    assert "judge" in result.calling.refused
    assert state(path) == before


def test_after_a_killed_trial_views_warn_that_the_store_has_another_rubric(
    typed: Typed, tmp_path: Path, serve: Serve
) -> None:
    served = serve(latency_s=0.1)
    path = write(tmp_path, served, count=3)
    run(path)
    before, calls = state(path), served.stats()["calls"]
    assert typed("status", path)[2] == ""
    command = [sys.executable, "-m", "aif", "rubric", "try", "mt-bench", str(path), "--yes"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        until(lambda: served.stats()["calls"] > calls, "the trial's first call")
        process.kill()

    for words in (["status", path], ["failures", path], ["show", path, ask(load_pipeline(path), FIRST)[0]["id"]]):
        assert "or by an `aif rubric try` that was killed" in typed(*words)[2]
    _, ended = run(path)
    assert not ended.incomplete
    assert state(path) == before
    assert typed("status", path)[2] == ""


FIRST = "SELECT min(prompt_id) AS id FROM prompts"


def test_a_trial_can_use_one_of_several_judges(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    judges = {
        name: {"provider": "openai", "model": "judge", "base_url": served.base_url, "temperature": warmth}
        for name, warmth in (("cold", 0.0), ("warm", 0.5))
    }
    path = write(tmp_path, served, count=3, judges=judges)
    run(path)
    before, calls = state(path), served.stats()["calls"]
    assert tried(path, judge="warm") is not None
    assert served.stats()["calls"] == calls + 3 * 4
    assert state(path) == before
    assert tried(path) is not None
    assert served.stats()["calls"] == calls + 2 * 3 * 4
    with pytest.raises(BadInput, match=r"--judge tepid: .* has no such judge; it has cold, warm"):
        tried(path, judge="tepid")


def test_invalid_trials_are_refused_before_any_call(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    path = write(tmp_path, served, count=3)
    with pytest.raises(BadInput, match=r"no store here yet; `aif run .*pipeline\.yaml` makes it"):
        tried(path)
    run(path, "models.*.base_url=http://127.0.0.1:9/v1")
    with pytest.raises(BadInput, match=r"no prompt has all its completions yet"):
        tried(path)
    run(path)
    with pytest.raises(BadInput, match="GONE"):
        tried(path, MT_BENCH, "judges.judge.api_key_env=GONE")
    weightless = MT_BENCH.files["rubric.yaml"].replace("overall", "quality").replace("scale:", "weight: 0\n    scale:")
    with pytest.raises(BadInput, match="mine: gives no score; give an aspect a weight above 0, or name one `overall`"):
        tried(path, Rubric.from_files({**MT_BENCH.files, "rubric.yaml": weightless}, "mine"))


def test_a_trial_shows_judges_the_material_of_prompts(typed: Typed, tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(), count=3, prompts=[{"file": "known.jsonl", "material": {"reference": "gold"}}])
    rows = [{"prompt": f"Name the moon number {n}.", "gold": f"It is moon {n}, by age."} for n in range(3)]
    (tmp_path / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline, _ = run(path)
    before = state(path)
    result = tried(path)
    assert result is not None
    assert len(result.after) == 3
    assert state(path) == before
    (kept,) = ask(
        pipeline,
        "SELECT count(DISTINCT material) AS materials FROM judgements WHERE request = 'grade' AND material <> ''",
    )
    assert kept["materials"] == 3

    prompt_id = ask(pipeline, "SELECT min(prompt_id) AS id FROM prompts")[0]["id"]
    code, out, _ = typed("rubric", "render", "mt-bench", "--pipeline", path, "--prompt-id", prompt_id)
    assert code == Exit.DONE
    assert (
        out.index("# Conversation")
        < out.index("# Reference answer")
        < out.index("by age.")
        < out.index("completion 1]]")
    )
    _, out, _ = typed("rubric", "render", "mt-bench")
    assert "this prompt has no reference; with it, the judge sees it before the completions" in out
    assert "material reference: Reference answer" in typed("rubric", "show", "mt-bench")[1]


def test_pairs_by_mt_bench_are_the_same_by_mean_and_by_overall_score(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(), count=6, rubric="mt-bench")
    pairs = "SELECT prompt_id, chosen, rejected, score_chosen, score_rejected FROM pairs ORDER BY ALL"
    by_mean = ask(run(path)[0], pairs)
    assert by_mean
    assert ask(run(path, "pairs.score=overall")[0], pairs) == by_mean


# --- old and new ------------------------------------------------------------------------------------------------------


def test_kendalls_tau_matches_scipy() -> None:
    """The expected value is scipy.stats.kendalltau's, variant b."""
    both = list(zip([12, 2, 1, 12, 2], [1, 4, 7, 1, 0], strict=True))
    assert kendall([both]) == pytest.approx(-0.4714045207910316)
    assert kendall([[(1, 10), (2, 20)], [(5, 1), (9, 2)]]) == 1
    assert kendall([[(1, 2), (2, 1)]]) == -1
    assert kendall([[(1, 2), (2, 1)], [(1, 1), (2, 2)]]) == 0  # only completions of the same prompt are compared
    assert kendall([[(1, 1), (1, 2)]]) is None
    assert kendall([]) is None


SCORES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)


@given(st.lists(SCORES, max_size=6))
def test_tau_is_bounded_and_1_for_equal_scores(prompts: list[list[tuple[int, int]]]) -> None:
    tau = kendall(prompts)
    assert tau is None or -1 - 1e-9 <= tau <= 1 + 1e-9
    assert kendall([[(a, a) for a, _ in both] for both in prompts]) in (None, 1)
    assert count_changed_best([[(a, a) for a, _ in both] for both in prompts]) == 0
    assert 0 <= count_changed_best(prompts) <= len(prompts)


def test_equal_scores_share_a_rank_and_ties_for_best_count_as_the_same_best() -> None:
    assert [rank(score, [3, 4, 3, 1]) for score in (4, 3, 1)] == [1, 2, 4]
    assert count_changed_best([[(5, 5), (5, 4), (1, 1)]]) == 0
    assert count_changed_best([[(5, 4), (4, 5)]]) == 1


def test_means_are_over_prompts_rated_by_both_rubrics() -> None:
    """Prompt b has no old rating, so its new rating of 1 is in no mean."""
    old = {"a": {"1": RatedCompletion("x", 4.0, {"tone": 4.0}), "2": RatedCompletion("y", 2.0, {"tone": nan})}}
    new = {
        "a": {"1": RatedCompletion("x", 5.0, {"tone": 3.0}), "2": RatedCompletion("y", 6.0, {"tone": 1.0})},
        "b": {"3": RatedCompletion("x", 1.0, {"tone": 1.0})},
    }
    console = Console(file=StringIO(), record=True, width=100)
    print_trial(console, TrialResult(("old", "new"), old, new, [], CallingResult(False, {}, None)))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "2 prompts rated by new, 1 of them by old too" in lines
    assert "y 2.00 → 6.00 – → 1.00" in lines
    assert "x 4.00 → 5.00 4.00 → 3.00" in lines
    assert "a y 2.00 → 6.00 2 → 1" in lines
    assert "a different completion is best in 1 of 1 prompts" in lines


# --- on the command line ----------------------------------------------------------------------------------------------


def test_a_trial_shows_its_cost_and_asks_before_it_spends(typed: Typed, tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(tmp_path, served, count=3)
    run(path)
    calls = served.stats()["calls"]
    code, _, err = typed("rubric", "try", "mt-bench", path)
    assert code == Exit.BAD_INPUT
    assert "12 requests to judge, about" in err
    assert "no terminal to confirm the cost; pass --yes" in err
    assert served.stats()["calls"] == calls

    code, out, _ = typed("rubric", "try", "mt-bench", path, "--yes", "--limit", "2")
    assert code == Exit.DONE
    assert "2 prompts rated by mt-bench, 2 of them by unified too" in out
    assert "`rubric: mt-bench`" in out
    cramped = ("--set", "judges.judge.max_tokens=2")
    code, out, _ = typed("rubric", "try", "mt-bench", path, "--yes", *cramped)
    assert code == Exit.REFUSED, "no reply fits into 2 tokens"
    assert "judge: truncated, 12 without a rating: " in out
    code, _, err = typed("rubric", "try", "mt-bench", path, "--yes", "--set", "judges.judge.model=nobody")
    assert code == Exit.REFUSED
    rerun = f"aif rubric try mt-bench {path} --limit 20 --set judges.judge.model=nobody"
    assert f"stopped; fix this and rerun `{rerun}`:\n" in err
    assert typed("rubric", "try", "nowhere", path)[0] == Exit.BAD_INPUT


def test_a_copied_rubric_is_valid_and_rates_like_its_original(typed: Typed, tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(tmp_path, served, count=3)
    run(path)
    calls = served.stats()["calls"]
    mine = tmp_path / "My own!"
    code, out, _ = typed("rubric", "copy", "unified", mine)
    assert code == Exit.DONE
    assert f"rubric lint {mine}" in out
    assert load(mine).sheet.name == "My-own"
    typed("rubric", "copy", "mt-bench", tmp_path / "2024")
    assert load(tmp_path / "2024").sheet.name == "2024"  # a string, not a number
    assert typed("rubric", "lint", mine)[0] == Exit.DONE
    assert typed("rubric", "copy", "unified", mine)[0] == Exit.BAD_INPUT
    code, out, _ = typed("rubric", "try", mine, path)
    assert code == Exit.DONE  # no calls: it reaches the judge as `unified` does
    assert "Kendall's tau-b, 1 is the same): 1.00" in " ".join(out.split())
    assert served.stats()["calls"] == calls

    (mine / "role.md").write_text("{{ nobody }}")
    code, out, _ = typed("rubric", "lint", mine)
    assert code == Exit.BAD_INPUT
    assert "role.md:1: can't be rendered" in out
    assert typed("rubric", "try", mine, path)[0] == Exit.BAD_INPUT


def test_tiny_differences_of_scores_rank() -> None:
    assert [rank(score, [3e-11, 1e-11]) for score in (3e-11, 1e-11)] == [1, 2]
    assert count_changed_best([[(3e-11, 1e-11), (1e-11, 3e-11)]]) == 1
    assert kendall([[(3e-11, 1e-11), (1e-11, 3e-11)]]) == -1
