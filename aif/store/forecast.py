"""What a run would ask, and what asking took so far: the store's answers for an estimate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import orjson

from aif.core.types import Prompt
from aif.judging.rubric import ReplyForm
from aif.planning.plan import SystemMode
from aif.store.connection import within
from aif.store.reader import Reader

if TYPE_CHECKING:
    from aif.store.database import Store


@dataclass(frozen=True, slots=True)
class SlotCall:
    """A call for a completion: to be made, or made, and then how a system turn was sent and the request's tokens."""

    prompt: Prompt
    principle: str | None
    system: SystemMode | None
    tokens: int | None


@dataclass(frozen=True, slots=True)
class JudgeCall:
    """A judgement to be asked for: the completions shown that are there, and the models of those still to come."""

    prompt: Prompt
    request: str
    texts: tuple[str, ...]
    awaited: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """A judgement as it was asked for: by which rubric (its digest), in which form, and the request's tokens."""

    prompt: Prompt
    request: str
    texts: tuple[str, ...]
    rubric: str
    form: ReplyForm
    tokens: int


@dataclass(frozen=True, slots=True)
class Replies:
    """What calls came to whose tokens were counted: `items` answered by so many `calls`, about `shown` completions in
    all; tokens and seconds of all calls together."""

    items: int
    shown: int
    calls: int
    input: int
    cached: int
    written: int
    output: int
    reasoning: int
    seconds: float


_USED = (
    "count(*), coalesce(sum(k.input_tokens), 0)::BIGINT, coalesce(sum(k.cached_tokens), 0)::BIGINT, "
    "coalesce(sum(k.cache_write_tokens), 0)::BIGINT, "
    "coalesce(sum(k.output_tokens), 0)::BIGINT, coalesce(sum(k.reasoning_tokens), 0)::BIGINT, "
    "coalesce(sum(k.seconds), 0)"
)


class Forecast(Reader):
    """A reader that also looks ahead."""

    @classmethod
    def of(cls, store: "Store", retry_failed: bool = False) -> Self:
        """A reader beside the writer. With `retry_failed` all that failed for good counts as pending, as after
        `--retry-failed`: a temporary view of this connection alone stands before the table, for every view."""
        reader = super().of(store)
        if retry_failed:
            ((database,),) = reader._rows("SELECT format('\"{}\"', current_database())")
            query = f"SELECT * REPLACE ('later' AS verdict) FROM {database}.main.failed"
            reader._rows(f"CREATE TEMP VIEW failed AS {query}")
        return reader

    def slots_to_ask(self, model: str, limit: int | None, most: int) -> list[SlotCall]:
        """At most so many of a model's slots that are pending, spread evenly."""
        rows = self._rows(
            f"SELECT s.position, x.content, NULL, NULL FROM (SELECT * FROM slot_states "
            f"WHERE model = ? AND state IN ('pending', 'later') AND {within(limit)} {_spread('position, slot')}) s "
            f"LEFT JOIN texts x ON x.digest = s.principle",
            [model, most],
        )
        return self._slot_calls(rows)

    def slots_asked(self, identity: str, most: int) -> list[SlotCall]:
        """At most so many calls that a model answered, spread evenly over the prompts of now."""
        rows = self._rows(
            f"SELECT s.position, x.content, s.system, s.input_tokens FROM ("
            f"SELECT e.position, c.principle, c.system, k.input_tokens FROM completions c "
            f"JOIN calls k ON c.call_id = k.id JOIN selection e ON c.prompt_id = e.prompt_id "
            f"WHERE c.identity = ? AND k.input_tokens IS NOT NULL {_spread('e.position, c.key')}) s "
            f"LEFT JOIN texts x ON x.digest = s.principle",
            [identity, most],
        )
        return self._slot_calls(rows)

    def _slot_calls(self, rows: Sequence[tuple[Any, ...]]) -> list[SlotCall]:
        prompts = self._prompts_at([at for at, *_ in rows])
        return [
            SlotCall(prompts[at], orjson.loads(principle) if principle else None, system, tokens)
            for at, principle, system, tokens in rows
        ]

    def judgements_to_ask(self, judge: str, limit: int | None, most: int) -> list[JudgeCall]:
        """At most so many of a judge's judgements that are pending, spread evenly over requests and prompts."""
        rows = self._rows(
            f"SELECT position, request, answers FROM foreseen WHERE judge = ? AND state IN ('pending', 'later') "
            f"AND {within(limit)} {_spread('request, position, answers')}",
            [judge, most],
        )
        positions = list({at for at, *_ in rows})
        prompts, texts = self._prompts_at(positions), self._texts_at(positions)
        owners = dict(self._rows("SELECT key, model FROM slots WHERE position IN (SELECT unnest(?))", [positions]))
        return [
            JudgeCall(
                prompts[at],
                request,
                tuple(texts[at][key] for key in answers if key in texts.get(at, {})),
                tuple(owners[key] for key in answers if key not in texts.get(at, {})),
            )
            for at, request, answers in rows
        ]

    def judgements_asked(self, identity: str, most: int) -> list[Judged]:
        """At most so many calls that a judge answered, whatever the rubric then, spread over the prompts of now."""
        rows = self._rows(
            f"SELECT e.position, j.request, j.completions, j.rubric, j.form, k.input_tokens, j.shown FROM judgements j "
            f"JOIN calls k ON j.call_id = k.id JOIN selection e ON j.prompt_id = e.prompt_id "
            f"WHERE j.identity = ? AND k.input_tokens IS NOT NULL {_spread('j.request, e.position, j.key')}",
            [identity, most],
        )
        prompts = self._prompts_at(list({at for at, *_ in rows}))
        texts = self._column("completions", "text", [key for _, _, keys, *_ in rows for key in keys])
        ids = self._column("completions", "text_id", texts)
        return [
            Judged(prompts[at], request, tuple(texts[key] for key in keys), rubric, form, tokens)
            for at, request, keys, rubric, form, tokens, shown in rows
            if texts.keys() >= set(keys)  # else the journal has lost one to damage
            and (shown is None or shown == [ids[key] for key in sorted(keys)])
        ]

    def overflowed(self, stage: str, endpoint: str) -> str:
        """What a model or judge said last of a request that it could not hold."""
        rows = self._rows(
            "SELECT message FROM calls WHERE stage = ? AND endpoint = ? AND kind = 'context_overflow' "
            "ORDER BY rowid DESC LIMIT 1",
            [stage, endpoint],
        )
        return rows[0][0] or "" if rows else ""

    def completing(self, identity: str, max_tokens: int) -> Replies:
        """What a model's completions took that were asked for with this `max_tokens`."""
        rows = self._rows(
            f"SELECT count(DISTINCT c.key), 0, {_USED} FROM calls k JOIN completions c ON k.key = c.key "
            f"WHERE c.identity = ? AND k.output_tokens IS NOT NULL "
            f"AND coalesce(k.sent->>'max_tokens', k.sent->>'max_completion_tokens')::BIGINT = ?",
            [identity, max_tokens],
        )
        return Replies(*rows[0])

    def judging(self, judge: str) -> dict[str, Replies]:
        """What a judge's judgements took, by request, as the present rubric makes it."""
        rows = self._rows(
            f"SELECT p.request, count(*) FILTER (k.id = j.call_id), "
            f"coalesce(sum(len(j.completions)) FILTER (k.id = j.call_id), 0)::BIGINT, {_USED} "
            f"FROM calls k JOIN judgements j ON k.key = j.key "
            f"JOIN (SELECT DISTINCT identity, pass, request, unnest([spec, instead]) AS spec FROM specs "
            f"WHERE judge = ?) p "
            f"ON j.spec = p.spec AND j.identity = p.identity AND j.pass = p.pass "
            f"WHERE k.output_tokens IS NOT NULL GROUP BY p.request",
            [judge],
        )
        return {request: Replies(*used) for request, *used in rows}


def _spread(order: str) -> str:
    """Of the rows, at most as many as the next parameter says, one out of every so many."""
    return f"QUALIFY (row_number() OVER (ORDER BY {order}) - 1) % ((count(*) OVER () - 1) // ? + 1) = 0"
