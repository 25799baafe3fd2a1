"""The work of peers.py with curator, in its own environment:
`python trials/performance/_curator.py BASE_URL PROMPTS.jsonl`.

Four models complete every prompt, one model after another, as curator's API requires; then a judge gets one request
about the four. Cache and telemetry are off. curator counts tokens beforehand with a vocabulary from the network, which
is not reachable here: words are counted instead, which is faster.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ |= {
    "CURATOR_CACHE_DIR": tempfile.mkdtemp(),
    "CURATOR_DISABLE_CACHE": "1",
    "CURATOR_VIEWER": "0",
    "OPENAI_API_KEY": "none",
    "TELEMETRY_ENABLED": "0",
}

import tiktoken


class Words:
    """Replaces a vocabulary: counts words."""

    def encode(self, text, **settings):
        return text.split()


tiktoken.get_encoding = tiktoken.encoding_for_model = lambda name: Words()

from bespokelabs import curator
from datasets import Dataset

IN_FLIGHT = 256

settings = {
    "base_url": sys.argv[1],
    "max_concurrent_requests": IN_FLIGHT,
    "max_requests_per_minute": 10**7,
    "max_tokens_per_minute": 10**10,
    "require_all_responses": True,
}


class Completion(curator.LLM):
    def prompt(self, row):
        return row["prompt"]

    def parse(self, row, text):
        return {"prompt": row["prompt"], "completion": text}


class Judgement(curator.LLM):
    def prompt(self, row):
        return "Rate each of these answers from 1 to 5, with reasons.\n\n" + "\n\n".join(row["completions"])

    def parse(self, row, text):
        return {**row, "judgement": text}


def ask(task, name, rows):
    result = task(model_name=f"openai/{name}", backend="openai", backend_params=settings)(rows)
    return getattr(result, "dataset", result)


if __name__ == "__main__":
    rows = Dataset.from_list([json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()])
    pool = [ask(Completion, name, rows) for name in ("m1", "m2", "m3", "m4")]
    grouped = [
        {"prompt": row["prompt"], "completions": [made[n]["completion"] for made in pool]} for n, row in enumerate(rows)
    ]
    print(json.dumps({"rows": len(ask(Judgement, "judge", Dataset.from_list(grouped)))}))
