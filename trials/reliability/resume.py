"""3. Resume repeats only what is missing: runs are killed, and the calls after each kill are counted."""

from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

from tests.support.serving import Served
from trials.reliability import Figures
from trials.reliability.interrupted_run import (
    FORMATS,
    bodies_sent,
    export_digests,
    kill_run,
    run_to_end,
    shown_digest,
    undisturbed_digests,
    wait_until,
    wait_until_idle,
)
from trials.reliability.simulated_run import CallLog, pipeline, served, start

NUMBER = 3
PROMISE = (
    "A resumed run requests only what is missing: after a kill at most missing + in flight; a finished run 0 calls"
)

AGE_S = 1.0  # a reply sent earlier than this before a kill is no longer in flight: it is in the journal
PER_PROMPT = 5  # four completions and one judgement


def trial(folder: Path, full: bool) -> Figures:
    prompts, kills, random = (40, 30, Random(3)) if full else (6, 1, Random(4))
    with served(latency_s=0.05) as other:
        wanted = undisturbed_digests(folder / "undisturbed", other.base_url, prompts)
    kills_made: list[dict[str, Any]] = []
    extra_calls = differ = n = 0
    while len(kills_made) < kills:
        n += 1
        call_log = CallLog()
        with served(call_log, latency_s=0.1) as server:
            path = pipeline(folder / f"{n}", server.base_url, prompts, export=FORMATS)
            kills_here = min(3, kills - len(kills_made))
            kills_made += _killed_and_resumed(path, server, call_log, prompts * PER_PROMPT, random, kills_here)
            before = len(call_log.calls)
            run_to_end(path)
            extra_calls += len(call_log.calls) - before
            differ += export_digests(path, folder / f"{n}" / "dataset") != wanted
    return {"stores": n, "kills": kills_made, "calls_of_finished_runs": extra_calls, "datasets_that_differ": differ}


@dataclass(frozen=True, slots=True)
class _Kill:
    """A run's start, its kill, and the time from which calls belong to the next run (monotonic seconds)."""

    started: float
    at: float
    over: float


def _killed_and_resumed(
    path: Path, server: Served, call_log: CallLog, items: int, random: Random, kills: int
) -> list[dict[str, Any]]:
    """Kill a run at random points, then run to the end; return each kill's missing items and later calls."""
    store, kills_made = path.parent / "store" / "feedback.duckdb", list[_Kill]()
    for _ in range(kills):
        started, left = monotonic(), items - len(bodies_sent(call_log.calls, inf))
        point = len(call_log.calls) + random.randint(1, max(1, left // 2))
        process = start("run", path)
        if wait_until(process, partial(_reached, call_log, point)):
            at = kill_run(process, store)
            wait_until_idle(server)
            kills_made.append(_Kill(started, at, monotonic()))
        else:
            process.communicate()
    run_to_end(path)
    untils = [*(kill.over for kill in kills_made[1:]), inf]
    return [_figures_of(call_log, items, kill, until) for kill, until in zip(kills_made, untils, strict=True)]


def _reached(call_log: CallLog, calls: int) -> bool:
    return len(call_log.calls) >= calls


def _figures_of(call_log: CallLog, items: int, kill: _Kill, until: float) -> dict[str, Any]:
    calls = call_log.calls
    answered = bodies_sent(calls, kill.at)
    own = [call for call in calls if kill.started <= call.began < kill.over]
    after = [call for call in calls if kill.over <= call.began < until]
    return {
        "missing": items - len(answered),
        "in_flight": sum(not (call.sent and call.ended < kill.at - AGE_S) for call in own),
        "asked_after": len(after),
        "asked_again": sum(shown_digest(call) in answered for call in after),
    }


def violations(figures: Figures) -> list[str]:
    problems = [
        f"{kill['asked_after']} calls after a kill with {kill['missing']} missing and {kill['in_flight']} in flight"
        for kill in figures["kills"]
        if kill["asked_after"] > kill["missing"] + kill["in_flight"] or kill["asked_again"] > kill["in_flight"]
    ]
    if figures["calls_of_finished_runs"]:
        problems.append(f"finished runs made {figures['calls_of_finished_runs']} calls")
    if figures["datasets_that_differ"]:
        problems.append(f"{figures['datasets_that_differ']} datasets differ from an undisturbed run's")
    return problems


def summary(figures: Figures) -> str:
    kills = figures["kills"]
    after, again = (sum(kill[name] for kill in kills) for name in ("asked_after", "asked_again"))
    return (
        f"{len(kills)} kills of {figures['stores']} runs: {after:,} calls after them, of which {again:,} ("
        f"at most {max(kill['asked_again'] for kill in kills)} after one kill) for replies already sent; "
        f"{figures['calls_of_finished_runs']} calls by finished runs"
    )
