"""The files of a dataset: written in batches, read back and checked row by row, named by their content."""

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
from aif.export.formats import FORMATS, Part, file_of
from aif.export.layout import Layout, Of

ROW_GROUP = 2000  # rows at most, and a page of them (see core/batching.py): the Hub's viewer reads a row group at once

Parts = Mapping[Of, Mapping[Part, pa.Table]]


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """Everything of one kind that rows can be made of: all without their texts (`prompt_id` is a column), how some of
    them are fetched with their texts, how many at a time, and how many were left out, by reason."""

    index: pa.Table
    fetch: Callable[[pa.Table, int], Iterator[list[Any]]]
    batch: int = ROW_GROUP
    left_out: Mapping[str, int] = field(default_factory=dict)


def write(
    formats: Sequence[str], found: Mapping[Of, DatasetRows], parts: Parts, folder: Path
) -> dict[str, dict[str, int]]:
    """Every file of the formats. Returns rows by config and split.

    Rows stand in the order of a hash: sources are mixed for whoever reads in order, and what is added moves no other.
    """
    rows = {
        config: {
            split: parts[layout.of][part].num_rows
            for split, (part, layout) in FORMATS[config].items()
            if part in parts[layout.of]
        }
        for config in formats
    }
    for of, split in parts.items():
        for part, index in split.items():
            files = [
                (layout, folder / file_of(config, name))
                for config in formats
                for name, (belongs, layout) in FORMATS[config].items()
                if (layout.of, belongs) == (of, part)
            ]
            _fill(files, found[of].fetch(index, found[of].batch), found[of].batch)
    return rows


def _fill(files: Sequence[tuple[Layout, Path]], batches: Iterator[list[Any]], row_group: int) -> None:
    """Writes the same pairs, completions or prompts to all files that are made of them, batch by batch."""
    layouts = {layout.name: layout for layout, _ in files}
    with ExitStack() as stack:
        writers = [(layout.name, stack.enter_context(_writer(path, layout))) for layout, path in files]
        for batch in batches:
            for name, layout in layouts.items():
                made = pa.Table.from_pylist([layout.row(one) for one in batch], schema=layout.schema)
                for of, writer in writers:
                    if of == name:
                        writer.write_table(made, row_group_size=row_group)


def _writer(path: Path, layout: Layout) -> pq.ParquetWriter:
    with user_umask():
        path.parent.mkdir(exist_ok=True)
        return pq.ParquetWriter(path, layout.schema, compression="zstd", write_page_index=True)


def check(folder: Path, rows: Mapping[str, Mapping[str, int]]) -> None:
    """Reads every file back as written. A row that is not as its schema says is a bug, and no dataset is made of it."""
    for config, splits in rows.items():
        for split, wanted in splits.items():
            name, (_, layout) = file_of(config, split), FORMATS[config][split]
            n = 0
            for row in read(folder / name):
                if fault := layout.check(row):
                    raise AifError(f"{folder / name}: row {n} ({row['prompt_id']}): {fault}; this is a bug in aif")
                n += 1
            if n != wanted:
                raise AifError(f"{folder / name}: {n:,} rows were written, not {wanted:,}; this is a bug in aif")


def name_by_content(folder: Path, rows: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, str]]:
    """Gives every file the digest of its content as part of its name. Returns paths by config and split.

    `datasets.load_dataset` on a folder caches by the folder's last name and by what the card says, not by what is in
    the files (seen in 5.2): with names that stay the same it goes on giving the former export, or another run's.
    """
    named: dict[str, dict[str, str]] = {}
    for config, splits in rows.items():
        for split in splits:
            plain = folder / file_of(config, split)
            with plain.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            named.setdefault(config, {})[split] = file_of(config, split, content)
            plain.rename(folder / named[config][split])
    return named


def read(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):  # else a batch takes rows of several, each as long as a page allows
            for batch in file.iter_batches(batch_size=500, row_groups=[group]):
                yield from batch.to_pylist()
