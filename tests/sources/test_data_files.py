"""Rows of data files: where each stands, what a file may hold, and the messages for files that can't be read."""

import csv
import json
import random
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.core.errors import BadInput
from aif.core.types import BadRow
from aif.sources.data_files import BATCH_ROWS, file_sha256, read_rows

CSV = b"prompt,n\na,1\n"


def refused(path: Path) -> str:
    with pytest.raises(BadInput) as raised:
        list(read_rows(path))
    return str(raised.value).removeprefix(str(path))


def wrote(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# JSONL


def test_jsonl_with_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    path = wrote(tmp_path / "p.jsonl", b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n["b"]')
    assert list(read_rows(path)) == [(f"{path}:1", {"prompt": "a"}), (f"{path}:4", ["b"])]
    assert list(read_rows(wrote(tmp_path / "empty.jsonl", b""))) == []


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"{'prompt': 'a'}",
        b"prompt",
        b'{"prompt": nan}',
        b"[" * 5000,
    ],
)
def test_a_line_that_is_no_json_is_refused_with_its_number(tmp_path: Path, line: bytes) -> None:
    message = refused(wrote(tmp_path / "p.jsonl", b'{"prompt": "a"}\n\n\n' + line + b"\n"))
    assert message.startswith(":4: not JSON (")
    assert "each line must be a JSON object in UTF-8" in message


def test_a_bad_row_or_a_duplicate_key_ends_nothing(tmp_path: Path) -> None:
    path = wrote(tmp_path / "p.jsonl", b'{"a": "\\ud800"}\n{"a": "\xed\xa0\x80"}\n{"a": 1, "a": 2}\n{"a": NaN}\n')
    assert [row for _, row in read_rows(path)] == [
        {"a": "\ud800"},
        {"a": "\ud800"},
        BadRow("an object has the key 'a' twice"),
        {"a": None},
    ]


@pytest.mark.parametrize("content", [b'{"a": 1}\r{"a": 2}\r', b'{"a": 1}\r\n{"a": 2}\r\r{"a": 3}\n'])
def test_jsonl_whose_lines_end_in_cr(tmp_path: Path, content: bytes) -> None:
    found = [row["a"] for _, row in read_rows(wrote(tmp_path / "p.jsonl", content))]
    assert found == list(range(1, 1 + content.count(b"a")))


# CSV


@pytest.mark.parametrize("end", [b"\r", b"\r\n", b"\n"])
def test_csv_of_any_system(tmp_path: Path, end: bytes) -> None:
    path = wrote(tmp_path / "p.csv", b'\xef\xbb\xbfprompt,n\n"one\r\rmore",1\n\ntwo,2\n'.replace(b"\n", end))
    assert [row for _, row in read_rows(path)] == [{"prompt": "one\r\rmore", "n": "1"}, {"prompt": "two", "n": "2"}]


def test_csv_as_it_is_written(tmp_path: Path) -> None:
    """Byte order mark, line ends of Windows, blank lines, line breaks and quotes in cells, and no type but text."""
    path = wrote(
        tmp_path / "p.CSV",
        b'\xef\xbb\xbfprompt,n\r\n"one, ""two""\r\nthree",7\r\n\r\n,  \r\n\xc3\xbc\xe2\x80\xa8,1e3',
    )
    assert list(read_rows(path)) == [
        (f"{path}:2", {"prompt": 'one, "two"\r\nthree', "n": "7"}),
        (f"{path}:5", {"prompt": "", "n": "  "}),
        (f"{path}:6", {"prompt": "\u00fc\u2028", "n": "1e3"}),
    ]
    assert list(read_rows(wrote(path, b"prompt,n\n"))) == []


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    path = wrote(tmp_path / "p.csv", b"prompt\n" + b"x" * 500_000)
    assert [len(row["prompt"]) for _, row in read_rows(path)] == [500_000]


def test_jsonl_in_another_encoding_is_named_as_such(tmp_path: Path) -> None:
    latin = wrote(tmp_path / "p.jsonl", b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    assert refused(latin).startswith(":2: not UTF-8 (byte 0xe9); save the file as UTF-8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": empty; the first line of a .csv file names its columns"),
        (b"\n\n", ": empty; the first line of a .csv file names its columns"),
        (b"a,b,a\n", ":1: two columns are named 'a'; rename one"),
        (
            CSV + b"b\n",
            ":3: cells: 1, columns: 2; correct the row, and put quotes around cells that hold commas or line",
        ),
        (CSV + b'"b\n",2\nc,3,4\n', ":5: cells: 3, columns: 2; "),
        (CSV + b"caf\xe9,2\n", ":3: not UTF-8 (byte 0xe9); save the file as UTF-8"),
        ("prompt,n\n".encode("utf-16"), ":1: not UTF-8 (byte 0xff); save the file as UTF-8"),
        (
            CSV + b'"b" c,2\n',
            ":3: not CSV (',' expected after '\"'); put quotes around cells that hold commas, quotes or",
        ),
        (CSV + b'\n"b\nc,3\nd,4\n', ":4: not CSV (unexpected end of data); put quotes"),
        (b"prompt\na\rb\n", ":2: not CSV (new-line character seen in unquoted field); put quotes"),
        (b"\x1f\x8b\x08\x00", ":1: compressed; unpack the file"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    assert refused(wrote(tmp_path / "p.csv", content)).startswith(message)


# Parquet


def table(**columns: Any) -> pa.Table:
    return pa.table(columns or {"prompt": ["a", "b"]})


def test_parquet_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    pq.write_table(table(prompt=["a", None], turns=[turns, None], texts=[["x", None], []], n=[1, 2]), path)
    assert list(read_rows(path)) == [
        (f"{path} row 0", {"prompt": "a", "turns": turns, "texts": ["x", None], "n": 1}),
        (f"{path} row 1", {"prompt": None, "turns": None, "texts": [], "n": 2}),
    ]
    pq.write_table(table(prompt=pa.array([], pa.string())), path)
    assert list(read_rows(path)) == []


def test_parquet_is_streamed_in_order(tmp_path: Path) -> None:
    path, many = tmp_path / "p.parquet", 2 * BATCH_ROWS + 7
    pq.write_table(table(n=range(many)), path, row_group_size=BATCH_ROWS - 3)
    assert list(read_rows(path)) == [(f"{path} row {n}", {"n": n}) for n in range(many)]


def test_parquet_columns_of_other_types_do_not_hinder(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    columns = {
        "image": [b"\x89PNG"],
        "at": [datetime(2026, 1, 1, tzinfo=UTC)],
        "day": [date(2026, 1, 1)],
        "fine": pa.array([1], pa.timestamp("ns")),
        "cost": [Decimal("1.5")],
        "kind": pa.array(["x"]).dictionary_encode(),
    }
    pq.write_table(table(prompt=["a"], **columns), path)
    ((_, row),) = read_rows(path)
    assert (row["prompt"], row["image"], row["cost"], row["kind"]) == ("a", b"\x89PNG", Decimal("1.5"), "x")


def _twice(path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["prompt", "prompt"]), path)


NOT_UTF8 = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"], pa.binary()).buffers())


@pytest.mark.parametrize(
    "column",
    [
        NOT_UTF8,
        pa.array([0, 2**40], pa.int64()).cast(pa.timestamp("s")),
        pa.array([0, 2**31 - 1], pa.int32()).cast(pa.date32()),
        pa.array([[0], [2**60]], pa.list_(pa.duration("s"))),
        pa.array(["1", "{"]).cast(pa.json_()),
    ],
)
def test_a_cell_of_parquet_that_cannot_be_read_ends_nothing(tmp_path: Path, column: pa.Array) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(table(prompt=["a", "b"], far=column), path)
    (_, first), (_, second) = read_rows(path)
    assert not isinstance(first["far"], BadRow)
    assert second["prompt"] == "b"
    assert isinstance(second["far"], BadRow)


def test_json_in_parquet_is_read_as_what_it_holds(tmp_path: Path) -> None:
    """As datasets writes lists of objects with different keys, since 4.7."""
    path, turn = tmp_path / "p.parquet", {"role": "user", "content": "a"}
    texts = pa.array([[json.dumps(turn), None], None, []], pa.list_(pa.string()))
    inside = pa.array([{"x": "[1]"}, {"x": None}, None], pa.struct([("x", pa.string())]))
    pq.write_table(
        table(turns=texts.cast(pa.list_(pa.json_())), inside=inside.cast(pa.struct([("x", pa.json_())]))), path
    )
    assert [row for _, row in read_rows(path)] == [
        {"turns": [turn, None], "inside": {"x": [1]}},
        {"turns": None, "inside": {"x": None}},
        {"turns": [], "inside": None},
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), ": can't be read as Parquet: Parquet file size is 0 bytes"),
        (lambda path: path.write_bytes(CSV), ": can't be read as Parquet: Parquet magic bytes not found in footer"),
        (_twice, ": two columns are named 'prompt'; rename one"),
    ],
)
def test_parquet_that_cannot_be_read(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "p.parquet"
    make(path)
    found = refused(path)
    assert found.startswith(message)
    assert found.endswith(("check the file, or write it again", "rename one"))


def test_parquet_cut_short_or_damaged_is_read_whole_or_refused(tmp_path: Path) -> None:
    path, chance = tmp_path / "p.parquet", random.Random(1)
    pq.write_table(table(prompt=[f"text {n}" for n in range(50)], turns=[[{"role": "user"}]] * 50), path)
    good, refusals = path.read_bytes(), list[str]()
    for _ in range(300):
        broken = bytearray(good)
        for _ in range(chance.choice([1, 5])):
            broken[chance.randrange(len(good))] = chance.randrange(256)
        path.write_bytes(broken if chance.random() < 0.8 else broken[: chance.randrange(len(good))])
        try:
            assert len(list(read_rows(path))) == 50
        except BadInput as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert all(message.startswith(str(path)) for message in refusals)


# any


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@given(content=st.binary(max_size=60) | st.text(alphabet='ab",\n\r \ufeff[{', max_size=30).map(str.encode))
def test_whatever_a_file_holds(tmp_path_factory: pytest.TempPathFactory, kind: str, content: bytes) -> None:
    path = wrote(tmp_path_factory.getbasetemp() / f"any.{kind}", content)
    places = []
    try:
        places += [where for where, _ in read_rows(path)]
    except BadInput as error:
        places.append(str(error))
    assert all(place.startswith(str(path)) for place in places)


@given(st.lists(st.tuples(st.text(), st.text()), max_size=4))
def test_csv_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:

    path = tmp_path_factory.getbasetemp() / "written.csv"
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *cells])
    clean = [tuple(text.encode("utf-8", "replace").decode() for text in pair) for pair in cells]
    assert [(row["a"], row["b"]) for _, row in read_rows(path)] == clean


def test_files_that_the_system_does_not_give(tmp_path: Path) -> None:
    for kind in ("jsonl", "csv", "parquet"):
        path = tmp_path / f"p.{kind}"
        path.mkdir()
        assert refused(path) == ": can't be read: Is a directory; check the file and its permissions"
    with pytest.raises(BadInput, match="can't be read: No such file"):
        file_sha256(tmp_path / "none.csv")


def test_fewer_rows_of_parquet_are_in_memory_where_they_are_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    batches = pq.ParquetFile.iter_batches

    def noted(self: pq.ParquetFile, batch_size: int) -> Any:
        asked.append(batch_size)
        return batches(self, batch_size)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    for n, size in ((300, 10), (300, 100_000)):
        pq.write_table(
            table(prompt=[f"{i} {'x' * size}" for i in range(n)]), tmp_path / "p.parquet", use_dictionary=False
        )
        assert len(list(read_rows(tmp_path / "p.parquet"))) == n
    assert asked[0] == BATCH_ROWS
    assert 100 < asked[1] < 200
