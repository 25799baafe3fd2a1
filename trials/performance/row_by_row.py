"""Binarize row by row in Python, as is common: `python -m trials.performance.row_by_row ROWS.parquet OUT`.

The mean of the ratings, the best against a random worse one, two layouts for trainers, a test split, Parquet.
"""

import random
import sys
from pathlib import Path
from typing import Any

import datasets


def add_means(row: dict[str, Any]) -> dict[str, Any]:
    means = [
        sum(r["score"] for r in completion["ratings"]) / len(completion["ratings"]) for completion in row["completions"]
    ]
    return {"means": means}


def add_pair(row: dict[str, Any], index: int) -> dict[str, Any]:
    draw, means = random.Random(index), row["means"]
    best = max(means)
    chosen = draw.choice([n for n, mean in enumerate(means) if mean == best])
    worse = [n for n, mean in enumerate(means) if mean < best]
    rejected = draw.choice(worse) if worse else chosen
    return {"best": chosen, "worse": rejected, "tie": not worse}


def trl_row(row: dict[str, Any]) -> dict[str, Any]:
    texts = [completion["response"] for completion in row["completions"]]
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": texts[row["best"]]}],
        "rejected": [{"role": "assistant", "content": texts[row["worse"]]}],
        "score_chosen": row["means"][row["best"]],
        "score_rejected": row["means"][row["worse"]],
    }


def h4_row(row: dict[str, Any]) -> dict[str, Any]:
    prompt = {"role": "user", "content": row["prompt"]}
    texts = [completion["response"] for completion in row["completions"]]
    return {
        "chosen": [prompt, {"role": "assistant", "content": texts[row["best"]]}],
        "rejected": [prompt, {"role": "assistant", "content": texts[row["worse"]]}],
        "messages": [prompt, {"role": "assistant", "content": texts[row["best"]]}],
        "score_chosen": row["means"][row["best"]],
        "score_rejected": row["means"][row["worse"]],
    }


def main(rows: str, out: Path) -> None:
    data = datasets.load_dataset("parquet", data_files=rows, split="train", cache_dir=str(out / "cache"))
    data = data.map(add_means).map(add_pair, with_indices=True).filter(lambda row: not row["tie"])
    unneeded = [name for name in data.column_names if name != "prompt_id"]
    for name, layout in (("trl", trl_row), ("h4", h4_row)):
        rows_made = data.map(
            layout, remove_columns=[column for column in unneeded if column != "prompt" or name == "h4"]
        )
        for split, part in rows_made.train_test_split(test_size=min(2000, len(rows_made) // 10 or 1), seed=7).items():
            part.to_parquet(str(out / f"{name}-{split}.parquet"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
