"""Prompts in: rows as they come, what is left out and why, what is refused, and when a source counts as unchanged."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.entries import Source
from aif.errors import BadInput
from aif.records import Message, Prompt, prompt_id
from aif.sources import META_BYTES, Skipped, fingerprint, read, read_row

ROW = Source(file="p.jsonl")

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Why is the sky blue?"}
ASSISTANT = {"role": "assistant", "content": "Rayleigh scattering."}


def turns(*rows: dict[str, Any]) -> Prompt | Skipped:
    return read_row({"prompt": list(rows)}, ROW, "here")


def as_prompt(item: Prompt | Skipped) -> Prompt:
    assert isinstance(item, Prompt), item
    return item


def roles(item: Prompt | Skipped) -> list[str]:
    return [message.role for message in as_prompt(item).messages]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def items(folder: Path, **settings: Any) -> list[Prompt | Skipped]:
    return list(read(Source(**{"file": "p.jsonl", **settings}), beside=folder))


# rows


def test_a_text_is_a_single_user_turn() -> None:
    prompt = as_prompt(read_row({"prompt": " Why? ", "n": 1}, ROW, "here"))
    assert prompt.messages == (Message("user", " Why? "),), "the text stays as it is"
    assert prompt.prompt_id == prompt_id(prompt.messages)
    assert prompt.source == "p"
    assert prompt.meta == {"n": 1}


def test_trailing_assistant_turns_are_cut_off_and_no_others() -> None:
    assert roles(turns(SYSTEM, USER, ASSISTANT, USER, ASSISTANT, ASSISTANT)) == ["system", "user", "assistant", "user"]
    assert turns(USER, ASSISTANT) == turns(USER)
    assert as_prompt(turns(USER)).prompt_id == as_prompt(read_row({"prompt": USER["content"]}, ROW, "x")).prompt_id


def test_sharegpt_names_are_understood() -> None:
    shared = turns({"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"})
    assert shared == turns(
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}
    )
    filled = {"role": None, "content": None, "from": "human", "value": "a"}  # two layouts in one table
    assert as_prompt(turns(filled)).messages == (Message("user", "a"),)


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (None, "empty", "'prompt' is null"),
        ("", "empty", "nothing but white space"),
        (" \n\t", "empty", "nothing but white space"),
        ([], "empty", "0 turns"),
        ([USER, {"role": "user", "content": " "}], "empty", "nothing but white space"),
        ("x" * 100_001, "too_long", "100001 characters, max_chars is 100000"),
        ([SYSTEM | {"content": "x" * 99_999}, USER], "too_long", "100019 characters"),
        ([ASSISTANT], "no_user_turn", "1 turns, none to be answered"),
        ([SYSTEM], "no_user_turn", "the last turn is of role system"),
        ([SYSTEM, ASSISTANT], "no_user_turn", "the last turn is of role system"),
        ([USER, SYSTEM, USER], "bad_row", "a system turn that is not the first"),
        ([SYSTEM, SYSTEM, USER], "bad_row", "a system turn that is not the first"),
        ([{"role": "tool", "content": "x"}, USER], "bad_row", "turn 0: role 'tool' is none of system, user"),
        ([{"content": "x"}], "bad_row", "turn 0: role 'None'"),
        ([USER, {"role": "user", "content": None}], "bad_row", "turn 1: content is null, not a text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "bad_row", "turn 0: content is a list, not a text"),
        (["a"], "bad_row", "turn 0: a text, not {role, content}"),
    ],
)
def test_rows_left_out(value: Any, reason: str, detail: str) -> None:
    item = read_row({"prompt": value}, ROW, "p.jsonl:3")
    assert isinstance(item, Skipped)
    assert (item.reason, item.where) == (reason, "p.jsonl:3")
    assert item.detail.startswith(detail)


def test_a_prompt_of_just_max_chars_is_taken() -> None:
    as_prompt(read_row({"prompt": "x" * 10}, Source(file="p.jsonl", max_chars=10), "here"))


@pytest.mark.parametrize(
    ("row", "settings", "said"),
    [
        ([1], {}, 'p:1: expected an object of columns, got a list; write {"prompt": "..."}'),
        ("a", {}, "p:1: expected an object of columns, got a text"),
        (
            {"text": "a", "n": 1},
            {},
            "p:1: no column 'prompt' (columns: text, n); correct the row, or field: in the pipeline file",
        ),
        ({}, {"field": "text"}, "p:1: no column 'text' (columns: none)"),
        ({"prompt": 7}, {}, "p:1: 'prompt' holds a number, not a text or a list of {role, content}; correct the row"),
        ({"prompt": {"role": "user"}}, {}, "p:1: 'prompt' holds an object"),
        (
            {"prompt": "a"},
            {"source_field": "origin"},
            "p:1: no column 'origin' (columns: prompt); correct the row, or source_field:",
        ),
        ({"prompt": "a", "o": None}, {"source_field": "o"}, "p:1: 'o' holds no name of a source; fill it in"),
        ({"prompt": "a", "o": " "}, {"source_field": "o"}, "p:1: 'o' holds no name of a source"),
    ],
)
def test_rows_refused(row: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as raised:
        read_row(row, Source(file="p.jsonl", **settings), "p:1")
    assert str(raised.value).startswith(said)


def test_source_field_names_the_source_of_each_row() -> None:
    prompt = as_prompt(read_row({"prompt": "a", "origin": "flan"}, Source(hub="a/b", source_field="origin"), "x"))
    assert prompt.source == "flan"


def test_meta_holds_the_other_columns_that_json_can_and_that_are_short() -> None:
    row = {
        "prompt": "a",
        "answers": ["x"],
        "image": b"\x89PNG",
        "long": "x" * META_BYTES,
        "fits": "x" * (META_BYTES - 2),
    }
    assert as_prompt(read_row(row, ROW, "x")).meta == {"answers": ["x"], "fits": "x" * (META_BYTES - 2)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant", "human", "gpt", "tool"]) | JSON,
        "content": st.text(max_size=8) | JSON,
        "from": JSON,
        "value": JSON,
    },
)


@given(JSON | st.fixed_dictionaries({"prompt": JSON | st.lists(TURN | JSON, max_size=5)}, optional={"meta": JSON}))
def test_whatever_a_row_holds_it_is_a_prompt_or_left_out_or_refused(row: Any) -> None:
    said = item = None
    try:
        item = read_row(row, ROW, "here")
    except BadInput as error:
        said = str(error)
    if item is None:
        assert said is not None
        assert said.startswith("here: ")
    elif isinstance(item, Prompt):
        assert item.messages[-1].role == "user"
        assert item.messages[-1].content.strip()
        assert all(message.role != "system" for message in item.messages[1:])
        assert item.prompt_id == prompt_id(item.messages)
        json.dumps(dict(item.meta), allow_nan=False)
    else:
        assert item.detail


@given(st.lists(TURN, max_size=5))
def test_reading_what_was_read_changes_nothing(rows: list[dict[str, Any]]) -> None:
    first = turns(*rows)
    if isinstance(first, Prompt):
        again = as_prompt(turns(*({"role": m.role, "content": m.content} for m in first.messages)))
        assert again.prompt_id == first.prompt_id


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


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "b"}')
    assert [as_prompt(item).messages[0].content for item in items(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"{'prompt': 'a'}",
        b"prompt",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": NaN}',
        b"[" * 5000,
    ],
)
def test_a_line_that_is_no_json_is_refused_with_its_number(tmp_path: Path, line: bytes) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n")
    with pytest.raises(BadInput) as raised:
        items(tmp_path)
    assert str(raised.value).startswith(f"{path}:4: not JSON (")
    assert "each line is one JSON object in UTF-8" in str(raised.value)


@given(st.binary(max_size=60))
def test_whatever_a_file_holds(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    said, found = None, []
    try:
        found = list(read(Source(file=str(path)), beside=None))
    except BadInput as error:
        said = str(error)
    assert found == []
    assert said is None or said.startswith(f"{path}:")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"prompt file 'p\.jsonl' not found"):
        items(tmp_path)
    (tmp_path / "p.jsonl").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        items(tmp_path)
    with pytest.raises(BadInput, match="is a folder"):
        fingerprint(Source(file="p.jsonl"), beside=tmp_path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and can't be read")
def test_a_file_that_fails_in_reading_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(BadInput, match=r"p\.jsonl: can't be read: "):
        fingerprint(ROW, beside=tmp_path)
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
    found = list(read(Source(hub="data", source_field="origin"), beside=folder.parent))
    assert [item.source if isinstance(item, Prompt) else item for item in found] == [
        "flan",
        Skipped("empty", f"{folder} train row 1", "'prompt' is null"),
        "other",
    ]
    assert as_prompt(found[0]).meta == {"messages": [USER, ASSISTANT], "origin": "flan"}
    conversations = list(read(Source(hub=str(folder), field="messages", limit=1), beside=None))
    assert [as_prompt(item).messages for item in conversations] == [(Message("user", USER["content"]),)]


def test_what_is_wrong_with_a_dataset_is_said_with_its_name(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"train row 0: no column 'text' \(columns: prompt, messages, origin\)"):
        list(read(Source(hub="data", field="text"), beside=folder.parent))
    with pytest.raises(
        BadInput, match=r"data test: can't be read: .*test.*; check hub:, config:, split: and revision:"
    ):
        list(read(Source(hub="data", split="test"), beside=folder.parent))
    with pytest.raises(BadInput, match=r"can't be read: BuilderConfig 'other' not found"):
        list(read(Source(hub="data", config="other"), beside=folder.parent))
    (folder / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BadInput, match=r"data train: can't be read: "):
        list(read(Source(hub="data"), beside=folder.parent))


class Hub(BaseHTTPRequestHandler):
    """The Hub's answer to "which commit": one dataset is there, any other is not."""

    commit = "a" * 40

    def do_GET(self) -> None:
        found = self.path.split("?")[0].startswith("/api/datasets/org/there")
        body = json.dumps(
            {"id": "org/there", "sha": self.commit} if found else {"error": "Repository not found"}
        ).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if not found:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


ASK_THE_HUB = """
from aif.entries import Source
from aif.errors import BadInput
from aif.sources import fingerprint, read
print(fingerprint(Source(hub="org/there"), beside=None))
print(fingerprint(Source(hub="org/there", limit=5), beside=None))
for ask in (lambda s: fingerprint(s, beside=None), lambda s: list(read(s, beside=None))):
    try:
        ask(Source(hub="org/gone"))
    except BadInput as error:
        print(error)
"""


def test_the_hub_is_asked_for_the_commit_and_a_dataset_that_is_not_there_is_named(hub: str, tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads the Hub's address from the environment when it is imported."""
    root = Path(__file__).parent.parent
    environ = os.environ | {
        "HF_ENDPOINT": hub,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(root),
    }
    asked = subprocess.run(
        [sys.executable, "-c", ASK_THE_HUB], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60
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
    first = fingerprint(ROW, beside=tmp_path)
    assert first == fingerprint(ROW, beside=tmp_path / "moved")
    assert len(first) == 64
    others = [
        fingerprint(Source(file="p.jsonl", **more), beside=tmp_path) for more in ({"limit": 3}, {"field": "text"})
    ]
    write(tmp_path / "p.jsonl", {"prompt": "b"})
    assert len({first, *others, fingerprint(ROW, beside=tmp_path)}) == 4


def test_a_folder_s_fingerprint_follows_its_data_files(folder: Path) -> None:
    source = Source(hub="data")

    def now() -> str:
        return fingerprint(source, beside=folder.parent)

    first = now()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").touch()
    assert now() == first
    (folder / "train.parquet").rename(folder / "test.parquet")
    renamed = now()
    (folder / "more.parquet").write_bytes((folder / "test.parquet").read_bytes())
    assert len({first, renamed, now()}) == 3
