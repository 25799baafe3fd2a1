"""The store made anew from the journal, every judge's reply read by today's reader, and what reads otherwise."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from aif.config.pipeline import Pipeline
from aif.core.errors import BadInput, StoreDamaged
from aif.engine.make_pairs import make_pairs
from aif.engine.prepare import prepare, rubric_of
from aif.store.ledger import Ledger
from aif.store.lock import Places
from aif.store.reader import Reader


@dataclass(frozen=True, slots=True)
class RebuildResult:
    """Calls taken in, and judgements by how they read now against before."""

    calls: int
    seconds: float
    unchanged: int
    changed: int
    newly_readable: int
    no_longer_readable: int


def rebuild(pipeline: Pipeline, tell: Callable[[str], None]) -> RebuildResult:
    """Sets the store aside and makes another from the journal, and from what only the former holds. Pairs are made
    again by the pipeline's policy."""
    began = time.monotonic()
    places = Places(pipeline.store)
    if not places.any:
        raise BadInput(f"{places.journal}: there is no journal to make a store from")
    rubric = rubric_of(pipeline)
    before = _readings(places, tell)

    def whole(ledger: Ledger) -> tuple[int, dict[str, str]]:
        prepare(pipeline, ledger, rubric, tell, reread=False)
        make_pairs(pipeline, rubric, ledger.store)
        with Reader.of(ledger.store) as reader:
            return reader.sql("SELECT count(*) AS n FROM calls")[0]["n"], _read(reader)

    calls, after = Ledger.use(pipeline.store, tell, rubric, whole, anew=True, tags=pipeline.tags)
    both = before.keys() & after.keys()
    alike = sum(before[key] == after[key] for key in both)
    return RebuildResult(
        calls, time.monotonic() - began, alike, len(both) - alike, len(after.keys() - both), len(before.keys() - both)
    )


def _readings(places: Places, tell: Callable[[str], None]) -> dict[str, str]:
    if not places.store.exists():
        return {}
    try:
        with Reader.open(places.store) as reader:
            return _read(reader)
    except StoreDamaged as error:
        tell(f"{error}; what it held can't be compared")
        return {}


def _read(reader: Reader) -> dict[str, str]:
    """A digest of the ratings by judgement."""
    rows = reader.sql("SELECT key, sha256(to_json(ratings)::VARCHAR) AS said FROM judgements")
    return {row["key"]: row["said"] for row in rows}
