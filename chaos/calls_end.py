"""Promise 5: every call ends, and so does asking for what never comes."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aif.core.types import fraction
from aif.providers.retry import RetryPolicy
from aif.simulator import Call, InjectedFault, SimulatedModels, Simulator
from aif.simulator.faults import Arrival, Fault
from chaos import Figures, _inside, clock, house

NUMBER = 5
PROMISE = "Every call ends within its deadline, a hopeless item after six attempts, with its cause; the rest goes on."

TIMEOUT_S = 20.0
ATTEMPTS = RetryPolicy().attempts
STALLS = frozenset({Fault.HANG, Fault.DRIP})
# Shares of the bodies that fare so however often they are asked, of completions and of judgements.
HOPELESS = {Fault.SERVER_ERROR: 0.05, Fault.HTML: 0.03, Fault.HANG: 0.02, Fault.DRIP: 0.02}
# And of the calls that do so once.
PASSING = {Fault.RATE_LIMITED: 0.05, Fault.SERVER_ERROR: 0.03, Fault.HANG: 0.01, Fault.CUT: 0.01}


def trial(folder: Path, full: bool) -> Figures:
    calls: list[Call] = []
    hopeless: dict[str, Fault] = {}
    first: list[Call] = []  # of the first run
    left: dict[str, int] = {}

    def befall(call: Arrival) -> InjectedFault | None:
        fault = _drawn(HOPELESS, call.key)
        if fault:
            hopeless[call.key] = fault
        else:
            fault = _drawn(PASSING, call.key, call.nth)
        return InjectedFault(fault, "1", seconds=3600 if fault is Fault.HANG else 1.0) if fault else None

    async def main() -> tuple[dict[str, str], dict[str, int]]:
        cast = SimulatedModels(house.POOL, {house.JUDGE: 0.1}, 7)
        async with Simulator(cast, latency_s=0.5, faults=befall, on_call=calls.append) as simulator:
            each = {"timeout_s": TIMEOUT_S}
            path = house.pipeline(folder, simulator.base_url, 60 if full else 8, models=each, judges=each)
            refused, tallies = await _inside.run(path)
            first.extend(calls)
            left.update(_inside.unanswered(path))
            await _inside.run(path)
        return refused, dict(sum((Counter(answered=t.answered, wanted=t.wanted) for t in tallies.values()), Counter()))

    refused, items = clock.leap(main())
    _, said = house.aif("failures", folder / "pipeline.yaml")
    return {
        "refused": list(refused),
        "hopeless items": dict(Counter(map(str, hopeless.values()))),
        **items,
        "verdicts": left,
        "longest call": round(max(call.ended - call.began for call in calls), 1),
        "most attempts": _most(first),
        "most attempts in the next run": _most(then := calls[len(first) :]),
        # nobody was answered after them, so that nobody could tell whose failure it was
        "left open": left.get("server_error later", 0) + left.get("bad_reply later", 0),
        "asked again": len({call.key for call in then} & {k for k, fault in hopeless.items() if fault not in STALLS}),
        "told": all(word in said for word in ("server_error", "bad_reply", "timeout", "→", "--retry-failed")),
    }


def broken(figures: Figures) -> list[str]:
    wrong = []
    if figures["refused"]:
        wrong.append(f"refused: {figures['refused']}")
    if figures["longest call"] > 1.5 * TIMEOUT_S:
        wrong.append(f"a call took {figures['longest call']} s")
    if max(figures["most attempts"], figures["most attempts in the next run"]) > ATTEMPTS:
        wrong.append(f"a body was asked {figures['most attempts']} times")
    if figures["asked again"] > figures["left open"]:
        wrong.append("what failed for good was asked again")
    if figures["left open"] > 3:
        wrong.append(f"{figures['left open']} items that only ever got an error are to be asked again")
    hopeless = sum(figures["hopeless items"].values())
    if sum(n for what, n in figures["verdicts"].items() if what != "pending") != hopeless:
        wrong.append(f"{hopeless} hopeless items, failures told: {figures['verdicts']}")
    if not figures["told"]:
        wrong.append("`aif failures` does not tell each kind with what to do")
    return wrong


def told(figures: Figures) -> str:
    hopeless = ", ".join(f"{n} {fault}" for fault, n in sorted(figures["hopeless items"].items()))
    return (
        f"{figures['wanted']:,} items, of them hopeless: {hopeless}. Longest call {figures['longest call']:g} s of "
        f"{TIMEOUT_S:g} allowed; at most {figures['most attempts']} attempts; {figures['answered']:,} answered, the "
        f"others told with their cause; of the hopeless by error the next run asked {figures['asked again']} again "
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
    """The most calls with one body, those refused by a rate limit aside."""
    return max(Counter(call.key for call in calls if call.status != 429).values(), default=0)
