"""A store that is made anew by a command, whatever goes wrong on the way."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aif.core.errors import StoreDamaged, StoreStarved
from aif.engine import rebuild
from aif.engine.prepare import prepare
from aif.engine.rebuild import again
from aif.store.paths import StorePaths
from tests.engine.test_orchestrator import write
from tests.serving import Served
from tests.store.test_journaled_store import Kept


@pytest.mark.parametrize(
    ("trouble", "told"),
    [(StoreStarved("no room"), "trying again with"), (StoreDamaged("s: block 3"), "s: block 3; rebuilding it")],
)
def test_it_is_gone_on_with_as_every_command_does(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, trouble: Exception, told: str
) -> None:
    served, left, said = serve(), [trouble], list[str]()
    kept = Kept(write(tmp_path, served, count=2), served)

    def troubled(*given: Any, **options: Any) -> None:
        if left:
            raise left.pop()
        prepare(*given, **options)

    monkeypatch.setattr(rebuild, "prepare", troubled)
    found = again(kept.pipeline, said.append)
    assert (found.calls, found.alike, found.changed, found.gained, found.lost) == (10, 2, 0, 0, 0)
    assert kept.read() == kept.rows
    assert any(told in words for words in said)


def test_a_store_that_was_set_aside_is_enough_to_make_it_from(tmp_path: Path, serve: Callable[..., Served]) -> None:
    """As the refusal of a store that can't be opened says to do where there is no journal beside it."""
    served = serve()
    kept = Kept(write(tmp_path, served, count=2), served)
    places = StorePaths(kept.pipeline.store)
    places.store.rename(places.store.with_name(places.store.name + ".aside2"))
    shutil.rmtree(places.journal)

    again(kept.pipeline, print)
    assert kept.read() == kept.rows
