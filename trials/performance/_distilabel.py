"""The work of peers.py with distilabel, in its own environment:
`python trials/performance/_distilabel.py BASE_URL PROMPTS.jsonl`.

Four models complete every prompt; a judge rates the four in one request in UltraFeedback's layout. Nothing is cached.
"""

import json
import sys
from pathlib import Path

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import GroupColumns, LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration, UltraFeedback

BATCH = 256  # requests that one step sends at once; steps run in parallel, so more are in flight

base_url, rows = sys.argv[1], [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]


def model(name: str) -> OpenAILLM:
    settings = {"max_new_tokens": 512}
    return OpenAILLM(model=name, base_url=base_url, api_key="none", generation_kwargs=settings)


with Pipeline("beside") as pipeline:
    loaded = LoadDataFromDicts(data=[{"instruction": row["prompt"]} for row in rows], batch_size=BATCH)
    pool = [TextGeneration(name=name, llm=model(name), input_batch_size=BATCH) for name in ("m1", "m2", "m3", "m4")]
    grouped = GroupColumns(
        columns=["generation", "model_name"], output_columns=["generations", "model_names"], input_batch_size=BATCH
    )
    judged = UltraFeedback(llm=model("judge"), aspect="overall-rating", input_batch_size=BATCH)
    loaded >> pool >> grouped >> judged

if __name__ == "__main__":
    dataset = pipeline.run(use_cache=False)["default"]["train"]
    print(json.dumps({"rows": len(dataset)}))
