"""Promise 4: what a provider allows is kept, used, and waited for when it allows nothing."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aif.simulator import Call, InjectedFault, SimulatedModels, Simulator
from aif.simulator.faults import Arrival, Fault
from chaos import Figures, _inside, clock, house

NUMBER = 4
PROMISE = (
    "Limits are kept and used, given or learned; minutes of 429s fail nothing, hammer nobody, are over in seconds."
)

# What the 429s of each model say of when to ask again.
SAYS: Mapping[str, str | None] = {"1": "1", "121": "121", "86400": "86400", "absent": None, "date": "date:120"}
LATENCY_S = 4.0
ROOM = 400  # tokens that a reply of the model may have which its limit of tokens holds up


@dataclass(frozen=True)
class Size:
    """How long a form of the trial is, in simulated seconds and calls."""

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
    found = {
        "minutes of 429s": size.limited_s / 60,
        **_refusals(folder / "refusals", size),
        "given": _limits(folder / "given", size, given=True),
    }
    return {**found, "learned": _limits(folder / "learned", size, given=False)} if full else found


def broken(figures: Figures) -> list[str]:
    wrong = [f"without an answer: {figures['unanswered']}"] if figures["unanswered"] else []
    for says, of in figures["by Retry-After"].items():
        if of["calls a minute"] > 12:
            wrong.append(f"Retry-After {says}: {of['calls a minute']} calls in a minute of 429s")
        if of["until an answer"] is None or of["until an answer"] > 65 + LATENCY_S:
            wrong.append(f"Retry-After {says}: asked again only after {of['until an answer']} s")
        if of["until full rate"] is None or of["until full rate"] > 30:
            wrong.append(f"Retry-After {says}: full rate {of['until full rate']} s after the first answer")
    if figures["given"]["refused"]:
        wrong.append(f"{figures['given']['refused']} calls above limits that were given")
    for how in ("given", "learned"):
        used = figures[how]["used"] if how in figures else {}
        wrong += [f"{used[of]:.1%} of the {how} {of} used" for of in used if used[of] < 0.95]
    if "learned" in figures and figures["learned"]["refused"] > 0.05 * figures["learned"]["calls"]:
        wrong.append(f"{figures['learned']['refused']} calls above limits that the headers told")
    return wrong


def told(figures: Figures) -> str:
    by, given, learned = figures["by Retry-After"], figures["given"], figures["learned"]
    most = ", ".join(f"{of['calls a minute']} ({says})" for says, of in by.items())
    lost = sum(figures["unanswered"].values())
    back = max(of["until full rate"] for of in by.values())
    used = " and ".join(f"{share:.1%} of the {name}" for name, share in given["used"].items())
    return (
        f"{figures['minutes of 429s']:g} minutes of 429s to five models: {lost} items without an answer; calls in the "
        f"worst minute by Retry-After: {most}; full rate at most {back:.0f} s after the first answer. Limits given: "
        f"{given['refused']} of {given['calls']:,} calls refused, {used} used; learned from headers: "
        f"{learned['refused']} of {learned['calls']:,} refused."
    )


def _served(folder: Path, models: Mapping[str, Any], each: int, **options: Any) -> tuple[dict[str, int], list[Call]]:
    """A run in which each of these models is asked so often, and a judge: what has no answer, and its calls."""
    samples = 1 if len(models) > 1 else 2
    calls: list[Call] = []

    async def main() -> dict[str, int]:
        cast = SimulatedModels(dict.fromkeys(models, 0.5), {house.JUDGE: 0.1}, 7)
        async with (
            Simulator(cast, latency_s=LATENCY_S, on_call=calls.append, **options) as simulator,
            Simulator(cast) as judging,  # without limits
        ):
            path = house.pipeline(folder, judging.base_url, each // samples)
            said = yaml.safe_load(path.read_text())
            server = {"provider": "openai", "base_url": simulator.base_url, "samples": samples}
            said["models"] = {name: {**server, **one} for name, one in models.items()}
            said["completions"] = {"per_prompt": samples * len(models), "max_tokens": 64}
            path.write_text(yaml.safe_dump(said))
            await _inside.run(path)
            return _inside.unanswered(path)

    return clock.leap(main()), calls


def _refusals(folder: Path, size: Size) -> dict[str, Any]:
    """Every model says 429 for so long in the middle of its work."""
    began: list[float] = []

    def befall(call: Arrival) -> InjectedFault | None:
        began.append(call.at)
        since = call.at - began[0] - size.before_s
        limited = call.model in SAYS and 0 <= since < size.limited_s
        return InjectedFault(Fault.RATE_LIMITED, SAYS[call.model]) if limited else None

    each = int((size.before_s + size.after_s) * size.places / LATENCY_S)
    models = {says: {"concurrency": size.places} for says in size.says}
    unanswered, calls = _served(folder, models, each, faults=befall)
    end = began[0] + size.before_s + size.limited_s
    by = {says: _recovery([call for call in calls if call.model == says], end, size) for says in size.says}
    return {"unanswered": unanswered, "by Retry-After": by}


def _recovery(calls: list[Call], end: float, size: Size) -> dict[str, Any]:
    """Calls in the worst minute of 429s, those in flight when it began aside; seconds from the end of the 429s until an
    answer, and from there until a span in which the model answers nine tenths of what it answered in one before."""
    start, span = end - size.limited_s, size.before_s / 2
    refused = sorted(call.began for call in calls if call.status == 429 and call.began > start + LATENCY_S)
    ended = sorted(call.ended for call in calls if call.status == 200)
    answers = [at for at in ended if at > end]
    before = sum(start - span <= at < start for at in ended)
    full = next((at for at in answers if sum(at <= one < at + span for one in answers) >= 0.9 * before), None)
    return {
        "calls a minute": max((sum(at <= one < at + 60 for one in refused) for at in refused), default=0),
        "until an answer": round(answers[0] - end, 1) if answers else None,
        "until full rate": None if full is None else round(full - answers[0], 1),
    }


def _limits(folder: Path, size: Size, given: bool) -> dict[str, Any]:
    """One model that its limit of requests holds up, and one that its limit of tokens does; the server enforces both,
    and the pipeline says so (then five seconds' worth at once are allowed) or not (a minute's, as headers mean it)."""
    limits = size.limits if given else {}
    models = {
        "requests": {"concurrency": 32, **limits},
        "tokens": {"concurrency": 32, "max_tokens": ROOM, **limits},
    }
    _, calls = _served(folder, models, size.prompts, burst_s=5.0 if given else 60.0, **size.limits)
    taken: dict[str, list[Call]] = {name: [call for call in calls if call.model == name] for name in models}
    return {
        "calls": sum(map(len, taken.values())),
        "refused": Counter(call.status for calls in taken.values() for call in calls)[429],
        "used": {
            "requests": _used(taken["requests"], lambda call: 1, size.limits["requests_per_minute"]),
            "tokens": _used(taken["tokens"], lambda call: ROOM + _prompt(call), size.limits["tokens_per_minute"]),
        },
    }


def _used(calls: list[Call], weight: Callable[[Call], int], per_minute: int) -> float:
    """The share of a limit that was used from the first answered call to the last."""
    sent = sorted((call.began, weight(call)) for call in calls if call.status == 200)
    return round(sum(n for _, n in sent[1:]) / (per_minute / 60 * (sent[-1][0] - sent[0][0])), 4)


def _prompt(call: Call) -> int:
    assert call.usage is not None
    return int(call.usage["prompt_tokens"])
