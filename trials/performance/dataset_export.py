"""7. Pairs and export at UltraFeedback's size, compared with the same work by `datasets.map` in Python."""

import os
import sys
from pathlib import Path
from typing import Any

import duckdb

from trials.common import digests, environ
from trials.harness import ROOT, Figures
from trials.performance.filled_store import fill
from trials.performance.measured_run import Cost, aif, cost, pipeline

NUMBER = 7
PROMISE = "Pairs of 63,967 prompts in 2 s, their export in 20 s and 10 times as fast as by `datasets.map`"
PAIRS_S, EXPORT_S, TIMES = 2.0, 20.0, 10.0


def trial(folder: Path, full: bool) -> Figures:
    prompts = 63_967 if full else 200
    export = {"formats": ["trl", "h4"], **({"test_size": 2000} if full else {})}
    path = pipeline(folder, "http://127.0.0.1:9/v1", prompts, 256, export=export)
    fill(path)
    pairs = [aif("pairs", path) for _ in range(3)]
    first = aif("export", path, "--out", folder / "one")
    one_thread = cost(
        [sys.executable, "-m", "aif", "export", path, "--out", folder / "two"],
        env=environ(), cwd=ROOT, preexec_fn=_one_core,
    )  # fmt: skip
    rows = folder / "rows.parquet"
    _rows(folder / "store" / "feedback.duckdb", rows)
    by_map = cost(
        [sys.executable, "-m", "trials.performance.row_by_row", rows, folder / "three"], env=environ(), cwd=ROOT
    )
    return {
        "prompts": prompts,
        "pairs": _rounded(min(pairs, key=lambda run: run.wall_s)),
        "export": _rounded(first),
        "again": _rounded(one_thread),
        "by_map": _rounded(by_map),
        "alike": digests(folder / "one") == digests(folder / "two"),
        "files": len(digests(folder / "one")),
    }


def _one_core() -> None:
    """Limit this process to one core, so that DuckDB uses one thread."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])


def _rounded(cost: Cost) -> dict[str, Any]:
    return {"wall_s": round(cost.wall_s, 2), "cpu_s": round(cost.cpu_s, 2), "rss_mb": round(cost.rss_mb)}


def _rows(store: Path, rows: Path) -> None:
    """Write the input of a script that pairs in Python: a row for each prompt, with completions and their ratings."""
    with duckdb.connect(str(store), read_only=True) as db:
        db.execute(
            "COPY (SELECT p.prompt_id, any_value(p.messages[-1].content) AS prompt, "
            "list({'model': s.model, 'response': c.text, 'ratings': r.said} ORDER BY s.slot) AS completions "
            "FROM slots s JOIN prompts p USING (prompt_id) JOIN completions c ON c.key = s.key "
            "JOIN (SELECT completion, list({'aspect': aspect, 'score': score}) AS said FROM ratings "
            "WHERE state = 'rated' GROUP BY ALL) r "
            f"ON r.completion = s.key GROUP BY p.prompt_id ORDER BY p.prompt_id) TO '{rows}' (FORMAT parquet)"
        )


def measurement_errors(figures: Figures) -> list[str]:
    return [] if figures["files"] else ["nothing was exported"]


def violations(figures: Figures) -> list[str]:
    problems = measurement_errors(figures)
    if not figures["alike"]:
        problems.append("two exports differ")
    if figures["pairs"]["wall_s"] > PAIRS_S:
        problems.append(f"pairs take {figures['pairs']['wall_s']} s")
    if figures["export"]["wall_s"] > EXPORT_S:
        problems.append(f"the export takes {figures['export']['wall_s']} s")
    if (times := figures["by_map"]["wall_s"] / figures["export"]["wall_s"]) < TIMES:
        problems.append(f"only {times:.1f} times as fast as datasets.map")
    return problems


def summary(figures: Figures) -> str:
    times = figures["by_map"]["wall_s"] / figures["export"]["wall_s"]
    return (
        f"{figures['prompts']:,} prompts: `aif pairs` {figures['pairs']['wall_s']} s, export of trl and h4 "
        f"{figures['export']['wall_s']} s ({figures['export']['rss_mb']} MB), by `datasets.map` "
        f"{figures['by_map']['wall_s']} s: {times:.1f} times as fast"
    )
