"""The pipelines that aif ships, whole: over all their (bundled) prompts, by the command, against a simulator."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset

from aif.core.errors import Exit
from aif.simulator import SimulatedModels
from tests.support.serving import serving
from tests.support.shipped import KEYS, PIPELINES, moved


@pytest.mark.parametrize("path", PIPELINES, ids=[path.stem for path in PIPELINES])
def test_it_runs_whole_and_exports(path: Path, tmp_path: Path) -> None:
    with serving(SimulatedModels({}, {}, open=True)) as served:
        words = [*moved(path, served.base_url), "--set", "export.test_size=0.1"]
        for command in ("run", "export"):
            done = subprocess.run(
                [sys.executable, "-m", "aif", command, f"pipelines/{path.name}", *words],
                cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **KEYS},
            )  # fmt: skip
            assert done.returncode == Exit.DONE, done.stderr
        again = served.stats()["calls"]
        subprocess.run(
            [sys.executable, "-m", "aif", "run", f"pipelines/{path.name}", *words],
            cwd=tmp_path,
            check=True,
            env={**os.environ, **KEYS},
        )
        assert served.stats()["calls"] == again, "a finished run asks nothing"
    rows = load_dataset(str(tmp_path / "runs" / path.stem / "dataset"), "trl")
    assert sum(map(len, rows.values())) >= 16
