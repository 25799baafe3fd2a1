"""Shared by all trials: the environment of a process, a pipeline file, and the digests of a dataset."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
import yaml

from trials.harness import ROOT


def environ() -> dict[str, str]:
    """Return the environment for a process of aif: this checkout comes first on its path, and the Hub is offline."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}


def pipeline(folder: Path, texts: Iterable[str], base: Mapping[str, Any], changes: Mapping[str, Any]) -> Path:
    """Write a pipeline file and its prompts to `folder`, and return the file's path.

    `base` has the name, completions, models and judges. `changes` replace top-level keys; a `models` or `judges`
    mapping among them is merged into every entry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.jsonl").write_bytes(b"".join(orjson.dumps({"prompt": text}) + b"\n" for text in texts))
    data: dict[str, Any] = {
        **base,
        "seed": 7,
        "store": str(folder / "store" / "feedback.duckdb"),
        "prompts": [{"file": str(folder / "prompts.jsonl")}],
        "rubric": "unified",
        **changes,
    }
    for part in ("models", "judges"):
        data[part] = {name: {**entry, **changes.get(part, {})} for name, entry in base[part].items()}
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def digests(dataset: Path) -> dict[str, str]:
    """Return the SHA-256 digest of each data file of a dataset, by the file's path in it."""
    files = sorted(dataset.rglob("*.parquet"))
    return {str(file.relative_to(dataset)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
