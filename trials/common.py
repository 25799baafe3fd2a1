"""What the trials of both pages share: the environment of a process, a pipeline file, and the digests of a dataset."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
import yaml

from trials.harness import ROOT


def environ() -> dict[str, str]:
    """The environment of a process of ours: the checkout first on its path, no network but loopback."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}


def pipeline(folder: Path, prompts: Iterable[str], said: Mapping[str, Any], changes: Mapping[str, Any]) -> Path:
    """A pipeline file with prompts of these texts, in a folder; `said` names it and has its completions, models and
    judges.

    `changes` replace top-level keys; `models` and `judges` given as mappings are laid over every entry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.jsonl").write_bytes(b"".join(orjson.dumps({"prompt": text}) + b"\n" for text in prompts))
    whole: dict[str, Any] = {
        **said,
        "seed": 7,
        "store": str(folder / "store" / "feedback.duckdb"),
        "prompts": [{"file": str(folder / "prompts.jsonl")}],
        "rubric": "unified",
        **changes,
    }
    for part in ("models", "judges"):
        whole[part] = {name: {**entry, **changes.get(part, {})} for name, entry in said[part].items()}
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    return path


def digests(dataset: Path) -> dict[str, str]:
    """The data files of a dataset by name, with the digests of their bytes."""
    files = sorted(dataset.rglob("*.parquet"))
    return {str(file.relative_to(dataset)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
