"""What earlier versions left still works: their journals and stores open, rebuild, resume without a needless call, and
export the same data files, and today's code computes every key in them again.

The data was made by keep_version.py. A test that fails here says that users would pay again for what they have, or lose
it: correct the code, never the data.
"""

import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.end_to_end.keep_version import (
    DATA,
    KEYS,
    SCENARIOS,
    Scenario,
    asked,
    cut_down,
    exported,
    judgements,
    keys,
    records,
    serving,
    store_of,
    tables,
    unpack,
)

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
PLAN = {"prompts", "selection", "carried", "intake", "texts", "slots", "specs", "materials"}
LATER = ("['pairs'", "['texts'")  # marks of what is done behind the plan
RECORDS = {
    *(
        (kind, None)
        for kind in ["prompt", "carried", "page", "selected", "call", "reserve", "retry", "split", "mended"]
    ),
    *(("text", kind) for kind in ["principle", "rubric", "material", "model"]),
}

Aif = Callable[..., int]
Tables = dict[str, tuple[list[str], list[str]]]

_BEFORE: dict[Path, Tables] = {}  # read once for all tests


class Kept:
    """One scenario of one version, unpacked in `folder`; `expected` is what that version made of it."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source = source
        self.scenario: Scenario = BY_NAME[source.name]
        self.folder = unpack(source, folder)
        self.expected: dict[str, Any] = json.loads((source / "expected.json").read_text())
        self.store = store_of(folder)

    @property
    def before(self) -> Tables:
        """The store's tables as they were kept."""
        if self.source not in _BEFORE:
            _BEFORE[self.source] = tables(self.store)
        return _BEFORE[self.source]

    @property
    def journal(self) -> bytes:
        return b"".join(path.read_bytes() for path in sorted(self.store.with_suffix(".journal").iterdir()))

    def check_export(self, aif: Aif) -> None:
        assert aif("export", "pipeline.yaml", "--out", "dataset") == self.expected["exit_codes"]["export"]
        now, then = exported(self.folder / "dataset"), self.expected["exported"]
        if pa.__version__ != then["pyarrow"]:  # which writes other bytes: the content counts
            for files in (now["files"], then["files"]):
                files.update({name: digests[1:] for name, digests in files.items()})
        assert now["files"] == then["files"]
        assert now["run"] == then["run"]


@pytest.fixture(params=sorted(DATA.glob("*/*/")), ids=lambda source: f"{source.parent.name}-{source.name}")
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    kept = Kept(request.param, tmp_path / request.param.name)
    monkeypatch.chdir(kept.folder)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    return kept


@pytest.fixture
def aif(monkeypatch: pytest.MonkeyPatch) -> Aif:
    """Run `python -m aif` in this process. Returns the exit code."""

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["aif", *words])
        umask = os.umask(0)
        os.umask(umask)
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_module("aif", run_name="__main__")
        finally:
            os.umask(umask)
        return int(ended.value.code or 0)

    return command


@pytest.mark.skipif(not DATA.exists(), reason="the source distribution has no such data")
@pytest.mark.parametrize("version", sorted(DATA.glob("*")), ids=lambda version: version.name)
def test_every_type_of_record_occurs(version: Path, tmp_path: Path) -> None:
    folders = [unpack(source, tmp_path / source.name) for source in version.iterdir()]
    assert {folder.name for folder in folders} == set(BY_NAME)
    kinds = {(record["t"], record.get("kind") if record["t"] == "text" else None) for folder in folders
             for record in records(folder)}  # fmt: skip
    assert kinds >= RECORDS


def test_a_store_opens_and_exports_the_same(kept: Kept, aif: Aif, capsys: pytest.CaptureFixture[str]) -> None:
    before, journal, codes = kept.before, kept.journal, kept.expected["exit_codes"]
    for command in ("status", "failures", "pairs"):
        assert aif(command, "pipeline.yaml") == codes[command]
    capsys.readouterr()
    assert aif("show", "pipeline.yaml", kept.expected["prompt"][:12]) == codes["show"]
    assert kept.expected["prompt"] in capsys.readouterr().out
    kept.check_export(aif)
    assert kept.journal == journal
    assert tables(kept.store) == before


def test_a_store_is_made_again_from_its_journal(kept: Kept, aif: Aif) -> None:
    before, journal = kept.before, kept.journal
    kept.store.unlink()
    assert aif("rebuild", "pipeline.yaml") == 0
    after = tables(kept.store)
    assert after.keys() >= before.keys()
    for name, (columns, rows) in before.items():
        assert after[name] == (columns, rows), name
    assert kept.journal == journal
    kept.check_export(aif)


def test_a_run_asks_what_is_pending_and_nothing_else(kept: Kept, aif: Aif) -> None:
    before, count = kept.before, len(asked(kept.folder))
    with serving() as address:
        code = aif("run", "pipeline.yaml", "--yes", *kept.scenario.sets(address))
    assert code == kept.expected["exit_codes"]["run"]
    assert sorted(asked(kept.folder)[count:]) == kept.expected["resumed"]
    if not kept.expected["resumed"]:
        assert tables(kept.store) == before


def test_the_plan_has_the_same_keys(kept: Kept, aif: Aif) -> None:
    """Prompts, completions to be had, requests to judges and sources get their keys and digests from the pipeline alone
    (and from what is on record of launched models: the first of a name is called by it)."""
    before = kept.before
    known = {name: sorted(keys(kept.store)[name]) for name in KEYS}
    assert known == kept.expected["keys"]
    cut_down(kept.folder, lambda record: record["t"] == "text" and record["kind"] == "model")
    assert aif("estimate", "pipeline.yaml") == 0
    after = tables(kept.store)
    for name in PLAN:
        assert after[name] == before[name], name
    marks = [row for row in before["marks"][1] if not row.startswith(LATER)]
    assert after["marks"][1] == marks


def test_judgements_get_the_same_keys(kept: Kept, aif: Aif) -> None:
    """Without the judgements that the pipeline wants, a run asks for each of them by the key that it had."""
    wanted = judgements(kept.store)
    pending = {entry for entry in kept.expected["resumed"] if entry.startswith("judgement")}
    cut_down(kept.folder, lambda record: f"{record.get('stage')} {record.get('key')}" not in wanted)
    count = len(asked(kept.folder))
    with serving() as address:
        code = aif("run", "pipeline.yaml", "--yes", *kept.scenario.sets(address))
    assert code == kept.expected["exit_codes"]["run"]
    again = {entry for entry in asked(kept.folder)[count:] if entry.startswith("judgement")}
    assert again - pending == wanted - pending
    assert set(kept.expected["keys"]["judgements"]) <= set(keys(kept.store, ["judgements"])["judgements"])
