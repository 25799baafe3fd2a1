"""What came out, as the store holds it: ratings for scoring, pairs and completions with their texts, whole prompts."""

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

# Completions whose ratings are brought together and paired at a time, and pairs of them that a policy looks at. Those
# of 200,000 prompts with four find no room in 512 MB of DuckDB's; making pairs of them took 1,255 MB in one go, takes
# 825 by 200,000 completions and 747 by 100,000.
AT_ONCE = 100_000
PAIRS_AT_ONCE = 500_000


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with the texts of its chosen and rejected completions, the models' names and the scores. `n` tells the
    pairs of a prompt apart."""

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
class Completed:
    """A prompt with the text of one of its completions, the model's name and the score; `label` where it has one."""

    prompt_id: str
    source: str
    messages: tuple[Message, ...]
    completion: str
    model: str
    score: float
    label: bool | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A slot and what came of it. Without an answer `text` and `finish` are None, and `kind` says why if it was asked.
    `principle` is the digest of its text."""

    key: str
    model: str
    principle: str | None
    state: str
    kind: str | None
    text: str | None
    finish: str | None
    score: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement that is wanted of some completions (sorted keys), and what came of it. `key` is None if it was never
    asked; `text` the judge's words, also where they could not be read; `shown` the keys in the order the judge saw."""

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
class Whole:
    """All that is known of a prompt: what its row held besides, the judge's material, every slot of the plan, and every
    judgement that is wanted."""

    prompt_id: str
    source: str
    messages: tuple[Message, ...]
    meta: Mapping[str, Any]
    material: Mapping[str, str]
    answers: tuple[Answer, ...]
    verdicts: tuple[Verdict, ...]


_Page = tuple[list[dict[str, Any]], dict[str, tuple[Message, ...]], dict[str, str]]


class Results(Reader):
    """A reader of what came out."""

    def unpaired(self) -> pa.Table:
        """Prompts that can't go to pairs, with the reason: pending, too_few_completions or judgement_failed."""
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
        """The ratings of every prompt whose judging is complete, one row per completion, a column per judge and aspect;
        both by name with their weights.

        A prompt with a judgement that failed for good is there with what was rated; one with a pending one is not.
        Ratings of several passes of a judge are averaged; what one of them found not applicable is missing.
        """
        parts = list(self._rated(aspects, judges, all_pairs=False))
        return _scores(pa.concat_tables(parts), aspects, judges)

    def scores_by_part(
        self, aspects: Mapping[str, float], judges: Mapping[str, float], all_pairs: bool
    ) -> Iterator[RatingColumns]:
        """The same, so many prompts at a time as have some 100,000 completions, in order; or fewer where all their
        pairs are looked at."""
        return (_scores(part, aspects, judges) for part in self._rated(aspects, judges, all_pairs))

    def _rated(self, aspects: Iterable[str], judges: Iterable[str], all_pairs: bool) -> Iterator[pa.Table]:
        columns = _columns(aspects, judges)
        sizes = self._arrow("SELECT position, count(*) AS n FROM slots GROUP BY position ORDER BY position")
        positions, n = (sizes.column(name).to_numpy().astype(np.int64) for name in ("position", "n"))
        part = np.cumsum(n) // AT_ONCE
        if all_pairs:
            part += np.cumsum(n * n) // PAIRS_AT_ONCE
        starts = np.flatnonzero(np.diff(part, prepend=-1))
        for some in np.split(positions, starts[1:]):
            yield self._rated_among(columns, *((int(some[0]), int(some[-1])) if len(some) else (0, -1)))

    def _rated_among(self, columns: Sequence[tuple[str, str]], first: int, last: int) -> pa.Table:
        """What is said of the prompts at these positions, a column `mean0`, `mean1`, … for each judge and aspect."""
        means = [_MEAN.format(n=n) for n in range(len(columns))]
        names = {f"{what}{n}": name for n, pair in enumerate(columns) for what, name in zip("ja", pair, strict=True)}
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

    def paired(self) -> pa.Table:
        """Every pair without its texts, by prompt_id and n: prompt_id, n, source, chosen and rejected (keys), the
        models' names and the scores. (Sorted by number: of 2,480,000 pairs DuckDB's sort took 490 MB more.)"""
        found = self._numbered(
            "SELECT prompt_id, n, source, chosen, rejected, chosen_model, rejected_model, score_chosen, score_rejected "
            "FROM pairs"
        )
        prompts = found.column("prompt_id").combine_chunks()
        places = pc.rank(prompts.dictionary).to_numpy()[prompts.indices.to_numpy()]
        return found.take(pa.array(np.lexsort((found.column("n").to_numpy(), places))))

    def pairs(self, paired: pa.Table, batch: int) -> Iterator[list[Pair]]:
        """Rows of `paired` with their texts, at most so many at a time, in the table's order.

        Texts are fetched by key, page by page: to sort 64,000 rows of 10 KB ends in an out-of-memory error (see
        `selection`).
        """
        for rows, messages, texts in self._with_texts(paired, batch, "chosen", "rejected"):
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

    def _with_texts(self, index: pa.Table, batch: int, *columns: str) -> Iterator[_Page]:
        """Pages of rows, with the turns of their prompts by id, and the texts of the completions that these columns
        name by key."""
        for start in range(0, index.num_rows, batch):
            for rows in self._cut(index.slice(start, batch).to_pylist(), columns):
                messages = self._column("prompts", "messages", [row["prompt_id"] for row in rows])
                texts = self._column("completions", "text", [row[column] for row in rows for column in columns])
                yield rows, {id: as_messages(one) for id, one in messages.items()}, texts

    def _cut(self, rows: list[dict[str, Any]], columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """These rows, a page at a time."""
        prompts = self._column("prompts", "bytes", [row["prompt_id"] for row in rows])
        bytes = prompts | self._column("completions", "bytes", [row[column] for row in rows for column in columns])
        return batched(rows, lambda row: sum(bytes[row[side]] for side in ("prompt_id", *columns)), len(rows))

    def scored(self) -> pa.Table:
        """Every completion that has a score, by prompt_id and slot: prompt_id, source, completion (key), text_id (a
        digest of the text), model, score, truncated, scale (whose the score is on, if it came with the completion)."""
        return self._arrow(
            "SELECT s.prompt_id, e.source, s.key AS completion, c.text_id, s.model, x.score, "
            "c.finish IS NOT DISTINCT FROM 'length' AS truncated, a.source AS scale "
            "FROM scores x JOIN slots s ON x.completion = s.key JOIN completions c ON x.completion = c.key "
            "LEFT JOIN carried a ON s.key = a.key AND EXISTS (SELECT 1 FROM specs WHERE spec = ?) "
            "JOIN selection e ON s.prompt_id = e.prompt_id ORDER BY s.prompt_id, s.slot",
            [PROVIDED_JUDGE],
        )

    def completed(self, scored: pa.Table, batch: int) -> Iterator[list[Completed]]:
        """Rows of `scored`, with or without a label, with their texts, at most so many at a time, in the table's
        order."""
        wanted = [name for name in scored.column_names if name not in ("text_id", "truncated", "scale")]
        for rows, messages, texts in self._with_texts(scored.select(wanted), batch, "completion"):
            yield [
                Completed(**row | {"messages": messages[row["prompt_id"]], "completion": texts[row["completion"]]})
                for row in rows
            ]

    def selected(self) -> pa.Table:
        """Every selected prompt that the journal has not lost, by prompt_id: prompt_id and source."""
        return self._arrow(
            "SELECT prompt_id, source FROM selection SEMI JOIN prompts USING (prompt_id) ORDER BY prompt_id"
        )

    def whole(self, selected: pa.Table, batch: int) -> Iterator[list[Whole]]:
        """Rows of `selected` with all that is known of each prompt, at most so many at a time, in the table's order."""
        for start in range(0, selected.num_rows, batch):
            rows = selected.slice(start, batch).to_pylist()
            bytes = dict(self._rows(_BYTES, [[row["prompt_id"] for row in rows]]))
            yield from map(self._wholes, batched(rows, _of(bytes), batch))

    def _wholes(self, rows: Sequence[Mapping[str, Any]]) -> list[Whole]:
        ids = [row["prompt_id"] for row in rows]
        messages, meta, material = (self._column("prompts", name, ids) for name in ("messages", "meta", "material"))
        answers, verdicts = self._grouped(_ANSWERS, ids), self._grouped(_VERDICTS, ids)
        texts = self._column("completions", "text", [row["key"] for some in answers.values() for row in some])
        return [
            Whole(
                id,
                row["source"],
                as_messages(messages[id]),
                orjson.loads(meta[id]),
                orjson.loads(material[id] or "{}"),
                tuple(Answer(**one, text=texts.get(one["key"])) for one in answers.get(id, ())),
                tuple(map(_verdict, verdicts.get(id, ()))),
            )
            for id, row in zip(ids, rows, strict=True)
        ]

    def _grouped(self, query: str, ids: list[str]) -> dict[str, list[dict[str, Any]]]:
        grouped: dict[str, list[dict[str, Any]]] = {}
        for row in self._query(query, [ids]):
            grouped.setdefault(row.pop("prompt_id"), []).append(row)
        return grouped

    def threshold(self, asked: int) -> float | None:
        """The share of prompt hashes that was fixed as the test split when so many prompts were first asked for."""
        rows = self._rows("SELECT threshold FROM splits WHERE asked = ? ORDER BY rowid LIMIT 1", [asked])
        return float(rows[0][0]) if rows else None

    def pending(self) -> list[str]:
        """Ids of the prompts that are not done with."""
        return [row[0] for row in self._rows("SELECT prompt_id FROM outcomes WHERE outcome = 'pending'")]


# What one judge said of one aspect of a completion, over all passes.
_MEAN = """
CASE WHEN bool_and(j.state = 'rated') FILTER (judge = $j{n} AND aspect = $a{n})
     THEN avg(score) FILTER (judge = $j{n} AND aspect = $a{n}) END AS mean{n}
"""

# What is held of a prompt, of former plans, too.
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

# What was received and could not be used is the judge's words only for these kinds; else it may be an error page.
_VERDICTS = """
SELECT d.prompt_id, coalesce(d.judgement, f.key) AS key, d.judge, d.pass AS judge_pass, d.request, d.answers, d.state,
       f.kind, coalesce(j.text, f.raw) AS text, j.completions AS shown, j.ratings
FROM needed d LEFT JOIN judgements j ON d.judgement = j.key
LEFT JOIN (SELECT * REPLACE (CASE WHEN kind IN ('unreadable', 'truncated') THEN raw END AS raw) FROM failed) f
    ON d.judgement IS NULL AND d.failure = f.key
WHERE d.prompt_id IN (SELECT unnest(?)) ORDER BY d.prompt_id, d.judge, d.pass, d.request, d.answers
"""


def _of(bytes: Mapping[str, int]) -> Callable[[Mapping[str, Any]], int]:
    return lambda row: bytes[row["prompt_id"]]


def _verdict(row: Mapping[str, Any]) -> Verdict:
    return Verdict(
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
    """The columns of Scores, as (judge, aspect)."""
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
