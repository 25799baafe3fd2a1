"""Pairs as a Hugging Face dataset: Parquet files in the trainers' formats, splits, a card. No model is called.

A dataset stands under its name whole or not at all: it is written beside it, checked row by row as a reader will see
it, synced, and moved there. Data files depend on the store and the pipeline alone, byte for byte; time and spend stand
in run.json and in one section of the card.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from aif import __version__, events
from aif.card import CardFacts, default_config, render
from aif.config import Pipeline
from aif.errors import AifError, BadInput
from aif.formats import FORMATS, Layout, Part, file_of
from aif.ledger import Ledger
from aif.pairing import make_pairs
from aif.queries import Books, Reader
from aif.records import fraction
from aif.rubric import Rubric

ROW_GROUP = 2000  # rows; of 10 KB each 20 MB, which the Hub's viewer still reads at once
SAMPLED = 200  # of so many first rows the shortest stands in the card

MARKER = ("made_by", "aif")  # in run.json: the folder is an export and may be replaced by one

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """A dataset as it was written: its folder, rows by config and split, and what became of every prompt."""

    path: Path
    rows: dict[str, dict[str, int]]
    books: Books


def export(
    pipeline: Pipeline,
    rubric: Rubric,
    ledger: Ledger,
    out: Path,
    tell: Told,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Exported:
    """Makes pairs and writes them to the folder `out`, in the place of an older export.

    Raises BadInput where there is nothing to export, `out` holds something else, or `test_size` asks for too many.
    What an export that failed has written stays beside `out` as `<out>.partial` until the next one.
    """
    out = out.resolve()
    _check_place(out)
    make_pairs(pipeline, rubric, ledger.store)
    with Reader.of(ledger.store) as reader:
        books = reader.books()
        paired = reader.paired()
        if not paired.num_rows:
            became = ", ".join(f"{outcome} {n:,}" for outcome, n in books.outcomes.items())
            raise BadInput(f"{pipeline.path}: there are no pairs to export; of {books.selected:,} prompts: {became}")
        parts = _parts(pipeline, ledger, reader, paired, tell)
        with _writable(out):
            partial = _beside(out, "partial")
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
            rows = _write(pipeline.export.formats, reader, parts, partial)
            _check(partial, rows)
            files = _name_by_content(partial, rows)
            _describe(pipeline, rubric, reader, partial, rows, files, books, paired, now())
            _sync(partial)
            _put(partial, out)
    return Exported(out, rows, books)


# --- splits -----------------------------------------------------------------------------------------------------------


def _parts(pipeline: Pipeline, ledger: Ledger, reader: Reader, paired: pa.Table, tell: Told) -> dict[Part, pa.Table]:
    """The pairs of each part that has any. All pairs of a prompt are in one part."""
    ids = paired.column("prompt_id").to_pylist()
    drawn = {prompt_id: fraction("split", prompt_id) for prompt_id in ids}
    share = _test_share(pipeline, ledger, reader, list(drawn.values()), tell)
    held_out = pa.array([drawn[prompt_id] < share for prompt_id in ids], pa.bool_())
    parts: dict[Part, pa.Table] = {"train": paired.filter(pc.invert(held_out)), "test": paired.filter(held_out)}
    asked, test = pipeline.export.test_size, sum(at < share for at in drawn.values())
    if not parts["train"].num_rows:
        raise BadInput(
            f"{pipeline.path}: export.test_size: all {test:,} prompts with pairs fall into the test split; ask for "
            "fewer, or for 0"
        )
    if asked and not test:
        tell(f"no test split: of {len(drawn):,} prompts with pairs none falls into it by export.test_size {asked}")
    elif isinstance(asked, int) and test != asked:
        tell(f"the test split holds {test:,} prompts, not {asked:,}: its bound was fixed when other prompts had pairs")
    return {part: rows for part, rows in parts.items() if rows.num_rows}


def _test_share(pipeline: Pipeline, ledger: Ledger, reader: Reader, drawn: list[float], tell: Told) -> float:
    """The share of prompt hashes that is held out.

    A count is turned into one that gives exactly so many of the prompts that have pairs and of those that may yet have
    some, once and for all: a prompt that was held out once stays so as the store grows.
    """
    asked = pipeline.export.test_size
    if isinstance(asked, float) or asked == 0:
        return float(asked)
    if (fixed := reader.threshold(asked)) is not None:
        return fixed
    to_come = [fraction("split", prompt_id) for prompt_id in reader.pending()]
    if asked >= len(drawn) + len(to_come):
        raise BadInput(
            f"{pipeline.path}: export.test_size: {asked:,} can't be held out of {len(drawn):,} prompts with pairs; "
            "lower it, or give a share such as 0.05"
        )
    threshold = sorted(drawn + to_come)[asked]
    ledger.keep([events.split(asked, threshold)])
    of = f"{len(drawn):,} prompts with pairs" + (f" and {len(to_come):,} prompts that are pending" if to_come else "")
    tell(
        f"test split: fixed at {threshold:.2%} of all prompts, which is {asked:,} of {of}; it grows as they do, and no "
        "prompt of it ever moves into train"
    )
    return threshold


# --- files ------------------------------------------------------------------------------------------------------------


def _write(
    formats: tuple[str, ...], reader: Reader, parts: Mapping[Part, pa.Table], folder: Path
) -> dict[str, dict[str, int]]:
    """Every file of the formats. Returns rows by config and split.

    Rows stand in the order of prompt_id: a hash, so that sources are mixed for whoever reads in order, and a pair that
    is added moves no other.
    """
    rows = {
        config: {split: parts[part].num_rows for split, (part, _) in FORMATS[config].items() if part in parts}
        for config in formats
    }
    for part, pairs in parts.items():
        with ExitStack() as stack:
            writers = [
                (layout, stack.enter_context(_writer(folder / file_of(config, split), layout)))
                for config in formats
                for split, (of, layout) in FORMATS[config].items()
                if of == part
            ]
            layouts = {layout.name: layout for layout, _ in writers}
            for batch in reader.pairs(pairs, ROW_GROUP):
                made = {
                    name: pa.Table.from_pylist([layout.row(pair) for pair in batch], schema=layout.schema)
                    for name, layout in layouts.items()
                }
                for layout, writer in writers:
                    writer.write_table(made[layout.name], row_group_size=ROW_GROUP)
    return rows


def _writer(path: Path, layout: Layout) -> pq.ParquetWriter:
    path.parent.mkdir(exist_ok=True)
    return pq.ParquetWriter(path, layout.schema, compression="zstd", write_page_index=True)


def _files(rows: Mapping[str, Mapping[str, int]]) -> Iterator[tuple[str, Layout, int]]:
    for config, splits in rows.items():
        for split, n in splits.items():
            yield file_of(config, split), FORMATS[config][split][1], n


def _check(folder: Path, rows: Mapping[str, Mapping[str, int]]) -> None:
    """Reads every file back as written. A row that is not as its schema says is a bug, and no dataset is made of it."""
    for name, layout, wanted in _files(rows):
        n = 0
        for row in _read(folder / name):
            if fault := layout.check(row):
                raise AifError(f"{folder / name}: row {n} ({row['prompt_id']}): {fault}; this is a bug in aif")
            n += 1
        if n != wanted:
            raise AifError(f"{folder / name}: {n:,} rows were written, not {wanted:,}; this is a bug in aif")


def _name_by_content(folder: Path, rows: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, str]]:
    """Gives every file the digest of its content as part of its name. Returns paths by config and split.

    `datasets.load_dataset` on a folder caches by the folder's last name and by what the card says, not by what is in
    the files (seen in 5.2): with names that stay the same it goes on giving the former export, or another run's.
    """
    named: dict[str, dict[str, str]] = {}
    for config, splits in rows.items():
        for split in splits:
            plain = folder / file_of(config, split)
            with plain.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            named.setdefault(config, {})[split] = file_of(config, split, digest)
            plain.rename(folder / named[config][split])
    return named


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=500):
            yield from batch.to_pylist()


# --- card and run.json ------------------------------------------------------------------------------------------------


def _describe(
    pipeline: Pipeline,
    rubric: Rubric,
    reader: Reader,
    folder: Path,
    rows: dict[str, dict[str, int]],
    files: dict[str, dict[str, str]],
    books: Books,
    paired: pa.Table,
    made: datetime,
) -> None:
    spend = reader.sql("SELECT * FROM spend")
    calls = _calls(reader)
    facts = CardFacts(
        pipeline,
        rubric,
        rows,
        files,
        books,
        [(row["source"], row["prompts"], row["pairs"]) for row in reader.sql(_SOURCES)],
        paired.column("score_chosen").to_numpy(),
        paired.column("score_rejected").to_numpy(),
        reader.sql("SELECT * FROM leaderboard"),
        reader.sql("SELECT * FROM agreement WHERE aspect IS NULL"),
        reader.disputed(),
        spend,
        _sample(folder, files),
        __version__,
        made,
        calls,
    )
    run = {
        MARKER[0]: MARKER[1],
        "version": __version__,
        "pipeline": pipeline.name,
        "made": made.isoformat(timespec="seconds"),
        "rows": rows,
        "test_size": pipeline.export.test_size,
        "books": asdict(books),
        "calls": [moment.isoformat(timespec="seconds") for moment in calls or ()],
        "spend": spend,
        "rubric": rubric.digest,
        "pipeline_yaml": pipeline.public,
    }
    (folder / "README.md").write_text(render(facts), encoding="utf-8")
    (folder / "pipeline.yaml").write_text(pipeline.public, encoding="utf-8")
    (folder / "run.json").write_bytes(orjson.dumps(run, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


_SOURCES = """
SELECT e.source, count(DISTINCT e.prompt_id) AS prompts, count(p.prompt_id) AS pairs
FROM selection e LEFT JOIN preferences p ON e.prompt_id = p.prompt_id GROUP BY e.source ORDER BY prompts DESC, e.source
"""


def _calls(reader: Reader) -> tuple[datetime, datetime] | None:
    """When the first and the last call were made."""
    (found,) = reader.sql("SELECT epoch(min(started)) AS first, epoch(max(started)) AS last FROM calls")
    if found["first"] is None:
        return None
    return datetime.fromtimestamp(found["first"], UTC), datetime.fromtimestamp(found["last"], UTC)


def _sample(folder: Path, files: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    found = _read(folder / next(iter(files[default_config(files)].values())))
    first = [row for row, _ in zip(found, range(SAMPLED), strict=False)]
    return min(first, key=lambda row: len(orjson.dumps(row)))


# --- putting it in its place ------------------------------------------------------------------------------------------


def _beside(out: Path, word: str) -> Path:
    return out.with_name(f"{out.name}.{word}")


def _check_place(out: Path) -> None:
    """Raises BadInput where something stands that is no export of ours."""
    if not out.exists():
        if (replaced := _beside(out, "replaced")).exists():  # the process ended between the two moves of `_put`
            replaced.rename(out)
        return
    if not out.is_dir() or (any(out.iterdir()) and not _is_export(out)):
        raise BadInput(f"{out}: holds something that is no export of aif's; name another folder, or empty this one")


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise BadInput(f"{out}: can't be written: {why}; check rights and space, or name another folder") from error


def _is_export(folder: Path) -> bool:
    try:
        found = orjson.loads((folder / "run.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return False
    return isinstance(found, dict) and found.get(MARKER[0]) == MARKER[1]


def _put(partial: Path, out: Path) -> None:
    """Moves the new dataset to its name. Between the two moves none stands there; the next export puts the old back."""
    replaced = _beside(out, "replaced")
    if replaced.exists():
        shutil.rmtree(replaced)
    if out.exists():
        out.rename(replaced)
    partial.rename(out)
    _sync_one(out.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- told to a person -------------------------------------------------------------------------------------------------


def tell_exported(console: Console, exported: Exported, file: Path) -> None:
    """What was written, and what to do with it."""
    books = exported.books
    console.print(f"\n[bold]{books.pairs:,} pairs of {books.selected:,} prompts[/bold]\n")
    for config, splits in exported.rows.items():
        counts = ", ".join(f"{split} {rows:,}" for split, rows in splits.items())
        console.print(f"  {config:<5} {counts}", soft_wrap=True)
    if pending := books.outcomes.get("pending", 0):
        console.print(f"\n{pending:,} prompts are pending: `aif run {file}` goes on with them", soft_wrap=True)
    console.print(f"\ndataset  {exported.path}", soft_wrap=True, markup=False)
    console.print(f"card     {exported.path / 'README.md'}", soft_wrap=True, markup=False)
    config = default_config(exported.rows)
    console.print(f'load     load_dataset("{exported.path}", "{config}")', soft_wrap=True, markup=False)
