"""How close a run comes to what the servers' latency allows, and what a call costs."""

from pathlib import Path
from typing import Any

from aif.store.reader import Reader
from trials.harness import Figures
from trials.performance.measured_run import MODELS, SPAN_S, aif, pipeline, serving

NUMBER = 1
PROMISE = "Orchestration: 10,000 calls within 1.15 of the servers' latency over the calls in flight"
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
        "peaks": {side: one["peak"] for side, one in sides.items()},
        "served": sum(one["calls"] for one in sides.values()),
    }


def _once(folder: Path, base_url: str, prompts: int) -> dict[str, Any]:
    path = pipeline(folder, base_url, prompts, IN_FLIGHT)
    took = aif("run", path)
    with Reader.open(folder / "store" / "feedback.duckdb") as reader:
        kept = reader._query(
            "SELECT (SELECT count(*) FROM completions) AS completions, "
            "(SELECT count(*) FROM judgements) AS judgements, "
            f"{SPAN_S} AS flow_s FROM calls"
        )[0]
    return {
        "wall_s": round(took.wall_s, 2),
        "flow_s": round(kept["flow_s"], 2),
        "cpu_s": round(took.cpu_s, 2),
        "rss_mb": round(took.rss_mb),
        "completions": kept["completions"],
        "judgements": kept["judgements"],
    }


def unsound(figures: Figures) -> list[str]:
    wanted = figures["prompts"] * len(MODELS), figures["prompts"]
    wrong = [
        f"the store holds {run['completions']:,} completions and {run['judgements']:,} judgements"
        for run in figures["runs"]
        if (run["completions"], run["judgements"]) != wanted
    ]
    if figures["served"] != figures["calls"] * len(figures["runs"]):
        wrong.append(f"the server was asked {figures['served']:,} times")
    return wrong


def broken(figures: Figures) -> list[str]:
    times = min(run["flow_s"] for run in figures["runs"]) / figures["floor_s"]
    return unsound(figures) + ([f"{times:.2f} of the floor"] if times > GOAL else [])


def told(figures: Figures) -> str:
    best = min(figures["runs"], key=lambda run: float(run["flow_s"]))
    return (
        f"floor {figures['floor_s']} s; from the first call to the last reply {best['flow_s']} s "
        f"({best['flow_s'] / figures['floor_s']:.2f} of the floor), whole command {best['wall_s']} s, "
        f"{1000 * best['cpu_s'] / figures['calls']:.2f} ms of CPU a call, {best['rss_mb']} MB"
    )
