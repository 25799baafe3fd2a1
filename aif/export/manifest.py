"""run.json of an export: what marks a folder as aif's, what is in it, and what it was made of."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import orjson
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from aif.core.types import digest
from aif.store.reader import Reader
from aif.store.report_queries import PromptCounts

_SORTED = orjson.OPT_SORT_KEYS  # as in `records.digest`
NAME = "run.json"
MARKER = ("made_by", "aif")  # a folder, or a dataset on the Hub, with this in it may be replaced by another export


class RunFile(BaseModel):
    """What run.json says. `rows` and `files` are by config and split; `state` is `state_of` the store at that time."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    made_by: Literal["aif"]
    rows: dict[str, dict[str, int]]
    files: dict[str, dict[str, str]]
    books: PromptCounts
    rubric: str
    state: str
    pipeline_yaml: str
    digest: str

    @property
    def paths(self) -> list[str]:
        """The data files, relative to the dataset's folder."""
        return [path for splits in self.files.values() for path in splits.values()]


def marked(data: bytes) -> dict[str, Any] | None:
    """The content of a run.json of aif's, of whichever version; None for anything else."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and found.get(MARKER[0]) == MARKER[1] else None


def is_export(folder: Path) -> bool:
    """Whether an export of aif's stands there, of whichever version."""
    try:
        return marked((folder / NAME).read_bytes()) is not None
    except OSError:
        return False


def parsed(data: bytes) -> RunFile | None:
    """A run.json as this version writes it; None for anything else."""
    try:
        return RunFile.model_validate_json(data)
    except ValidationError:
        return None


def sealed(run: dict[str, Any]) -> dict[str, Any]:
    """A run.json's content with the digest of it, so that what is edited by hand is known."""
    rest = {key: value for key, value in run.items() if key != "digest"}
    return {**rest, "digest": digest(rest)}


def state_of(reader: Reader, books: PromptCounts, paired: pa.Table) -> str:
    """A digest that changes when an export would: with the sources and what they brought, the plan, what was asked and
    how it was read, the pairs, what became of the other prompts."""
    head = orjson.dumps(
        [reader.get_mark("plan"), *reader.replies_digest(), books.intake, books.outcomes], option=_SORTED
    )
    found = hashlib.sha256(head[:-1] + b",[")
    for start in range(0, paired.num_rows, 10_000):  # 1,800,000 pairs at once take 2.8 GB
        rows = orjson.dumps(paired.slice(start, 10_000).to_pylist(), option=_SORTED)
        found.update(b"," * (start > 0) + rows[1:-1])
    found.update(b"]]")
    return found.hexdigest()
