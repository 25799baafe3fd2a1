"""Queries for the work of a run: selected prompts, pending work, and the texts to send to models and judges."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from aif.core.batching import KEYS_PER_QUERY, batched
from aif.core.types import JudgingSpec, Prompt, Slot, as_messages, provided_identity
from aif.store.query import Queries

if TYPE_CHECKING:  # it takes 0.2 s of CPU, which `aif status` does not need
    import pyarrow as pa

LOST = "lost"  # the author's name for a provided completion whose record is lost

# The positions of a page are close to each other: given their bounds, DuckDB skips most of a table.
_AMONG = "position IN (SELECT unnest($positions)) AND position BETWEEN $first AND $last"

# Joins a needed but unanswered judgement (d) with the stored ones (o) of the same completions: these saw other texts.
OUTDATED = (
    "o.prompt_id = d.prompt_id AND o.spec = d.spec AND o.identity = d.identity AND o.pass = d.pass "
    "AND o.answers = d.answers AND o.material IS NOT DISTINCT FROM d.material"
)


def _among(positions: Sequence[int]) -> dict[str, Any]:
    return {"positions": list(positions), "first": min(positions, default=0), "last": max(positions, default=0)}


@dataclass(frozen=True, slots=True)
class PendingSlot:
    """A completion to request.

    seq: numbers the pending slots of a model.
    position: the position of the prompt in the selection.
    slot: the planned completion. Its `principle` is None.
    principle: the text of its principle; None if it has none.
    """

    seq: int
    position: int
    slot: Slot
    prompt: Prompt
    principle: str | None


@dataclass(frozen=True, slots=True)
class PendingJudgement:
    """A judgement to request.

    judge: the judge's name.
    identity: which model the judge is, such as `qwen3-8b@main`.
    judge_pass: numbers repeated ratings by the same judge, from 0.
    request: the name of the rubric's request.
    spec: a digest of the request's fixed part: everything sent besides the texts.
    material: a digest of the texts shown beside the conversation; None if there are none.
    answers: keys of the completions to judge, sorted.
    outdated: whether the judge already judged these completions when they had other texts.
    """

    judge: str
    identity: str
    judge_pass: int
    request: str
    spec: str
    material: str | None
    answers: tuple[str, ...]
    outdated: bool = False


@dataclass(frozen=True, slots=True)
class JudgeablePrompt:
    """A prompt whose completions are all answered or failed, so that it can be judged.

    seq: numbers such prompts, in the order in which they became ready to be judged.
    texts: the texts of the answered completions, by key.
    needs: the judgements still pending.
    """

    seq: int
    prompt: Prompt
    texts: dict[str, str]
    needs: tuple[PendingJudgement, ...]


class RunQueries(Queries):
    """Queries that the engine needs while it plans and runs: stored and selected prompts, provided completions, judging
    requests, pending slots, prompts that can be judged."""

    # --- reading the sources ------------------------------------------------------------------------------------------

    def known_prompts(self, ids: Sequence[str]) -> dict[str, tuple[str, str | None, int]]:
        """Return (meta in JSON, material in JSON or None, number of messages) by id, for the `ids` that are stored."""
        columns = [self._column("prompts", column, ids) for column in ("meta", "material", "len(messages)")]
        return {prompt_id: tuple(column[prompt_id] for column in columns) for prompt_id in columns[0]}

    def already_gathered(
        self, ids: Sequence[str], keys: Sequence[str]
    ) -> tuple[set[str], dict[str, tuple[float | None, str | None]]]:
        """Return which of these prompts and provided completions the selection that is being built already has. The
        result is (ids of these prompts, scores of these completions by key). A score is (score, name of its scale), or
        (None, None) if the completion has none."""
        prompts = self._rows("SELECT prompt_id FROM incoming WHERE prompt_id IN (SELECT unnest(?))", [list(ids)])
        query = "SELECT key, score, source FROM incoming_carried WHERE key IN (SELECT unnest(?))"
        return {row[0] for row in prompts}, {key: (*score,) for key, *score in self._rows(query, [list(keys)])}

    def provided_counts(self, ids: Sequence[str]) -> dict[str, int]:
        """Return how many provided completions each of these prompts has in the selection that is being built, by
        prompt id. Prompts without any are left out."""
        query = (
            "SELECT prompt_id, count(*) FROM incoming_carried WHERE prompt_id IN (SELECT unnest(?)) GROUP BY prompt_id"
        )
        return dict(self._rows(query, [list(ids)]))

    def stored_completions(self, keys: Sequence[str]) -> set[str]:
        """Return the subset of these completion keys that the store holds."""
        rows = self._rows("SELECT key FROM completions WHERE key IN (SELECT unnest(?))", [list(keys)])
        return {row[0] for row in rows}

    def stored_digests(self, kind: str, among: Sequence[str]) -> set[str]:
        """Return the subset of the digests `among` for which the store holds a text of this kind (`principle`,
        `rubric`, ...)."""
        query = "SELECT digest FROM texts WHERE kind = ? AND digest IN (SELECT unnest(?))"
        return {row[0] for row in self._rows(query, [kind, list(among)])}

    # --- the selection and the plan -----------------------------------------------------------------------------------

    def selected_prompts(self, batch: int = 2000) -> Iterator[list[tuple[int, Prompt]]]:
        """Yield the selected prompts with their positions, in the selection's order, in lists of at most `batch`. The
        prompts come without meta, material or completions.

        Texts are fetched by key: sorting 30,000 prompts of 19 KB at once runs out of memory, since DuckDB's sort does
        not spill lists of structs.
        """
        for page in self._selection_pages(batch):
            messages = self._column("prompts", "messages", [id for _, id, _, _ in page])
            yield [(position, Prompt(id, as_messages(messages[id]), source)) for position, id, source, _ in page]

    def _selection_pages(self, batch: int, condition: str = "true") -> Iterator[list[tuple[int, str, str, int]]]:
        """Yield the selected prompts as (position, prompt id, source, size in bytes), in the selection's order, in
        lists of at most `batch`. `condition` is an SQL condition on the row of table `prompts` (`p`)."""
        count = self._rows("SELECT count(*) FROM selection")[0][0]
        for start in range(0, count, batch):
            rows = self._rows(
                "SELECT e.position, p.prompt_id, e.source, p.bytes "
                "FROM selection e JOIN prompts p ON e.prompt_id = p.prompt_id "
                f"WHERE e.position >= ? AND e.position < ? AND {condition} ORDER BY e.position",
                [start, start + batch],
            )
            yield from batched(rows, lambda row: row[3], batch)

    def prompt_ids_before(self, limit: int) -> list[str]:
        """Return the ids of the first `limit` selected prompts."""
        return [row[0] for row in self._rows("SELECT prompt_id FROM selection WHERE position < ?", [limit])]

    def prompts_with_material(self, batch: int = 2000) -> Iterator[list[Prompt]]:
        """Yield the selected prompts that have texts for the judge (material), without their messages, in lists of at
        most `batch`."""
        for page in self._selection_pages(batch, "p.material IS NOT NULL"):
            material = self._column("prompts", "material", [id for _, id, _, _ in page])
            yield [Prompt(id, (), "", material=orjson.loads(material[id])) for _, id, _, _ in page]

    def provided_completions(self, prompt_ids: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """Return, by prompt id, the (key, identity) of each completion provided with the prompt, in the source's order.
        If a completion's record was damaged, its author is unknown and is named LOST ("lost") in the identity."""
        provided: dict[str, list[tuple[str, str]]] = {}
        for prompt_id, key, identity in self._rows(
            "SELECT a.prompt_id, a.key, coalesce(c.identity, ?) "
            "FROM carried a LEFT JOIN completions c ON a.key = c.key "
            "WHERE a.prompt_id IN (SELECT unnest(?)) ORDER BY a.prompt_id, a.n",
            [provided_identity(LOST), list(prompt_ids)],
        ):
            provided.setdefault(prompt_id, []).append((key, identity))
        return provided

    def provided_sizes(self) -> list[int]:
        """Return the different numbers of provided completions that prompts have, in ascending order. Prompts without
        provided completions don't count."""
        return [
            row[0] for row in self._rows("SELECT DISTINCT count(*) AS n FROM carried GROUP BY prompt_id ORDER BY n")
        ]

    def any_provided_score(self) -> bool:
        """Return whether any provided completion has a score; also true if there are no provided completions."""
        return bool(self._rows("SELECT count(score) > 0 OR count(*) = 0 FROM carried")[0][0])

    def any_score_without_source(self) -> bool:
        """Return whether any provided score lacks the name of its scale. Only scores stored by an earlier version of
        aif do."""
        query = "SELECT count(*) > 0 FROM carried WHERE score IS NOT NULL AND source IS NULL"
        return bool(self._rows(query)[0][0])

    def judging_specs(self) -> set[JudgingSpec]:
        """Return the requests that the current rubric and judges need: one for each judge and request of the rubric. A
        request about all completions of a prompt has one for each possible number of completions."""
        rows = self._rows("SELECT judge, identity, pass, request, listwise, n, least, spec, instead FROM specs")
        return {JudgingSpec(*row) for row in rows}

    # --- pending work -------------------------------------------------------------------------------------------------

    def pending_slots(self, model: str, after: int, limit: int) -> list[PendingSlot]:
        """Return the model's pending slots (completions to request) with a `seq` above `after`, in the order of `seq`:
        at most `limit`, and fewer if their prompts are long. An empty list means that there are no more. When a run
        starts, `Store.list_pending` lists the pending slots and gives each its `seq`."""
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
            PendingSlot(
                seq,
                position,
                Slot(key, prompt_id, slot, model, identity, sample, seed, None),
                Prompt(prompt_id, as_messages(messages[prompt_id]), source),
                orjson.loads(principles[principle]) if principle in principles else None,
            )
            for seq, position, slot, key, identity, sample, seed, prompt_id, source, principle, _ in page
        ]

    def last_pending_slot(self, model: str) -> int:
        """Return the highest `seq` of the model's pending slots, 0 if none."""
        return int(self._rows("SELECT coalesce(max(seq), 0) FROM todo WHERE model = ?", [model])[0][0])

    def last_judgeable_prompt(self) -> int:
        """Return the highest `seq` of the judgeable prompts, whose completions are all answered or failed; 0 if there
        are none."""
        return int(self._rows("SELECT coalesce(max(seq), 0) FROM ready")[0][0])

    def judgeable_prompts(self, after: int, limit: int) -> list[JudgeablePrompt]:
        """Return the judgeable prompts with a `seq` above `after`, in the order of `seq`: at most `limit`, and fewer if
        their texts are long. An empty list means that there are no more."""
        rows = self._rows(
            "SELECT seq, position FROM ready WHERE seq > ? AND seq <= ? ORDER BY seq", [after, after + limit]
        )
        positions = [position for _, position in rows]
        prompt_rows, completion_rows = self._prompt_rows(positions), self._completion_rows(positions)
        bytes = Counter[int]()
        for position, *_, size in (*prompt_rows, *completion_rows):
            bytes[position] += size
        page = next(batched(rows, lambda row: bytes[row[1]], limit), [])
        in_page = {position for _, position in page}
        prompts = self._prompts([row for row in prompt_rows if row[0] in in_page])
        texts = self._completion_texts([row for row in completion_rows if row[0] in in_page])
        needs = self._pending_judgements([position for _, position in page])
        return [
            JudgeablePrompt(seq, prompts[position], texts.get(position, {}), tuple(needs.get(position, ())))
            for seq, position in page
        ]

    def _prompts_at(self, positions: Sequence[int]) -> dict[int, Prompt]:
        return self._prompts(self._prompt_rows(positions))

    def _texts_at(self, positions: Sequence[int]) -> dict[int, dict[str, str]]:
        return self._completion_texts(self._completion_rows(positions))

    def _prompt_rows(self, positions: Sequence[int]) -> list[tuple[Any, ...]]:
        """Return (position, prompt id, source, bytes) of the selected prompts at these positions."""
        return self._rows(
            f"SELECT position, prompt_id, source, bytes FROM selection JOIN prompts USING (prompt_id) WHERE {_AMONG}",
            _among(positions),
        )

    def _completion_rows(self, positions: Sequence[int]) -> list[tuple[Any, ...]]:
        """Return (position, key, bytes) of the answered completions of the prompts at these positions."""
        return self._rows(
            f"SELECT position, key, bytes FROM slots JOIN completions USING (key) WHERE {_AMONG}", _among(positions)
        )

    def _prompts(self, rows: Sequence[tuple[Any, ...]]) -> dict[int, Prompt]:
        """Return the prompts at these positions with their messages and material, by position. A row is (position,
        prompt id, source, bytes)."""
        prompts: dict[int, Prompt] = {}
        for page in batched(rows, lambda row: row[-1], KEYS_PER_QUERY):
            ids = [id for _, id, *_ in page]
            messages, material = (self._column("prompts", column, ids) for column in ("messages", "material"))
            for position, id, source, _ in page:
                slots = orjson.loads(material[id]) if material[id] else {}
                prompts[position] = Prompt(id, as_messages(messages[id]), source, material=slots)
        return prompts

    def _completion_texts(self, rows: Sequence[tuple[Any, ...]]) -> dict[int, dict[str, str]]:
        """Return the texts of completions, by position of the prompt and by the completion's key. A row is (position,
        key, bytes)."""
        by_position: dict[int, dict[str, str]] = {}
        for page in batched(rows, lambda row: row[-1], KEYS_PER_QUERY):
            texts = self._column("completions", "text", [key for _, key, _ in page])
            for position, key, _ in page:
                by_position.setdefault(position, {})[key] = texts[key]
        return by_position

    def _pending_judgements(self, positions: list[int]) -> dict[int, list[PendingJudgement]]:
        """Return the pending judgements of the prompts at these positions, by position."""
        needs: dict[int, list[PendingJudgement]] = {}
        for position, judge, identity, judge_pass, request, spec, material, answers, outdated in self._rows(
            "SELECT position, judge, identity, pass, request, spec, material, answers, outdated FROM ("
            f"SELECT *, EXISTS (SELECT 1 FROM judgements o WHERE {OUTDATED}) AS outdated FROM needed d "
            f"WHERE {_AMONG} AND state IN ('pending', 'later')) ORDER BY position, request, answers",
            _among(positions),
        ):
            need = PendingJudgement(judge, identity, judge_pass, request, spec, material, tuple(answers), outdated)
            needs.setdefault(position, []).append(need)
        return needs

    def judgeable_limit(self, prompts: int) -> int:
        """Return the smallest n such that `prompts` of the first n selected prompts can be judged. If fewer can be
        judged in all, the first n prompts include all of them; n is 0 if none can."""
        first = "SELECT DISTINCT position FROM needed ORDER BY position LIMIT ?"
        return int(self._rows(f"SELECT coalesce(max(position) + 1, 0) FROM ({first})", [prompts])[0][0])

    def finished_judgements(self, keys: Sequence[str]) -> dict[str, tuple[bool, list[str] | None]]:
        """Return, by key, (answered, text_ids) of those judgements `keys` that are answered or failed permanently.
        `answered` is False if the judgement failed. The text_ids are digests of the texts that the judge was shown;
        None if the judgement's record lacks them."""
        rows = self._rows(
            "SELECT key, true, shown FROM judgements WHERE key IN (SELECT unnest($keys)) UNION ALL "
            "SELECT key, false, shown FROM failed WHERE key IN (SELECT unnest($keys)) AND verdict = 'failed'",
            {"keys": list(keys)},
        )
        return {key: (answered, shown) for key, answered, shown in rows}

    # --- comparing with another store ---------------------------------------------------------------------------------

    def missing_rows(self, table: str, keys: str, rows: "pa.Table") -> list[int]:
        """Return the numbers (column `row`) of those rows of another store that this store's table lacks. Rows are
        compared by key. If the key is one column, rows with NULL in it are ignored.

        table: the name of this store's table.
        keys: the names of the key's columns, separated by commas.
        rows: the other store's rows, with their key and their number.
        """
        self._db.register("theirs", rows)
        missing = self._rows(
            f"SELECT row FROM theirs ANTI JOIN {table} USING ({keys}) WHERE ({keys}) IS NOT NULL ORDER BY row"
        )
        self._db.unregister("theirs")
        return [row for (row,) in missing]
