"""Write an export: a folder with Parquet files in the trainers' formats, a card and run.json. Calls no model.

- Rows are split into train and test.
- Every row is read back and checked.
- The folder is replaced atomically: an older export stays until the new one is complete.
- Data files depend on the store and the pipeline alone, byte for byte.
- Times and spend are in run.json and in one section of the card.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from aif import __version__
from aif.config.pipeline import Pipeline
from aif.config.sections import KtoLabels
from aif.core.errors import BadInput, Incomplete
from aif.core.file_permissions import user_umask
from aif.core.formatting import counted
from aif.core.types import PROVIDED_JUDGE, Principle, digest, fraction
from aif.engine.make_pairs import make_pairs
from aif.engine.outcome_text import shortfall_lines
from aif.engine.prepare import principles_of
from aif.export import parquet
from aif.export.atomic_folder import check_destination, replace_folder
from aif.export.card import CardFacts, default_config, render_card
from aif.export.formats import Part, row_kind
from aif.export.layout import RowKind
from aif.export.manifest import MANIFEST, MARKER, store_state, with_digest
from aif.export.parquet import DatasetRows, Parts
from aif.export.ultrafeedback import OVERALL, AnnotatedPrompt
from aif.judging.rubric import Rubric
from aif.pairing.labels import LabelCounts, best_completions, label_completions
from aif.store import records
from aif.store.journaled_store import JournaledStore
from aif.store.report_queries import SIDE_COUNTS, ItemCounts, PromptCounts
from aif.store.result_queries import ResultReader

WHOLE_GROUP = 500  # prompts with all texts: 40 KB each; 0.5 s to fetch, whether the store has 4,000 or 16,000
SAMPLED = 200  # first rows, of which the card shows the shortest

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A written export.

    path: its folder.
    rows: number of rows by config (such as "trl") and split.
    prompt_counts: number of rows read and of prompts, by outcome.
    shortfall: lines that say what is missing, if the dataset is less complete than `export.completeness`; else empty.
    """

    path: Path
    rows: dict[str, dict[str, int]]
    prompt_counts: PromptCounts
    shortfall: Sequence[str]


def export(
    pipeline: Pipeline,
    rubric: Rubric,
    journaled: JournaledStore,
    out: Path,
    tell: Tell,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ExportResult:
    """Make pairs and write the pipeline's formats to the folder `out`, in place of an older export.

    tell: prints a line for the user, such as which format is left out because it has no rows.
    now: returns the time of the export.

    Raises Incomplete if the dataset is less complete than `export.completeness` and `export.incomplete` is `refuse`.
    Raises BadInput if there are no rows, if `out` holds something else than an export, or if `test_size` leaves no
    prompt to train on. A failed export leaves its partial folder, `.<out>.aif-partial`, until the next export, unless
    the disk is full.
    """
    out = out.resolve()
    check_destination(out)
    make_pairs(pipeline, rubric, journaled.store)
    with ResultReader.of(journaled.store) as reader:
        prompt_counts, balance = reader.prompt_counts(), reader.item_counts()
        short = shortfall_lines(balance, pipeline.export.completeness, shlex.quote(str(pipeline.path)))
        if short and pipeline.export.incomplete == "refuse":
            raise Incomplete("\n".join([f"nothing was exported: {short[0]}", *short[1:]]))
        paired = reader.pair_keys()
        by_kind = _rows_by_kind(pipeline, rubric, reader, paired)
        formats = _formats_with_rows(pipeline, by_kind, prompt_counts, tell)
        parts = _split(pipeline, journaled, reader, formats, by_kind, tell)
        labels = _label_counts(parts["labels"], by_kind["labels"].left_out, tell) if "kto" in formats else None
        with replace_folder(out) as partial:
            rows = parquet.write_files(formats, by_kind, parts, partial)
            parquet.check_files(partial, rows)
            files = parquet.name_by_content(partial, rows)
            _describe(pipeline, rubric, reader, partial, rows, files, prompt_counts, balance, paired, labels, now())
    return ExportResult(out, rows, prompt_counts, short)


# --- what rows are made from ------------------------------------------------------------------------------------------


def _rows_by_kind(
    pipeline: Pipeline, rubric: Rubric, reader: ResultReader, paired: pa.Table
) -> dict[RowKind, DatasetRows]:
    """Return the rows to export for each kind of row that the pipeline's formats need. The kind "pairs" (from `paired`)
    is always included."""
    wanted = {row_kind(config) for config in pipeline.export.formats}
    by_kind: dict[RowKind, DatasetRows] = {"pairs": DatasetRows(paired, reader.pairs_with_texts)}
    if "prompts" in wanted:
        by_kind["prompts"] = DatasetRows(reader.selected_ids(), _fetch_annotated(pipeline, rubric, reader), WHOLE_GROUP)
    if wanted & {"best", "labels"}:
        scored = reader.scored_completions()
        labels = label_completions(scored, paired, pipeline.export.kto)
        by_kind["best"] = DatasetRows(best_completions(scored, pipeline.seed), reader.completions_with_texts)
        by_kind["labels"] = DatasetRows(labels.rows, reader.completions_with_texts, left_out=labels.left_out)
    return by_kind


def _fetch_annotated(
    pipeline: Pipeline, rubric: Rubric, reader: ResultReader
) -> Callable[[pa.Table, int], Iterator[list[AnnotatedPrompt]]]:
    """Return a function that takes a table of prompt ids and a batch size, and yields these prompts in batches, with
    all their completions, ratings and judgements."""
    drawn = principles_of(pipeline)
    pools = drawn.pools.items() if drawn else ()
    principles = {digest(text): Principle(pool, text) for pool, texts in pools for text in texts}
    aspects = {name: request.aspects for name, request in rubric.sheet.requests.items()} | {PROVIDED_JUDGE: (OVERALL,)}

    def fetch(selected: pa.Table, batch: int) -> Iterator[list[AnnotatedPrompt]]:
        for prompts in reader.prompt_results(selected, batch):
            yield [AnnotatedPrompt(whole, aspects, principles) for whole in prompts]

    return fetch


def _formats_with_rows(
    pipeline: Pipeline, by_kind: Mapping[RowKind, DatasetRows], prompt_counts: PromptCounts, tell: Tell
) -> tuple[str, ...]:
    """Return the pipeline's formats that have rows; report each of the others with `tell`, and why. Raises BadInput if
    no format has rows."""
    formats = tuple(config for config in pipeline.export.formats if by_kind[row_kind(config)].index.num_rows)
    outcomes = ", ".join(f"{outcome} {n:,}" for outcome, n in prompt_counts.outcomes.items())
    why: dict[RowKind, str] = {
        "pairs": f"there are no pairs; of {counted(prompt_counts.selected, 'prompt')}: {outcomes}",
        "best": "there is no completion with a score that was not cut at max_tokens",
        "labels": f"no completion has a label by export.kto ({_label_rule(pipeline.export.kto)})",
        "prompts": "no prompt is selected",
    }
    empty = [config for config in pipeline.export.formats if config not in formats]
    if not formats:
        whys = "; ".join(dict.fromkeys(why[row_kind(config)] for config in empty))
        raise BadInput(f"{pipeline.path}: there is nothing to export: {whys}")
    for config in empty:
        tell(f"{config} is left out: {why[row_kind(config)]}")
    return formats


def _label_rule(labels: KtoLabels) -> str:
    if labels.rule == "pairs":
        return "the sides of the pairs"
    return f"scores from {labels.desirable:g}, and up to {labels.undesirable:g}"


def _label_counts(parts: Mapping[Part, pa.Table], left_out: Mapping[str, int], tell: Tell) -> LabelCounts:
    counts: dict[str, dict[str, int]] = {}
    for part, table in parts.items():
        labels = table.column("label").to_pylist()
        counts[part] = {"desirable": sum(labels), "undesirable": len(labels) - sum(labels)}
    for label, n in counts["train"].items():
        if not n:
            tell(f"kto: no completion to train on is {label}; KTO needs both, so see export.kto")
    return LabelCounts(counts, left_out)


# --- splits -----------------------------------------------------------------------------------------------------------


def _split(
    pipeline: Pipeline,
    journaled: JournaledStore,
    reader: ResultReader,
    formats: Sequence[str],
    by_kind: Mapping[RowKind, DatasetRows],
    tell: Tell,
) -> Parts:
    """Split the rows of each kind into train and test. Return them by kind and part; an empty test part is left out.

    A prompt's *number* (0 to 1) is a hash of its id. Prompts whose number is below the test share are in test. So a
    prompt is in the same part in every format. Raises BadInput if a train part is empty.
    """
    numbers = _split_numbers(by_kind[row_kind(default_config(formats))].index)
    share = _test_share(pipeline, journaled, reader, numbers, tell)
    parts: dict[RowKind, dict[Part, pa.Table]] = {}
    for config in formats:
        kind, index = row_kind(config), by_kind[row_kind(config)].index
        kind_numbers = _split_numbers(index)
        test_prompts = pa.array([prompt for prompt, number in kind_numbers.items() if number < share], pa.string())
        ids = index.column("prompt_id").dictionary_encode().combine_chunks()  # look up each prompt, not each pair
        held_out = pc.is_in(ids.dictionary, value_set=test_prompts).take(ids.indices)
        test = index.filter(held_out)
        split: dict[Part, pa.Table] = {  # copied only if there is a test part: of 2,480,000 pairs it is 100 MB
            "train": index.filter(pc.invert(held_out)) if test.num_rows else index,
            "test": test,
        }
        if not split["train"].num_rows:
            raise BadInput(
                f"{pipeline.path}: export.test_size: all {len(kind_numbers):,} prompts of {config} fall into the test "
                "split; ask for fewer, or for 0"
            )
        parts[kind] = {part: rows for part, rows in split.items() if rows.num_rows}
    _tell_test_size(pipeline, sum(number < share for number in numbers.values()), len(numbers), tell)
    return parts


def _split_numbers(index: pa.Table) -> dict[str, float]:
    """Return for each prompt id a number from 0 to 1, a hash of the id. Whether it is below the test share decides
    between test and train."""
    return {prompt_id: fraction("split", prompt_id) for prompt_id in pc.unique(index.column("prompt_id")).to_pylist()}


def _tell_test_size(pipeline: Pipeline, test: int, prompts: int, tell: Tell) -> None:
    asked = pipeline.export.test_size
    if asked and not test:
        tell(f"no test split: of {counted(prompts, 'prompt')} none falls into it by export.test_size {asked}")
    elif isinstance(asked, int) and test != asked:
        tell(
            f"the test split has {counted(test, 'prompt')}, not {asked:,}: its share was fixed by an earlier export, "
            "with other prompts"
        )


def _test_share(
    pipeline: Pipeline, journaled: JournaledStore, reader: ResultReader, numbers: Mapping[str, float], tell: Tell
) -> float:
    """Return the share of prompts in the test split, 0 to 1. `numbers` are the prompts of the default config, each with
    a hash of its id from 0 to 1.

    If `test_size` is a share, it is returned. If it is a count, the first export with this count chooses the share:
    with it, this count of prompts is in test, out of the prompts in `numbers` and the pending prompts. The share is
    recorded in the journal. Later exports use the recorded share, so no prompt moves from test to train. Raises
    BadInput if there are too few prompts.
    """
    asked = pipeline.export.test_size
    if isinstance(asked, float) or asked == 0:
        return float(asked)
    if (fixed := reader.test_threshold(asked)) is not None:
        return fixed
    pending = [fraction("split", prompt_id) for prompt_id in reader.pending_prompt_ids() if prompt_id not in numbers]
    if asked >= len(numbers) + len(pending):
        raise BadInput(
            f"{pipeline.path}: export.test_size: {asked:,} can't be held out of {counted(len(numbers), 'prompt')}; "
            "lower it, or give a share such as 0.05"
        )
    threshold = sorted([*numbers.values(), *pending])[asked]
    journaled.keep([records.split(asked, threshold)])
    prompts = counted(len(numbers), "prompt") + (f" and {len(pending):,} that are pending" if pending else "")
    tell(
        f"test split: fixed at {threshold:.2%} of all prompts, which is {asked:,} of {prompts}; it grows with the "
        "number of prompts, and no prompt moves from it into train"
    )
    return threshold


# --- card and run.json ------------------------------------------------------------------------------------------------


def _describe(
    pipeline: Pipeline,
    rubric: Rubric,
    reader: ResultReader,
    folder: Path,
    rows: dict[str, dict[str, int]],
    files: dict[str, dict[str, str]],
    prompt_counts: PromptCounts,
    balance: ItemCounts,
    paired: pa.Table,
    labels: LabelCounts | None,
    made: datetime,
) -> None:
    """Write the files that describe an export to `folder`: README.md (the card), pipeline.yaml and run.json.

    rows: number of rows by config and split.
    files: path of the data file by config and split.
    prompt_counts: number of rows read and of prompts, by outcome.
    balance: number of completions and judgements wanted, answered, failed and pending.
    paired: the pairs: keys and scores, without texts.
    labels: number of completions with each label of the format `kto`, and without a label; None without that format.
    made: time of the export.
    """
    spend = reader.spend()
    calls = reader.call_period()
    facts = CardFacts(
        pipeline,
        rubric,
        rows,
        files,
        prompt_counts,
        balance,
        reader.source_counts(),
        paired.column("score_chosen").to_numpy(),
        paired.column("score_rejected").to_numpy(),
        reader.leaderboard(),
        reader.score_agreement(),
        reader.disputed_pairs(),
        spend,
        _sample(folder, files),
        __version__,
        made,
        calls,
        labels,
        reader.judged_singly(),
        reader.reasoning_marks(),
    )
    run = {
        MARKER[0]: MARKER[1],
        "version": __version__,
        "pipeline": pipeline.name,
        "made": made.isoformat(timespec="seconds"),
        "rows": rows,
        "files": files,
        "state": store_state(reader, prompt_counts, paired),
        "test_size": pipeline.export.test_size,
        "books": {name: count for name, count in asdict(prompt_counts).items() if count or name not in SIDE_COUNTS},
        "complete": {"prompts": balance.prompts, "whole": balance.complete},
        "calls": [moment.isoformat(timespec="seconds") for moment in calls or ()],
        "spend": spend,
        **({"kto": pipeline.export.kto.model_dump(exclude_none=True) | asdict(labels)} if labels else {}),
        "served": {
            name: f"sha256:{endpoint.served.digest}"
            for name, endpoint in (*pipeline.models.items(), *pipeline.judges.items())
            if endpoint.served and endpoint.served.digest
        },
        "rubric": rubric.digest,
        "pipeline_yaml": pipeline.public_yaml,
    }
    run_json = orjson.dumps(with_digest(run), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    with user_umask():
        (folder / "README.md").write_text(render_card(facts), encoding="utf-8")
        (folder / "pipeline.yaml").write_text(pipeline.public_yaml, encoding="utf-8")
        (folder / MANIFEST).write_bytes(run_json)


def _sample(folder: Path, files: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return the example row for the card: the shortest of the default config's first SAMPLED (200) rows."""
    rows = parquet.read_rows(folder / next(iter(files[default_config(files)].values())))
    first = [row for row, _ in zip(rows, range(SAMPLED), strict=False)]
    return min(first, key=lambda row: len(orjson.dumps(row)))
