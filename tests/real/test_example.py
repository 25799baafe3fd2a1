"""The walk in examples/, as a person takes it: from prompts to a model that `trl dpo` has trained."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_walk_ends_with_a_trained_model(tiny_model: Path, tmp_path: Path) -> None:
    settings = "--use_cpu true --bf16 false --gradient_checkpointing false --max_steps 2 --report_to none"
    shutil.copytree(ROOT / "examples/prompts-to-dpo", tmp_path / "walk", ignore=shutil.ignore_patterns("runs"))
    done = subprocess.run(
        ["sh", str(tmp_path / "walk/walk.sh"), *settings.split()],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "MODEL": str(tiny_model), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "walk/runs/prompts-to-dpo/dataset/README.md").is_file()
    assert (tmp_path / "walk/runs/prompts-to-dpo/model/model.safetensors").is_file()
