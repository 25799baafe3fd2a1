"""Run `aif run` on the first LIMIT prompts and write the peak size of Python's heap:
`python -m trials.performance.heap PIPELINE LIMIT OUT`."""

import json
import sys
import tracemalloc
from pathlib import Path

from rich.console import Console

from aif.cli.views.progress import Terminal
from aif.config.pipeline import load
from aif.engine.run import run_pipeline

if __name__ == "__main__":
    path, limit, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    tracemalloc.start()  # memory of the imports is the same for any number of prompts
    run_pipeline(load(path), Terminal(Console(quiet=True)), limit=limit)
    out.write_text(json.dumps({"peak": tracemalloc.get_traced_memory()[1]}))
