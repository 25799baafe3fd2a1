"""1. How close a run comes to the shortest time that the servers' latency allows, and the CPU time of a call."""

from pathlib import Path
from typing import Any

from aif.store.reader import Reader
from trials.harness import Figures
from trials.performance.measured_run import MODELS, SPAN_S, aif, pipeline, serving

NUMBER = 1
PROMISE = "Orchestration: 10,000 calls in at most 1.15 times the shortest time that latency and concurrency allow"
GENERATE_MS, JUDGE_MS, IN_FLIGHT = 200, 400, 256
GOAL = 1.15


def trial(folder: Path, full: bool) -> Figures:
    prompts = 2000 if full else 60
    with serving(GENERATE_MS, JUDGE_MS) as server:
        runs = [_once(folder / str(n), server.base_url, prompts) for n in range(3 if full else 1)]
        sides = server.stats()
    floor = prompts * len(MODELS) * GENERATE_MS / 1000 / IN_FLIGHT + JUDGE_MS / 1000
    return {
        "prompts": prompts,
        "calls": prompts * (len(MODELS) + 1),
        "floor_s": round(floor, 2),
        "runs": runs,
        "peaks": {name: side["peak"] for name, side in sides.items()},
        "served": sum(side["calls"] for side in sides.values()),
    }


def _once(folder: Path, base_url: str, prompts: int) -> dict[str, Any]:
    path = pipeline(folder, base_url, prompts, IN_FLIGHT)
    cost = aif("run", path)
    with Reader.open(folder / "store" / "feedback.duckdb") as reader:
        row = reader._query(
            "SELECT (SELECT count(*) FROM completions) AS completions, "
            "(SELECT count(*) FROM judgements) AS judgements, "
            f"{SPAN_S} AS flow_s FROM calls"
        )[0]
    return {
        "wall_s": round(cost.wall_s, 2),
        "flow_s": round(row["flow_s"], 2),
        "cpu_s": round(cost.cpu_s, 2),
        "rss_mb": round(cost.rss_mb),
        "completions": row["completions"],
        "judgements": row["judgements"],
    }


def measurement_errors(figures: Figures) -> list[str]:
    wanted = figures["prompts"] * len(MODELS), figures["prompts"]
    problems = [
        f"the store holds {run['completions']:,} completions and {run['judgements']:,} judgements"
        for run in figures["runs"]
        if (run["completions"], run["judgements"]) != wanted
    ]
    if figures["served"] != figures["calls"] * len(figures["runs"]):
        problems.append(f"the server got {figures['served']:,} requests")
    return problems


def violations(figures: Figures) -> list[str]:
    times = min(run["flow_s"] for run in figures["runs"]) / figures["floor_s"]
    return measurement_errors(figures) + ([f"{times:.2f} of the shortest time"] if times > GOAL else [])


def summary(figures: Figures) -> str:
    best = min(figures["runs"], key=lambda run: float(run["flow_s"]))
    return (
        f"shortest possible {figures['floor_s']} s; from the first call to the last reply {best['flow_s']} s "
        f"({best['flow_s'] / figures['floor_s']:.2f} times that), whole command {best['wall_s']} s, "
        f"{1000 * best['cpu_s'] / figures['calls']:.2f} ms of CPU a call, {best['rss_mb']} MB"
    )
