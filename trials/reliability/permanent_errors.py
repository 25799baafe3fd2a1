"""6. An error that only a person can fix stops that provider, and nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aif.config.pipeline import load
from aif.core.errors import Exit
from aif.simulator import InjectedFault
from aif.simulator.faults import Arrival, Fault
from aif.store.reader import Reader
from trials.reliability import Figures, simulated_run

NUMBER = 6
PROMISE = (
    "A permanent error stops its provider within the calls in flight, or three, whichever is more, and says what to "
    "fix; other providers continue, and after the fix the same command resumes."
)

# By word that the error's line must contain.
FAULTS: Mapping[Fault, str] = {
    Fault.QUOTA: "quota",
    Fault.UNAUTHORIZED: "API key",
    Fault.FORBIDDEN: "API key",
    Fault.UNKNOWN_MODEL: "model",
}
FAILING, PLACES = "plain", 4


def trial(folder: Path, full: bool) -> Figures:
    tries = [(fault, after) for fault in FAULTS for after in (0, 20)] if full else [(Fault.QUOTA, 10)]
    prompts = 60 if full else 13
    struck = {
        f"{fault}, {'in the middle' if after else 'from the start'}": _struck(
            folder / f"{fault}-{after}", fault, after, prompts
        )
        for fault, after in tries
    }
    return {"struck": struck, "places": PLACES} | ({"items": _items(folder / "items", prompts)} if full else {})


def violations(figures: Figures) -> list[str]:
    problems = []
    for name, case in figures["struck"].items():
        if case["exit code"] != Exit.REFUSED or not case["told"]:
            problems.append(f"{name}: exit code {case['exit code']}, reported: {case['told']}")
        if case["calls refused"] > figures["places"]:
            problems.append(f"{name}: {case['calls refused']} calls to the provider that refuses")
        if case["others left"]:
            problems.append(f"{name}: {case['others left']} completions of other models are missing")
        if case["exit code once mended"] != Exit.DONE or case["asked twice"]:
            problems.append(
                f"{name}: after the fix exit code {case['exit code once mended']}, {case['asked twice']} repeated"
            )
    if "items" in figures and (figures["items"]["refused"] or figures["items"]["failed"] != figures["items"]["struck"]):
        problems.append(f"items that don't fit or are blocked: {figures['items']}")
    return problems


def summary(figures: Figures) -> str:
    worst = max(case["calls refused"] for case in figures["struck"].values())
    items = figures.get("items", {"struck": 0, "failed": 0})
    return (
        f"{len(figures['struck'])} cases (quota, 401, 403, unknown model; from the start and in the middle): at most "
        f"{worst} calls to the provider that refuses, with {figures['places']} in flight; exit code "
        f"{int(Exit.REFUSED)}; others finished; after the fix the same command finished, no request was repeated. Of "
        f"{items['struck']} blocked or overlong items {items['failed']} failed, alone."
    )


def _struck(folder: Path, fault: Fault, after: int, prompts: int) -> dict[str, Any]:
    """One model of the pool refuses its calls after the first `after`, until that is fixed; return what happened."""
    record, failing, calls_to_model = simulated_run.CallLog(), [True], [0]

    def fault_for(call: Arrival) -> InjectedFault | None:
        calls_to_model[0] += call.model == FAILING
        return InjectedFault(fault) if failing[0] and call.model == FAILING and calls_to_model[0] > after else None

    with simulated_run.served(record, faults=fault_for, latency_s=0.02) as served:
        path = simulated_run.pipeline(folder, served.base_url, prompts, models={"concurrency": PLACES})
        code, output = simulated_run.aif("run", path)
        refused = sum(call.fault is fault for call in record.calls)
        done = {call.key for call in record.calls if call.usage and call.model not in (FAILING, simulated_run.JUDGE)}
        failing[0] = False
        code_after_fix, _ = simulated_run.aif("run", path)
    line = next((line for line in output.splitlines() if line.startswith(f"  {FAILING}: HTTP")), "")
    return {
        "exit code": code,
        "told": FAULTS[fault] in line and "check" in line,
        "calls refused": refused,
        "others left": (len(simulated_run.POOL) - 1) * prompts - len(done),
        "exit code once mended": code_after_fix,
        "asked twice": sum(times > 1 for times in record.answered().values()),
    }


def _items(folder: Path, prompts: int) -> dict[str, Any]:
    """Block every seventh completion of one model and add an overlong prompt; return what failed."""
    blocked: set[str] = set()

    def fault_for(call: Arrival) -> InjectedFault | None:
        if call.model != FAILING or call.number % 7:
            return None
        blocked.add(call.key)
        return InjectedFault(Fault.REFUSAL)

    with simulated_run.served(faults=fault_for, max_model_len=6000) as served:
        path = simulated_run.pipeline(folder, served.base_url, prompts)
        with (folder / "prompts.jsonl").open("a") as file:
            file.write('{"prompt": "' + "rain and more rain, " * 2000 + '"}\n')
        simulated_run.aif("run", path)
    with Reader.open(load(path).store) as reader:
        rows = reader._query("SELECT kind, verdict FROM failed")
        refused = reader._query("SELECT count(*) AS n FROM calls WHERE verdict = 'refused'")[0]["n"]
    failed = [row for row in rows if row["verdict"] == "failed" and row["kind"] in ("blocked", "context_overflow")]
    return {"struck": len(blocked) + len(simulated_run.POOL), "failed": len(failed), "refused": refused}
