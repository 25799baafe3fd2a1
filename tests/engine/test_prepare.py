"""The plan over the prompts, and the principles that the pipeline names."""

import json
from pathlib import Path

import pytest

from aif.config.pipeline import Pipeline, parse
from aif.core.errors import BadInput
from aif.engine.prepare import prepare, principles_of, rubric_of
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from tests.engine.test_read_prompts import PIPELINE, pipeline, read, rows

__all__ = ["pipeline"]  # a fixture


def test_only_slots_with_changed_principles_get_new_keys(pipeline: Pipeline, tmp_path: Path) -> None:
    def keys() -> set[str]:
        with JournaledStore.open(pipeline.store, print) as journaled:
            prepare(pipeline, journaled, rubric_of(pipeline), lambda _: None)
            with Reader.of(journaled.store) as reader:
                return {row["key"] for row in reader._query("SELECT key FROM slots")}

    rows(tmp_path / "a.jsonl", *(f"prompt {n}" for n in range(200)))
    own = {"pools": {"a": ["Be brief.", "Be kind."]}, "default": {"a": 1.0}}
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    pipeline = parse(PIPELINE.format(folder=tmp_path).replace("ultrafeedback", f"{tmp_path}/own"), tmp_path / "p.yaml")
    before = keys()
    own["pools"]["a"].append("Be exact.")  # type: ignore[index]
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    after = keys()

    assert 0.2 < len(before - after) / len(before) < 0.47  # one in three is drawn again


@pytest.mark.parametrize("text", ["\U0001f600", "a\U0001f600b"])
def test_principles_with_escapes_as_json_writes_them(pipeline: Pipeline, tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(json.dumps({"pools": {text: [text]}, "default": {text: 1}}))
    own = PIPELINE.format(folder=tmp_path).replace("ultrafeedback", f"{tmp_path}/own.yaml")
    principles = principles_of(parse(own, tmp_path / "p.yaml"))
    assert principles is not None
    assert principles.pools == {text: (text,)}
    read(parse(own, tmp_path / "p.yaml"))
    (tmp_path / "own.yaml").write_text('default: {a: 1}\npools: {a: ["\\ud83d"]}')
    with pytest.raises(BadInput, match=r"own\.yaml:2: can't be read as YAML: half a character \(a lone surrogate\)"):
        principles_of(parse(own, tmp_path / "p.yaml"))
