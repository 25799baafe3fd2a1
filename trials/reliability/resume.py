"""3. Resume redoes only what is missing. Runs are killed in mid-run, and what is asked afterwards is counted."""

from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

from tests.support.serving import Served
from trials.reliability import Figures
from trials.reliability.interrupted_run import FORMATS, finish, killed, sent, settle, shown, undisturbed, wait, written
from trials.reliability.simulated_run import Record, pipeline, served, start

NUMBER = 3
PROMISE = "Resume redoes only what is missing: calls after a kill ≤ missing + in flight; a finished run makes 0 calls"

AGE_S = 1.0  # a reply that the server had sent so long before a kill is no longer in flight: it is in the journal
PER_PROMPT = 5  # four completions and one judgement


def trial(folder: Path, full: bool) -> Figures:
    prompts, kills, random = (40, 30, Random(3)) if full else (6, 1, Random(4))
    with served(latency_s=0.05) as other:
        wanted = undisturbed(folder / "undisturbed", other.base_url, prompts)
    found: list[dict[str, Any]] = []
    finished = differ = n = 0
    while len(found) < kills:
        n += 1
        record = Record()
        with served(record, latency_s=0.1) as server:
            path = pipeline(folder / f"{n}", server.base_url, prompts, export=FORMATS)
            some = min(3, kills - len(found))
            found += _killed_and_resumed(path, server, record, prompts * PER_PROMPT, random, some)
            before = len(record.calls)
            finish(path)
            finished += len(record.calls) - before
            differ += written(path, folder / f"{n}" / "dataset") != wanted
    return {"stores": n, "kills": found, "calls_of_finished_runs": finished, "datasets_that_differ": differ}


@dataclass(frozen=True, slots=True)
class _Kill:
    """When a run was started, when it was killed, and from when on what comes is of the next."""

    started: float
    at: float
    over: float


def _killed_and_resumed(
    path: Path, server: Served, record: Record, items: int, random: Random, kills: int
) -> list[dict[str, Any]]:
    """Kills at random points, then a run to the end. Of each kill: what was missing, in flight, and asked after it."""
    store, found = path.parent / "store" / "feedback.duckdb", list[_Kill]()
    for _ in range(kills):
        started, left = monotonic(), items - len(sent(record.calls, inf))
        point = len(record.calls) + random.randint(1, max(1, left // 2))
        process = start("run", path)
        if wait(process, partial(_reached, record, point)):
            at = killed(process, store)
            settle(server)
            found.append(_Kill(started, at, monotonic()))
        else:
            process.communicate()
    finish(path)
    untils = [*(kill.over for kill in found[1:]), inf]
    return [_told(record, items, kill, until) for kill, until in zip(found, untils, strict=True)]


def _reached(record: Record, calls: int) -> bool:
    return len(record.calls) >= calls


def _told(record: Record, items: int, kill: _Kill, until: float) -> dict[str, Any]:
    calls = record.calls
    answered = sent(calls, kill.at)
    own = [call for call in calls if kill.started <= call.began < kill.over]
    after = [call for call in calls if kill.over <= call.began < until]
    return {
        "missing": items - len(answered),
        "in_flight": sum(not (call.sent and call.ended < kill.at - AGE_S) for call in own),
        "asked_after": len(after),
        "asked_again": sum(shown(call) in answered for call in after),
    }


def broken(figures: Figures) -> list[str]:
    wrong = [
        f"{one['asked_after']} calls after a kill with {one['missing']} missing and {one['in_flight']} in flight"
        for one in figures["kills"]
        if one["asked_after"] > one["missing"] + one["in_flight"] or one["asked_again"] > one["in_flight"]
    ]
    if figures["calls_of_finished_runs"]:
        wrong.append(f"finished runs made {figures['calls_of_finished_runs']} calls")
    if figures["datasets_that_differ"]:
        wrong.append(f"{figures['datasets_that_differ']} datasets differ from an undisturbed run's")
    return wrong


def told(figures: Figures) -> str:
    kills = figures["kills"]
    after, again = (sum(one[name] for one in kills) for name in ("asked_after", "asked_again"))
    return (
        f"{len(kills)} kills of {figures['stores']} runs: {after:,} calls after them, of which {again:,} ("
        f"at most {max(one['asked_again'] for one in kills)} after one kill) for replies already sent; "
        f"{figures['calls_of_finished_runs']} calls by finished runs"
    )
