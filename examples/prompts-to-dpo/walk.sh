#!/bin/sh
# From prompts to a model trained on preferences, a command at a time. Needs `aif` and `trl` (pip install trl) on the path.
# MODEL is what is trained, a name on the Hub or a folder; what stands behind the script's name goes to `trl dpo`.
set -eu

here=$(dirname "$0")
made=$here/runs/prompts-to-dpo
model=${MODEL:-Qwen/Qwen2.5-0.5B-Instruct}

# 1. What will it cost? Calls, tokens, dollars, hours.
aif estimate "$here/pipeline.yaml"

# 2. Call the pool and the judge. Stop it at any time: the same command resumes.
aif run --yes "$here/pipeline.yaml"

# 3. Which pairs come out, before anything is written? And what would another policy give?
aif pairs "$here/pipeline.yaml" --versus pairs.policy=best_vs_worst

# 4. The dataset, with its card, in $made/dataset.
aif export "$here/pipeline.yaml"

# 5. Train. `trl` is the config that DPOTrainer takes as it is.
trl dpo --model_name_or_path "$model" \
    --dataset_name "$made/dataset" --dataset_config trl \
    --output_dir "$made/model" --beta 0.1 --learning_rate 5e-7 --num_train_epochs 1 "$@"
