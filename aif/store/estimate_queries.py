"""Queries for estimates: samples of pending requests, and the tokens and seconds of calls made so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import orjson

from aif.core.types import Prompt
from aif.judging.rubric import ReplyForm
from aif.planning.plan import SystemMode
from aif.store.connection import limit_condition
from aif.store.reader import Reader

if TYPE_CHECKING:
    from aif.store.database import Store


@dataclass(frozen=True, slots=True)
class CompletionCall:
    """A completion request, pending or answered.

    principle: the text of its principle; None if it has none.
    system: how the system message was sent; None if the request is pending.
    tokens: the number of input tokens; None if the request is pending.
    """

    prompt: Prompt
    principle: str | None
    system: SystemMode | None
    tokens: int | None


@dataclass(frozen=True, slots=True)
class PlannedJudgement:
    """A pending judgement.

    request: the name of the rubric's request.
    texts: the texts of its answered completions.
    awaited: the models of its completions that are still pending.
    """

    prompt: Prompt
    request: str
    texts: tuple[str, ...]
    awaited: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnsweredJudgement:
    """An answered judgement.

    request: the name of the rubric's request.
    texts: the texts shown to the judge.
    rubric: the rubric's digest.
    form: the form of the reply, such as JSON by a schema.
    tokens: the number of input tokens.
    """

    prompt: Prompt
    request: str
    texts: tuple[str, ...]
    rubric: str
    form: ReplyForm
    tokens: int


@dataclass(frozen=True, slots=True)
class ReplyUsage:
    """Totals of tokens and seconds over the calls that reported token counts.

    items: completions or judgements that these calls answered.
    shown: completions that these judgements rated; 0 for completions.
    calls: calls that reported token counts.
    input: tokens of the requests, with those read from and written to a prompt cache.
    cached: input tokens read from a prompt cache.
    written: input tokens written to a prompt cache.
    output: tokens of the replies, with their reasoning.
    reasoning: output tokens of reasoning.
    """

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


class EstimateReader(Reader):
    """A `Reader` with the queries for estimates: samples of pending and of answered requests, and the usage of calls
    made so far."""

    @classmethod
    def of(cls, store: "Store", retry_failed: bool = False) -> Self:
        """Connect to a store that this process has open for writing. With `retry_failed`, permanent failures count as
        pending for this connection, as after `--retry-failed`: a temporary view hides the table `failed`."""
        reader = super().of(store)
        if retry_failed:
            ((database,),) = reader._rows("SELECT format('\"{}\"', current_database())")
            query = f"SELECT * REPLACE ('later' AS verdict) FROM {database}.main.failed"
            reader._rows(f"CREATE TEMP VIEW failed AS {query}")
        return reader

    def slots_to_ask(self, model: str, limit: int | None, most: int) -> list[CompletionCall]:
        """Return the requests for a sample of a model's pending completions: at most `most`, evenly spread over the
        first `limit` selected prompts (None: over all)."""
        rows = self._rows(
            f"SELECT s.position, x.content, NULL, NULL FROM (SELECT * FROM slot_states WHERE model = ? "
            f"AND state IN ('pending', 'later') AND {limit_condition(limit)} {_even_sample('position, slot')}) s "
            f"LEFT JOIN texts x ON x.digest = s.principle",
            [model, most],
        )
        return self._completion_calls(rows)

    def slots_asked(self, identity: str, most: int) -> list[CompletionCall]:
        """Return the requests for a sample of the answered completions of the model with this identity: at most `most`,
        with known input tokens, evenly spread over the selected prompts."""
        rows = self._rows(
            f"SELECT s.position, x.content, s.system, s.input_tokens FROM ("
            f"SELECT e.position, c.principle, c.system, k.input_tokens FROM completions c "
            f"JOIN calls k ON c.call_id = k.id JOIN selection e ON c.prompt_id = e.prompt_id "
            f"WHERE c.identity = ? AND k.input_tokens IS NOT NULL {_even_sample('e.position, c.key')}) s "
            f"LEFT JOIN texts x ON x.digest = s.principle",
            [identity, most],
        )
        return self._completion_calls(rows)

    def _completion_calls(self, rows: Sequence[tuple[Any, ...]]) -> list[CompletionCall]:
        prompts = self._prompts_at([position for position, *_ in rows])
        return [
            CompletionCall(prompts[position], orjson.loads(principle) if principle else None, system, tokens)
            for position, principle, system, tokens in rows
        ]

    def judgements_to_ask(self, judge: str, limit: int | None, most: int) -> list[PlannedJudgement]:
        """Return a sample of a judge's pending judgements: at most `most`, evenly spread over the first `limit`
        selected prompts (None: over all) and the kinds of request."""
        rows = self._rows(
            f"SELECT position, request, answers FROM foreseen WHERE judge = ? AND state IN ('pending', 'later') "
            f"AND {limit_condition(limit)} {_even_sample('request, position, answers')}",
            [judge, most],
        )
        positions = list({position for position, *_ in rows})
        prompts, texts = self._prompts_at(positions), self._texts_at(positions)
        owners = dict(self._rows("SELECT key, model FROM slots WHERE position IN (SELECT unnest(?))", [positions]))
        return [
            PlannedJudgement(
                prompts[position],
                request,
                tuple(texts[position][key] for key in answers if key in texts.get(position, {})),
                tuple(owners[key] for key in answers if key not in texts.get(position, {})),
            )
            for position, request, answers in rows
        ]

    def judgements_asked(self, identity: str, most: int) -> list[AnsweredJudgement]:
        """Return a sample of the answered judgements of the judge with this identity, by any rubric: at most `most`,
        with known input tokens, evenly spread over the selected prompts and the kinds of request. Judgements of texts
        that the store no longer has are left out."""
        rows = self._rows(
            f"SELECT e.position, j.request, j.completions, j.rubric, j.form, k.input_tokens, j.shown FROM judgements j "
            f"JOIN calls k ON j.call_id = k.id JOIN selection e ON j.prompt_id = e.prompt_id "
            f"WHERE j.identity = ? AND k.input_tokens IS NOT NULL {_even_sample('j.request, e.position, j.key')}",
            [identity, most],
        )
        prompts = self._prompts_at(list({position for position, *_ in rows}))
        texts = self._column("completions", "text", [key for _, _, keys, *_ in rows for key in keys])
        ids = self._column("completions", "text_id", texts)
        return [
            AnsweredJudgement(prompts[position], request, tuple(texts[key] for key in keys), rubric, form, tokens)
            for position, request, keys, rubric, form, tokens, shown in rows
            if texts.keys() >= set(keys)  # else a completion was lost to damage
            and (shown is None or shown == [ids[key] for key in sorted(keys)])
        ]

    def overflow_message(self, stage: str, endpoint: str) -> str:
        """Return the error message of the last call that exceeded the context window of `endpoint`, a model or judge;
        empty if none did."""
        rows = self._rows(
            "SELECT message FROM calls WHERE stage = ? AND endpoint = ? AND kind = 'context_overflow' "
            "ORDER BY rowid DESC LIMIT 1",
            [stage, endpoint],
        )
        return rows[0][0] or "" if rows else ""

    def completion_usage(self, identity: str, max_tokens: int) -> ReplyUsage:
        """Return the total usage for the answered completions of the model with this identity. Only calls sent with
        this `max_tokens` count."""
        rows = self._rows(
            f"SELECT count(DISTINCT c.key), 0, {_USED} FROM calls k JOIN completions c ON k.key = c.key "
            f"WHERE c.identity = ? AND k.output_tokens IS NOT NULL "
            f"AND coalesce(k.sent->>'max_tokens', k.sent->>'max_completion_tokens')::BIGINT = ?",
            [identity, max_tokens],
        )
        return ReplyUsage(*rows[0])

    def judgement_usage(self, judge: str) -> dict[str, ReplyUsage]:
        """Return the total usage for the judge's answered judgements, by name of the current rubric's request."""
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
        return {request: ReplyUsage(*used) for request, *used in rows}


def _even_sample(order: str) -> str:
    """Return an SQL clause that keeps an even sample of the rows in this `order` (SQL). Its parameter is the largest
    number of rows to keep."""
    return f"QUALIFY (row_number() OVER (ORDER BY {order}) - 1) % ((count(*) OVER () - 1) // ? + 1) = 0"
