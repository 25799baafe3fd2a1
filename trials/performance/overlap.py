"""4. Judging in parallel with generation: two stages of the same length take little more time than one."""

from pathlib import Path

from trials.harness import Figures
from trials.performance.measured_run import MODELS, aif, pipeline, serving, span_s

NUMBER = 4
PROMISE = "Overlap: where generation and judging each take T at their limits, both together take at most 1.15 T"
GENERATE_MS, IN_FLIGHT = 200, 256
JUDGE_MS = GENERATE_MS * len(MODELS)  # a prompt's one judgement takes as long as its four completions together
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
        "peaks": {name: side["peak"] for name, side in sides.items()},
        "served": {name: side["calls"] for name, side in sides.items()},
    }


def measurement_errors(figures: Figures) -> list[str]:
    wanted = {"completion": figures["prompts"] * len(MODELS), "judgement": figures["prompts"]}
    return [] if figures["served"] == wanted else [f"the server answered {figures['served']}"]


def violations(figures: Figures) -> list[str]:
    times = figures["took_s"] / figures["t_s"]
    return measurement_errors(figures) + ([f"{times:.2f} T"] if times > GOAL else [])


def summary(figures: Figures) -> str:
    return (
        f"T = {figures['t_s']} s, both {figures['took_s']} s: {figures['took_s'] / figures['t_s']:.2f} T "
        f"({figures['prompts']:,} prompts; one after the other would be 2 T)"
    )
