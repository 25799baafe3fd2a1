"""The store made anew from the journal, every judge's reply read by today's reader, and what reads otherwise."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from aif.config.pipeline import Pipeline
from aif.core.errors import BadInput, StoreDamaged
from aif.engine.make_pairs import make_pairs
from aif.engine.prepare import prepare, rubric_of
from aif.store.journaled_store import JournaledStore
from aif.store.paths import StorePaths
from aif.store.reader import Reader


@dataclass(frozen=True, slots=True)
class Again:
    """Calls taken in, and judgements by how they read now against before."""

    calls: int
    seconds: float
    alike: int
    changed: int
    gained: int
    lost: int


def again(pipeline: Pipeline, tell: Callable[[str], None]) -> Again:
    """Sets the store aside and makes another from the journal, and from what only the former holds. Pairs are made
    again by the pipeline's policy."""
    began = time.monotonic()
    places = StorePaths(pipeline.store)
    if not places.any:
        raise BadInput(f"{places.journal}: there is no journal to make a store from")
    rubric = rubric_of(pipeline)
    before = _readings(places, tell)

    def whole(ledger: JournaledStore) -> tuple[int, dict[str, str]]:
        prepare(pipeline, ledger, rubric, tell, reread=False)
        make_pairs(pipeline, rubric, ledger.store)
        with Reader.of(ledger.store) as reader:
            return reader.call_count(), reader.rating_digests()

    calls, after = JournaledStore.use(pipeline.store, tell, rubric, whole, rebuild=True, tags=pipeline.tags)
    both = before.keys() & after.keys()
    alike = sum(before[key] == after[key] for key in both)
    return Again(
        calls, time.monotonic() - began, alike, len(both) - alike, len(after.keys() - both), len(before.keys() - both)
    )


def _readings(places: StorePaths, tell: Callable[[str], None]) -> dict[str, str]:
    if not places.store.exists():
        return {}
    try:
        with Reader.open(places.store) as reader:
            return reader.rating_digests()
    except StoreDamaged as error:
        tell(f"{error}; what it held can't be compared")
        return {}
