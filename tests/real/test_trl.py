"""What we export trains: TRL's DPOTrainer takes it as it is and learns to prefer the chosen side."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

PAIRS = 16


def pairs() -> list[dict[str, Any]]:
    """Rows of the `trl` format, every other one with a system message and an earlier turn."""
    rows = []
    for number in range(PAIRS):
        turns = [{"role": "user", "content": f"Which animal has {number} legs?"}]
        if number % 2:
            turns = [
                {"role": "system", "content": "Answer as a zoologist would."},
                {"role": "user", "content": "Good morning."},
                {"role": "assistant", "content": "Good morning to you."},
                *turns,
            ]
        rows.append(
            {
                "prompt_id": f"{number:064x}",
                "prompt": turns,
                "chosen": [{"role": "assistant", "content": f"None that I know of has {number}."}],
                "rejected": [{"role": "assistant", "content": f"Most of them, {number} at least."}],
                "score_chosen": 4.5,
                "score_rejected": 1.25,
                "chosen_model": "large",
                "rejected_model": "small",
            }
        )
    return rows


def train(model: Path, dataset: Dataset, out: Path) -> dict[str, float]:
    """Forty steps over all pairs; the last metrics logged."""
    from trl import DPOConfig, DPOTrainer

    settings = DPOConfig(
        output_dir=str(out),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_steps=40,
        per_device_train_batch_size=PAIRS,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=0,
    )
    trainer = DPOTrainer(model=str(model), args=settings, train_dataset=dataset)
    assert len(trainer.train_dataset) == len(dataset), "rows were dropped on the way"
    trainer.train()
    return {name: value for entry in trainer.state.log_history for name, value in entry.items()}


def test_trl_format_trains(tiny_model: Path, tmp_path: Path) -> None:
    """The columns beside prompt, chosen and rejected don't disturb."""
    metrics = train(tiny_model, Dataset.from_list(pairs()), tmp_path)
    assert metrics["rewards/accuracies"] >= 0.9
    assert metrics["rewards/margins"] > 0


def test_h4_format_trains_by_its_two_columns(tiny_model: Path, tmp_path: Path) -> None:
    """Chosen and rejected alone, whole conversations: TRL finds the prompt as what they share."""
    whole = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in pairs()]
    metrics = train(tiny_model, Dataset.from_list(whole), tmp_path)
    assert metrics["rewards/accuracies"] >= 0.9


def test_h4_format_as_it_is_does_not(tiny_model: Path, tmp_path: Path) -> None:
    """Why the card says which columns to select. Should this ever pass, the warning there can go."""
    h4 = [
        {"prompt": row["prompt"][-1]["content"]} | {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
        for row in pairs()
    ]
    with pytest.raises((TypeError, AttributeError)):
        train(tiny_model, Dataset.from_list(h4), tmp_path)
