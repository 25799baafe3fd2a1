"""What a call costs in CPU, with servers that answer at once: what is left is ours."""

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
            how = {"provider": provider}
            took = {}
            for prompts in (few, many):
                where = folder / f"{provider}-{prompts}"
                took[prompts] = aif("run", pipeline(where, server.base_url, prompts, IN_FLIGHT, models=how, judges=how))
            calls = (many - few) * (len(MODELS) + 1)
            figures[provider] = {
                "cpu_ms": round(1000 * (took[many].cpu_s - took[few].cpu_s) / calls, 3),
                "with_start_ms": round(1000 * took[many].cpu_s / (many * (len(MODELS) + 1)), 3),
                "calls_a_second": round(calls / (took[many].wall_s - took[few].wall_s)),
            }
        figures["served"] = sum(side["calls"] for side in server.stats().values())
    return figures


def unsound(figures: Figures) -> list[str]:
    asked = len(GOALS) * (figures["few"] + figures["many"]) * (len(MODELS) + 1)
    return [] if figures["served"] == asked else [f"the server was asked {figures['served']:,} times, not {asked:,}"]


def broken(figures: Figures) -> list[str]:
    wrong = unsound(figures)
    wrong += [
        f"{provider}: {figures[provider]['cpu_ms']} ms a call"
        for provider, goal in GOALS.items()
        if figures[provider]["cpu_ms"] > goal
    ]
    if figures["vllm"]["calls_a_second"] < CALLS_A_SECOND:
        wrong.append(f"{figures['vllm']['calls_a_second']:,} vLLM calls a second")
    return wrong


def told(figures: Figures) -> str:
    return "; ".join(
        f"{name}: {one['cpu_ms']} ms a call ({one['with_start_ms']} with the command's start, at "
        f"{figures['many'] * 5:,} calls), {one['calls_a_second']:,} calls a second"
        for name, one in ((provider, figures[provider]) for provider in GOALS)
    )
