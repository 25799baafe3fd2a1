"""5. Every call ends within its deadline, and items that never get an answer are given up after a few attempts."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aif.core.types import fraction
from aif.providers.retry import RetryPolicy
from aif.simulator import Call, InjectedFault, SimulatedModels, Simulator
from aif.simulator.faults import Arrival, Fault
from trials.reliability import Figures, fast_clock, in_process, simulated_run

NUMBER = 5
PROMISE = (
    "Every call ends within its deadline; a hopeless item fails after six attempts, with its cause; "
    "all others continue."
)

TIMEOUT_S = 20.0
ATTEMPTS = RetryPolicy().attempts
STALLS = frozenset({Fault.HANG, Fault.DRIP})
# Shares of request bodies, completions and judgements alike, that fail at every attempt.
HOPELESS = {Fault.SERVER_ERROR: 0.05, Fault.HTML: 0.03, Fault.HANG: 0.02, Fault.DRIP: 0.02}
# Shares of calls that fail once.
PASSING = {Fault.RATE_LIMITED: 0.05, Fault.SERVER_ERROR: 0.03, Fault.HANG: 0.01, Fault.CUT: 0.01}


def trial(folder: Path, full: bool) -> Figures:
    calls: list[Call] = []
    hopeless: dict[str, Fault] = {}
    first: list[Call] = []  # of the first run
    unanswered: dict[str, int] = {}

    def fault_for(call: Arrival) -> InjectedFault | None:
        fault = _drawn(HOPELESS, call.key)
        if fault:
            hopeless[call.key] = fault
        else:
            fault = _drawn(PASSING, call.key, call.nth)
        return InjectedFault(fault, "1", seconds=3600 if fault is Fault.HANG else 1.0) if fault else None

    async def main() -> tuple[dict[str, str], dict[str, int]]:
        cast = SimulatedModels(simulated_run.POOL, {simulated_run.JUDGE: 0.1}, 7)
        async with Simulator(cast, latency_s=0.5, faults=fault_for, on_call=calls.append) as simulator:
            each = {"timeout_s": TIMEOUT_S}
            path = simulated_run.pipeline(folder, simulator.base_url, 60 if full else 8, models=each, judges=each)
            refused, tallies = await in_process.run(path)
            first.extend(calls)
            unanswered.update(in_process.unanswered(path))
            await in_process.run(path)
        return refused, dict(sum((Counter(answered=t.answered, wanted=t.wanted) for t in tallies.values()), Counter()))

    refused, items = fast_clock.leap(main())
    _, output = simulated_run.aif("failures", folder / "pipeline.yaml")
    return {
        "refused": list(refused),
        "hopeless items": dict(Counter(map(str, hopeless.values()))),
        **items,
        "verdicts": unanswered,
        "longest call": round(max(call.ended - call.began for call in calls), 1),
        "most attempts": _most(first),
        "most attempts in the next run": _most(next_run := calls[len(first) :]),
        # no other item was answered after these failed, so aif can't know whether the endpoint was at fault
        "left open": unanswered.get("server_error later", 0) + unanswered.get("bad_reply later", 0),
        "asked again": len(
            {call.key for call in next_run} & {k for k, fault in hopeless.items() if fault not in STALLS}
        ),
        "told": all(word in output for word in ("server_error", "bad_reply", "timeout", "→", "--retry-failed")),
    }


def violations(figures: Figures) -> list[str]:
    problems = []
    if figures["refused"]:
        problems.append(f"refused: {figures['refused']}")
    if figures["longest call"] > 1.5 * TIMEOUT_S:
        problems.append(f"a call took {figures['longest call']} s")
    if max(figures["most attempts"], figures["most attempts in the next run"]) > ATTEMPTS:
        problems.append(f"a body was sent {figures['most attempts']} times")
    if figures["asked again"] > figures["left open"]:
        problems.append("items that failed permanently were sent again")
    if figures["left open"] > 3:
        problems.append(f"{figures['left open']} items that only ever got errors are pending")
    hopeless = sum(figures["hopeless items"].values())
    if sum(n for verdict, n in figures["verdicts"].items() if verdict != "pending") != hopeless:
        problems.append(f"{hopeless} hopeless items, failures reported: {figures['verdicts']}")
    if not figures["told"]:
        problems.append("`aif failures` does not list each kind with what to do")
    return problems


def summary(figures: Figures) -> str:
    hopeless = ", ".join(f"{n} {fault}" for fault, n in sorted(figures["hopeless items"].items()))
    return (
        f"{figures['wanted']:,} items, of these hopeless: {hopeless}. Longest call {figures['longest call']:g} s of "
        f"{TIMEOUT_S:g} allowed; at most {figures['most attempts']} attempts; {figures['answered']:,} answered, the "
        f"others reported with their cause; the next run retried {figures['asked again']} of those that always fail "
        f"({figures['left open']} could not be told from an outage)."
    )


def _drawn(rates: dict[Fault, float], *which: Any) -> Fault | None:
    draw = fraction("ends", *which)
    for fault, rate in rates.items():
        draw -= rate
        if draw < 0:
            return fault
    return None


def _most(calls: Iterable[Call]) -> int:
    """Return the highest number of calls with one body, not counting those refused by a rate limit."""
    return max(Counter(call.key for call in calls if call.status != 429).values(), default=0)
