"""The same work beside distilabel and curator, on the same server, in one run (`make bench-peers`)."""

import os
from pathlib import Path
from typing import Any

from trials.common import environ
from trials.harness import ROOT, Figures
from trials.performance.measured_run import Cost, Served, cost, pipeline, serving, span_s
from trials.performance.measured_run import aif as ours
from trials.performance.orchestration import GENERATE_MS, IN_FLIGHT, JUDGE_MS

NUMBER = 11
PROMISE = (
    "Beside peers: at least 1.8 times as fast as the better of curator and distilabel, with as many calls in flight"
)
TIMES = 1.8
PEERS = ("curator", "distilabel")
TRIES = 5  # curator asks each model once before it begins


def trial(folder: Path, full: bool) -> Figures:
    prompts = 2000 if full else 100
    with serving(GENERATE_MS, JUDGE_MS) as server:
        path = pipeline(folder / "aif", server.base_url, prompts, IN_FLIGHT)
        took = {"aif": _beside(server, lambda: ours("run", path))}
        for peer in PEERS:
            python = os.environ.get(f"AIF_{peer.upper()}_PYTHON", str(ROOT / f".venv-{peer}" / "bin" / "python"))
            command = [
                python,
                ROOT / "trials" / "performance" / f"_{peer}.py",
                server.base_url,
                path.parent / "prompts.jsonl",
            ]
            where = {"cwd": folder, "env": environ() | {"HOME": str(folder), "HF_DATASETS_OFFLINE": "1"}}
            took[peer] = _beside(server, lambda command=command, where=where: cost(command, **where))
    return {"prompts": prompts, "calls": prompts * 5, "in_flight": IN_FLIGHT, "took": took}


def _beside(server: Served, run: Any) -> dict[str, Any]:
    server.reset()
    took: Cost = run()
    sides = server.stats()
    return {
        "wall_s": round(took.wall_s, 2),
        "flow_s": span_s(sides),
        "cpu_s": round(took.cpu_s, 2),
        "rss_mb": round(took.rss_mb),
        "peaks": {name: one["peak"] for name, one in sides.items()},
        "calls": sum(one["calls"] for one in sides.values()),
    }


def unsound(figures: Figures) -> list[str]:
    calls = figures["calls"]
    return [
        f"{name} made {one['calls']:,} calls, not {calls:,}"
        for name, one in figures["took"].items()
        if one["calls"] != calls and (name == "aif" or not calls < one["calls"] <= calls + TRIES)
    ]


def broken(figures: Figures) -> list[str]:
    took = figures["took"]
    times = min(took[peer]["wall_s"] for peer in PEERS) / took["aif"]["wall_s"]
    return unsound(figures) + ([f"only {times:.1f} times as fast"] if times < TIMES else [])


def told(figures: Figures) -> str:
    took, calls = figures["took"], figures["calls"]
    return f"{calls:,} calls; " + "; ".join(
        f"{name} {one['wall_s']} s (first call to last {one['flow_s']} s), {1000 * one['cpu_s'] / calls:.2f} ms of CPU "
        f"a call, {one['rss_mb']} MB, at most {one['peaks']['completion']} + {one['peaks']['judgement']} in flight"
        for name, one in took.items()
    )
