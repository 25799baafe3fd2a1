"""Promise 6: what only a person can mend stops that provider, and nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aif.config.pipeline import load
from aif.core.errors import Exit
from aif.simulator import InjectedFault
from aif.simulator.faults import Arrival, Fault
from aif.store.reader import Reader
from chaos import Figures, house

NUMBER = 6
PROMISE = (
    "A permanent error stops its provider within the calls in flight, or three, whichever is more, and says what to "
    "mend; others go on, and so does the same command."
)

# By what its line must name.
FAULTS: Mapping[Fault, str] = {
    Fault.QUOTA: "quota",
    Fault.UNAUTHORIZED: "API key",
    Fault.FORBIDDEN: "API key",
    Fault.UNKNOWN_MODEL: "model",
}
STRUCK, PLACES = "plain", 4


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


def broken(figures: Figures) -> list[str]:
    wrong = []
    for name, of in figures["struck"].items():
        if of["exit code"] != Exit.REFUSED or not of["told"]:
            wrong.append(f"{name}: exit code {of['exit code']}, told: {of['told']}")
        if of["calls refused"] > figures["places"]:
            wrong.append(f"{name}: {of['calls refused']} calls to the provider that refuses")
        if of["others left"]:
            wrong.append(f"{name}: {of['others left']} completions of other models not made")
        if of["exit code once mended"] != Exit.DONE or of["asked twice"]:
            wrong.append(
                f"{name}: once mended exit code {of['exit code once mended']}, {of['asked twice']} asked twice"
            )
    if "items" in figures and (figures["items"]["refused"] or figures["items"]["failed"] != figures["items"]["struck"]):
        wrong.append(f"items that do not fit or are blocked: {figures['items']}")
    return wrong


def told(figures: Figures) -> str:
    worst = max(of["calls refused"] for of in figures["struck"].values())
    items = figures.get("items", {"struck": 0, "failed": 0})
    return (
        f"{len(figures['struck'])} cases (quota, 401, 403, unknown model; from the start and in the middle): at most "
        f"{worst} calls to the provider that refuses, with {figures['places']} in flight; exit code "
        f"{int(Exit.REFUSED)}; others finished; once mended the same command finished, nothing asked twice. Of "
        f"{items['struck']} blocked or overlong items {items['failed']} failed, alone."
    )


def _struck(folder: Path, fault: Fault, after: int, prompts: int) -> dict[str, Any]:
    """One model of the pool is refused from its n-th call on, until it is mended."""
    record, ill, came = house.Record(), [True], [0]

    def befall(call: Arrival) -> InjectedFault | None:
        came[0] += call.model == STRUCK
        return InjectedFault(fault) if ill[0] and call.model == STRUCK and came[0] > after else None

    with house.served(record, faults=befall, latency_s=0.02) as served:
        path = house.pipeline(folder, served.base_url, prompts, models={"concurrency": PLACES})
        code, said = house.aif("run", path)
        refused = sum(call.fault is fault for call in record.calls)
        done = {call.key for call in record.calls if call.usage and call.model not in (STRUCK, house.JUDGE)}
        ill[0] = False
        mended, _ = house.aif("run", path)
    line = next((line for line in said.splitlines() if line.startswith(f"  {STRUCK}: HTTP")), "")
    return {
        "exit code": code,
        "told": FAULTS[fault] in line and "check" in line,
        "calls refused": refused,
        "others left": (len(house.POOL) - 1) * prompts - len(done),
        "exit code once mended": mended,
        "asked twice": sum(times > 1 for times in record.answered().values()),
    }


def _items(folder: Path, prompts: int) -> dict[str, Any]:
    """Every seventh completion of one model is blocked, and one prompt fits no context."""
    blocked: set[str] = set()

    def befall(call: Arrival) -> InjectedFault | None:
        if call.model != STRUCK or call.number % 7:
            return None
        blocked.add(call.key)
        return InjectedFault(Fault.REFUSAL)

    with house.served(faults=befall, max_model_len=6000) as served:
        path = house.pipeline(folder, served.base_url, prompts)
        with (folder / "prompts.jsonl").open("a") as file:
            file.write('{"prompt": "' + "rain and more rain, " * 2000 + '"}\n')
        house.aif("run", path)
    with Reader.open(load(path).store) as reader:
        rows = reader.sql("SELECT kind, verdict FROM failed")
        refused = reader.sql("SELECT count(*) AS n FROM calls WHERE verdict = 'refused'")[0]["n"]
    kept = [row for row in rows if row["verdict"] == "failed" and row["kind"] in ("blocked", "context_overflow")]
    return {"struck": len(blocked) + len(house.POOL), "failed": len(kept), "refused": refused}
