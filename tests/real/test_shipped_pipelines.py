"""The pipelines for real providers, whole and unchanged but for where their models are: a simulator on loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset

from aif.errors import Exit
from aif.resources import shipped
from aif.simulator import Cast
from tests.serving import serving


@pytest.mark.parametrize(("name", "prompts"), [("vllm", 48), ("openai", 20)])
def test_it_runs_whole_and_exports(name: str, prompts: int, tmp_path: Path) -> None:
    """`openai` takes about two minutes: it keeps the tokens a minute of a first-tier account."""
    with serving(Cast({}, {}, open=True)) as served:
        sets = [f"models.*.base_url={served.base_url}", f"judges.*.base_url={served.base_url}"]
        words = [word for value in sets for word in ("--set", value)]
        for command in (["run"], ["export"]):
            done = subprocess.run(
                [sys.executable, "-m", "aif", *command, str(shipped("pipelines", f"{name}.yaml")), *words],
                cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
                env={**os.environ, "OPENAI_API_KEY": "a-key-that-goes-nowhere"},
            )  # fmt: skip
            assert done.returncode == Exit.DONE, done.stderr
        assert served.stats()["calls"] == prompts * 5
    rows = load_dataset(str(tmp_path / "runs" / name / "dataset"), "trl")
    assert sum(map(len, rows.values())) >= 0.8 * prompts
