"""Rebuild the store from the journal, and re-parse every judge's reply with the current parser."""

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
class RebuildResult:
    """What a rebuild found. The judgements are counted by how their ratings compare with those in the old store.

    calls: number of calls in the rebuilt store.
    seconds: duration of the rebuild.
    unchanged: judgements with the same ratings as before.
    changed: judgements with other ratings than before.
    newly_readable: judgements that have ratings now, and had none before.
    no_longer_readable: judgements that had ratings before, and have none now, such as replies that can't be parsed now.
    """

    calls: int
    seconds: float
    unchanged: int
    changed: int
    newly_readable: int
    no_longer_readable: int


def rebuild(pipeline: Pipeline, tell: Callable[[str], None]) -> RebuildResult:
    """Set the store aside, rebuild it from the journal, parse every judge's reply again, and make the pairs.

    The journal may lack records that the old store has, because lines of the journal were damaged or lost. These
    records are written back to the journal and added to the new store.

    Raises BadInput if there is neither journal nor store.
    """
    began = time.monotonic()
    places = StorePaths(pipeline.store)
    if not places.any:
        raise BadInput(f"{places.journal}: there is no journal to rebuild a store from")
    rubric = rubric_of(pipeline)
    before = _stored_ratings(places, tell)

    def with_store(journaled: JournaledStore) -> tuple[int, dict[str, str]]:
        prepare(pipeline, journaled, rubric, tell, reread=False)
        make_pairs(pipeline, rubric, journaled.store)
        with Reader.of(journaled.store) as reader:
            return reader.call_count(), reader.rating_digests()

    calls, after = JournaledStore.use(
        pipeline.store, tell, rubric, with_store, rebuild=True, tags=pipeline.reasoning_tags
    )
    both = before.keys() & after.keys()
    unchanged = sum(before[key] == after[key] for key in both)
    return RebuildResult(
        calls,
        time.monotonic() - began,
        unchanged=unchanged,
        changed=len(both) - unchanged,
        newly_readable=len(after.keys() - both),
        no_longer_readable=len(before.keys() - both),
    )


def _stored_ratings(places: StorePaths, tell: Callable[[str], None]) -> dict[str, str]:
    if not places.store.exists():
        return {}
    try:
        with Reader.open(places.store) as reader:
            return reader.rating_digests()
    except StoreDamaged as error:
        tell(f"{error}; its ratings can't be compared")
        return {}
