"""2. CPU time a call, with servers that answer at once, so that all of it is aif's."""

from pathlib import Path
from typing import Any

from trials.harness import Figures
from trials.performance.measured_run import MODELS, aif, pipeline, serving

NUMBER = 2
PROMISE = "CPU a call, all in: at most 0.45 ms through vLLM's client, 1.5 ms through an SDK; 1,500 vLLM calls a second"
IN_FLIGHT = 256
GOALS = {"vllm": 0.45, "openai": 1.5}
CALLS_A_SECOND = 1500


def trial(folder: Path, full: bool) -> Figures:
    few, many = (500, 2500) if full else (20, 60)
    figures: dict[str, Any] = {"few": few, "many": many}
    with serving(0, 0) as server:
        for provider in GOALS:
            endpoint = {"provider": provider}
            costs = {}
            for prompts in (few, many):
                place = folder / f"{provider}-{prompts}"
                costs[prompts] = aif(
                    "run", pipeline(place, server.base_url, prompts, IN_FLIGHT, models=endpoint, judges=endpoint)
                )
            calls = (many - few) * (len(MODELS) + 1)
            figures[provider] = {
                "cpu_ms": round(1000 * (costs[many].cpu_s - costs[few].cpu_s) / calls, 3),
                "with_start_ms": round(1000 * costs[many].cpu_s / (many * (len(MODELS) + 1)), 3),
                "calls_a_second": round(calls / (costs[many].wall_s - costs[few].wall_s)),
            }
        figures["served"] = sum(side["calls"] for side in server.stats().values())
    return figures


def measurement_errors(figures: Figures) -> list[str]:
    asked = len(GOALS) * (figures["few"] + figures["many"]) * (len(MODELS) + 1)
    return [] if figures["served"] == asked else [f"the server got {figures['served']:,} requests, not {asked:,}"]


def violations(figures: Figures) -> list[str]:
    problems = measurement_errors(figures)
    problems += [
        f"{provider}: {figures[provider]['cpu_ms']} ms a call"
        for provider, goal in GOALS.items()
        if figures[provider]["cpu_ms"] > goal
    ]
    if figures["vllm"]["calls_a_second"] < CALLS_A_SECOND:
        problems.append(f"{figures['vllm']['calls_a_second']:,} vLLM calls a second")
    return problems


def summary(figures: Figures) -> str:
    return "; ".join(
        f"{name}: {costs['cpu_ms']} ms a call ({costs['with_start_ms']} with the command's start, at "
        f"{figures['many'] * 5:,} calls), {costs['calls_a_second']:,} calls a second"
        for name, costs in ((provider, figures[provider]) for provider in GOALS)
    )
