"""What a run asks of the store: which prompts there are, what has no answer yet, and what a judge is shown."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from aif.core.batching import KEYS_PER_QUERY, batched
from aif.core.types import JudgingSpec, Prompt, Slot, as_messages, provided_identity
from aif.store.query import Queries

if TYPE_CHECKING:  # it takes 0.2 s of CPU, which `aif status` can do without
    import pyarrow as pa

LOST = "lost"  # who wrote a completion that is not there

# Prompts that are asked for together lie near each other: told between which, DuckDB passes over most of a table.
_AMONG = "position IN (SELECT unnest($positions)) AND position BETWEEN $first AND $last"

# Of a judgement that is needed (d): those made (o) that were shown other texts of the same completions.
OUTDATED = (
    "o.prompt_id = d.prompt_id AND o.spec = d.spec AND o.identity = d.identity AND o.pass = d.pass "
    "AND o.answers = d.answers AND o.material IS NOT DISTINCT FROM d.material"
)


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


class RunQueries(Queries):
    """What a run asks."""

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
            yield from batched(rows, lambda row: row[3], batch)

    def carried(self, prompt_ids: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """Of these prompts, the completions that came with them: (key, identity), in order. Of one that damage took, it
        is not known who wrote it."""
        found: dict[str, list[tuple[str, str]]] = {}
        for prompt_id, key, identity in self._rows(
            "SELECT a.prompt_id, a.key, coalesce(c.identity, ?) "
            "FROM carried a LEFT JOIN completions c ON a.key = c.key "
            "WHERE a.prompt_id IN (SELECT unnest(?)) ORDER BY a.prompt_id, a.n",
            [provided_identity(LOST), list(prompt_ids)],
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
        page = next(batched(rows, lambda row: row[-1], limit), [])
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
        page = next(batched(places, lambda place: bytes[place[1]], limit), [])
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
        for page in batched(rows, lambda row: row[-1], KEYS_PER_QUERY):
            ids = [id for _, id, *_ in page]
            messages, material = (self._column("prompts", column, ids) for column in ("messages", "material"))
            for at, id, source, _ in page:
                told = orjson.loads(material[id]) if material[id] else {}
                found[at] = Prompt(id, as_messages(messages[id]), source, material=told)
        return found

    def _texts_of(self, rows: Sequence[tuple[Any, ...]]) -> dict[int, dict[str, str]]:
        found: dict[int, dict[str, str]] = {}
        for page in batched(rows, lambda row: row[-1], KEYS_PER_QUERY):
            texts = self._column("completions", "text", [key for _, key, _ in page])
            for at, key, _ in page:
                found.setdefault(at, {})[key] = texts[key]
        return found

    def _needs_at(self, positions: list[int]) -> dict[int, list[Need]]:
        needs: dict[int, list[Need]] = {}
        for at, judge, identity, judge_pass, request, spec, material, answers, outdated in self._rows(
            "SELECT position, judge, identity, pass, request, spec, material, answers, outdated FROM ("
            f"SELECT *, EXISTS (SELECT 1 FROM judgements o WHERE {OUTDATED}) AS outdated FROM needed d "
            f"WHERE {_AMONG} AND state IN ('pending', 'later')) ORDER BY position, request, answers",
            _among(positions),
        ):
            one = Need(judge, identity, judge_pass, request, spec, material, tuple(answers), outdated)
            needs.setdefault(at, []).append(one)
        return needs

    def digests(self, kind: str, among: Sequence[str]) -> set[str]:
        """Which of these texts of one kind there are."""
        held = "SELECT digest FROM texts WHERE kind = ? AND digest IN (SELECT unnest(?))"
        return {row[0] for row in self._rows(held, [kind, list(among)])}

    def reach(self, prompts: int) -> int:
        """The position behind the first so many prompts that can be judged; 0 where there is none."""
        first = "SELECT DISTINCT position FROM needed ORDER BY position LIMIT ?"
        return int(self._rows(f"SELECT coalesce(max(position) + 1, 0) FROM ({first})", [prompts])[0][0])

    def specs(self) -> set[JudgingSpec]:
        """The requests that are made of judges, as the store was last told."""
        rows = self._rows("SELECT judge, identity, pass, request, listwise, n, least, spec, instead FROM specs")
        return {JudgingSpec(*row) for row in rows}

    def selected_before(self, limit: int) -> list[str]:
        """The ids of the selected prompts before position `limit`."""
        return [row[0] for row in self._rows("SELECT prompt_id FROM selection WHERE position < ?", [limit])]
