"""Prompts in: the rows of a source in their order, up to its limit, and when it counts as unchanged."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aif.config.pipeline import parse
from aif.config.sections import Source
from aif.core.errors import BadInput
from aif.core.types import Message, Prompt, ProvidedCompletion
from aif.sources.load import read_prompts, source_fingerprint
from aif.sources.prompt_rows import Skipped
from tests.support.hub import echoing, serving_hub

ROW = Source(file="p.jsonl")

USER = {"role": "user", "content": "Why is the sky blue?"}
ASSISTANT = {"role": "assistant", "content": "Rayleigh scattering."}


def as_prompt(item: Prompt | Skipped) -> Prompt:
    assert isinstance(item, Prompt), item
    return item


def text(item: Prompt | Skipped) -> str:
    return as_prompt(item).messages[0].content


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def items(folder: Path, **settings: Any) -> list[Prompt | Skipped]:
    return list(read_prompts(Source(**{"file": "p.jsonl", **settings}), base=folder))


# files


def test_a_file_is_read_in_its_order(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": ""}, {"prompt": "a"}, {"prompt": "ü\u2028ü"})
    read_items = items(tmp_path)
    assert [item.messages[0].content if isinstance(item, Prompt) else item.where for item in read_items] == [
        "a",
        f"{tmp_path / 'p.jsonl'}:2",
        "a",
        "ü\u2028ü",
    ]


def test_limit_counts_prompts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl", {"prompt": ""}, {"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}, {"prompt": "c"}
    )
    with path.open("a") as file:
        file.write("broken, but never read\n")
    kinds = [type(item) for item in items(tmp_path, limit=2)]
    assert kinds == [Skipped, Prompt, Skipped, Prompt]


def test_rows_of_one_prompt_that_follow_each_other_count_once(tmp_path: Path) -> None:
    rows = [
        {"prompt": p, "model": "m", "text": t} for p, t in [("a", "1"), ("a", "2"), ("b", "3"), ("b", " "), ("c", "4")]
    ]
    write(tmp_path / "p.jsonl", *rows, {"no": "prompt, but never read"})
    carried = items(tmp_path, limit=2, completions={"field": "text"})
    assert [text(item) if isinstance(item, Prompt) else item.reason for item in carried] == [
        "a",
        "a",
        "b",
        "empty_completion",
        "b",
    ]
    assert [text(item) for item in items(tmp_path, limit=3)] == ["a", "a", "b", "b", "c"]


def test_sources_have_names_and_limits_of_their_own_and_keep_their_order(tmp_path: Path) -> None:
    write(tmp_path / "first.jsonl", {"prompt": "a"}, {"prompt": "b"})
    (tmp_path / "second.csv").write_text("prompt\nb\nc\nd\n")
    pq.write_table(pa.table({"prompt": ["e", "a"]}), tmp_path / "third.parquet")
    pipeline = parse(
        "name: p\nprompts: [{file: first.jsonl}, {file: second.csv, limit: 2}, {file: third.parquet, source: own}]\n"
        "completions: {per_prompt: 2}\nmodels: {m: {provider: simulator, samples: 2}}\n"
        "judges: {j: {provider: simulator}}\n",
        tmp_path / "p.yaml",
    )
    found = [item for entry in pipeline.prompts for item in read_prompts(entry, base=pipeline.folder)]
    assert [(text(item), as_prompt(item).source) for item in found] == [
        ("a", "first"),
        ("b", "first"),
        ("b", "second"),
        ("c", "second"),
        ("e", "own"),
        ("a", "own"),
    ]


def test_the_same_rows_are_the_same_prompts_whatever_the_file(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Why {n}?\n"}],
            "answers": [
                {"model": "a", "text": f'"So", {n}', "points": n / 2},
                {"model": "b", "text": "No", "points": None},
            ],
            "gold": f"gold {n}",
            "id": f"row {n}",
        }
        for n in range(3)
    ]
    write(tmp_path / "p.jsonl", *rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {key: json.dumps(row[key]) for key in ("prompt", "answers")} for row in rows)
    settings = {"completions": {"field": "answers", "score": "points"}, "material": {"reference": "gold"}}
    jsonl, parquet, cells = (items(tmp_path, file=f"p.{kind}", **settings) for kind in ("jsonl", "parquet", "csv"))
    assert jsonl == parquet == cells
    assert as_prompt(jsonl[1]).provided == (
        ProvidedCompletion("a", '"So", 1', 0.5),
        ProvidedCompletion("b", "No", None),
    )
    assert as_prompt(jsonl[1]).material == {"reference": "gold 1"}
    assert as_prompt(jsonl[1]).meta == {"id": "row 1"}


def test_a_bad_row_of_any_file_is_named_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('prompt,gold\n"two\nlines",x\n,y\n')
    pq.write_table(pa.table({"prompt": ["a", None]}), tmp_path / "p.parquet")
    assert items(tmp_path, file="p.csv")[1] == Skipped("empty", f"{tmp_path}/p.csv:4", "nothing but white space")
    assert items(tmp_path, file="p.parquet")[1] == Skipped("empty", f"{tmp_path}/p.parquet row 1", "'prompt' is null")
    with pytest.raises(BadInput, match=r"p\.csv:2: no column 'text' \(columns: prompt, gold\)"):
        items(tmp_path, file="p.csv", field="text")
    with pytest.raises(BadInput, match=r"p\.parquet row 0: no column 'text' \(columns: prompt\)"):
        items(tmp_path, file="p.parquet", field="text")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"prompt file 'p\.jsonl' not found"):
        items(tmp_path)
    (tmp_path / "p.jsonl").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        items(tmp_path)
    with pytest.raises(BadInput, match="is a folder"):
        source_fingerprint(Source(file="p.jsonl"), base=tmp_path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and can't be read")
def test_a_file_that_fails_while_it_is_read_is_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(BadInput, match=r"p\.jsonl: can't be read: "):
        source_fingerprint(ROW, base=tmp_path)
    with pytest.raises(BadInput, match=r"p\.jsonl: can't be read: "):
        items(tmp_path)


# local folders of data files, and the Hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    table = pa.table(
        {
            "prompt": ["a", None, "c"],
            "messages": [[USER, ASSISTANT]] * 3,
            "origin": ["flan", "flan", "other"],
        }
    )
    pq.write_table(table, data / "train.parquet")
    return data


def test_a_local_folder_is_read_as_a_dataset(folder: Path) -> None:
    found = list(read_prompts(Source(hub="data", source_field="origin"), base=folder.parent))
    assert [item.source if isinstance(item, Prompt) else item for item in found] == [
        "flan",
        Skipped("empty", f"{folder} train row 1", "'prompt' is null"),
        "other",
    ]
    assert as_prompt(found[0]).meta == {"messages": [USER, ASSISTANT], "origin": "flan"}
    conversations = list(read_prompts(Source(hub=str(folder), field="messages", limit=1), base=None))
    assert [as_prompt(item).messages for item in conversations] == [(Message("user", USER["content"]),)]


FAR = pa.array([0, 2**40], pa.int64()).cast(pa.timestamp("s"))
IMAGES = pa.array([{"bytes": b"no picture", "path": None}] * 2)


def _saved(folder: Path, table: pa.Table) -> datasets.Dataset:
    saved = datasets.Dataset(datasets.table.InMemoryTable(table))
    saved.save_to_disk(folder, num_shards=2)
    return saved


def test_columns_without_a_use_are_not_decoded_and_end_nothing(tmp_path: Path) -> None:
    features = datasets.Features(
        prompt=datasets.Value("string"),
        image=datasets.Image(),
        sound=datasets.Audio(),
        at=datasets.Value("timestamp[s]"),
    )
    columns = {"prompt": ["a", "b"], "image": IMAGES, "sound": IMAGES, "at": FAR}
    table = pa.table(columns, schema=features.arrow_schema)
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train.parquet")
    _saved(tmp_path / "saved", table)
    for name in ("data", "saved"):
        found = [as_prompt(item) for item in read_prompts(Source(hub=name), base=tmp_path)]
        assert [(text(item), item.meta) for item in found] == [("a", {"at": "1970-01-01T00:00:00"}), ("b", {})]


def test_a_dataset_that_was_saved_to_disk(tmp_path: Path) -> None:
    train = _saved(tmp_path / "one", pa.table({"prompt": list("abcde")}))
    datasets.DatasetDict(train=train, test=train.select([1])).save_to_disk(tmp_path / "several")
    assert [text(item) for item in read_prompts(Source(hub="one"), base=tmp_path)] == list("abcde")
    assert [text(item) for item in read_prompts(Source(hub="several"), base=tmp_path)] == list("abcde")
    assert [text(item) for item in read_prompts(Source(hub="several", split="test"), base=tmp_path)] == ["b"]
    with pytest.raises(BadInput, match=r"several dev: no such split; it has train, test: correct split:"):
        list(read_prompts(Source(hub="several", split="dev"), base=tmp_path))


def test_unlike_objects_are_read_from_a_file_as_from_its_folder(tmp_path: Path) -> None:
    features = datasets.Features(messages=datasets.List(datasets.Json()))
    rows = datasets.Dataset.from_dict({"messages": [[USER], [USER, ASSISTANT | {"tools": [1]}]]}, features=features)
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    rows.save_to_disk(tmp_path / "saved")
    file = Source(file="data/train.parquet", field="messages")
    for source in (file, Source(hub="data", field="messages"), Source(hub="saved", field="messages")):
        found = list(read_prompts(source, base=tmp_path))
        assert [as_prompt(item).messages for item in found] == [(Message("user", USER["content"]),)] * 2


@pytest.mark.parametrize("name", ["x [v1]", "x*", "x?", "[x]", "a::b", "x{a}", ".x/y"])
def test_a_name_with_signs_of_a_pattern_is_that_name(tmp_path: Path, name: str) -> None:
    for folder in (name, "x1", "x v"):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / "train [1].jsonl", {"prompt": folder})
    for source in (Source(hub=name), Source(file=f"{name}/train [1].jsonl")):
        assert [text(item) for item in read_prompts(source, base=tmp_path)] == [name]
    _saved(tmp_path / "plain", pa.table({"prompt": [name, "b"]}))
    shutil.copytree(tmp_path / "plain", tmp_path / "saved" / name)
    assert [text(item) for item in read_prompts(Source(hub=f"saved/{name}"), base=tmp_path)] == [name, "b"]


def test_errors_of_a_dataset_name_it(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"train row 0: no column 'text' \(columns: prompt, messages, origin\)"):
        list(read_prompts(Source(hub="data", field="text"), base=folder.parent))
    with pytest.raises(
        BadInput, match=r"data test: can't be read: .*test.*; check hub:, config:, split: and revision:.* as file:$"
    ):
        list(read_prompts(Source(hub="data", split="test"), base=folder.parent))
    with pytest.raises(BadInput, match=r"can't be read: BuilderConfig 'other' not found"):
        list(read_prompts(Source(hub="data", config="other"), base=folder.parent))
    (folder / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BadInput, match=r"data train: can't be read: "):
        list(read_prompts(Source(hub="data"), base=folder.parent))


def test_a_file_that_is_given_as_a_dataset_is_not_searched_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(BadInput, match=r"mine\.jsonl: is a file; give it as file:, not as hub:$"):
        list(read_prompts(Source(hub="mine.jsonl"), base=tmp_path))


def test_a_cache_that_can_t_be_written_to_is_named(folder: Path) -> None:
    """As on a read-only file system; root could write into any folder, but into no file."""
    asked = (
        "from pathlib import Path; from aif.config.sections import Source; from aif.sources.load import read_prompts; "
    )
    asked += "list(read_prompts(Source(hub='data'), base=Path('.')))"
    environ = os.environ | {"HF_HOME": str(folder / "train.parquet")}
    done = subprocess.run(
        [sys.executable, "-c", asked], cwd=folder.parent, env=environ, capture_output=True, text=True, check=False
    )
    assert done.stderr.rstrip().endswith("the Hub's cache is there: set HF_HOME to a folder that you may write to")


ASK_THE_HUB = """
from aif.config.sections import Source
from aif.core.errors import BadInput
from aif.sources.load import read_prompts, source_fingerprint
print(source_fingerprint(Source(hub="org/there"), base=None))
print(source_fingerprint(Source(hub="org/there", limit=5), base=None))
for ask in (lambda s: source_fingerprint(s, base=None), lambda s: list(read_prompts(s, base=None))):
    try:
        ask(Source(hub="org/gone"))
    except BadInput as error:
        print(error)
"""


def test_the_hub_is_asked_for_the_commit_and_a_dataset_that_is_not_there_is_named(tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads the Hub's address from the environment when it is imported."""
    with serving_hub() as hub:
        hub.make("org/there", private=False)
        asked = subprocess.run(
            [sys.executable, "-c", ASK_THE_HUB],
            env=hub.environ(tmp_path),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert asked.returncode == 0, asked.stderr
    first, second, unknown_commit, unknown_rows = asked.stdout.splitlines()
    assert len(first) == len(second) == 64
    assert first != second
    assert unknown_commit.startswith("hub dataset org/gone: can't be read: ")
    assert unknown_rows.startswith("hub dataset org/gone train: can't be read: ")
    assert unknown_rows.endswith("the network and HF_TOKEN, or give a folder with its files as hub:")


# fingerprints


def test_a_fingerprint_follows_content_and_settings_but_not_the_place(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", {"prompt": "a"})
    (tmp_path / "moved").mkdir()
    write(tmp_path / "moved" / "p.jsonl", {"prompt": "a"})
    first = source_fingerprint(ROW, base=tmp_path)
    assert first == source_fingerprint(ROW, base=tmp_path / "moved")
    assert len(first) == 64
    others = [
        source_fingerprint(Source(file="p.jsonl", **more), base=tmp_path)
        for more in (
            {"limit": 3},
            {"field": "text"},
            {"material": {"reference": "gold"}},
            {"completions": {"field": "answer"}},
            {"completions": {"field": "answer", "score": "points"}},
        )
    ]
    write(tmp_path / "p.jsonl", {"prompt": "b"})
    assert len({first, *others, source_fingerprint(ROW, base=tmp_path)}) == 7


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_tables_have_fingerprints_too(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"one")
    first = source_fingerprint(Source(file=name), base=tmp_path)
    (tmp_path / name).write_bytes(b"two")
    assert first != source_fingerprint(Source(file=name), base=tmp_path)


def test_a_folder_s_fingerprint_follows_its_data_files(folder: Path) -> None:
    source = Source(hub="data")

    def now() -> str:
        return source_fingerprint(source, base=folder.parent)

    first = now()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").touch()
    assert now() == first
    (folder / "train.parquet").rename(folder / "test.parquet")
    renamed = now()
    (folder / "more.parquet").write_bytes((folder / "test.parquet").read_bytes())
    assert len({first, renamed, now()}) == 3


ASK_FOR_ALL = """
from pathlib import Path
from aif.export import hub
from aif.config.sections import Source
from aif.core.errors import AifError
from aif.sources.load import read_prompts, source_fingerprint

def opened():
    with hub.hub_client("org/there") as api:
        hub.find_dataset(api, "org/there")

source = Source(hub="org/there")
for ask in (lambda: source_fingerprint(source, base=None), lambda: list(read_prompts(source, base=None)), opened):
    try:
        ask()
    except AifError as error:
        print(error)
"""
TOKEN = "hf_f3a9c51d2e8b7064"


def hub_asked(folder: Path, address: str) -> list[str]:
    environ = os.environ | {
        "HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    words = [sys.executable, "-c", ASK_FOR_ALL]
    asked = subprocess.run(words, env=environ, cwd=folder, capture_output=True, text=True, timeout=60)
    assert asked.returncode == 0, asked.stderr
    return asked.stdout.splitlines()


def test_a_token_that_the_hub_sends_back_is_in_no_message(tmp_path: Path) -> None:
    with echoing() as (address, seen):
        told = hub_asked(tmp_path, address)

    assert f"Bearer {TOKEN}" in seen
    assert len(told) == 3
    assert [line for line in told if TOKEN in line] == []
    assert any("Bearer [key]" in line for line in told)


def test_a_redirect_of_the_hub_gets_no_token(tmp_path: Path) -> None:
    with echoing() as (elsewhere, seen), echoing(307, elsewhere.replace("127.0.0.1", "localhost")) as (address, first):
        hub_asked(tmp_path, address)

    assert f"Bearer {TOKEN}" in first
    assert not any(TOKEN in sent for sent in seen)
