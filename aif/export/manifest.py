"""run.json, the manifest of an export: it marks a folder as aif's, lists its files, and says what it was made from."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import orjson
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aif.core.types import digest
from aif.store.reader import Reader
from aif.store.report_queries import PromptCounts

_SORTED = orjson.OPT_SORT_KEYS  # as in `core.types.digest`
MANIFEST = "run.json"
MARKER = (
    "made_by",
    "aif",
)  # key and value in run.json that allow an export to replace a folder or Hub dataset


class Manifest(BaseModel):
    """The content of run.json.

    rows: number of rows by config (such as "trl") and split.
    files: path of the data file by config and split.
    prompt_counts: number of rows read and of prompts, by outcome; the key `books` in run.json.
    rubric: digest of the rubric.
    state: digest of the store's content at the time of the export. Another digest now means that the export is out of
        date.
    pipeline_yaml: text of the pipeline file as published.
    digest: digest of all other keys of run.json. Another digest now means that run.json was edited.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    made_by: Literal["aif"]
    rows: dict[str, dict[str, int]]
    files: dict[str, dict[str, str]]
    prompt_counts: PromptCounts = Field(alias="books")
    rubric: str
    state: str
    pipeline_yaml: str
    digest: str

    @property
    def paths(self) -> list[str]:
        """The paths of the data files, relative to the dataset's folder."""
        return [path for splits in self.files.values() for path in splits.values()]


def parse_any_version(data: bytes) -> dict[str, Any] | None:
    """Return the content of a run.json written by any version of aif; None if it is something else."""
    try:
        content = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return content if isinstance(content, dict) and content.get(MARKER[0]) == MARKER[1] else None


def is_export(folder: Path) -> bool:
    """Return whether a folder is an export of any version of aif."""
    try:
        return parse_any_version((folder / MANIFEST).read_bytes()) is not None
    except OSError:
        return False


def parse(data: bytes) -> Manifest | None:
    """Parse a run.json written by this version of aif; None if it is of another version or something else."""
    try:
        return Manifest.model_validate_json(data)
    except ValidationError:
        return None


def with_digest(run: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a run.json with the key `digest` added: a digest of all other keys, which reveals later
    edits."""
    rest = {key: value for key, value in run.items() if key != "digest"}
    return {**rest, "digest": digest(rest)}


def store_state(reader: Reader, prompt_counts: PromptCounts, paired: pa.Table) -> str:
    """Return a digest of the store that changes whenever the data files of an export would. It covers:

    - the sources and the plan;
    - the number of source rows for each outcome (selected, or a reason why left out);
    - the number of calls and of judgements, and the ratings;
    - the pairs (`paired`), and the number of prompts for each outcome (such as paired).
    """
    head = orjson.dumps(
        [reader.get_mark("plan"), *reader.replies_digest(), prompt_counts.intake, prompt_counts.outcomes],
        option=_SORTED,
    )
    state = hashlib.sha256(head[:-1] + b",[")
    for start in range(0, paired.num_rows, 10_000):  # 1,800,000 pairs at once take 2.8 GB
        rows = orjson.dumps(paired.slice(start, 10_000).to_pylist(), option=_SORTED)
        state.update(b"," * (start > 0) + rows[1:-1])
    state.update(b"]]")
    return state.hexdigest()
