"""What we export trains: each of TRL's trainers takes its config as it is, loaded as a user loads it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset

from aif.export.dataset import export
from aif.export.formats import FORMATS
from tests.support.building import Cut, build

PAIRS = 16
CONFIGS = ("trl", "h4", "ultrafeedback", "kto", "reward", "sft")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every config of 16 prompts, every third with a system turn and earlier turns; one in four completions was cut."""
    folder = tmp_path_factory.mktemp("exported")
    pipeline, rubric, journaled = build(
        folder,
        PAIRS,
        sets=[f"export.formats=[{', '.join(CONFIGS)}]", "pairs.policy=best_vs_worst"],
        complete=lambda n, model: Cut("And so on") if model == "plain" else f"{n + 1}." if model == "able" else "No.",
    )
    with journaled:
        return export(pipeline, rubric, journaled, folder / "dataset", lambda words: None).path


def loaded(dataset: Path, config: str, tmp_path: Path, split: str = "train") -> Dataset:
    return load_dataset(str(dataset), config, split=split, cache_dir=str(tmp_path / "cache"))


def settings(out: Path) -> dict[str, Any]:
    """Forty steps over all rows, on a CPU."""
    return {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_steps": 40,
        "per_device_train_batch_size": PAIRS,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "seed": 0,
    }


def trained(trainer: Any, rows: Dataset) -> list[dict[str, float]]:
    """What was logged, step by step."""
    assert len(trainer.train_dataset) == len(rows), "rows were dropped on the way"
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def train(model: Path, rows: Dataset, out: Path) -> dict[str, float]:
    """By DPO; the last metrics logged."""
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(model=str(model), args=DPOConfig(**settings(out)), train_dataset=rows)
    return trained(trainer, rows)[-1]


def test_trl_trains_by_dpo(dataset: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The columns beside prompt, chosen and rejected don't disturb."""
    metrics = train(tiny_model, loaded(dataset, "trl", tmp_path), tmp_path)
    assert metrics["rewards/accuracies"] >= 0.9
    assert metrics["rewards/margins"] > 0


def test_h4_trains_by_its_two_columns(dataset: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Chosen and rejected alone, whole conversations: TRL finds the prompt as what they share."""
    rows = loaded(dataset, "h4", tmp_path, "train_prefs").select_columns(["chosen", "rejected"])
    assert train(tiny_model, rows, tmp_path)["rewards/accuracies"] >= 0.9


def test_h4_as_it_is_does_not(dataset: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Why the card says which columns to select. Should this ever pass, the warning there can go."""
    with pytest.raises((TypeError, AttributeError)):
        train(tiny_model, loaded(dataset, "h4", tmp_path, "train_prefs"), tmp_path)


def test_kto_trains(dataset: Path, tiny_model: Path, tmp_path: Path) -> None:
    from trl import KTOConfig, KTOTrainer

    rows = loaded(dataset, "kto", tmp_path)
    trainer = KTOTrainer(model=str(tiny_model), args=KTOConfig(**settings(tmp_path)), train_dataset=rows)
    last = trained(trainer, rows)[-1]
    assert last["rewards/chosen"] > last["rewards/rejected"]


def reward_trainer(model: Path, rows: Dataset, out: Path) -> Any:
    from trl import RewardConfig, RewardTrainer

    return RewardTrainer(model=str(model), args=RewardConfig(**settings(out)), train_dataset=rows)


def test_reward_trains_and_its_margin_is_asked_for(dataset: Path, tiny_model: Path, tmp_path: Path) -> None:
    rows = loaded(dataset, "reward", tmp_path)
    last = trained(reward_trainer(tiny_model, rows, tmp_path), rows)[-1]
    assert last["accuracy"] >= 0.9
    # with a margin m the loss is -log sigmoid(difference - m): at first more than the log 2 of no margin
    with_margin = trained(reward_trainer(tiny_model, rows, tmp_path), rows)[0]["loss"]
    plain = rows.remove_columns("margin")
    without = trained(reward_trainer(tiny_model, plain, tmp_path), plain)[0]["loss"]
    assert with_margin > without + 1


def test_sft_trains(dataset: Path, tiny_model: Path, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    rows = loaded(dataset, "sft", tmp_path)
    trainer = SFTTrainer(model=str(tiny_model), args=SFTConfig(**settings(tmp_path)), train_dataset=rows)
    steps = trained(trainer, rows)
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]


def paired_again(rows: Dataset) -> list[dict[str, Any]]:
    """The best and the worst completion of each row of `ultrafeedback`, as its columns are meant to be read."""
    made = []
    for row in rows:
        scored = sorted((one for one in row["completions"] if one["score"] is not None), key=lambda one: one["score"])
        whole = [one for one in scored if one["finish"] == "stop"]
        sides = {"chosen": whole[-1], "rejected": scored[0]}
        made.append({"prompt": row["messages"]} | {s: [_turn(one["response"])] for s, one in sides.items()})
    return made


def _turn(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_pairs_made_anew_of_ultrafeedback_train(dataset: Path, tiny_model: Path, tmp_path: Path) -> None:
    rows = Dataset.from_list(paired_again(loaded(dataset, "ultrafeedback", tmp_path)))
    assert train(tiny_model, rows, tmp_path)["rewards/accuracies"] >= 0.9


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_is_loaded_by_its_name(dataset: Path, tmp_path: Path, config: str) -> None:
    split = next(iter(FORMATS[config]))
    assert len(loaded(dataset, config, tmp_path, split)) >= PAIRS


@pytest.mark.parametrize(("command", "config"), [("dpo", "trl"), ("kto", "kto"), ("reward", "reward"), ("sft", "sft")])
def test_trl_s_command_line_trains(command: str, config: str, dataset: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The lines of docs/formats.md, with what makes them short and fit a CPU."""
    words = [
        command, "--model_name_or_path", str(tiny_model), "--dataset_name", str(dataset), "--dataset_config", config,
        "--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--use_cpu", "--bf16", "False",
        "--gradient_checkpointing", "False", "--per_device_train_batch_size", "4", "--report_to", "none",
    ]  # fmt: skip
    trl = Path(sys.executable).with_name("trl")
    subprocess.run([str(trl), *words], timeout=600, check=True)
    assert (tmp_path / "out" / "config.json").exists()
