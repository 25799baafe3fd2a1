"""5. Peak memory of a run over 200,000 prompts, and Python's heap compared with a run over 5,000."""

import json
import sys
from pathlib import Path
from typing import Any

from trials.common import environ
from trials.harness import ROOT, Figures
from trials.performance.measured_run import aif, cost, pipeline, serving

NUMBER = 5
PROMISE = "Memory: at 200,000 prompts peak RSS at most 800 MB, and Python's heap no larger than at 5,000"
MB, LARGER = 800, 1.05
FEW, MANY = 5_000, 200_000
CALLED = 3_000  # prompts that are called for while the heap is traced: tracemalloc slows every allocation


def trial(folder: Path, full: bool) -> Figures:
    few, many, called = (FEW, MANY, CALLED) if full else (50, 200, 50)
    with serving(0, 0) as server:
        heaps = {str(n): _heap(folder / f"heap-{n}", server.base_url, n, called) for n in (few, many)}
        cost = aif("run", pipeline(folder / "run", server.base_url, many, 256, models=_TWO, **_PAIR))
        asked = server.stats()["completion"]["calls"]
    return {
        "prompts": many,
        "rss_mb": round(cost.rss_mb),
        "wall_s": round(cost.wall_s),
        "cpu_s": round(cost.cpu_s),
        "heap_mb": heaps,
        "asked": asked - 2 * 2 * called,
    }


_TWO: dict[str, Any] = {"provider": "vllm"}
_PAIR: dict[str, Any] = {"completions": {"per_prompt": 2, "max_tokens": 512}}


def _heap(folder: Path, base_url: str, prompts: int, called: int) -> float:
    """Return Python's peak heap in MB, of a run over `prompts` prompts that makes calls for the first `called`."""
    path = pipeline(folder, base_url, prompts, 256, models=_TWO, **_PAIR)
    heap_file = folder / "heap.json"
    cost([sys.executable, "-m", "trials.performance.heap", path, called, heap_file], env=environ(), cwd=ROOT)
    return float(round(json.loads(heap_file.read_text())["peak"] / 2**20, 1))


def measurement_errors(figures: Figures) -> list[str]:
    wanted = 2 * figures["prompts"]
    return [] if figures["asked"] == wanted else [f"{figures['asked']:,} completions were requested, not {wanted:,}"]


def violations(figures: Figures) -> list[str]:
    problems = measurement_errors(figures)
    if figures["rss_mb"] > MB:
        problems.append(f"{figures['rss_mb']} MB")
    few, many = figures["heap_mb"].values()
    if many > few * LARGER:
        problems.append(f"Python's heap grew from {few} to {many} MB")
    return problems


def summary(figures: Figures) -> str:
    heaps = ", ".join(f"{mb} MB over {int(prompts):,} prompts" for prompts, mb in figures["heap_mb"].items())
    return (
        f"{figures['prompts']:,} prompts with two completions and a judgement each ({3 * figures['prompts']:,} calls, "
        f"{figures['wall_s']:,} s): {figures['rss_mb']} MB at most; Python's heap {heaps}"
    )
