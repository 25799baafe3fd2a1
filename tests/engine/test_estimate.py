"""Estimates: the arithmetic by hand, and whole estimates against what the simulator then counts."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from aif.config.pipeline import load, parse
from aif.config.sections import DeclaredEndpoint, Judge, Model
from aif.core.resources import shipped
from aif.core.types import Stage
from aif.engine.estimate import (
    UNMEASURED,
    EndpointWork,
    Estimate,
    EstimateLine,
    ReplyLength,
    Span,
    TokenRate,
    completion_length,
    estimate_cost,
    judgement_length,
)
from aif.engine.workload import estimate_run, prepare_and_estimate
from aif.judging.rubric import Rubric
from aif.judging.rubric import load as load_rubric
from aif.simulator import Arrival, Fault, InjectedFault, SimulatedModels
from aif.store.estimate_queries import EstimateReader, ReplyUsage
from aif.store.report_queries import Tally
from tests.engine.test_orchestrator import ask, run, write
from tests.support.building import Fate, build
from tests.support.serving import POOL, Served

Serve = Callable[..., Served]

PIPELINE = """
name: by-hand
prompts: [{file: p.jsonl}]
completions: {per_prompt: 2}
models:
  a: {provider: openai, price: {input: 1, output: 10}}
  b: {provider: openai, price: {input: 2, cached_input: 1, cache_write: 3, output: 8}}
judges:
  j: {provider: openai, price: {input: 4, output: 20}}
"""


def line(change: str = "", stage: Stage = "completion", name: str = "a", **given: Any) -> EstimateLine:
    return estimated([work(stage, name, **given)], change).lines[0]


def estimated(works: list[EndpointWork], *changes: str) -> Estimate:
    pipeline = parse(PIPELINE, Path("pipeline.yaml"), [change for change in changes if change])
    endpoints: dict[tuple[Stage, str], DeclaredEndpoint] = {("completion", n): m for n, m in pipeline.models.items()}
    return estimate_cost(works, {**endpoints, **{("judgement", n): j for n, j in pipeline.judges.items()}})


def work(stage: Stage = "completion", name: str = "a", pending: int = 10, **given: Any) -> EndpointWork:
    """Return the work of ten calls of 400 bytes, four bytes a token, with replies of 50 tokens and at most 200."""
    usual: dict[str, Any] = {
        "tally": Tally(pending + 3, 3, 0, 0),
        "sent": 400.0,
        "awaited": {},
        "rate": TokenRate(Span(0.25, 0.5), "basis"),
        "reply": ReplyLength(Span(50, 200), Span(40, 200), "basis"),
        "limit_tokens": 300.0,
    }
    return EndpointWork(stage, name, **(usual | given))


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_tokens_and_dollars_are_calls_times_size_times_price() -> None:
    estimate = line()

    assert (estimate.calls, estimate.stored) == (10, 3)
    assert (estimate.input, estimate.output) == (Span(1000, 3 * 2000), Span(500, 3 * 2000))
    assert estimate.usd == Span((1000 * 1 + 500 * 10) / 1e6, 3 * (2000 * 1 + 2000 * 10) / 1e6)


def test_a_judgement_may_be_cut_three_times_with_more_room_each_time() -> None:
    estimate = line(stage="judgement", name="j")

    assert (estimate.input.most, estimate.output.most) == (3 * 2000, (1 + 2 + 4) * 2000)


def test_retried_calls_are_counted_again() -> None:
    assert line(tries=1.5).output == Span(750, 3 * 2000)
    assert line(tries=5.0).output == Span(2500, 5 * 2000)


def test_a_measured_cache_lowers_the_expected_cost_and_not_the_maximum() -> None:
    estimate = line(name="b", cached=0.5, written=0.1)

    assert estimate.usd == Span((400 * 2 + 500 * 1 + 100 * 3 + 500 * 8) / 1e6, 3 * (2000 * 3 + 2000 * 8) / 1e6)


def test_a_judge_reads_pending_completions_at_the_length_their_models_write() -> None:
    judging = work("judgement", "j", awaited={"a": 1.0, "b": 2.0})
    other = ReplyLength(Span(500, 600), Span(100, 600), "basis")
    estimate = estimated([work(), work(name="b", reply=other), judging]).lines[2]

    assert estimate.input == Span(10 * (100 + 40 + 2 * 100), 3 * 10 * (200 + 200 + 2 * 600))


def test_an_unknown_price_is_unknown_and_the_total_a_lower_bound() -> None:
    estimate = estimated([work(), work(name="b")], "models.a.price=null")

    assert estimate.lines[0].usd is None
    assert estimate.unpriced == ("a",)
    assert estimate.usd == estimate.lines[1].usd


def test_an_unknown_price_without_calls_does_not_matter() -> None:
    assert estimated([work(pending=0), work(name="b")], "models.a.price=null").unpriced == ()


def test_local_servers_cost_nothing() -> None:
    own = "models.a={provider: vllm, base_url: 'http://localhost:1/v1'}"

    assert line(own).usd == Span(0, 0)


def test_other_addresses_are_not_free() -> None:
    there = "models.a={provider: vllm, base_url: 'https://api.example.com/v1'}"

    assert line(there).usd is None
    assert estimated([work(), work(name="b")], there).unpriced == ("a",)
    assert estimated([work()], there, "models.a.price={input: 0, output: 0}").usd == Span(0, 0)


@pytest.mark.parametrize(
    ("change", "given", "seconds", "at_least"),
    [
        ("", {}, None, True),
        ("models.a.requests_per_minute=60", {}, 10.0, True),
        ("models.a.tokens_per_minute=1000", {}, 180.0, True),  # as the limit counts them: 300 tokens a call
        ("models.a.requests_per_minute=60", {"seconds": 2.0}, 10.0, False),
        ("models.a.concurrency=4", {"seconds": 8.0}, 20.0, False),
        ("models.a.concurrency=64", {"seconds": 8.0}, 8.0, False),  # ten calls can't use 64 slots
    ],
)
def test_time_is_as_measured_and_never_less_than_the_limits_allow(
    change: str, given: dict[str, Any], seconds: float | None, at_least: bool
) -> None:
    estimate = line(change, **given)

    assert estimate.seconds == (seconds and pytest.approx(seconds))
    assert estimate.at_least is at_least


def test_endpoints_work_in_parallel_so_the_slowest_gives_the_time() -> None:
    estimate = estimated([work(seconds=16.0), work(name="b", seconds=160.0), work("judgement", "j", pending=0)])

    assert estimate.seconds == pytest.approx(160.0)
    assert not estimate.at_least


def used(**given: Any) -> ReplyUsage:
    defaults = {"items": 10, "shown": 40, "calls": 10, "input": 9000, "cached": 0, "written": 0, "output": 4000,
                "reasoning": 1000, "seconds": 20.0}  # fmt: skip
    return ReplyUsage(**(defaults | given))


def model(**keys: Any) -> Model:
    return Model.model_validate({"provider": "openai", "model": "gpt-4.1-mini", **keys})


def judge(**keys: Any) -> Judge:
    return Judge.model_validate({"provider": "openai", "model": "gpt-4.1", **keys})


def test_completion_length_is_as_measured_and_judges_are_not_shown_reasoning() -> None:
    length = completion_length(model(), 512, used())

    assert (length.tokens, length.shown) == (Span(400, 512), Span(300, 512))
    assert "10 calls" in length.basis


def test_an_unmeasured_completion_length_is_assumed_and_says_so() -> None:
    assert completion_length(model(), 1024, None).tokens == Span(300, 1024)
    assert completion_length(model(), 100, used(items=0, calls=0)).tokens == Span(100, 100)
    thinking = completion_length(model(model="o4-mini"), 4096, None)
    assert thinking.tokens == Span(4096, 4096)
    assert "reasons" in thinking.basis


def unified() -> Rubric:
    return load_rubric(shipped("prompts", "rubrics", "unified"))


def test_unmeasured_judgements_have_the_length_of_the_rubrics_rationales() -> None:
    rubric = unified()
    length = judgement_length(rubric, judge(), [("ratings", 4)], {})

    assert length.tokens == Span(4 * sum(a.rationale_chars / 4 + 15 for a in rubric.sheet.aspects.values()), 2048)
    assert judgement_length(rubric, judge(max_tokens=100), [("ratings", 4)], {}).tokens == Span(100, 100)
    assert judgement_length(rubric, judge(model="o4-mini"), [("ratings", 4)], {}).tokens == Span(2048, 2048)


def test_a_measured_request_is_scaled_by_the_completions_it_shows() -> None:
    length = judgement_length(unified(), judge(), [("ratings", 4), ("ratings", 2)], {"ratings": used()})

    assert length.tokens.expected == pytest.approx((400 + 200) / 2)


# --- against a store --------------------------------------------------------------------------------------------------


def by_name(estimate: Estimate) -> dict[str, EstimateLine]:
    return {line.name: line for line in estimate.lines}


def foreseen(path: Path, *sets: str, limit: int | None = None) -> Estimate:
    return prepare_and_estimate(load(path, sets), limit, lambda words: None)


def difference(served: Served, ask: Callable[[], object]) -> dict[str, Any]:
    """Return what the server counted while `ask` ran."""
    before = served.stats()
    ask()
    after = served.stats()
    calls = {name: n - before["by_model"].get(name, 0) for name, n in after["by_model"].items()}
    tokens = {side: after["tokens"][side] - before["tokens"][side] for side in ("input", "output")}
    return {"calls": {name: n for name, n in calls.items() if n}, **tokens}


def to_ask(estimate: Estimate) -> dict[str, int]:
    return {line.name: line.calls for line in estimate.lines if line.calls}


def test_without_measurements_a_run_stays_within_the_estimate(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(tmp_path, served)
    estimate = foreseen(path)
    assert served.stats()["calls"] == 0
    came = difference(served, lambda: run(path))

    assert to_ask(estimate) == came["calls"]
    assert came["input"] <= estimate.input.most
    assert came["output"] <= estimate.output.most
    assert estimate.seconds is None


@pytest.mark.parametrize(
    ("fault", "of"),
    [(Fault.EMPTY, "large"), (Fault.SAYS, "judge"), (Fault.TRUNCATED, "judge"), (Fault.BLANKS, "judge")],
)
def test_unusable_replies_are_billed_within_the_estimated_maximum(
    tmp_path: Path, serve: Serve, fault: Fault, of: str
) -> None:
    def befall(arrival: Arrival) -> InjectedFault | None:
        return InjectedFault(fault, text="I would rather talk about the weather. " * 9) if arrival.model == of else None

    served = serve(faults=befall)
    path = write(tmp_path, served, count=6)
    price = ["models.*.price={input: 1, output: 10}", "judges.judge.price={input: 1, output: 10}"]
    estimate = by_name(foreseen(path, *price))
    pipeline, _ = run(path, *price)
    billed = {row["endpoint"]: row for row in ask(pipeline, "FROM spend")}

    assert 3 <= billed[of]["calls"] <= 3 * estimate[of].calls, "an endpoint with only unusable replies is stopped soon"
    assert billed[of]["input_tokens"] <= estimate[of].input.most
    assert billed[of]["output_tokens"] <= estimate[of].output.most
    assert billed[of]["usd"] <= estimate[of].usd.most  # type: ignore[union-attr]


def test_with_measurements_the_estimate_is_within_a_few_percent(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(tmp_path, served, count=60)
    run(path, limit=20)
    estimate = foreseen(path)
    came = difference(served, lambda: run(path))

    assert estimate.stored == 100
    assert to_ask(estimate) == came["calls"]
    assert estimate.input.expected == pytest.approx(came["input"], rel=0.05)
    assert estimate.output.expected == pytest.approx(came["output"], rel=0.05)
    assert all("measured" in basis for line in estimate.lines for basis in line.basis)


def test_a_finished_run_has_no_calls_left(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve())
    run(path)
    estimate = foreseen(path)

    assert (estimate.calls, estimate.stored) == (0, 60)


def test_a_limit_counts_the_first_prompts_only(tmp_path: Path, serve: Serve) -> None:
    assert foreseen(write(tmp_path, serve()), limit=5).calls == 25


@pytest.mark.parametrize("rubric", ["unified", "ultrafeedback"])
def test_a_new_model_counts_its_slots_and_the_judgements_they_change(tmp_path: Path, serve: Serve, rubric: str) -> None:
    """Judgements of single completions stay for the completions that stay."""
    served = serve(cast=SimulatedModels({**POOL, "extra": 0.5}, {"judge": 0.1}))
    path = write(tmp_path, served, rubric=rubric, pairs={"score": "mean"})
    run(path)
    text = yaml.safe_load(path.read_text())
    text["models"]["extra"] = {"provider": "vllm", "base_url": served.base_url}
    path.write_text(yaml.safe_dump(text))
    estimate = foreseen(path)
    came = difference(served, lambda: run(path))

    assert to_ask(estimate) == came["calls"]
    assert set(came["calls"]) == {"extra", "judge"}


def test_a_new_judge_counts_its_judgements_of_existing_completions(tmp_path: Path, serve: Serve) -> None:
    served = serve(cast=SimulatedModels(POOL, {"judge": 0.1, "second": 0.2}))
    path = write(tmp_path, served)
    run(path)
    change = "judges.judge.model=second"
    estimate = foreseen(path, change)
    came = difference(served, lambda: run(path, change))

    assert to_ask(estimate) == {"judge": 12}
    assert came["calls"] == {"second": 12}
    assert came["input"] <= estimate.input.most


def test_a_second_judge_counts_all_its_judgements_and_none_of_the_first(tmp_path: Path, serve: Serve) -> None:
    served = serve(cast=SimulatedModels(POOL, {"judge": 0.1, "second": 0.2}))
    path = write(tmp_path, served)
    run(path)
    text = yaml.safe_load(path.read_text())
    text["judges"]["second"] = {"provider": "vllm", "base_url": served.base_url}
    path.write_text(yaml.safe_dump(text))
    estimate = foreseen(path)
    came = difference(served, lambda: run(path))

    assert to_ask(estimate) == came["calls"] == {"second": 12}


def test_another_rubric_is_sized_by_its_texts_and_the_token_rate_of_the_former(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(tmp_path, served)
    run(path)
    estimate = foreseen(path, "rubric=ultrafeedback")
    came = difference(served, lambda: run(path, "rubric=ultrafeedback"))

    assert to_ask(estimate) == came["calls"] == {"judge": 12 * (4 + 4)}
    assert "measured" in by_name(estimate)["judge"].basis[0]
    assert estimate.input.expected == pytest.approx(came["input"], rel=0.05)
    assert came["output"] <= estimate.output.most


def test_a_new_request_for_an_aspect_counts_at_the_judges_token_rate(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    rubric = tmp_path / "mine"
    shutil.copytree(shipped("prompts", "rubrics", "unified"), rubric)
    path = write(tmp_path, served, rubric="mine")
    run(path)
    sheet = yaml.safe_load((rubric / "rubric.yaml").read_text())
    sheet["aspects"]["style"] = {"title": "Style", "question": "Is it a pleasure to read?"}
    sheet["requests"]["style"] = {"mode": "listwise", "template": "style.md", "aspects": ["style"]}
    (rubric / "rubric.yaml").write_text(yaml.safe_dump(sheet))
    (rubric / "style.md").write_text("Rate the style of every completion above, 1 to 5.\n\n{{ reply }}\n")
    estimate = foreseen(path)
    came = difference(served, lambda: run(path))

    assert to_ask(estimate) == came["calls"] == {"judge": 12}
    assert estimate.stored == 60
    assert estimate.input.expected == pytest.approx(came["input"], rel=0.05)
    assert "measured" in by_name(estimate)["judge"].basis[0]
    assert "rubric" in by_name(estimate)["judge"].basis[1]


def test_completions_under_other_settings_measure_the_token_rate_and_not_the_length(
    tmp_path: Path, serve: Serve
) -> None:
    path = write(tmp_path, serve())
    run(path)
    estimate = by_name(foreseen(path, "completions.max_tokens=256"))["large"]

    assert "measured" in estimate.basis[0]
    assert "assumed" in estimate.basis[1]


def test_permanent_failures_count_when_they_are_retried(tmp_path: Path) -> None:
    def complete(number: int, model: str) -> str | Fate:
        return Fate.FAILED if number == 0 and model in ("able", "fair", "plain") else f"{model} on {number}"

    pipeline, rubric, journaled = build(tmp_path, 3, complete=complete)
    with (
        journaled,
        EstimateReader.of(journaled.store) as outlook,
        EstimateReader.of(journaled.store, retry_failed=True) as retried,
    ):
        estimate = estimate_run(pipeline, rubric, outlook, None)
        assert (estimate.calls, estimate.failed) == (0, 3)
        estimate = estimate_run(pipeline, rubric, retried, None)
        assert to_ask(estimate) == {"able": 1, "fair": 1, "plain": 1, "strict": 1}
        assert estimate.failed == 0
        assert estimate_run(pipeline, rubric, outlook, None).failed == 3, "nothing of it is written"
    with EstimateReader.open(pipeline.store) as outlook:
        assert estimate_run(pipeline, rubric, outlook, None).failed == 3


def test_a_local_tokenizer_counts_the_requests(tmp_path: Path, serve: Serve) -> None:
    """A tokenizer that splits at whitespace, so that a token has far more than four bytes."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    (tmp_path / "weights").mkdir()
    tokenizer.save(str(tmp_path / "weights" / "tokenizer.json"))
    path = write(tmp_path, serve(), principles=None)
    estimate = by_name(foreseen(path, f"models.large.model={tmp_path / 'weights'}"))

    assert estimate["large"].basis[0] == "tokens in: by the model's tokenizer"
    assert estimate["large"].input.expected == pytest.approx(12 * (13 + 4))
    assert estimate["large"].input.most == pytest.approx(3 * 12 * (13 + 4))
    assert estimate["tiny"].basis[0] == f"tokens in: {UNMEASURED.basis}"


def test_an_estimate_needs_neither_servers_nor_keys(tmp_path: Path, serve: Serve) -> None:
    path = write(tmp_path, serve(), judges={"judge": {"provider": "openai", "model": "gpt-4.1"}})
    estimate = foreseen(path, "models.*.base_url=http://127.0.0.1:9/v1")

    assert estimate.calls == 60
    assert estimate.unpriced == ("judge",)
