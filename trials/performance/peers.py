"""11. The same work with distilabel and curator, on the same server, one after another (`make bench-peers`)."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from trials.common import environ
from trials.harness import ROOT, Figures
from trials.performance.measured_run import Cost, Served, cost, pipeline, serving, span_s
from trials.performance.measured_run import aif as run_aif
from trials.performance.orchestration import GENERATE_MS, IN_FLIGHT, JUDGE_MS

NUMBER = 11
PROMISE = "Peers: at least 1.8 times as fast as the faster of curator and distilabel, with as many calls in flight"
TIMES = 1.8
PEERS = ("curator", "distilabel")
TRIES = 5  # curator calls each model once before it begins


def trial(folder: Path, full: bool) -> Figures:
    prompts = 2000 if full else 100
    with serving(GENERATE_MS, JUDGE_MS) as server:
        path = pipeline(folder / "aif", server.base_url, prompts, IN_FLIGHT)
        costs = {"aif": _measure(server, lambda: run_aif("run", path))}
        for peer in PEERS:
            python = os.environ.get(f"AIF_{peer.upper()}_PYTHON", str(ROOT / f".venv-{peer}" / "bin" / "python"))
            command = [
                python,
                ROOT / "trials" / "performance" / f"_{peer}.py",
                server.base_url,
                path.parent / "prompts.jsonl",
            ]
            environment = environ() | {"HOME": str(folder), "HF_DATASETS_OFFLINE": "1"}
            costs[peer] = _measure(server, partial(cost, command, cwd=folder, env=environment))
    return {"prompts": prompts, "calls": prompts * 5, "in_flight": IN_FLIGHT, "took": costs}


def _measure(server: Served, run: Callable[[], Cost]) -> dict[str, Any]:
    server.reset()
    cost = run()
    sides = server.stats()
    return {
        "wall_s": round(cost.wall_s, 2),
        "flow_s": span_s(sides),
        "cpu_s": round(cost.cpu_s, 2),
        "rss_mb": round(cost.rss_mb),
        "peaks": {name: side["peak"] for name, side in sides.items()},
        "calls": sum(side["calls"] for side in sides.values()),
    }


def measurement_errors(figures: Figures) -> list[str]:
    calls = figures["calls"]
    return [
        f"{name} made {cost['calls']:,} calls, not {calls:,}"
        for name, cost in figures["took"].items()
        if cost["calls"] != calls and (name == "aif" or not calls < cost["calls"] <= calls + TRIES)
    ]


def violations(figures: Figures) -> list[str]:
    costs = figures["took"]
    times = min(costs[peer]["wall_s"] for peer in PEERS) / costs["aif"]["wall_s"]
    return measurement_errors(figures) + ([f"only {times:.1f} times as fast"] if times < TIMES else [])


def summary(figures: Figures) -> str:
    costs, calls = figures["took"], figures["calls"]
    return f"{calls:,} calls; " + "; ".join(
        f"{name} {cost['wall_s']} s (first call to last {cost['flow_s']} s), {1000 * cost['cpu_s'] / calls:.2f} ms of "
        f"CPU a call, {cost['rss_mb']} MB, "
        f"at most {cost['peaks']['completion']} + {cost['peaks']['judgement']} in flight"
        for name, cost in costs.items()
    )
