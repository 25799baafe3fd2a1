"""A Hugging Face dataset: Parquet files in the trainers' formats, splits, a card. No model is called.

A dataset stands under its name whole or not at all, and every row is checked as a reader will see it. Data files depend
on the store and the pipeline alone, byte for byte; time and spend stand in run.json and in one section of the card.
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
from aif.config.sections import Labels
from aif.core.errors import BadInput, Incomplete
from aif.core.file_permissions import shared
from aif.core.types import CARRIED, Principle, digest, fraction
from aif.core.words import counted
from aif.engine.make_pairs import make_pairs
from aif.engine.outcome_text import shortfall
from aif.engine.prepare import principles_of
from aif.export import parquet
from aif.export.atomic_folder import check_place, replacing
from aif.export.card import CardFacts, default_config, render
from aif.export.formats import Part, made_of
from aif.export.layout import Of
from aif.export.manifest import MARKER, NAME, sealed, state_of
from aif.export.parquet import DatasetRows, Parts
from aif.export.ultrafeedback import OVERALL, Annotated
from aif.judging.rubric import Rubric
from aif.pairing.labels import LabelCounts, best, labelled
from aif.store import records
from aif.store.journaled_store import JournaledStore
from aif.store.report_queries import SIDE_COUNTS, ItemCounts, PromptCounts
from aif.store.result_queries import ResultReader

WHOLE_GROUP = 500  # prompts with all that is known of each: about 40 KB; 0.5 s to fetch, of 4,000 prompts as of 16,000
SAMPLED = 200  # of so many first rows the shortest stands in the card

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """A dataset as it was written: its folder, rows by config and split, what became of every prompt, and what is
    missing, in words, where it is less complete than `export.completeness`."""

    path: Path
    rows: dict[str, dict[str, int]]
    books: PromptCounts
    shortfall: Sequence[str]


def export(
    pipeline: Pipeline,
    rubric: Rubric,
    ledger: JournaledStore,
    out: Path,
    tell: Told,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Exported:
    """Makes pairs and writes the pipeline's formats to the folder `out`, in the place of an older export.

    A format of which there is no row is left out, and told. Raises Incomplete where too much is missing and the
    pipeline refuses that, BadInput where no row is left, `out` holds something else, or `test_size` asks for too many.
    What an export that failed has written stays beside `out` until the next one, as `.<out>.aif-partial`.
    """
    out = out.resolve()
    check_place(out)
    make_pairs(pipeline, rubric, ledger.store)
    with ResultReader.of(ledger.store) as reader:
        books, balance = reader.prompt_counts(), reader.item_counts()
        short = shortfall(balance, pipeline.export.completeness, shlex.quote(str(pipeline.path)))
        if short and pipeline.export.incomplete == "refuse":
            raise Incomplete("\n".join([f"nothing was exported: {short[0]}", *short[1:]]))
        paired = reader.pair_keys()
        found = _rows(pipeline, rubric, reader, paired)
        formats = _with_rows(pipeline, found, books, tell)
        parts = _parts(pipeline, ledger, reader, formats, found, tell)
        labels = _label_counts(parts["labels"], found["labels"].left_out, tell) if "kto" in formats else None
        with replacing(out) as partial:
            rows = parquet.write(formats, found, parts, partial)
            parquet.check(partial, rows)
            names = parquet.name_by_content(partial, rows)
            _describe(pipeline, rubric, reader, partial, rows, names, books, balance, paired, labels, now())
    return Exported(out, rows, books, short)


# --- what rows are made of --------------------------------------------------------------------------------------------


def _rows(pipeline: Pipeline, rubric: Rubric, reader: ResultReader, paired: pa.Table) -> dict[Of, DatasetRows]:
    """What the pipeline's formats are made of."""
    wanted = {made_of(config) for config in pipeline.export.formats}
    found: dict[Of, DatasetRows] = {"pairs": DatasetRows(paired, reader.pairs_with_texts)}
    if "prompts" in wanted:
        found["prompts"] = DatasetRows(reader.selected_ids(), _annotating(pipeline, rubric, reader), WHOLE_GROUP)
    if wanted & {"best", "labels"}:
        scored = reader.scored_completions()
        labels = labelled(scored, paired, pipeline.export.kto)
        found["best"] = DatasetRows(best(scored, pipeline.seed), reader.completions_with_texts)
        found["labels"] = DatasetRows(labels.rows, reader.completions_with_texts, left_out=labels.left_out)
    return found


def _annotating(
    pipeline: Pipeline, rubric: Rubric, reader: ResultReader
) -> Callable[[pa.Table, int], Iterator[list[Annotated]]]:
    drawn = principles_of(pipeline)
    pools = drawn.pools.items() if drawn else ()
    principles = {digest(text): Principle(pool, text) for pool, texts in pools for text in texts}
    aspects = {name: request.aspects for name, request in rubric.sheet.requests.items()} | {CARRIED: (OVERALL,)}

    def fetch(selected: pa.Table, batch: int) -> Iterator[list[Annotated]]:
        for found in reader.prompt_results(selected, batch):
            yield [Annotated(whole, aspects, principles) for whole in found]

    return fetch


def _with_rows(pipeline: Pipeline, found: Mapping[Of, DatasetRows], books: PromptCounts, tell: Told) -> tuple[str, ...]:
    """The formats of which there are rows. Raises BadInput where there is none."""
    formats = tuple(config for config in pipeline.export.formats if found[made_of(config)].index.num_rows)
    became = ", ".join(f"{outcome} {n:,}" for outcome, n in books.outcomes.items())
    why: dict[Of, str] = {
        "pairs": f"there are no pairs; of {counted(books.selected, 'prompt')}: {became}",
        "best": "there is no completion with a score that was not cut at max_tokens",
        "labels": f"no completion has a label by export.kto ({_rule(pipeline.export.kto)})",
        "prompts": "no prompt is selected",
    }
    empty = [config for config in pipeline.export.formats if config not in formats]
    if not formats:
        whys = "; ".join(dict.fromkeys(why[made_of(config)] for config in empty))
        raise BadInput(f"{pipeline.path}: there is nothing to export: {whys}")
    for config in empty:
        tell(f"{config} is left out: {why[made_of(config)]}")
    return formats


def _rule(labels: Labels) -> str:
    if labels.rule == "pairs":
        return "the sides of the pairs"
    return f"scores from {labels.desirable:g}, and up to {labels.undesirable:g}"


def _label_counts(parts: Mapping[Part, pa.Table], left_out: Mapping[str, int], tell: Told) -> LabelCounts:
    counts: dict[str, dict[str, int]] = {}
    for part, table in parts.items():
        labels = table.column("label").to_pylist()
        counts[part] = {"desirable": sum(labels), "undesirable": len(labels) - sum(labels)}
    for label, n in counts["train"].items():
        if not n:
            tell(f"kto: no completion to train on is {label}; KTO needs both, so see export.kto")
    return LabelCounts(counts, left_out)


# --- splits -----------------------------------------------------------------------------------------------------------


def _parts(
    pipeline: Pipeline,
    ledger: JournaledStore,
    reader: ResultReader,
    formats: Sequence[str],
    found: Mapping[Of, DatasetRows],
    tell: Told,
) -> Parts:
    """The rows of each part that has any. A prompt is in the same part in every format."""
    drawn = _drawn(found[made_of(default_config(formats))].index)
    share = _test_share(pipeline, ledger, reader, drawn, tell)
    parts: dict[Of, dict[Part, pa.Table]] = {}
    for config in formats:
        of, index = made_of(config), found[made_of(config)].index
        draws = _drawn(index)
        drawn_out = pa.array([prompt_id for prompt_id, draw in draws.items() if draw < share], pa.string())
        ids = index.column("prompt_id").dictionary_encode().combine_chunks()  # of each prompt, not of each pair
        held_out = pc.is_in(ids.dictionary, value_set=drawn_out).take(ids.indices)
        test = index.filter(held_out)
        split: dict[Part, pa.Table] = {  # a copy only where there is need: of 2,480,000 pairs it is 100 MB
            "train": index.filter(pc.invert(held_out)) if test.num_rows else index,
            "test": test,
        }
        if not split["train"].num_rows:
            raise BadInput(
                f"{pipeline.path}: export.test_size: all {len(draws):,} prompts of {config} fall into the test split; "
                "ask for fewer, or for 0"
            )
        parts[of] = {part: rows for part, rows in split.items() if rows.num_rows}
    _tell_test(pipeline, sum(one < share for one in drawn.values()), len(drawn), tell)
    return parts


def _drawn(index: pa.Table) -> dict[str, float]:
    """The number of each prompt by which it is held out or not."""
    return {prompt_id: fraction("split", prompt_id) for prompt_id in pc.unique(index.column("prompt_id")).to_pylist()}


def _tell_test(pipeline: Pipeline, test: int, prompts: int, tell: Told) -> None:
    asked = pipeline.export.test_size
    if asked and not test:
        tell(f"no test split: of {counted(prompts, 'prompt')} none falls into it by export.test_size {asked}")
    elif isinstance(asked, int) and test != asked:
        tell(
            f"the test split holds {counted(test, 'prompt')}, not {asked:,}: its bound was fixed when there were others"
        )


def _test_share(
    pipeline: Pipeline, ledger: JournaledStore, reader: ResultReader, drawn: Mapping[str, float], tell: Told
) -> float:
    """The share of prompt hashes that is held out.

    A count is turned into one that gives exactly so many of the prompts in the default config and of those that may yet
    come into it, once and for all: a prompt that was held out once stays so as the store grows.
    """
    asked = pipeline.export.test_size
    if isinstance(asked, float) or asked == 0:
        return float(asked)
    if (fixed := reader.test_threshold(asked)) is not None:
        return fixed
    to_come = [fraction("split", prompt_id) for prompt_id in reader.pending_prompt_ids() if prompt_id not in drawn]
    if asked >= len(drawn) + len(to_come):
        raise BadInput(
            f"{pipeline.path}: export.test_size: {asked:,} can't be held out of {counted(len(drawn), 'prompt')}; "
            "lower it, or give a share such as 0.05"
        )
    threshold = sorted([*drawn.values(), *to_come])[asked]
    ledger.keep([records.split(asked, threshold)])
    of = counted(len(drawn), "prompt") + (f" and {len(to_come):,} that are pending" if to_come else "")
    tell(
        f"test split: fixed at {threshold:.2%} of all prompts, which is {asked:,} of {of}; it grows as they do, and no "
        "prompt of it ever moves into train"
    )
    return threshold


# --- card and run.json ------------------------------------------------------------------------------------------------


def _describe(
    pipeline: Pipeline,
    rubric: Rubric,
    reader: ResultReader,
    folder: Path,
    rows: dict[str, dict[str, int]],
    names: dict[str, dict[str, str]],
    books: PromptCounts,
    balance: ItemCounts,
    paired: pa.Table,
    labels: LabelCounts | None,
    made: datetime,
) -> None:
    spend = reader.spend()
    calls = reader.call_period()
    facts = CardFacts(
        pipeline,
        rubric,
        rows,
        names,
        books,
        balance,
        reader.source_counts(),
        paired.column("score_chosen").to_numpy(),
        paired.column("score_rejected").to_numpy(),
        reader.leaderboard(),
        reader.score_agreement(),
        reader.disputed_pairs(),
        spend,
        _sample(folder, names),
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
        "files": names,
        "state": state_of(reader, books, paired),
        "test_size": pipeline.export.test_size,
        "books": {name: said for name, said in asdict(books).items() if said or name not in SIDE_COUNTS},
        "complete": {"prompts": balance.prompts, "whole": balance.complete},
        "calls": [moment.isoformat(timespec="seconds") for moment in calls or ()],
        "spend": spend,
        **({"kto": pipeline.export.kto.model_dump(exclude_none=True) | asdict(labels)} if labels else {}),
        "served": {
            name: f"sha256:{one.served.digest}"
            for name, one in (*pipeline.models.items(), *pipeline.judges.items())
            if one.served and one.served.digest
        },
        "rubric": rubric.digest,
        "pipeline_yaml": pipeline.public,
    }
    with shared():
        (folder / "README.md").write_text(render(facts), encoding="utf-8")
        (folder / "pipeline.yaml").write_text(pipeline.public, encoding="utf-8")
        (folder / NAME).write_bytes(orjson.dumps(sealed(run), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _sample(folder: Path, names: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    found = parquet.read(folder / next(iter(names[default_config(names)].values())))
    first = [row for row, _ in zip(found, range(SAMPLED), strict=False)]
    return min(first, key=lambda row: len(orjson.dumps(row)))


# --- told to a person -------------------------------------------------------------------------------------------------
