"""Queries for pairing and datasets: mean ratings, pairs and scored completions with texts, prompts with all results."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from aif.core.batching import batched
from aif.core.types import PROVIDED_JUDGE, Message, Rating, as_messages
from aif.pairing.scores import RatingColumns
from aif.store.reader import Reader

# Completions that are scored and paired at a time, and pairs of them that are compared. 200,000 prompts with four
# completions don't fit into 512 MB of DuckDB's memory; pairing them took 1,255 MB at once, and takes 825 MB in parts of
# 200,000 completions and 747 MB in parts of 100,000.
COMPLETIONS_AT_ONCE = 100_000
PAIRS_AT_ONCE = 500_000


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference pair with texts.

    messages: the prompt's conversation.
    chosen, rejected: the texts of its completions.
    chosen_model, rejected_model: the names of their models.
    n: the pair's number within the prompt, from 0.
    """

    prompt_id: str
    source: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_model: str
    rejected_model: str
    score_chosen: float
    score_rejected: float
    n: int = 0


@dataclass(frozen=True, slots=True)
class ScoredCompletion:
    """A prompt with one of its completions.

    completion: the completion's text.
    model: the model's name.
    label: the KTO label (True: desirable); None for other formats.
    """

    prompt_id: str
    source: str
    messages: tuple[Message, ...]
    completion: str
    model: str
    score: float
    label: bool | None = None


@dataclass(frozen=True, slots=True)
class CompletionResult:
    """A planned completion and its result.

    principle: a digest of the principle's text; None if it has none.
    state: `answered`, `failed` (permanently), `later` (retried by the next run) or `pending`.
    kind: the kind of the last failure; None if the completion is answered or was never requested.
    text: None unless the completion is answered.
    finish: the finish reason; None unless the completion is answered.
    score: None if the completion has no score.
    """

    key: str
    model: str
    principle: str | None
    state: str
    kind: str | None
    text: str | None
    finish: str | None
    score: float | None


@dataclass(frozen=True, slots=True)
class JudgementResult:
    """A judgement that the pipeline wants, and its result.

    key: the judgement's id; None if it was never requested.
    judge_pass: numbers repeated ratings by the same judge, from 0.
    request: the name of the rubric's request.
    answers: keys of the completions to judge, sorted.
    state: `answered`, `failed` (permanently), `later` (retried by the next run) or `pending`.
    kind: the kind of the last failure; None if the judgement is answered or was never requested.
    text: the judge's reply, even if unparseable or truncated; None after any other failure, or if never requested.
    shown: the completions' keys in the order in which the judge saw them; empty unless the judgement is answered.
    ratings: empty unless the judgement is answered.
    """

    key: str | None
    judge: str
    judge_pass: int
    request: str
    answers: tuple[str, ...]
    state: str
    kind: str | None
    text: str | None
    shown: tuple[str, ...]
    ratings: tuple[Rating, ...]


@dataclass(frozen=True, slots=True)
class PromptResult:
    """A prompt with all its results.

    meta: the unused columns of its source row.
    material: texts shown to judges beside the conversation, by the name of their placeholder in the rubric.
    answers: the planned completions with their results.
    verdicts: the wanted judgements with their results.
    """

    prompt_id: str
    source: str
    messages: tuple[Message, ...]
    meta: Mapping[str, Any]
    material: Mapping[str, str]
    answers: tuple[CompletionResult, ...]
    verdicts: tuple[JudgementResult, ...]


_Page = tuple[list[dict[str, Any]], dict[str, tuple[Message, ...]], dict[str, str]]


class ResultReader(Reader):
    """A `Reader` with the queries for pairing and datasets: mean ratings, pairs and scored completions with their
    texts, and prompts with all results."""

    def unpaired_prompts(self) -> pa.Table:
        """Return (prompt_id, outcome) of the selected prompts that can't be paired now, in the selection's order. The
        outcome is pending, too_few_completions or judgement_failed."""
        return self._arrow(
            """
            WITH judged AS (
                SELECT position, bool_or(state IN ('pending', 'later')) AS pending,
                       bool_or(state = 'answered') AS any_answered
                FROM needed GROUP BY position
            ), slotted AS (
                SELECT position, bool_or(state IN ('pending', 'later')) AS pending FROM slot_states GROUP BY position
            )
            SELECT e.prompt_id, CASE
                WHEN s.position IS NULL OR s.pending OR j.pending THEN 'pending'
                WHEN j.position IS NULL THEN 'too_few_completions'
                ELSE 'judgement_failed' END AS outcome
            FROM selection e
            LEFT JOIN slotted s ON e.position = s.position LEFT JOIN judged j ON e.position = j.position
            WHERE s.position IS NULL OR s.pending OR j.position IS NULL OR j.pending OR NOT j.any_answered
            ORDER BY e.position
            """
        )

    def scores(self, aspects: Mapping[str, float], judges: Mapping[str, float]) -> RatingColumns:
        """Return the mean ratings of completions: a row for each completion, a column for each judge and aspect.
        Prompts with pending judgements, or without any answered judgement, are left out. `aspects` and `judges` map
        names to weights.

        The mean is over a judge's passes; it is missing if any pass found the aspect not applicable.
        """
        parts = list(self._rated(aspects, judges, all_pairs=False))
        return _scores(pa.concat_tables(parts), aspects, judges)

    def scores_in_parts(
        self, aspects: Mapping[str, float], judges: Mapping[str, float], all_pairs: bool
    ) -> Iterator[RatingColumns]:
        """Yield the result of `scores` in parts, in the selection's order. A part has whole prompts, with about 100,000
        completions. `all_pairs` says that all pairs of a prompt's completions will be compared; a part then also ends
        at about 500,000 pairs."""
        return (_scores(part, aspects, judges) for part in self._rated(aspects, judges, all_pairs))

    def _rated(self, aspects: Iterable[str], judges: Iterable[str], all_pairs: bool) -> Iterator[pa.Table]:
        columns = _columns(aspects, judges)
        sizes = self._arrow("SELECT position, count(*) AS n FROM slots GROUP BY position ORDER BY position")
        positions, n = (sizes.column(name).to_numpy().astype(np.int64) for name in ("position", "n"))
        part = np.cumsum(n) // COMPLETIONS_AT_ONCE
        if all_pairs:
            part += np.cumsum(n * n) // PAIRS_AT_ONCE
        starts = np.flatnonzero(np.diff(part, prepend=-1))
        for group in np.split(positions, starts[1:]):
            yield self._rated_between(columns, *((int(group[0]), int(group[-1])) if len(group) else (0, -1)))

    def _rated_between(self, columns: Sequence[tuple[str, str]], first: int, last: int) -> pa.Table:
        """Return the completions of the prompts at positions `first` to `last` with their mean ratings, in columns
        `mean0`, `mean1`, ...: one for each (judge, aspect) in `columns`. Prompts with pending judgements, or without
        any answered judgement, are left out."""
        means = [_MEAN.format(n=n) for n in range(len(columns))]
        names = {
            f"{letter}{n}": name for n, pair in enumerate(columns) for letter, name in zip("ja", pair, strict=True)
        }
        return self._arrow(
            f"""
            WITH wanted AS MATERIALIZED (
                SELECT position, judge, spec, state, judgement FROM needed WHERE position BETWEEN $first AND $last
            ), done AS (
                SELECT position, bool_or(spec = $carried) AS brought FROM wanted GROUP BY position
                HAVING NOT bool_or(state IN ('pending', 'later')) AND bool_or(state = 'answered')
            ), said AS (
                SELECT completion, {", ".join(means)}
                FROM (
                    SELECT key, r.completion, r.aspect, r.state, r.score
                    FROM (SELECT key, unnest(ratings) AS r FROM judgements WHERE key IN (SELECT judgement FROM wanted))
                ) AS j JOIN wanted ON judgement = key GROUP BY completion
            )
            SELECT s.prompt_id, s.key, s.model, c.finish = 'length' AS truncated, c.text_id, c.chars AS length,
                   coalesce(CASE WHEN brought THEN a.source END, '') AS scale, said.* EXCLUDE (completion)
            FROM slots s JOIN done USING (position) JOIN completions c ON s.key = c.key
            LEFT JOIN carried a ON s.key = a.key LEFT JOIN said ON s.key = said.completion
            WHERE s.position BETWEEN $first AND $last
            ORDER BY s.position, s.slot
            """,
            {**names, "first": first, "last": last, "carried": PROVIDED_JUDGE},
        )

    # --- pairs --------------------------------------------------------------------------------------------------------

    def pair_keys(self) -> pa.Table:
        """Return all pairs without texts, ordered by prompt_id and n: prompt_id, n, source, chosen and rejected (keys),
        chosen_model, rejected_model, score_chosen, score_rejected."""
        # sorted here: DuckDB's sort took 490 MB more for 2,480,000 pairs
        pairs = self._arrow_by_number(
            "SELECT prompt_id, n, source, chosen, rejected, chosen_model, rejected_model, score_chosen, score_rejected "
            "FROM pairs"
        )
        prompts = pairs.column("prompt_id").combine_chunks()
        ranks = pc.rank(prompts.dictionary).to_numpy()[prompts.indices.to_numpy()]
        return pairs.take(pa.array(np.lexsort((pairs.column("n").to_numpy(), ranks))))

    def pairs_with_texts(self, pairs: pa.Table, batch: int) -> Iterator[list[Pair]]:
        """Yield the pairs of a table from `pair_keys` with their texts, at most `batch` at a time, in the table's
        order.

        Texts are fetched by key for each batch: sorting 64,000 rows of 10 KB runs out of memory (see
        `selected_prompts`).
        """
        for rows, messages, texts in self._with_texts(pairs, batch, "chosen", "rejected"):
            yield [
                Pair(
                    **row
                    | {
                        "messages": messages[row["prompt_id"]],
                        "chosen": texts[row["chosen"]],
                        "rejected": texts[row["rejected"]],
                    }
                )
                for row in rows
            ]

    def _with_texts(self, table: pa.Table, batch: int, *columns: str) -> Iterator[_Page]:
        """Yield the table's rows with their texts, at most `batch` rows at a time. Each item is (rows, prompts'
        messages by prompt_id, completions' texts by key). `columns` name the table's columns that hold completion
        keys."""
        for start in range(0, table.num_rows, batch):
            for rows in self._pages(table.slice(start, batch).to_pylist(), columns):
                messages = self._column("prompts", "messages", [row["prompt_id"] for row in rows])
                texts = self._column("completions", "text", [row[column] for row in rows for column in columns])
                yield rows, {id: as_messages(turns) for id, turns in messages.items()}, texts

    def _pages(self, rows: list[dict[str, Any]], columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """Split rows into lists whose texts fit into memory. A row's texts are its prompt and the completions whose
        keys are in its `columns`."""
        prompts = self._column("prompts", "bytes", [row["prompt_id"] for row in rows])
        bytes = prompts | self._column("completions", "bytes", [row[column] for row in rows for column in columns])
        return batched(rows, lambda row: sum(bytes[row[side]] for side in ("prompt_id", *columns)), len(rows))

    def scored_completions(self) -> pa.Table:
        """Return all completions with a score, ordered by prompt_id and slot: prompt_id, source, completion (key),
        text_id, model, score, truncated, scale (the name of a provided score's scale)."""
        return self._arrow(
            "SELECT s.prompt_id, e.source, s.key AS completion, c.text_id, s.model, x.score, "
            "c.finish IS NOT DISTINCT FROM 'length' AS truncated, a.source AS scale "
            "FROM scores x JOIN slots s ON x.completion = s.key JOIN completions c ON x.completion = c.key "
            "LEFT JOIN carried a ON s.key = a.key AND EXISTS (SELECT 1 FROM specs WHERE spec = ?) "
            "JOIN selection e ON s.prompt_id = e.prompt_id ORDER BY s.prompt_id, s.slot",
            [PROVIDED_JUDGE],
        )

    def completions_with_texts(self, scored: pa.Table, batch: int) -> Iterator[list[ScoredCompletion]]:
        """Yield the rows of `scored` with their texts, at most `batch` at a time, in the table's order. `scored` is a
        table from `scored_completions`, to which a column `label` may be added."""
        columns = [name for name in scored.column_names if name not in ("text_id", "truncated", "scale")]
        for rows, messages, texts in self._with_texts(scored.select(columns), batch, "completion"):
            yield [
                ScoredCompletion(
                    **row | {"messages": messages[row["prompt_id"]], "completion": texts[row["completion"]]}
                )
                for row in rows
            ]

    def selected_ids(self) -> pa.Table:
        """Return (prompt_id, source) of all selected prompts, ordered by prompt_id, without prompts whose record was
        damaged."""
        return self._arrow(
            "SELECT prompt_id, source FROM selection SEMI JOIN prompts USING (prompt_id) ORDER BY prompt_id"
        )

    def prompt_results(self, selected: pa.Table, batch: int) -> Iterator[list[PromptResult]]:
        """Yield the prompts with all their results, at most `batch` at a time, in the order of `selected`, a table
        from `selected_ids`."""
        for start in range(0, selected.num_rows, batch):
            rows = selected.slice(start, batch).to_pylist()
            bytes = dict(self._rows(_BYTES, [[row["prompt_id"] for row in rows]]))
            yield from map(self._prompt_results, batched(rows, _size_by_prompt(bytes), batch))

    def _prompt_results(self, rows: Sequence[Mapping[str, Any]]) -> list[PromptResult]:
        ids = [row["prompt_id"] for row in rows]
        messages, meta, material = (self._column("prompts", name, ids) for name in ("messages", "meta", "material"))
        answers, verdicts = self._by_prompt(_ANSWERS, ids), self._by_prompt(_VERDICTS, ids)
        texts = self._column("completions", "text", [row["key"] for slots in answers.values() for row in slots])
        return [
            PromptResult(
                id,
                row["source"],
                as_messages(messages[id]),
                orjson.loads(meta[id]),
                orjson.loads(material[id] or "{}"),
                tuple(CompletionResult(**slot, text=texts.get(slot["key"])) for slot in answers.get(id, ())),
                tuple(map(_judgement_result, verdicts.get(id, ()))),
            )
            for id, row in zip(ids, rows, strict=True)
        ]

    def _by_prompt(self, query: str, ids: list[str]) -> dict[str, list[dict[str, Any]]]:
        grouped: dict[str, list[dict[str, Any]]] = {}
        for row in self._query(query, [ids]):
            grouped.setdefault(row.pop("prompt_id"), []).append(row)
        return grouped

    def test_threshold(self, asked: int) -> float | None:
        """Return the share of prompts (0 to 1) in the test split, as fixed by the first export with a test size of
        `asked` prompts; None before such an export."""
        rows = self._rows("SELECT threshold FROM splits WHERE asked = ? ORDER BY rowid LIMIT 1", [asked])
        return float(rows[0][0]) if rows else None

    def pending_prompt_ids(self) -> list[str]:
        """Return the ids of the prompts whose outcome is `pending`."""
        return [row[0] for row in self._rows("SELECT prompt_id FROM outcomes WHERE outcome = 'pending'")]


# The mean rating of one aspect of a completion by one judge, over all passes.
_MEAN = """
CASE WHEN bool_and(j.state = 'rated') FILTER (judge = $j{n} AND aspect = $a{n})
     THEN avg(score) FILTER (judge = $j{n} AND aspect = $a{n}) END AS mean{n}
"""

# Bytes of all texts of a prompt, also of those no longer planned.
_BYTES = """
SELECT prompt_id, sum(bytes)::BIGINT FROM (
    SELECT prompt_id, bytes FROM prompts UNION ALL SELECT prompt_id, bytes FROM completions
    UNION ALL SELECT prompt_id, bytes FROM judgements
) WHERE prompt_id IN (SELECT unnest(?)) GROUP BY prompt_id
"""

_ANSWERS = """
SELECT s.prompt_id, s.key, s.model, s.principle, s.state, s.kind, c.finish, x.score
FROM slot_states s LEFT JOIN completions c ON s.key = c.key
LEFT JOIN scores x ON s.key = x.completion
WHERE s.prompt_id IN (SELECT unnest(?)) ORDER BY s.prompt_id, s.slot
"""

# A failed call's raw reply comes from the judge only for these kinds of failure; for others it may be an error page.
_VERDICTS = """
SELECT d.prompt_id, coalesce(d.judgement, f.key) AS key, d.judge, d.pass AS judge_pass, d.request, d.answers, d.state,
       f.kind, coalesce(j.text, f.raw) AS text, j.completions AS shown, j.ratings
FROM needed d LEFT JOIN judgements j ON d.judgement = j.key
LEFT JOIN (SELECT * REPLACE (CASE WHEN kind IN ('unreadable', 'truncated') THEN raw END AS raw) FROM failed) f
    ON d.judgement IS NULL AND d.failure = f.key
WHERE d.prompt_id IN (SELECT unnest(?)) ORDER BY d.prompt_id, d.judge, d.pass, d.request, d.answers
"""


def _size_by_prompt(bytes: Mapping[str, int]) -> Callable[[Mapping[str, Any]], int]:
    return lambda row: bytes[row["prompt_id"]]


def _judgement_result(row: Mapping[str, Any]) -> JudgementResult:
    return JudgementResult(
        **{
            **row,
            "answers": tuple(row["answers"]),
            "shown": tuple(row["shown"] or ()),
            "ratings": tuple(
                Rating(**{**rating, "types": tuple(rating["types"] or ())}) for rating in row["ratings"] or ()
            ),
        }
    )


def _columns(aspects: Iterable[str], judges: Iterable[str]) -> list[tuple[str, str]]:
    """Return (judge, aspect) of each column of `RatingColumns.ratings`, in order: for each judge, every aspect."""
    return list(product(judges, aspects))


def _scores(rows: pa.Table, aspects: Mapping[str, float], judges: Mapping[str, float]) -> RatingColumns:
    columns = _columns(aspects, judges)
    ratings = [rows.column(f"mean{n}").to_numpy().astype(float) for n in range(len(columns))]
    return RatingColumns(
        prompt_ids=rows.column("prompt_id"),
        completions=rows.column("key"),
        models=rows.column("model"),
        text_ids=rows.column("text_id"),
        lengths=rows.column("length").to_numpy().astype(np.int64),
        truncated=rows.column("truncated").to_numpy(zero_copy_only=False).astype(bool),
        ratings=np.column_stack(ratings) if ratings else np.empty((rows.num_rows, 0)),
        aspects=tuple(aspect for _, aspect in columns),
        judges=tuple(judge for judge, _ in columns),
        weights=tuple(aspects[aspect] for _, aspect in columns),
        judge_weights=tuple(judges[judge] for judge, _ in columns),
        scales=rows.column("scale"),
    )
