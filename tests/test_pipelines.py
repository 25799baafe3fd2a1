"""Every pipeline that aif ships: it is sound, and runs and exports against a simulator."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aif.config.pipeline import load
from aif.core.errors import Exit
from aif.engine.prepare import principles_of, rubric_of
from aif.simulator import SimulatedModels
from tests.cli.test_main import Typed, typed
from tests.support.serving import Served
from tests.support.shipped import KEYS, PIPELINES, moved

__all__ = ["typed"]  # a fixture

NAMES = [path.stem for path in PIPELINES]


def test_the_ones_that_are_promised_are_there() -> None:
    promised = {"quickstart", "openai", "vllm", "laptop", "zephyr", "ultrafeedback", "claude-judge", "on-policy"}
    assert promised | {"byo-completions"} == set(NAMES)


@pytest.mark.parametrize("path", PIPELINES, ids=NAMES)
def test_it_is_sound_and_says_what_its_name_is(path: Path) -> None:
    pipeline = load(path)
    assert pipeline.name == path.stem
    assert rubric_of(pipeline).scores()
    principles_of(pipeline)
    for one in (*pipeline.models.values(), *pipeline.judges.values()):
        if one.provider != "simulator":
            assert one.terms, f"{one.name}: a reader of the card wants to know its terms"
            assert one.price or one.provider == "vllm", f"{one.name}: nobody could tell what it costs"


@pytest.mark.parametrize("path", PIPELINES, ids=NAMES)
def test_it_runs_and_exports_with_nothing_changed_but_where_its_models_are(
    path: Path, typed: Typed, tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    served = serve(cast=SimulatedModels({}, {}, open=True))
    words = [*moved(path, served.base_url), "--set", f"store={tmp_path}/store.duckdb", "--set", "export.test_size=0"]
    code, _, err = typed("run", path, *words, "--limit", "3")
    assert code == Exit.DONE, err
    code, out, err = typed("export", path, *words)
    assert code == Exit.DONE, err
    assert "3 pairs" in out or "2 pairs" in out
