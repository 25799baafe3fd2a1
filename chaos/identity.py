"""Every key of the pipeline file changed after a finished run, and what the store's plan says is to be asked then; at
full length asked for real, too, and counted at the server."""

import json
import os
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.config.pipeline import Pipeline, parse
from aif.engine.feedback import feedback
from aif.engine.prepare import prepare, rubric_of
from aif.judging.rubric import Sheet
from aif.simulator import Cast
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from chaos import Figures, changes
from chaos.changes import CHANGED, CHANGES, Change, Patch
from chaos.house import Record
from tests.keys import keys
from tests.serving import serving

NUMBER = 15
PROMISE = "Identity is complete: each key, changed, asks again exactly what depends on it"

_PENDING = """
SELECT endpoint, count(*) AS n FROM (
    SELECT model AS endpoint FROM slot_states WHERE state <> 'answered'
    UNION ALL SELECT judge FROM foreseen WHERE state <> 'answered'
) GROUP BY endpoint"""


def trial(folder: Path, full: bool) -> Figures:
    changes.write(folder)
    os.environ.setdefault("AIF_CHAOS_KEY", "none-needed")  # what `api_key_env` may name
    record = Record()
    with serving(Cast({}, {}, 7, open=True), on_call=record) as one:
        house = _House(folder, one.base_url)
        house.finish()
        rows = house.rows()
        for row in rows if full else ():
            row.calls = _asked_for_real(row.pipeline, record)
    every = [*(key for key, _ in keys(Pipeline)), *(f"rubric.{key}" for key, _ in keys(Sheet))]
    return {
        "changes": len(rows),
        "keys": len(CHANGED),
        "asking": sum(1 for row in rows if row.change.asks),
        "asked_for_real": sum(row.calls is not None for row in rows),
        "calls": sum(row.calls or 0 for row in rows),
        "lacking": changes.lacking(every),
        "unknown": changes.unknown(every),
        "otherwise": [row.told for row in rows if row.is_otherwise],
    }


def broken(figures: Figures) -> list[str]:
    wrong = [f"no change of {key} is tried" for key in figures["lacking"]]
    wrong += [f"there is no key {key}" for key in figures["unknown"]]
    return [*wrong, *figures["otherwise"]]


def told(figures: Figures) -> str:
    asked = f"; {figures['asked_for_real']} of them then ran, in {figures['calls']:,} calls at the server"
    return (
        f"{figures['changes']} changes of all {figures['keys']} keys of pipeline and rubric: {figures['asking']} ask "
        f"again, {figures['changes'] - figures['asking']} nothing; {len(figures['otherwise'])} otherwise than they "
        f"should{asked if figures['asked_for_real'] else ''}."
    )


@dataclass
class _Row:
    """A change, and what it asked: by the store's plan, and at full length in calls at the server."""

    change: Change
    pipeline: Pipeline
    pending: dict[str, int]
    calls: int | None = None

    @property
    def is_otherwise(self) -> bool:
        return self.pending != self.change.asks or self.calls not in (None, sum(self.change.asks.values()))

    @property
    def told(self) -> str:
        change = self.change
        to = {**change.to, **change.rubric, **change.principles}
        calls = f", in {self.calls} calls" if self.calls is not None else ""
        return f"{change.named} by {to}: is to ask {change.asks or 'nothing'}, asks {self.pending or 'nothing'}{calls}"


class _House:
    """A run that can be finished and changed."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._base = changes.base(url)
        self._other = url.replace("127.0.0.1", "localhost")
        self._made = 0

    def finish(self) -> None:
        """The run done as it stands, and then as each change takes it to be."""
        base = self._pipeline({})
        _run(base)
        states = {repr(change.given): change.given for change in CHANGES}
        with _opened(base) as ledger:
            unfinished = [one for one in map(self._pipeline, states.values()) if _pending(one, ledger)]
        for one in unfinished:
            _run(one)

    def rows(self) -> list[_Row]:
        """Every change by itself, those of the same sources together."""
        made = [(change, self._changed(change)) for change in sorted(CHANGES, key=lambda change: repr(change.given))]
        rows = []
        with _opened(self._pipeline({})) as ledger:
            for change, one in made:
                if one.store == ledger.paths.store:
                    rows.append(_Row(change, one, _pending(one, ledger)))
                else:
                    with _opened(one) as other:
                        rows.append(_Row(change, one, _pending(one, other)))
        return rows

    def _changed(self, change: Change) -> Pipeline:
        """The pipeline with the change in it; rubric and principles are written otherwise, and named."""
        self._made += 1
        files: dict[str, Any] = {}
        if change.rubric:
            files["rubric"] = f"rubric-{self._made}"
            changes.write_rubric(self._folder / files["rubric"], change.rubric)
        if change.principles:
            files["principles"] = f"principles-{self._made}.yaml"
            changes.write_principles(self._folder / files["principles"], change.principles)
        return self._pipeline({**change.given, **change.to, **files})

    def _pipeline(self, patch: Patch) -> Pipeline:
        data = changes.patched(self._base, patch)
        data["store"] = str(self._folder / data["store"])
        text = json.dumps(data).replace("{other}", self._other)  # YAML, too
        return parse(text, self._folder / "pipeline.yaml")


def _opened(pipeline: Pipeline) -> JournaledStore:
    return JournaledStore.open(pipeline.store, _unheard)


def _pending(pipeline: Pipeline, ledger: JournaledStore) -> dict[str, int]:
    """What the pipeline would ask, by model and judge, as the store's plan has it."""
    prepare(pipeline, ledger, rubric_of(pipeline), _unheard)
    with Reader.of(ledger.store) as reader:
        return {row["endpoint"]: row["n"] for row in reader._query(_PENDING)}


def _asked_for_real(pipeline: Pipeline, record: Record) -> int | None:
    """Calls of a run at the server; what aif launches, or simulates itself, has none there."""
    if not all(one.base_url for one in (*pipeline.models.values(), *pipeline.judges.values())):
        return None
    before = len(record.calls)
    _run(pipeline)
    return len(record.calls) - before


def _run(pipeline: Pipeline) -> None:
    feedback(pipeline, Terminal(Console(file=StringIO())))


def _unheard(words: str) -> None:
    """What the house tells of reading sources."""
