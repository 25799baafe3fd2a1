"""docs/reliability.md, from the raw results that lie beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chaos import Trial, trials

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "docs" / "reliability"
MARK = "<!-- results -->"


def results() -> dict[int, dict[str, Any]]:
    """What was measured last, by promise."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    return {one["promise"]: one for one in found}


def rendered() -> str:
    """The page: what is written by hand, then the table."""
    prose = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    return f"{prose}{MARK}\n\n{table(results())}"


def table(results: Mapping[int, Mapping[str, Any]]) -> str:
    """One row a promise: whether it was kept, and what was measured."""
    lines = ["| | promise | measured | kept |", "|---|---|---|---|"]
    lines += [_row(one, results.get(one.NUMBER)) for one in trials()]
    where = sorted({(r["machine"], r["commit"], r["date"]) for r in results.values()})
    runs = [f"- commit `{commit}`, {date}: {machine}" for machine, commit, date in where]
    return "\n".join(lines) + "\n\nMeasured at\n\n" + "\n".join(runs) + "\n"


def _row(one: Trial, result: Mapping[str, Any] | None) -> str:
    if result is None:
        return f"| {one.NUMBER} | {one.PROMISE} | not measured yet | |"
    wrong = one.broken(result["figures"])
    kept = "yes" if not wrong else "no: " + "; ".join(wrong)
    told = f"{one.told(result['figures'])} ({result['seconds']:,.0f} s, `{result['commit']}`)"
    return f"| {one.NUMBER} | {one.PROMISE} | {told} | {kept} |"


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
