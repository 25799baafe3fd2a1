"""What is asked of the store: typed answers, never SQL, for the rest of the house."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import duckdb
import orjson

from aif.core.errors import BadInput, StoreDamaged
from aif.core.paging import KEYS, pages
from aif.core.types import Failing, Prompt, Slot, Spec, Spent, as_messages, carried_identity
from aif.providers.base import UNKNOWN_FINISH
from aif.store.connection import check_version, connect, twice, within
from aif.store.lock import Places

if TYPE_CHECKING:  # these load numpy, 0.2 s of CPU, which `aif status` can do without
    import pyarrow as pa

    from aif.pairing.pairs import PairPolicy
    from aif.store.database import Store

BESIDE = ("empty_completion", "rescored", "alike")  # what intake counts that is no row left out
LOST = "lost"  # who wrote a completion that is not there
_TOGETHER = 2048  # rows of which DuckDB reads all or none; to ask further, row by row, took 24 s of one bad block

# Prompts that are asked for together lie near each other: told between which, DuckDB passes over most of a table.
_AMONG = "position IN (SELECT unnest($positions)) AND position BETWEEN $first AND $last"


def _encoded(rows: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    def encoded(column: "pa.ChunkedArray") -> "pa.ChunkedArray | pa.Array":
        if pa.types.is_string(column.type):
            return column.dictionary_encode()
        # copied, or it keeps all that DuckDB gave with it, the texts too
        return pa.array(column.to_numpy().copy(), column.type)

    return pa.table({name: encoded(rows[name]) for name in rows.column_names})


# Of a judgement that is needed (d): those made (o) that were shown other texts of the same completions.
_OUTDATED = (
    "o.prompt_id = d.prompt_id AND o.spec = d.spec AND o.identity = d.identity AND o.pass = d.pass "
    "AND o.answers = d.answers AND o.material IS NOT DISTINCT FROM d.material"
)

_KEY = {"prompts": "prompt_id", "completions": "key", "texts": "digest"}


def _among(positions: Sequence[int]) -> dict[str, Any]:
    return {"positions": list(positions), "first": min(positions, default=0), "last": max(positions, default=0)}


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
    """A judgement to be had: which request, about which completions (sorted keys). `outdated`: there is one that was
    shown other texts of theirs."""

    judge: str
    identity: str
    judge_pass: int
    request: str
    spec: str
    material: str | None
    answers: tuple[str, ...]
    outdated: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """A prompt that can be judged: its completions' texts by key, and what is still to be asked about them."""

    seq: int
    prompt: Prompt
    texts: dict[str, str]
    needs: tuple[Need, ...]


@dataclass(frozen=True, slots=True)
class Marked:
    """Completions of a model with what looks like a mark of reasoning: it was `left` in the text, or `cut` where the
    reply may only speak of it; or the `whole` may be thoughts, since it is cut and others of the model have some before
    their text. Without a model: prompts with one `left` in an earlier answer. `example` is a piece of
    one as it came, which may hold reasoning where it was cut."""

    model: str
    what: str
    completions: int
    prompt_id: str
    example: str


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
class Balance:
    """All that the present pipeline wants, and how it stands: answered + failed + pending. Judgements are counted as if
    every completion came through that is still pending.

    `slots` has the prompts by how many completions each is to have; `whole` counts those of which nothing is missing.
    """

    prompts: int
    whole: int
    slots: dict[int, int]
    tallies: dict[tuple[str, str], Tally]
    missing: tuple[Failing, ...]

    @property
    def completeness(self) -> float:
        """The share of the selected prompts of which every completion planned and every judgement wanted is there."""
        return self.whole / self.prompts if self.prompts else 1.0

    def total(self, *stages: str) -> Tally:
        found = [tally for (stage, _), tally in self.tallies.items() if stage in stages]
        names = ("wanted", "answered", "failed", "later")
        return Tally(*(sum(getattr(one, name) for one in found) for name in names))

    @property
    def unplanned(self) -> int:
        """Prompts that have no slots yet, and so no items."""
        return self.prompts - sum(self.slots.values())


@dataclass(frozen=True, slots=True)
class Books:
    """Where every prompt is: rows read = selected + each reason left out; selected = the sum of outcomes.

    `pairs` are those of the prompts that are paired, one each or several. `empty` counts completions that rows carried
    without a text: they were left out, not their rows; `rescored` scores of completions that had another, or none,
    before; `alike` prompts that differ from an earlier one in form alone; `unrated` completions that are left out of
    their prompt's pairs.
    """

    intake: dict[str, int]
    outcomes: dict[str, int]
    pairs: int
    empty: int = 0
    rescored: int = 0
    alike: int = 0
    unrated: int = 0

    @property
    def selected(self) -> int:
        return sum(self.outcomes.values())


class Reader:
    """The asking end of the store. One thread uses one reader."""

    def __init__(self, db: duckdb.DuckDBPyConnection, path: Path) -> None:
        self._db = db
        self._path = path

    @classmethod
    def of(cls, store: "Store") -> Self:
        """Reads beside the writer, in the same process. Call it from the thread that owns the store."""
        return cls(store.cursor(), store.path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads a store that no run holds."""
        if not path.exists() and Places(path).journal.exists():
            raise StoreDamaged(f"{path}: the store is gone")
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

        def ask() -> list[dict[str, Any]]:
            rows = self._db.execute(query, parameters)
            names = [name for name, *_ in rows.description]
            return [dict(zip(names, row, strict=True)) for row in rows.fetchall()]

        return twice(self._db, self._path, ask)

    def arrow(self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> "pa.Table":
        """Rows as an Arrow table."""
        table = twice(self._db, self._path, lambda: self._db.sql(query, params=parameters).to_arrow_table())
        assert table is not None
        return table

    def numbered(self, query: str) -> "pa.Table":
        """The same, each text once and by number, and no column with NULLs but texts: of 2,500,000 pairs that is 0.1 GB
        in place of 0.6."""
        import pyarrow as pa

        def ask() -> list[pa.Table]:
            rows = self._db.sql(query).to_arrow_reader(100_000)
            return [_encoded(rows.schema.empty_table()), *(_encoded(pa.Table.from_batches([one])) for one in rows)]

        return pa.concat_tables(twice(self._db, self._path, ask)).unify_dictionaries()

    def _rows(self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        return twice(self._db, self._path, lambda: self._db.execute(query, parameters).fetchall())

    def known(self, ids: Sequence[str]) -> dict[str, tuple[str, str | None, int]]:
        """Of these prompts, those the store holds: meta and material as JSON, and how many turns."""
        columns = [self._column("prompts", column, ids) for column in ("meta", "material", "len(messages)")]
        return {prompt_id: tuple(column[prompt_id] for column in columns) for prompt_id in columns[0]}

    def taken(
        self, ids: Sequence[str], keys: Sequence[str]
    ) -> tuple[set[str], dict[str, tuple[float | None, str | None]]]:
        """Which of these prompts the selection in the making has already, and which of these carried completions, with
        the score of each and its source."""
        prompts = self._rows("SELECT prompt_id FROM incoming WHERE prompt_id IN (SELECT unnest(?))", [list(ids)])
        held = "SELECT key, score, source FROM incoming_carried WHERE key IN (SELECT unnest(?))"
        return {row[0] for row in prompts}, {key: (*score,) for key, *score in self._rows(held, [list(keys)])}

    def gathered(self, ids: Sequence[str]) -> dict[str, int]:
        """How many carried completions the selection in the making has of these prompts."""
        held = (
            "SELECT prompt_id, count(*) FROM incoming_carried WHERE prompt_id IN (SELECT unnest(?)) GROUP BY prompt_id"
        )
        return dict(self._rows(held, [list(ids)]))

    def done(self, keys: Sequence[str]) -> dict[str, tuple[bool, list[str] | None]]:
        """Which of these judgements are answered, or else have failed for good, and the texts that each was shown."""
        rows = self._rows(
            "SELECT key, true, shown FROM judgements WHERE key IN (SELECT unnest($keys)) UNION ALL "
            "SELECT key, false, shown FROM failed WHERE key IN (SELECT unnest($keys)) AND verdict = 'failed'",
            {"keys": list(keys)},
        )
        return {key: (answered, shown) for key, answered, shown in rows}

    def held(self, keys: Sequence[str]) -> set[str]:
        """Which of these completions the store holds."""
        rows = self._rows("SELECT key FROM completions WHERE key IN (SELECT unnest(?))", [list(keys)])
        return {row[0] for row in rows}

    def lacks(self, name: str, keys: str, rows: "pa.Table") -> list[int]:
        """Of these rows of another store's table, with their numbers (`row`) and keys, those that this one lacks. A key
        that is NULL names nothing."""
        self._db.register("theirs", rows)
        found = self._rows(
            f"SELECT row FROM theirs ANTI JOIN {name} USING ({keys}) WHERE ({keys}) IS NOT NULL ORDER BY row"
        )
        self._db.unregister("theirs")
        return [row for (row,) in found]

    # --- work ---------------------------------------------------------------------------------------------------------

    def selection(self, batch: int = 2000) -> Iterator[list[tuple[int, Prompt]]]:
        """The selected prompts with their positions, in order, without what they carry.

        Texts are fetched by key: to sort 30,000 prompts of 19 KB at once ends in an out-of-memory error, since DuckDB's
        sort doesn't spill lists of structs.
        """
        for page in self._selected(batch):
            messages = self._column("prompts", "messages", [id for _, id, _, _ in page])
            yield [(position, Prompt(id, as_messages(messages[id]), source)) for position, id, source, _ in page]

    def _selected(self, batch: int, which: str = "true") -> Iterator[list[tuple[int, str, str, int]]]:
        """Pages of the selected prompts: position, id, source, bytes."""
        count = self._rows("SELECT count(*) FROM selection")[0][0]
        for start in range(0, count, batch):
            rows = self._rows(
                "SELECT e.position, p.prompt_id, e.source, p.bytes "
                "FROM selection e JOIN prompts p ON e.prompt_id = p.prompt_id "
                f"WHERE e.position >= ? AND e.position < ? AND {which} ORDER BY e.position",
                [start, start + batch],
            )
            yield from pages(rows, lambda row: row[3], batch)

    def carried(self, prompt_ids: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """Of these prompts, the completions that came with them: (key, identity), in order. Of one that damage took, it
        is not known who wrote it."""
        found: dict[str, list[tuple[str, str]]] = {}
        for prompt_id, key, identity in self._rows(
            "SELECT a.prompt_id, a.key, coalesce(c.identity, ?) "
            "FROM carried a LEFT JOIN completions c ON a.key = c.key "
            "WHERE a.prompt_id IN (SELECT unnest(?)) ORDER BY a.prompt_id, a.n",
            [carried_identity(LOST), list(prompt_ids)],
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

    def any_unsourced(self) -> bool:
        """Whether it is not known of some score whose scale it is on: earlier versions kept none."""
        held = "SELECT count(*) > 0 FROM carried WHERE score IS NOT NULL AND source IS NULL"
        return bool(self._rows(held)[0][0])

    def materials(self, batch: int = 2000) -> Iterator[list[Prompt]]:
        """The selected prompts that have material, without their turns."""
        for page in self._selected(batch, "p.material IS NOT NULL"):
            material = self._column("prompts", "material", [id for _, id, _, _ in page])
            yield [Prompt(id, (), "", material=orjson.loads(material[id])) for _, id, _, _ in page]

    def todo(self, model: str, after: int, limit: int) -> list[Todo]:
        """The next slots of a model without an answer when the run began: a page, empty only where there is none."""
        rows = self._rows(
            "SELECT t.seq, s.position, s.slot, s.key, s.identity, s.sample, s.seed, s.prompt_id, e.source, "
            "s.principle, p.bytes "
            "FROM todo t JOIN slots s ON t.position = s.position AND t.slot = s.slot "
            "JOIN prompts p ON s.prompt_id = p.prompt_id JOIN selection e ON e.position = s.position "
            "WHERE t.model = ? AND t.seq > ? AND t.seq <= ? ORDER BY t.seq",
            [model, after, after + limit],
        )
        page = next(pages(rows, lambda row: row[-1], limit), [])
        messages = self._column("prompts", "messages", [row[7] for row in page])
        principles = self._column("texts", "content", [row[9] for row in page if row[9]])
        return [
            Todo(
                seq,
                position,
                Slot(key, prompt_id, slot, model, identity, sample, seed, None),
                Prompt(prompt_id, as_messages(messages[prompt_id]), source),
                orjson.loads(principles[principle]) if principle in principles else None,
            )
            for seq, position, slot, key, identity, sample, seed, prompt_id, source, principle, _ in page
        ]

    def last_todo(self, model: str) -> int:
        """The number of the last slot of a model that `todo` gives."""
        return int(self._rows("SELECT coalesce(max(seq), 0) FROM todo WHERE model = ?", [model])[0][0])

    def last_ready(self) -> int:
        """The number of the last prompt that `ready` gives by now."""
        return int(self._rows("SELECT coalesce(max(seq), 0) FROM ready")[0][0])

    def ready(self, after: int, limit: int) -> list[Ready]:
        """The next prompts that can be judged, with what is missing of each: a page, empty only where there is none."""
        places = self._rows(
            "SELECT seq, position FROM ready WHERE seq > ? AND seq <= ? ORDER BY seq", [after, after + limit]
        )
        positions = [position for _, position in places]
        prompts, keys = self._prompt_rows(positions), self._completion_rows(positions)
        bytes = Counter[int]()
        for at, *_, held in (*prompts, *keys):
            bytes[at] += held
        page = next(pages(places, lambda place: bytes[place[1]], limit), [])
        taken = {position for _, position in page}
        whole = self._prompts_of([row for row in prompts if row[0] in taken])
        texts = self._texts_of([row for row in keys if row[0] in taken])
        needs = self._needs_at([position for _, position in page])
        return [Ready(seq, whole[at], texts.get(at, {}), tuple(needs.get(at, ()))) for seq, at in page]

    def _prompts_at(self, positions: Sequence[int]) -> dict[int, Prompt]:
        return self._prompts_of(self._prompt_rows(positions))

    def _texts_at(self, positions: Sequence[int]) -> dict[int, dict[str, str]]:
        return self._texts_of(self._completion_rows(positions))

    def _prompt_rows(self, positions: Sequence[int]) -> list[tuple[Any, ...]]:
        """Position, id, source and bytes of the prompts."""
        return self._rows(
            f"SELECT position, prompt_id, source, bytes FROM selection JOIN prompts USING (prompt_id) WHERE {_AMONG}",
            _among(positions),
        )

    def _completion_rows(self, positions: Sequence[int]) -> list[tuple[Any, ...]]:
        """Position, key and bytes of the completions there are."""
        return self._rows(
            f"SELECT position, key, bytes FROM slots JOIN completions USING (key) WHERE {_AMONG}", _among(positions)
        )

    def _prompts_of(self, rows: Sequence[tuple[Any, ...]]) -> dict[int, Prompt]:
        found: dict[int, Prompt] = {}
        for page in pages(rows, lambda row: row[-1], KEYS):
            ids = [id for _, id, *_ in page]
            messages, material = (self._column("prompts", column, ids) for column in ("messages", "material"))
            for at, id, source, _ in page:
                told = orjson.loads(material[id]) if material[id] else {}
                found[at] = Prompt(id, as_messages(messages[id]), source, material=told)
        return found

    def _texts_of(self, rows: Sequence[tuple[Any, ...]]) -> dict[int, dict[str, str]]:
        found: dict[int, dict[str, str]] = {}
        for page in pages(rows, lambda row: row[-1], KEYS):
            texts = self._column("completions", "text", [key for _, key, _ in page])
            for at, key, _ in page:
                found.setdefault(at, {})[key] = texts[key]
        return found

    def _needs_at(self, positions: list[int]) -> dict[int, list[Need]]:
        needs: dict[int, list[Need]] = {}
        for at, judge, identity, judge_pass, request, spec, material, answers, outdated in self._rows(
            "SELECT position, judge, identity, pass, request, spec, material, answers, outdated FROM ("
            f"SELECT *, EXISTS (SELECT 1 FROM judgements o WHERE {_OUTDATED}) AS outdated FROM needed d "
            f"WHERE {_AMONG} AND state IN ('pending', 'later')) ORDER BY position, request, answers",
            _among(positions),
        ):
            one = Need(judge, identity, judge_pass, request, spec, material, tuple(answers), outdated)
            needs.setdefault(at, []).append(one)
        return needs

    def _column(self, table: str, column: str, keys: Iterable[str]) -> dict[str, Any]:
        """A column by its table's key, of those of these keys that are there. No more is read of it than that."""
        key, found, wanted = _KEY[table], dict[str, Any](), iter(dict.fromkeys(keys))
        while some := list(islice(wanted, KEYS)):
            found |= self._rows(f"SELECT {key}, {column} FROM {table} WHERE {key} IN (SELECT unnest(?))", [some])
        return found

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
        """By (stage, endpoint), of the prompts before position `limit`. Stage `carried` has completions that came with
        their prompts, by who wrote them; what a judge will be asked about completions still to come is counted."""
        rows = self._rows(
            f"SELECT stage, endpoint, count(*), count(*) FILTER (state = 'answered'), "
            f"count(*) FILTER (state = 'failed'), count(*) FILTER (state = 'later') "
            f"FROM items WHERE {within(limit)} GROUP BY ALL ORDER BY ALL"
        )
        return {(stage, endpoint): Tally(*counts) for stage, endpoint, *counts in rows}

    def balance(self) -> Balance:
        """How all that is wanted stands: 0.25 s of CPU for 64,000 prompts, and as much again where something is
        missing."""
        prompts = self._rows("SELECT count(*) FROM selection")[0][0]
        slots = dict(
            self._rows(
                "SELECT n, count(*) FROM (SELECT count(*) AS n FROM slots GROUP BY position) GROUP BY n ORDER BY n DESC"
            )
        )
        rows = self._rows(
            "WITH i AS MATERIALIZED (SELECT stage, endpoint, state, position FROM items) "
            "SELECT stage, endpoint, state, count(*) FROM i GROUP BY stage, endpoint, state "
            "UNION ALL SELECT NULL, NULL, NULL, count(DISTINCT position) FROM i WHERE state <> 'answered' "
            "ORDER BY 1, 2, 3"
        )
        counts: dict[tuple[str, str], Counter[str]] = {}
        for stage, endpoint, state, items in rows:
            if stage:
                counts.setdefault((stage, endpoint), Counter())[state] += items
        lacking = next(items for stage, *_, items in rows if stage is None)
        return Balance(
            prompts,
            sum(slots.values()) - lacking,
            slots,
            {place: Tally(n.total(), n["answered"], n["failed"], n["later"]) for place, n in counts.items()},
            tuple(self._missing("true")) if lacking else (),
        )

    def failures(self) -> list[Failing]:
        """What has failed for good, by kind, most first. (Where nothing has, to look for it among 1,000,000 items would
        take a second.)"""
        had = self._rows("SELECT 1 FROM failed WHERE verdict = 'failed' LIMIT 1")
        return self._missing("verdict = 'failed'") if had else []

    def _missing(self, which: str) -> list[Failing]:
        rows = self._rows(
            "SELECT stage, endpoint, coalesce(kind, ''), verdict, items, coalesce(example, ''), prompt_id "
            f"FROM failures WHERE {which} ORDER BY kind IS NULL, items DESC, endpoint, kind, verdict"
        )
        return [Failing(*row) for row in rows]

    def endings(self) -> list[tuple[str, int, str]]:
        """Replies that ended by a word that is not known, by endpoint and word; they are kept as if they were cut."""
        word = f"json_extract_string(served, '$.{UNKNOWN_FINISH}')"
        return self._rows(
            f"SELECT endpoint, count(*), {word} FROM calls WHERE verdict = 'answered' AND contains(served::VARCHAR, ?) "
            "GROUP BY ALL ORDER BY ALL",
            [f'"{UNKNOWN_FINISH}":'],
        )

    def marks(self) -> list[Marked]:
        """Completions of the plan with what looks like a mark of reasoning, by model, and prompts; with an example."""
        rows = self._rows(
            "SELECT s.model, split_part(coalesce(mark, 'whole'), ': ', 1) AS what, count(*), min(s.prompt_id), "
            "min_by(mark, s.prompt_id), min_by(s.key, s.prompt_id) FROM slots s JOIN completions c ON s.key = c.key "
            "WHERE mark IS NOT NULL OR (finish = 'length' AND reasoning IS NULL AND c.identity IN "
            "(SELECT identity FROM completions WHERE said IS NOT NULL AND reasoning IS NOT NULL)) GROUP BY ALL "
            "UNION ALL "
            "SELECT '', 'left', count(*), min(prompt_id), min_by(mark, prompt_id), '' FROM selection JOIN prompts "
            "USING (prompt_id) WHERE mark IS NOT NULL HAVING count(*) > 0 ORDER BY ALL"
        )
        return [
            Marked(model, what, n, id, mark.partition(": ")[2] if mark else self._beginning(key))
            for model, what, n, id, mark, key in rows
        ]

    def _beginning(self, key: str) -> str:
        """Of one text: of all that may be shown, 2,048 of 200 kB would be in memory at once."""
        rows = self._rows(
            "SELECT regexp_replace(left(text, 60), '\\s+', ' ', 'g') FROM completions WHERE key = ?", [key]
        )
        return str(rows[0][0])

    def outdated(self) -> list[tuple[str, int, int]]:
        """By judge, how many judgements are wanted of texts that are others than it was shown, and their tokens."""
        if not self.marked("texts"):
            return []  # by far most: to look takes 0.25 s of 64,000 prompts
        return self._rows(
            "WITH again AS (SELECT d.judge, d.answers, max(k.input_tokens) AS sent FROM needed d "
            f"JOIN judgements o ON {_OUTDATED} LEFT JOIN calls k ON o.call_id = k.id "
            "WHERE d.state IN ('pending', 'later') "
            "GROUP BY d.judge, d.identity, d.pass, d.spec, d.material, d.answers) "
            "SELECT judge, count(*), (sum(coalesce(sent, 0)) + sum((SELECT sum(bytes) FROM completions "
            "WHERE key IN (SELECT unnest(answers)))))::BIGINT FROM again GROUP BY judge ORDER BY judge"
        )

    def reach(self, prompts: int) -> int:
        """The position behind the first so many prompts that can be judged; 0 where there is none."""
        first = "SELECT DISTINCT position FROM needed ORDER BY position LIMIT ?"
        return int(self._rows(f"SELECT coalesce(max(position) + 1, 0) FROM ({first})", [prompts])[0][0])

    def apart(self) -> dict[str, int]:
        """Of how many prompts a judge was asked about one completion at a time, since it can't hold all of them."""
        if not self._rows("SELECT 1 FROM specs WHERE instead IS NOT NULL LIMIT 1"):  # to look takes 0.1 s of 64,000
            return {}
        return dict(
            self._rows(
                "SELECT judge, count(DISTINCT prompt_id) FROM needed WHERE state = 'answered' "
                "AND spec IN (SELECT instead FROM specs) GROUP BY judge ORDER BY judge"
            )
        )

    def spent(self) -> Spent:
        """What all calls ever made cost, and runs that crashed may have cost besides."""
        (row,) = self._rows("SELECT known, unknown, unpriced FROM spent")
        return Spent(*row)

    def books(self) -> Books:
        """Every prompt once, by what became of it. Prompts that have no outcome yet are pending."""
        intake = dict(self._rows("SELECT reason, sum(rows)::BIGINT FROM intake GROUP BY reason ORDER BY reason"))
        beside = [intake.pop(name, 0) for name in BESIDE]
        outcomes = dict(
            self._rows(
                "SELECT coalesce(o.outcome, 'pending') AS outcome, count(*) FROM selection e "
                "LEFT JOIN outcomes o ON e.prompt_id = o.prompt_id GROUP BY 1 ORDER BY 2 DESC, 1"
            )
        )
        pairs = self._rows("SELECT count(*) FROM preferences SEMI JOIN selection USING (prompt_id)")[0][0]
        unrated = self._rows(
            "SELECT coalesce(sum(unrated), 0)::BIGINT FROM outcomes SEMI JOIN selection USING (prompt_id)"
        )
        return Books(intake, outcomes, pairs, *beside, *unrated[0])

    # --- one prompt ---------------------------------------------------------------------------------------------------

    def example(self) -> str:
        """The first digits of a paired prompt's id, or nothing."""
        rows = self._rows("SELECT left(min(prompt_id), 12) FROM outcomes WHERE outcome = 'paired'")
        return str(rows[0][0] or "")

    def read(self) -> tuple[int, int, int]:
        """How many calls were made, how many judgements read, and a hash of all that was read in them."""
        (row,) = self._rows(
            "SELECT (SELECT count(*) FROM calls), count(*), coalesce(bit_xor(hash(key, ratings)), 0) FROM judgements"
        )
        return row[0], row[1], row[2]

    def paired_by(self) -> "PairPolicy | None":
        """The policy that pairs were last made by."""
        said = self.marked("pairs")
        if not said:
            return None
        from aif.pairing.pairs import PairPolicy

        return PairPolicy(**orjson.loads(said))

    def marked(self, name: str) -> str | None:
        """What was remembered under this name (see `Store.mark`)."""
        rows = self._rows("SELECT value FROM marks WHERE name = ?", [name])
        return str(rows[0][0]) if rows else None

    def specs(self) -> set[Spec]:
        """The requests that are made of judges, as the store was last told."""
        rows = self._rows("SELECT judge, identity, pass, request, listwise, n, least, spec, instead FROM specs")
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


class Former(Reader):
    """A store that was set aside: of whichever version, and however damaged. `torn`: some of it could not be read."""

    torn = False

    @classmethod
    def open(cls, path: Path) -> Self:
        return cls(connect(path, read_only=True), path)

    def said(self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> "pa.Table | None":
        """An answer, or None where the file can't give it."""
        try:
            return self.arrow(query, parameters)
        except (StoreDamaged, duckdb.Error):
            self.torn = True
            return None

    def rows(self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """As much of an answer as the file gives: all of it or nothing."""
        found = self.said(query, parameters)
        return found.to_pylist() if found is not None else []

    def columns(self, name: str, columns: str, page: int = 16_384) -> "Iterator[pa.Table]":
        """Some columns of a table, with the numbers of its rows, by the page: where one can't be read, by the half of
        it, down to the rows that DuckDB reads together."""
        for found in self.rows(f"SELECT max(rowid) AS last FROM {name}"):
            for start in range(0, (found["last"] or 0) + 1, page):
                yield from self._between(name, columns, start, start + page)

    def _between(self, name: str, columns: str, start: int, end: int) -> "Iterator[pa.Table]":
        query = f"SELECT rowid AS row, {columns} FROM {name} WHERE rowid >= ? AND rowid < ?"
        if (rows := self.said(query, [start, end])) is not None:
            yield rows
        elif end - start > _TOGETHER:
            half = (start + end) // 2
            yield from self._between(name, columns, start, half)
            yield from self._between(name, columns, half, end)

    def at(self, name: str, numbers: list[int]) -> list[dict[str, Any]]:
        """Whole rows of a table by their numbers, in order; of those that can't be read together, each that can."""
        first, last = min(numbers), max(numbers)
        query = (
            f"SELECT * FROM {name} WHERE rowid IN (SELECT unnest($n)) AND rowid BETWEEN $first AND $last ORDER BY rowid"
        )
        found = self.said(query, {"n": numbers, "first": first, "last": last})
        if found is not None or len(numbers) == 1:
            return found.to_pylist() if found is not None else []
        half = len(numbers) // 2
        return self.at(name, numbers[:half]) + self.at(name, numbers[half:])
