"""The pipelines that aif ships, pointed at a simulator: only the sources of prompts and the addresses are changed."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))
KEYS = {"OPENAI_API_KEY": "a-key-that-goes-nowhere", "ANTHROPIC_API_KEY": "another-that-goes-nowhere"}


def moved(path: Path, url: str) -> list[str]:
    """Return the `--set` arguments that send every model's calls to the simulator at `url` (…/v1), with bundled
    prompts.

    Limits per minute are removed: aif would respect them, and a test would wait for them.
    """
    declared: dict[str, Any] = yaml.safe_load(path.read_text())
    sets = []
    if any("hub" in source for source in declared["prompts"]):
        sets.append("prompts=[{file: data/prompts/quickstart.jsonl, source_field: source}]")
    for part in ("models", "judges"):
        for name, one in declared.get(part, {}).items():
            if one["provider"] == "simulator":
                continue
            place = f"{part}.{name}"
            sets.append(f"{place}.base_url={url}")
            sets.extend(
                f"{place}.{key}=null" for key in ("launch", "requests_per_minute", "tokens_per_minute") if key in one
            )
    return [word for value in sets for word in ("--set", value)]
