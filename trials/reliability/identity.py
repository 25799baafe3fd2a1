"""15. After a finished run each key of the pipeline file is changed, and the calls that the store plans are compared
with those that the change should cause. At full length the changed pipelines also run, and the server counts the calls.
"""

import json
import os
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.config.pipeline import Pipeline, parse
from aif.engine.prepare import prepare, rubric_of
from aif.engine.run import run_pipeline
from aif.judging.rubric import Sheet
from aif.simulator import SimulatedModels
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from tests.support.keys import keys
from tests.support.serving import serving
from trials.reliability import Figures, config_changes
from trials.reliability.config_changes import CHANGED, CHANGES, Change, Patch
from trials.reliability.simulated_run import CallLog

NUMBER = 15
PROMISE = "Identity is complete: a change of any key causes exactly the calls that depend on it"

_PENDING = """
SELECT endpoint, count(*) AS n FROM (
    SELECT model AS endpoint FROM slot_states WHERE state <> 'answered'
    UNION ALL SELECT judge FROM foreseen WHERE state <> 'answered'
) GROUP BY endpoint"""


def trial(folder: Path, full: bool) -> Figures:
    config_changes.write(folder)
    os.environ.setdefault("AIF_TRIAL_KEY", "none-needed")  # the variable that `api_key_env` names in a change
    call_log = CallLog()
    with serving(SimulatedModels({}, {}, 7, open=True), on_call=call_log) as server:
        finished = _FinishedRun(folder, server.base_url)
        finished.finish()
        rows = finished.rows()
        for row in rows if full else ():
            row.calls = _calls_of_run(row.pipeline, call_log)
    all_keys = [*(key for key, _ in keys(Pipeline)), *(f"rubric.{key}" for key, _ in keys(Sheet))]
    return {
        "changes": len(rows),
        "keys": len(CHANGED),
        "asking": sum(1 for row in rows if row.change.asks),
        "asked_for_real": sum(row.calls is not None for row in rows),
        "calls": sum(row.calls or 0 for row in rows),
        "lacking": config_changes.keys_without_change(all_keys),
        "unknown": config_changes.changes_of_unknown_keys(all_keys),
        "otherwise": [row.description for row in rows if row.is_wrong],
    }


def violations(figures: Figures) -> list[str]:
    problems = [f"no change covers {key}" for key in figures["lacking"]]
    problems += [f"there is no key {key}" for key in figures["unknown"]]
    return [*problems, *figures["otherwise"]]


def summary(figures: Figures) -> str:
    asked = f"; {figures['asked_for_real']} of them then ran, with {figures['calls']:,} calls at the server"
    return (
        f"{figures['changes']} changes of all {figures['keys']} keys of pipeline and rubric: {figures['asking']} cause "
        f"calls, {figures['changes'] - figures['asking']} none; {len(figures['otherwise'])} differ from what they "
        f"should{asked if figures['asked_for_real'] else ''}."
    )


@dataclass
class _Result:
    """A change and the calls it caused: those that the store plans and, at full length, those at the server."""

    change: Change
    pipeline: Pipeline
    pending: dict[str, int]
    calls: int | None = None

    @property
    def is_wrong(self) -> bool:
        return self.pending != self.change.asks or self.calls not in (None, sum(self.change.asks.values()))

    @property
    def description(self) -> str:
        change = self.change
        to = {**change.to, **change.rubric, **change.principles}
        calls = f", in {self.calls} calls" if self.calls is not None else ""
        return f"{change.named} by {to}: is to ask {change.asks or 'nothing'}, asks {self.pending or 'nothing'}{calls}"


class _FinishedRun:
    """A finished run whose pipeline can be changed."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._base = config_changes.base(url)
        self._other = url.replace("127.0.0.1", "localhost")
        self._made = 0

    def finish(self) -> None:
        """Finish the run as it is, and then with each `given` that a change needs."""
        base = self._pipeline({})
        _run(base)
        states = {repr(change.given): change.given for change in CHANGES}
        with _open(base) as journaled:
            unfinished = [
                pipeline for pipeline in map(self._pipeline, states.values()) if _pending(pipeline, journaled)
            ]
        for pipeline in unfinished:
            _run(pipeline)

    def rows(self) -> list[_Result]:
        """Plan each change and return the results; changes of the same `given` come one after another."""
        pipelines = [
            (change, self._changed(change)) for change in sorted(CHANGES, key=lambda change: repr(change.given))
        ]
        rows = []
        with _open(self._pipeline({})) as journaled:
            for change, pipeline in pipelines:
                if pipeline.store == journaled.paths.store:
                    rows.append(_Result(change, pipeline, _pending(pipeline, journaled)))
                else:
                    with _open(pipeline) as other:
                        rows.append(_Result(change, pipeline, _pending(pipeline, other)))
        return rows

    def _changed(self, change: Change) -> Pipeline:
        """Return the pipeline with a change applied; a changed rubric or principles file gets a new name."""
        self._made += 1
        files: dict[str, Any] = {}
        if change.rubric:
            files["rubric"] = f"rubric-{self._made}"
            config_changes.write_rubric(self._folder / files["rubric"], change.rubric)
        if change.principles:
            files["principles"] = f"principles-{self._made}.yaml"
            config_changes.write_principles(self._folder / files["principles"], change.principles)
        return self._pipeline({**change.given, **change.to, **files})

    def _pipeline(self, patch: Patch) -> Pipeline:
        data = config_changes.patched(self._base, patch)
        data["store"] = str(self._folder / data["store"])
        text = json.dumps(data).replace("{other}", self._other)  # JSON is valid YAML
        return parse(text, self._folder / "pipeline.yaml")


def _open(pipeline: Pipeline) -> JournaledStore:
    return JournaledStore.open(pipeline.store, _ignore)


def _pending(pipeline: Pipeline, journaled: JournaledStore) -> dict[str, int]:
    """Return the calls that the store plans for a pipeline, by model and judge."""
    prepare(pipeline, journaled, rubric_of(pipeline), _ignore)
    with Reader.of(journaled.store) as reader:
        return {row["endpoint"]: row["n"] for row in reader._query(_PENDING)}


def _calls_of_run(pipeline: Pipeline, call_log: CallLog) -> int | None:
    """Run a pipeline and return its calls at the server; None if aif launches or simulates one of its endpoints."""
    if not all(endpoint.base_url for endpoint in (*pipeline.models.values(), *pipeline.judges.values())):
        return None
    before = len(call_log.calls)
    _run(pipeline)
    return len(call_log.calls) - before


def _run(pipeline: Pipeline) -> None:
    run_pipeline(pipeline, Terminal(Console(file=StringIO())))


def _ignore(words: str) -> None:
    """Discard the messages about reading sources."""
