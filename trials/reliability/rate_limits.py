"""4. A provider's limits are respected and used, and a provider that only returns 429 is waited for."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aif.simulator import Call, InjectedFault, SimulatedModels, Simulator
from aif.simulator.faults import Arrival, Fault
from trials.reliability import Figures, fast_clock, in_process, simulated_run

NUMBER = 4
PROMISE = (
    "Limits, configured or learned, are respected and used; after minutes of 429s nothing has failed, few calls were "
    "made, and the full rate is back within seconds."
)

# The Retry-After header of each model's 429s.
SAYS: Mapping[str, str | None] = {"1": "1", "121": "121", "86400": "86400", "absent": None, "date": "date:120"}
NAMES = {"given": "configured", "learned": "learned"}
LATENCY_S = 4.0
ROOM = 400  # `max_tokens` of the model that is held up by its limit of tokens


@dataclass(frozen=True)
class Size:
    """The length of a trial, in simulated seconds and calls."""

    says: Sequence[str]
    before_s: float
    limited_s: float
    after_s: float
    places: int
    limits: Mapping[str, int]
    prompts: int


FULL = Size(tuple(SAYS), 60, 600, 90, 4, {"requests_per_minute": 120, "tokens_per_minute": 36_000}, 600)
SHORT = Size(("1",), 10, 120, 20, 2, {"requests_per_minute": 30, "tokens_per_minute": 8_400}, 20)


def trial(folder: Path, full: bool) -> Figures:
    size = FULL if full else SHORT
    figures = {
        "minutes of 429s": size.limited_s / 60,
        **_refusals(folder / "refusals", size),
        "given": _limits(folder / "given", size, given=True),
    }
    return {**figures, "learned": _limits(folder / "learned", size, given=False)} if full else figures


def violations(figures: Figures) -> list[str]:
    problems = [f"without an answer: {figures['unanswered']}"] if figures["unanswered"] else []
    for says, result in figures["by Retry-After"].items():
        if result["calls a minute"] > 12:
            problems.append(f"Retry-After {says}: {result['calls a minute']} calls in a minute of 429s")
        if result["until an answer"] is None or result["until an answer"] > 65 + LATENCY_S:
            problems.append(f"Retry-After {says}: first answer only after {result['until an answer']} s")
        if result["until full rate"] is None or result["until full rate"] > 30:
            problems.append(f"Retry-After {says}: full rate {result['until full rate']} s after the first answer")
    if figures["given"]["refused"]:
        problems.append(f"{figures['given']['refused']} calls above configured limits")
    for how in ("given", "learned"):
        used = figures[how]["used"] if how in figures else {}
        problems += [f"{used[unit]:.1%} of the {NAMES[how]} {unit} used" for unit in used if used[unit] < 0.95]
    if "learned" in figures and figures["learned"]["refused"] > 0.05 * figures["learned"]["calls"]:
        problems.append(f"{figures['learned']['refused']} calls above the limits in the headers")
    return problems


def summary(figures: Figures) -> str:
    results, given, learned = figures["by Retry-After"], figures["given"], figures["learned"]
    most = ", ".join(f"{result['calls a minute']} ({says})" for says, result in results.items())
    lost = sum(figures["unanswered"].values())
    back = max(result["until full rate"] for result in results.values())
    used = " and ".join(f"{share:.1%} of the {name}" for name, share in given["used"].items())
    return (
        f"{figures['minutes of 429s']:g} minutes of 429s from five models: {lost} items without an answer; calls in "
        f"the worst minute by Retry-After: {most}; full rate at most {back:.0f} s after the first answer. Configured "
        f"limits: {given['refused']} of {given['calls']:,} calls refused, {used} used; learned from headers: "
        f"{learned['refused']} of {learned['calls']:,} refused."
    )


def _served(folder: Path, models: Mapping[str, Any], each: int, **options: Any) -> tuple[dict[str, int], list[Call]]:
    """Run each model for `each` calls, and a judge; return the unanswered items, by kind, and the models' calls."""
    samples = 1 if len(models) > 1 else 2
    calls: list[Call] = []

    async def main() -> dict[str, int]:
        cast = SimulatedModels(dict.fromkeys(models, 0.5), {simulated_run.JUDGE: 0.1}, 7)
        async with (
            Simulator(cast, latency_s=LATENCY_S, on_call=calls.append, **options) as simulator,
            Simulator(cast) as judging,  # without limits
        ):
            path = simulated_run.pipeline(folder, judging.base_url, each // samples)
            data = yaml.safe_load(path.read_text())
            server = {"provider": "openai", "base_url": simulator.base_url, "samples": samples}
            data["models"] = {name: {**server, **settings} for name, settings in models.items()}
            data["completions"] = {"per_prompt": samples * len(models), "max_tokens": 64}
            path.write_text(yaml.safe_dump(data))
            await in_process.run(path)
            return in_process.unanswered(path)

    return fast_clock.leap(main()), calls


def _refusals(folder: Path, size: Size) -> dict[str, Any]:
    """Let every model return 429 for a while in the middle of its work; return how each came through."""
    began: list[float] = []

    def fault_for(call: Arrival) -> InjectedFault | None:
        began.append(call.at)
        since = call.at - began[0] - size.before_s
        limited = call.model in SAYS and 0 <= since < size.limited_s
        return InjectedFault(Fault.RATE_LIMITED, SAYS[call.model]) if limited else None

    each = int((size.before_s + size.after_s) * size.places / LATENCY_S)
    models = {says: {"concurrency": size.places} for says in size.says}
    unanswered, calls = _served(folder, models, each, faults=fault_for)
    end = began[0] + size.before_s + size.limited_s
    by = {says: _recovery([call for call in calls if call.model == says], end, size) for says in size.says}
    return {"unanswered": unanswered, "by Retry-After": by}


def _recovery(calls: list[Call], end: float, size: Size) -> dict[str, Any]:
    """Measure one model's recovery.

    The calls in the worst minute of 429s, without those in flight when it began; the seconds from the end of the 429s
    to the first answer; and the seconds from there until the model answers at nine tenths of its former rate.
    """
    start, span = end - size.limited_s, size.before_s / 2
    refused = sorted(call.began for call in calls if call.status == 429 and call.began > start + LATENCY_S)
    ended = sorted(call.ended for call in calls if call.status == 200)
    answers = [at for at in ended if at > end]
    before = sum(start - span <= at < start for at in ended)
    full = next((at for at in answers if sum(at <= time < at + span for time in answers) >= 0.9 * before), None)
    return {
        "calls a minute": max((sum(at <= time < at + 60 for time in refused) for at in refused), default=0),
        "until an answer": round(answers[0] - end, 1) if answers else None,
        "until full rate": None if full is None else round(full - answers[0], 1),
    }


def _limits(folder: Path, size: Size, given: bool) -> dict[str, Any]:
    """Run a model that its limit of requests holds up, and one that its limit of tokens holds up.

    The server enforces both limits. With `given` the limits are in the pipeline, and bursts of 5 s are allowed;
    without, they are learned from headers, and bursts of a minute are allowed, as headers mean it.
    """
    limits = size.limits if given else {}
    models = {
        "requests": {"concurrency": 32, **limits},
        "tokens": {"concurrency": 32, "max_tokens": ROOM, **limits},
    }
    _, calls = _served(folder, models, size.prompts, burst_s=5.0 if given else 60.0, **size.limits)
    by_model: dict[str, list[Call]] = {name: [call for call in calls if call.model == name] for name in models}
    return {
        "calls": sum(map(len, by_model.values())),
        "refused": Counter(call.status for calls in by_model.values() for call in calls)[429],
        "used": {
            "requests": _used(by_model["requests"], lambda call: 1, size.limits["requests_per_minute"]),
            "tokens": _used(by_model["tokens"], lambda call: ROOM + _prompt(call), size.limits["tokens_per_minute"]),
        },
    }


def _used(calls: list[Call], weight: Callable[[Call], int], per_minute: int) -> float:
    """Return the share of a limit that was used between the first and the last answered call."""
    sent = sorted((call.began, weight(call)) for call in calls if call.status == 200)
    return round(sum(n for _, n in sent[1:]) / (per_minute / 60 * (sent[-1][0] - sent[0][0])), 4)


def _prompt(call: Call) -> int:
    assert call.usage is not None
    return int(call.usage["prompt_tokens"])
