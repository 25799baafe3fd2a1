"""Judging beside generation: two stages of the same length take little more than one."""

from pathlib import Path

from trials.harness import Figures
from trials.performance.measured_run import MODELS, aif, pipeline, serving, span_s

NUMBER = 4
PROMISE = "Overlap: where generation and judging take T each at their limits, both take at most 1.15 T"
GENERATE_MS, IN_FLIGHT = 200, 256
JUDGE_MS = GENERATE_MS * len(MODELS)  # a prompt's one judgement takes as long as its completions together
GOAL = 1.15


def trial(folder: Path, full: bool) -> Figures:
    prompts = 4000 if full else 60
    with serving(GENERATE_MS, JUDGE_MS) as server:
        aif("run", pipeline(folder, server.base_url, prompts, IN_FLIGHT))
        sides = server.stats()
    return {
        "prompts": prompts,
        "t_s": round(prompts * JUDGE_MS / 1000 / IN_FLIGHT, 2),
        "took_s": span_s(sides),
        "peaks": {name: one["peak"] for name, one in sides.items()},
        "served": {name: one["calls"] for name, one in sides.items()},
    }


def unsound(figures: Figures) -> list[str]:
    wanted = {"completion": figures["prompts"] * len(MODELS), "judgement": figures["prompts"]}
    return [] if figures["served"] == wanted else [f"the server answered {figures['served']}"]


def broken(figures: Figures) -> list[str]:
    times = figures["took_s"] / figures["t_s"]
    return unsound(figures) + ([f"{times:.2f} T"] if times > GOAL else [])


def told(figures: Figures) -> str:
    return (
        f"T = {figures['t_s']} s, both {figures['took_s']} s: {figures['took_s'] / figures['t_s']:.2f} T "
        f"({figures['prompts']:,} prompts; one after the other would be 2 T)"
    )
