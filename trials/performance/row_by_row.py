"""Binarizing as it is usually done, row by row in Python: `python -m trials.performance.row_by_row ROWS.parquet OUT`.

Mean of the ratings, best against a random worse one, both layouts that trainers read, a test split, Parquet.
"""

import random
import sys
from pathlib import Path
from typing import Any

import datasets


def scored(row: dict[str, Any]) -> dict[str, Any]:
    means = [sum(r["score"] for r in one["ratings"]) / len(one["ratings"]) for one in row["completions"]]
    return {"means": means}


def paired(row: dict[str, Any], index: int) -> dict[str, Any]:
    draw, means = random.Random(index), row["means"]
    best = max(means)
    chosen = draw.choice([n for n, mean in enumerate(means) if mean == best])
    worse = [n for n, mean in enumerate(means) if mean < best]
    rejected = draw.choice(worse) if worse else chosen
    return {"best": chosen, "worse": rejected, "tie": not worse}


def trl(row: dict[str, Any]) -> dict[str, Any]:
    texts = [one["response"] for one in row["completions"]]
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": texts[row["best"]]}],
        "rejected": [{"role": "assistant", "content": texts[row["worse"]]}],
        "score_chosen": row["means"][row["best"]],
        "score_rejected": row["means"][row["worse"]],
    }


def h4(row: dict[str, Any]) -> dict[str, Any]:
    asked = {"role": "user", "content": row["prompt"]}
    texts = [one["response"] for one in row["completions"]]
    return {
        "chosen": [asked, {"role": "assistant", "content": texts[row["best"]]}],
        "rejected": [asked, {"role": "assistant", "content": texts[row["worse"]]}],
        "messages": [asked, {"role": "assistant", "content": texts[row["best"]]}],
        "score_chosen": row["means"][row["best"]],
        "score_rejected": row["means"][row["worse"]],
    }


def main(rows: str, out: Path) -> None:
    data = datasets.load_dataset("parquet", data_files=rows, split="train", cache_dir=str(out / "cache"))
    data = data.map(scored).map(paired, with_indices=True).filter(lambda row: not row["tie"])
    gone = [name for name in data.column_names if name != "prompt_id"]
    for name, layout in (("trl", trl), ("h4", h4)):
        made = data.map(layout, remove_columns=[one for one in gone if one != "prompt" or name == "h4"])
        for split, part in made.train_test_split(test_size=min(2000, len(made) // 10 or 1), seed=7).items():
            part.to_parquet(str(out / f"{name}-{split}.parquet"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
