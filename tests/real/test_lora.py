"""A LoRA adapter that a launched vLLM server offers, asked for by its name, beside its base."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from aif.config.pipeline import load
from aif.core.errors import Exit
from aif.store.reader import Reader
from tests.real.test_fleet import ARGS

PROMPTS = 4


def adapter(folder: Path, width: int = 128, layers: int = 2, rank: int = 8) -> Path:
    """An adapter of the tiny model as peft writes it, which changes much of what the model says."""
    folder.mkdir()
    torch.manual_seed(1)
    weights = {}
    for layer in range(layers):
        at = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        weights[f"{at}.lora_A.weight"] = torch.randn(rank, width)
        weights[f"{at}.lora_B.weight"] = torch.randn(width, rank)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none",
        "target_modules": ["o_proj"], "base_model_name_or_path": "tiny",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_says_other_words_than_its_base(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Name use number {n} of rain."} for n in range(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = {
        "VLLM_CPU_KVCACHE_SPACE": 1, "VLLM_CACHE_ROOT": str(tmp_path / "cache"), "HF_HUB_OFFLINE": 1,
        "VLLM_NO_USAGE_STATS": 1,
    }  # fmt: skip
    launch: dict[str, Any] = {"model": str(tiny_model), "max_model_len": 2048, "args": ARGS, "env": env}
    modules = ["--enable-lora", "--lora-modules", f"tuned={adapter(tmp_path / 'lora')}"]
    pipeline = {
        "name": "lora",
        "store": str(tmp_path / "feedback.duckdb"),
        "prompts": [{"file": "prompts.jsonl"}],
        "completions": {"per_prompt": 2, "max_tokens": 16, "temperature": 0.0},
        "models": {
            "base": {"provider": "vllm", "launch": launch},
            "tuned": {"provider": "vllm", "launch": {**launch, "args": [*ARGS, *modules]}},
        },
        "judges": {"judge": {"provider": "simulator"}},
    }
    pipeline["models"]["base"]["model"], pipeline["models"]["tuned"]["model"] = "base", "tuned"  # type: ignore[index]
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(pipeline))
    done = subprocess.run(
        [sys.executable, "-m", "aif", "run", path], env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip

    assert done.returncode in (Exit.DONE, Exit.FAILURES), done.stderr
    with Reader.open(load(path).store) as reader:
        told = reader._query("SELECT endpoint, served FROM calls WHERE stage = 'completion'")
        said = reader._query("SELECT prompt_id, identity, text FROM completions ORDER BY prompt_id, identity")
    assert {(row["endpoint"], json.loads(row["served"])["model"]) for row in told} == {
        ("base", "base"),
        ("tuned", "tuned"),
    }
    by_prompt: dict[str, list[str]] = {}
    for row in said:
        by_prompt.setdefault(row["prompt_id"], []).append(row["text"])
    both = [texts for texts in by_prompt.values() if len(texts) == 2]
    assert len(both) >= PROMPTS // 2
    assert all(base != tuned for base, tuned in both)
