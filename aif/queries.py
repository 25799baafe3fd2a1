"""What is asked of the store: typed answers, never SQL, for the rest of the house."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from aif.errors import BadInput, StoreDamaged
from aif.pairs import Policy
from aif.records import Message, Prompt, Rating, Slot, as_messages
from aif.scoring import Floats, Ints, Scores
from aif.store import Spec, Store, check_version, connect, noticing


@dataclass(frozen=True, slots=True)
class Todo:
    """A slot without an answer. `principle` is the text it was drawn with; `slot` carries no principle of its own."""

    seq: int
    position: int
    slot: Slot
    prompt: Prompt
    principle: str | None


@dataclass(frozen=True, slots=True)
class Need:
    """A judgement to be had: which request, about which completions (sorted keys)."""

    judge: str
    identity: str
    judge_pass: int
    request: str
    spec: str
    material: str | None
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """A prompt that can be judged: its completions' texts by key, and what is still to be asked about them."""

    seq: int
    prompt: Prompt
    texts: dict[str, str]
    needs: tuple[Need, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """The present plan in numbers: slots by model, those of carried completions too, and prompts that have any."""

    slots: dict[str, int]
    prompts: int


@dataclass(frozen=True, slots=True)
class Tally:
    """How the items of one model or judge stand. They sum to `wanted`."""

    wanted: int
    answered: int
    failed: int
    later: int

    @property
    def pending(self) -> int:
        """Not asked yet, or to be asked again."""
        return self.wanted - self.answered - self.failed


@dataclass(frozen=True, slots=True)
class Books:
    """Where every prompt is: rows read = selected + each reason left out; selected = the sum of outcomes.

    `pairs` are those of the prompts that are paired, one each or several. `empty` counts completions that rows carried
    without a text: they were left out, not their rows.
    """

    intake: dict[str, int]
    outcomes: dict[str, int]
    pairs: int
    empty: int = 0

    @property
    def selected(self) -> int:
        return sum(self.outcomes.values())


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


class Reader:
    """The asking end of the store. One thread uses one reader."""

    def __init__(self, db: duckdb.DuckDBPyConnection, path: Path) -> None:
        self._db = db
        self._path = path

    @classmethod
    def of(cls, store: Store) -> Self:
        """Reads beside the writer, in the same process. Call it from the thread that owns the store."""
        return cls(store.cursor(), store.path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads a store that no run holds."""
        if not path.exists():
            raise BadInput(f"{path}: no store here yet; `aif run` makes it")
        db = connect(path, read_only=True)
        try:
            check_version(db, path)
        except StoreDamaged:
            db.close()
            raise
        return cls(db, path)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def sql(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows as dicts, for what is only shown."""
        return self.arrow(query, parameters).to_pylist()  # type: ignore[no-any-return]

    def arrow(self, query: str, parameters: Sequence[Any] = ()) -> pa.Table:
        """Rows as an Arrow table."""
        with noticing(self._path):
            table = self._db.sql(query, params=list(parameters)).to_arrow_table()
        assert table is not None
        return table

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with noticing(self._path):
            return self._db.execute(query, list(parameters)).fetchall()

    def known(self, ids: Sequence[str]) -> dict[str, tuple[str, str | None]]:
        """Of these prompts, those the store holds: meta and material as JSON."""
        held = self._rows(
            "SELECT prompt_id, meta, material FROM prompts WHERE prompt_id IN (SELECT unnest(?))", [list(ids)]
        )
        return {prompt_id: (meta, material) for prompt_id, meta, material in held}

    def taken(self, ids: Sequence[str], keys: Sequence[str]) -> tuple[set[str], set[str]]:
        """Which of these prompts, and of these carried completions, the selection in the making has already."""
        prompts = self._rows("SELECT prompt_id FROM incoming WHERE prompt_id IN (SELECT unnest(?))", [list(ids)])
        carried = self._rows("SELECT key FROM incoming_carried WHERE key IN (SELECT unnest(?))", [list(keys)])
        return {row[0] for row in prompts}, {row[0] for row in carried}

    def held(self, keys: Sequence[str]) -> set[str]:
        """Which of these completions the store holds."""
        rows = self._rows("SELECT key FROM completions WHERE key IN (SELECT unnest(?))", [list(keys)])
        return {row[0] for row in rows}

    # --- work ---------------------------------------------------------------------------------------------------------

    def selection(self, batch: int = 2000) -> Iterator[list[tuple[int, Prompt]]]:
        """The selected prompts with their positions, in order, without what they carry.

        A page is a range of positions: to sort 30,000 prompts of 19 KB at once ends in an out-of-memory error, since
        DuckDB's sort doesn't spill lists of structs.
        """
        count = self._rows("SELECT count(*) FROM selection")[0][0]
        for start in range(0, count, batch):
            rows = self._rows(
                "SELECT e.position, p.prompt_id, p.messages, e.source "
                "FROM selection e JOIN prompts p ON e.prompt_id = p.prompt_id "
                "WHERE e.position >= ? AND e.position < ? ORDER BY e.position",
                [start, start + batch],
            )
            yield [(position, Prompt(id, as_messages(messages), source)) for position, id, messages, source in rows]

    def carried(self, prompt_ids: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """Of these prompts, the completions that came with them: (key, identity), in order."""
        found: dict[str, list[tuple[str, str]]] = {}
        for prompt_id, key, identity in self._rows(
            "SELECT a.prompt_id, a.key, c.identity FROM carried a JOIN completions c ON a.key = c.key "
            "WHERE a.prompt_id IN (SELECT unnest(?)) ORDER BY a.prompt_id, a.n",
            [list(prompt_ids)],
        ):
            found.setdefault(prompt_id, []).append((key, identity))
        return found

    def carried_sizes(self) -> list[int]:
        """How many completions came with a prompt: every number that occurs."""
        return [
            row[0] for row in self._rows("SELECT DISTINCT count(*) AS n FROM carried GROUP BY prompt_id ORDER BY n")
        ]

    def any_score(self) -> bool:
        """Whether any completion came with a score, or none came at all."""
        return bool(self._rows("SELECT count(score) > 0 OR count(*) = 0 FROM carried")[0][0])

    def materials(self, batch: int = 2000) -> Iterator[list[Prompt]]:
        """The selected prompts that have material, without their turns."""
        count = self._rows("SELECT count(*) FROM selection")[0][0]
        for start in range(0, count, batch):
            rows = self._rows(
                "SELECT p.prompt_id, p.material FROM selection e JOIN prompts p ON e.prompt_id = p.prompt_id "
                "WHERE e.position >= ? AND e.position < ? AND p.material IS NOT NULL ORDER BY e.position",
                [start, start + batch],
            )
            yield [Prompt(prompt_id, (), "", material=orjson.loads(material)) for prompt_id, material in rows]

    def todo(self, model: str, after: int, limit: int) -> list[Todo]:
        """The next slots of a model without an answer when the run began."""
        rows = self._rows(
            "SELECT t.seq, s.position, s.slot, s.key, s.identity, s.sample, s.seed, s.prompt_id, p.messages, e.source, "
            "x.content "
            "FROM todo t JOIN slots s ON t.position = s.position AND t.slot = s.slot "
            "JOIN prompts p ON s.prompt_id = p.prompt_id JOIN selection e ON e.position = s.position "
            "LEFT JOIN texts x ON x.digest = s.principle "
            "WHERE t.model = ? AND t.seq > ? AND t.seq <= ? ORDER BY t.seq",
            [model, after, after + limit],
        )
        return [
            Todo(
                seq,
                position,
                Slot(key, prompt_id, slot, model, identity, sample, seed, None),
                Prompt(prompt_id, as_messages(messages), source),
                orjson.loads(principle) if principle else None,
            )
            for seq, position, slot, key, identity, sample, seed, prompt_id, messages, source, principle in rows
        ]

    def ready(self, after: int, limit: int) -> list[Ready]:
        """The next prompts that can be judged, with what is missing of each."""
        places = self._rows(
            "SELECT seq, position FROM ready WHERE seq > ? AND seq <= ? ORDER BY seq", [after, after + limit]
        )
        if not places:
            return []
        positions = [position for _, position in places]
        prompts = self._prompts_at(positions)
        texts = self._texts_at(positions)
        needs = self._needs_at(positions)
        return [Ready(seq, prompts[at], texts.get(at, {}), tuple(needs.get(at, ()))) for seq, at in places]

    def _prompts_at(self, positions: list[int]) -> dict[int, Prompt]:
        rows = self._rows(
            "SELECT e.position, p.prompt_id, p.messages, e.source, p.material "
            "FROM selection e JOIN prompts p USING (prompt_id) WHERE e.position IN (SELECT unnest(?))",
            [positions],
        )
        return {
            at: Prompt(id, as_messages(messages), source, material=orjson.loads(material) if material else {})
            for at, id, messages, source, material in rows
        }

    def _texts_at(self, positions: list[int]) -> dict[int, dict[str, str]]:
        texts: dict[int, dict[str, str]] = {}
        for at, key, text in self._rows(
            "SELECT s.position, c.key, c.text FROM slots s JOIN completions c ON s.key = c.key "
            "WHERE s.position IN (SELECT unnest(?))",
            [positions],
        ):
            texts.setdefault(at, {})[key] = text
        return texts

    def _needs_at(self, positions: list[int]) -> dict[int, list[Need]]:
        needs: dict[int, list[Need]] = {}
        for at, judge, identity, judge_pass, request, spec, material, answers in self._rows(
            "SELECT position, judge, identity, pass, request, spec, material, answers FROM needed "
            "WHERE position IN (SELECT unnest(?)) AND state IN ('pending', 'later') "
            "ORDER BY position, request, answers",
            [positions],
        ):
            needs.setdefault(at, []).append(Need(judge, identity, judge_pass, request, spec, material, tuple(answers)))
        return needs

    def texts(self, kind: str) -> dict[str, Any]:
        """Texts of one kind by digest."""
        return {
            digest: orjson.loads(text)
            for digest, text in self._rows("SELECT digest, content FROM texts WHERE kind = ?", [kind])
        }

    def digests(self, kind: str, among: Sequence[str]) -> set[str]:
        """Which of these texts of one kind there are."""
        held = "SELECT digest FROM texts WHERE kind = ? AND digest IN (SELECT unnest(?))"
        return {row[0] for row in self._rows(held, [kind, list(among)])}

    # --- how things stand ---------------------------------------------------------------------------------------------

    def tallies(self, limit: int | None = None) -> dict[tuple[str, str], Tally]:
        """By (stage, endpoint). What a judge will be asked about prompts still in the making is not counted yet."""
        within = f"position < {limit}" if limit is not None else "true"
        rows = self._rows(
            f"SELECT stage, endpoint, count(*), count(*) FILTER (state = 'answered'), "
            f"count(*) FILTER (state = 'failed'), "
            f"count(*) FILTER (state = 'later') FROM ("
            f"SELECT 'completion' AS stage, model AS endpoint, state FROM slot_states WHERE {within} UNION ALL "
            f"SELECT 'judgement', judge, state FROM needed WHERE {within}) GROUP BY ALL ORDER BY ALL"
        )
        return {(stage, endpoint): Tally(*counts) for stage, endpoint, *counts in rows}

    def planned(self, limit: int | None = None) -> Planned:
        """What the present plan wants of the prompts before position `limit`."""
        within = f"position < {limit}" if limit is not None else "true"
        models = dict(self._rows(f"SELECT model, count(*) FROM slots WHERE {within} GROUP BY model ORDER BY model"))
        (prompts,) = self._rows(f"SELECT count(DISTINCT position) FROM slots WHERE {within}")
        return Planned(models, prompts[0])

    def reach(self, prompts: int) -> int:
        """The position behind the first so many prompts that can be judged; 0 where there is none."""
        first = "SELECT DISTINCT position FROM needed ORDER BY position LIMIT ?"
        return int(self._rows(f"SELECT coalesce(max(position) + 1, 0) FROM ({first})", [prompts])[0][0])

    def books(self) -> Books:
        """Every prompt once, by what became of it. Prompts that have no outcome yet are pending."""
        intake = dict(self._rows("SELECT reason, sum(rows)::BIGINT FROM intake GROUP BY reason ORDER BY reason"))
        empty = intake.pop("empty_completion", 0)
        outcomes = dict(
            self._rows(
                "SELECT coalesce(o.outcome, 'pending') AS outcome, count(*) FROM selection e "
                "LEFT JOIN outcomes o ON e.prompt_id = o.prompt_id GROUP BY 1 ORDER BY 2 DESC, 1"
            )
        )
        pairs = self._rows("SELECT count(*) FROM preferences SEMI JOIN selection USING (prompt_id)")[0][0]
        return Books(intake, outcomes, pairs, empty)

    def unpaired(self) -> pa.Table:
        """Prompts that can't go to pairs, with the reason: pending, too_few_completions or judgement_failed."""
        return self.arrow(
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

    def scores(self, aspects: Mapping[str, float], judges: Mapping[str, float]) -> Scores:
        """The ratings of every prompt whose judging is complete, one row per completion, a column per judge and aspect;
        both by name with their weights.

        A prompt with a judgement that failed for good is there with what was rated; one with a pending one is not.
        Ratings of several passes of a judge are averaged; what one of them found not applicable is missing.
        """
        rows = self.arrow(
            """
            WITH done AS (
                SELECT position FROM needed GROUP BY position
                HAVING NOT bool_or(state IN ('pending', 'later')) AND bool_or(state = 'answered')
            )
            SELECT s.prompt_id, s.key, s.model, c.finish = 'length' AS truncated, sha256(c.text) AS text_id,
                   length(c.text) AS length
            FROM slots s JOIN done USING (position) JOIN completions c ON s.key = c.key
            ORDER BY s.position, s.slot
            """
        )
        columns = [(judge, aspect) for judge in judges for aspect in aspects]
        return Scores(
            prompt_ids=rows.column("prompt_id"),
            completions=rows.column("key"),
            models=rows.column("model"),
            text_ids=rows.column("text_id"),
            lengths=rows.column("length").to_numpy().astype(np.int64),
            truncated=rows.column("truncated").to_numpy(zero_copy_only=False).astype(bool),
            scores=self._rated(rows.column("key"), tuple(aspects), tuple(judges)),
            aspects=tuple(aspect for _, aspect in columns),
            judges=tuple(judge for judge, _ in columns),
            weights=tuple(aspects[aspect] for _, aspect in columns),
            judge_weights=tuple(judges[judge] for judge, _ in columns),
        )

    def _rated(self, completions: pa.ChunkedArray, aspects: tuple[str, ...], judges: tuple[str, ...]) -> Floats:
        """A row per completion, a column per judge and aspect; NaN where there is no rating, or it is N/A."""
        said = self.arrow(
            """
            SELECT r.completion, d.judge, r.aspect, CASE WHEN bool_and(r.state = 'rated') THEN avg(r.score) END AS score
            FROM needed d JOIN judgements j ON d.judgement = j.key, unnest(j.ratings) AS u(r) GROUP BY ALL
            """
        )
        row = _places(said.column("completion"), completions.combine_chunks())
        judge, aspect = _places(said.column("judge"), judges), _places(said.column("aspect"), aspects)
        wanted = (row >= 0) & (judge >= 0) & (aspect >= 0)
        ratings = np.full((len(completions), len(judges) * len(aspects)), np.nan)
        scores = said.column("score").to_numpy().astype(float)
        ratings[row[wanted], (judge * len(aspects) + aspect)[wanted]] = scores[wanted]
        return ratings

    # --- pairs --------------------------------------------------------------------------------------------------------

    def paired(self) -> pa.Table:
        """Every pair without its texts, by prompt_id and n: prompt_id, n, source, chosen and rejected (keys), the
        models' names and the scores."""
        return self.arrow(
            "SELECT prompt_id, n, source, chosen, rejected, chosen_model, rejected_model, score_chosen, score_rejected "
            "FROM pairs ORDER BY prompt_id, n"
        )

    def pairs(self, paired: pa.Table, batch: int) -> Iterator[list[Pair]]:
        """Rows of `paired` with their texts, so many at a time, in the table's order.

        Texts are fetched by key, batch by batch: to sort 64,000 rows of 10 KB ends in an out-of-memory error (see
        `selection`), and a scan for 4,000 keys takes 0.1 s in a store of that size.
        """
        for start in range(0, paired.num_rows, batch):
            rows = paired.slice(start, batch).to_pylist()
            messages = self._by_key("SELECT prompt_id, messages FROM prompts WHERE prompt_id", rows, "prompt_id")
            texts = self._by_key("SELECT key, text FROM completions WHERE key", rows, "chosen", "rejected")
            yield [
                Pair(
                    **row
                    | {
                        "messages": as_messages(messages[row["prompt_id"]]),
                        "chosen": texts[row["chosen"]],
                        "rejected": texts[row["rejected"]],
                    }
                )
                for row in rows
            ]

    def _by_key(self, select: str, rows: Sequence[dict[str, Any]], *columns: str) -> dict[str, Any]:
        keys = [row[column] for row in rows for column in columns]
        return dict(self._rows(f"{select} IN (SELECT unnest(?))", [keys]))

    def scored(self) -> pa.Table:
        """Every completion that has a score, by prompt_id and slot: prompt_id, source, completion (key), text_id (a
        digest of the text), model, score, truncated."""
        return self.arrow(
            "SELECT s.prompt_id, e.source, s.key AS completion, sha256(c.text) AS text_id, s.model, x.score, "
            "c.finish IS NOT DISTINCT FROM 'length' AS truncated "
            "FROM scores x JOIN slots s ON x.completion = s.key JOIN completions c ON x.completion = c.key "
            "JOIN selection e ON s.prompt_id = e.prompt_id ORDER BY s.prompt_id, s.slot"
        )

    def completed(self, scored: pa.Table, batch: int) -> Iterator[list[Completed]]:
        """Rows of `scored`, with or without a label, with their texts, so many at a time, in the table's order."""
        wanted = [name for name in scored.column_names if name not in ("text_id", "truncated")]
        for start in range(0, scored.num_rows, batch):
            rows = scored.select(wanted).slice(start, batch).to_pylist()
            messages = self._by_key("SELECT prompt_id, messages FROM prompts WHERE prompt_id", rows, "prompt_id")
            texts = self._by_key("SELECT key, text FROM completions WHERE key", rows, "completion")
            yield [
                Completed(
                    **row
                    | {"messages": as_messages(messages[row["prompt_id"]]), "completion": texts[row["completion"]]}
                )
                for row in rows
            ]

    def selected(self) -> pa.Table:
        """Every selected prompt that the journal has not lost, by prompt_id: prompt_id and source."""
        return self.arrow(
            "SELECT prompt_id, source FROM selection SEMI JOIN prompts USING (prompt_id) ORDER BY prompt_id"
        )

    def whole(self, selected: pa.Table, batch: int) -> Iterator[list[Whole]]:
        """Rows of `selected` with all that is known of each prompt, so many at a time, in the table's order."""
        for start in range(0, selected.num_rows, batch):
            rows = selected.slice(start, batch).to_pylist()
            ids = [row["prompt_id"] for row in rows]
            prompts = {
                row["prompt_id"]: row
                for row in self.sql("SELECT * FROM prompts WHERE prompt_id IN (SELECT unnest(?))", [ids])
            }
            answers, verdicts = self._grouped(_ANSWERS, ids), self._grouped(_VERDICTS, ids)
            yield [
                Whole(
                    one["prompt_id"],
                    one["source"],
                    as_messages(prompts[one["prompt_id"]]["messages"]),
                    orjson.loads(prompts[one["prompt_id"]]["meta"]),
                    orjson.loads(prompts[one["prompt_id"]]["material"] or "{}"),
                    tuple(Answer(**row) for row in answers.get(one["prompt_id"], ())),
                    tuple(map(_verdict, verdicts.get(one["prompt_id"], ()))),
                )
                for one in rows
            ]

    def _grouped(self, query: str, ids: list[str]) -> dict[str, list[dict[str, Any]]]:
        grouped: dict[str, list[dict[str, Any]]] = {}
        for row in self.sql(query, [ids]):
            grouped.setdefault(row.pop("prompt_id"), []).append(row)
        return grouped

    def threshold(self, asked: int) -> float | None:
        """The share of prompt hashes that was fixed as the test split when so many prompts were first asked for."""
        rows = self._rows("SELECT threshold FROM splits WHERE asked = ? ORDER BY rowid LIMIT 1", [asked])
        return float(rows[0][0]) if rows else None

    # --- one prompt ---------------------------------------------------------------------------------------------------

    def example(self) -> str:
        """The first digits of a paired prompt's id, or nothing."""
        rows = self._rows("SELECT left(min(prompt_id), 12) FROM outcomes WHERE outcome = 'paired'")
        return str(rows[0][0] or "")

    def pending(self) -> list[str]:
        """Ids of the prompts that are not done with."""
        return [row[0] for row in self._rows("SELECT prompt_id FROM outcomes WHERE outcome = 'pending'")]

    def read(self) -> tuple[int, int, int]:
        """How many calls were made, how many judgements read, and a hash of all that was read in them."""
        (row,) = self._rows(
            "SELECT (SELECT count(*) FROM calls), count(*), coalesce(bit_xor(hash(key, ratings)), 0) FROM judgements"
        )
        return row[0], row[1], row[2]

    def paired_by(self) -> Policy | None:
        """The policy that pairs were last made by."""
        said = self.marked("pairs")
        return Policy(**orjson.loads(said)) if said else None

    def marked(self, name: str) -> str | None:
        """What was remembered under this name (see `Store.mark`)."""
        rows = self._rows("SELECT value FROM marks WHERE name = ?", [name])
        return str(rows[0][0]) if rows else None

    def specs(self) -> set[Spec]:
        """The requests that are made of judges, as the store was last told."""
        rows = self._rows("SELECT judge, identity, pass, request, listwise, n, least, spec FROM specs")
        return {Spec(*row) for row in rows}

    def disputed(self) -> int:
        """Pairs of which some judge rates the rejected completion above the chosen one."""
        return int(self._rows("SELECT count(DISTINCT (prompt_id, n)) FROM dissent")[0][0])

    def find(self, prefix: str) -> str:
        """The id of the one prompt whose id begins so."""
        rows = self._rows("SELECT prompt_id FROM prompts WHERE starts_with(prompt_id, ?) LIMIT 3", [prefix])
        if not rows:
            raise BadInput(f"no prompt {prefix!r} in the store; `prompt_id` of an exported row is what is looked for")
        if len(rows) > 1:
            raise BadInput(f"several prompts begin with {prefix!r}; give more of the id")
        return str(rows[0][0])


def _places(column: pa.ChunkedArray, names: Any) -> Ints:
    """The place of each value among the names, -1 where it is none of them."""
    found = pc.index_in(column, value_set=pa.array(names, pa.string()))
    places: Ints = found.fill_null(-1).to_numpy().astype(np.int64)
    return places


_ANSWERS = """
SELECT s.prompt_id, s.key, s.model, s.principle, s.state, f.kind, c.text, c.finish, x.score
FROM slot_states s LEFT JOIN completions c ON s.key = c.key LEFT JOIN failed f ON s.key = f.key
LEFT JOIN scores x ON s.key = x.completion
WHERE s.prompt_id IN (SELECT unnest(?)) ORDER BY s.prompt_id, s.slot
"""

# What was received and could not be used is the judge's words only for these kinds; else it may be an error page.
_VERDICTS = """
SELECT d.prompt_id, coalesce(d.judgement, f.key) AS key, d.judge, d.pass AS judge_pass, d.request, d.answers, d.state,
       f.kind, coalesce(j.text, f.raw) AS text, j.completions AS shown, j.ratings
FROM needed d LEFT JOIN judgements j ON d.judgement = j.key
LEFT JOIN (SELECT * REPLACE (CASE WHEN kind IN ('unreadable', 'truncated') THEN raw END AS raw) FROM failed) f
    ON d.judgement IS NULL AND d.prompt_id = f.prompt_id AND d.spec = f.spec AND d.identity = f.identity
    AND d.pass = f.pass AND d.answers = f.answers AND d.material IS NOT DISTINCT FROM f.material
WHERE d.prompt_id IN (SELECT unnest(?)) ORDER BY d.prompt_id, d.judge, d.pass, d.request, d.answers
"""


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
