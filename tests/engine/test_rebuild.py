"""Rebuilding a store from its journal recovers from errors on the way."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aif.core.errors import StoreDamaged, StoreOutOfMemory
from aif.engine.prepare import prepare
from aif.engine.rebuild import RebuildResult, rebuild
from aif.store.paths import StorePaths
from tests.engine.test_orchestrator import write
from tests.store.test_journaled_store import Kept
from tests.support.serving import Served


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (StoreOutOfMemory("no room"), "the store needs more memory than its limit; trying again with 1GB"),
        (StoreDamaged("s: block 3"), "s: block 3; rebuilding it from the journal"),
    ],
)
def test_a_rebuild_recovers_from_store_errors_like_every_command(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, trouble: Exception, expected: str
) -> None:
    served, errors, messages = serve(), [trouble], list[str]()
    kept = Kept(write(tmp_path, served, count=2), served)

    def fail_once(*args: Any, **options: Any) -> None:
        if errors:
            raise errors.pop()
        prepare(*args, **options)

    monkeypatch.setattr("aif.engine.rebuild.prepare", fail_once)
    result = rebuild(kept.pipeline, messages.append)
    assert result == RebuildResult(10, result.seconds, unchanged=2, changed=0, newly_readable=0, no_longer_readable=0)
    assert kept.read() == kept.rows
    assert any(expected in message for message in messages)


def test_a_store_that_was_set_aside_is_rebuilt_without_a_journal(tmp_path: Path, serve: Callable[..., Served]) -> None:
    """The error for a store that can't be opened and has no journal says so."""
    served = serve()
    kept = Kept(write(tmp_path, served, count=2), served)
    places = StorePaths(kept.pipeline.store)
    places.store.rename(places.store.with_name(places.store.name + ".aside2"))
    shutil.rmtree(places.journal)

    rebuild(kept.pipeline, print)
    assert kept.read() == kept.rows
