"""The data files of a dataset: write them in batches, check every row by reading it back, name files by content."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aif.core.errors import AifError
from aif.core.file_permissions import user_umask
from aif.export.formats import FORMATS, Part, file_path
from aif.export.layout import Layout, RowKind

ROW_GROUP = 2000  # rows, at most, since the Hub's viewer reads a whole row group; fewer if texts are long (batching.py)

Parts = Mapping[RowKind, Mapping[Part, pa.Table]]


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """The rows to export, all made from one kind of element: pairs, completions or prompts.

    index: a table with a row for each element: its `prompt_id` and other columns, but no texts.
    fetch: takes a part of `index` and a batch size, and yields lists of elements with their texts.
    batch: the batch size to pass to `fetch`.
    left_out: number of completions that get no row, by reason.
    """

    index: pa.Table
    fetch: Callable[[pa.Table, int], Iterator[list[Any]]]
    batch: int = ROW_GROUP
    left_out: Mapping[str, int] = field(default_factory=dict)


def write_files(
    formats: Sequence[str], by_kind: Mapping[RowKind, DatasetRows], parts: Parts, folder: Path
) -> dict[str, dict[str, int]]:
    """Write all data files of the formats to `folder`. Return the number of rows by config and split.

    formats: names of the formats, such as "trl".
    by_kind: the rows to export, by what a row is made from, such as "pairs".
    parts: which of these rows go to train and which to test.

    Rows are ordered by prompt id, a hash. So any part of a file has rows of all sources, and new rows don't reorder the
    others.
    """
    rows = {
        config: {
            split: parts[layout.kind][part].num_rows
            for split, (part, layout) in FORMATS[config].items()
            if part in parts[layout.kind]
        }
        for config in formats
    }
    for kind, tables in parts.items():
        for part, index in tables.items():
            files = [
                (layout, folder / file_path(config, split))
                for config in formats
                for split, (split_part, layout) in FORMATS[config].items()
                if (layout.kind, split_part) == (kind, part)
            ]
            _fill(files, by_kind[kind].fetch(index, by_kind[kind].batch), by_kind[kind].batch)
    return rows


def _fill(files: Sequence[tuple[Layout, Path]], batches: Iterator[list[Any]], row_group: int) -> None:
    """Write the same pairs, completions or prompts to all `files`. Each file gets rows of its own layout.

    `row_group` is the maximum number of rows in a Parquet row group.
    """
    layouts = {layout.name: layout for layout, _ in files}
    with ExitStack() as stack:
        writers = [(layout.name, stack.enter_context(_writer(path, layout))) for layout, path in files]
        for batch in batches:
            for name, layout in layouts.items():
                table = pa.Table.from_pylist([layout.row(value) for value in batch], schema=layout.schema)
                for writer_layout, writer in writers:
                    if writer_layout == name:
                        writer.write_table(table, row_group_size=row_group)


def _writer(path: Path, layout: Layout) -> pq.ParquetWriter:
    with user_umask():
        path.parent.mkdir(exist_ok=True)
        return pq.ParquetWriter(path, layout.schema, compression="zstd", write_page_index=True)


def check_files(folder: Path, rows: Mapping[str, Mapping[str, int]]) -> None:
    """Read every data file back, and check each row, and the number of rows against `rows` (by config and split).
    Raises AifError if one is wrong, which is a bug in aif."""
    for config, splits in rows.items():
        for split, wanted in splits.items():
            name, (_, layout) = file_path(config, split), FORMATS[config][split]
            n = 0
            for row in read_rows(folder / name):
                if fault := layout.check(row):
                    raise AifError(f"{folder / name}: row {n} ({row['prompt_id']}): {fault}; this is a bug in aif")
                n += 1
            if n != wanted:
                raise AifError(f"{folder / name}: {n:,} rows were written, not {wanted:,}; this is a bug in aif")


def name_by_content(folder: Path, rows: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, str]]:
    """Rename each data file: add a digest of its content to its name. Return the new paths by config and split.

    `datasets.load_dataset` on a folder caches by the folder's name and the card's metadata, not by the files' content
    (seen in 5.2). If names stayed the same, it could load an earlier export, or another run's, from its cache.
    """
    paths: dict[str, dict[str, str]] = {}
    for config, splits in rows.items():
        for split in splits:
            plain = folder / file_path(config, split)
            with plain.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            paths.setdefault(config, {})[split] = file_path(config, split, content)
            plain.rename(folder / paths[config][split])
    return paths


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data file, one by one. It is read in batches of at most 500 rows."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):  # else a batch may span row groups, each as long as a page allows
            for batch in file.iter_batches(batch_size=500, row_groups=[group]):
                yield from batch.to_pylist()
