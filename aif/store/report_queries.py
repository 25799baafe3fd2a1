"""Queries for summaries and reports: progress, failures, spend, models, pairs.

An *item* is a completion or judgement that the pipeline wants. It has one of these states:

- answered;
- failed: permanently;
- later: failed, and retried by the next run;
- pending: no result yet.

`Tally.pending` counts the last two states.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from aif.core.types import FailureGroup, Spent
from aif.providers.base import UNKNOWN_FINISH
from aif.store.connection import limit_condition
from aif.store.journal import Position
from aif.store.query import Queries
from aif.store.run_queries import OUTDATED

if TYPE_CHECKING:  # it loads numpy, 0.2 s of CPU, which `aif status` does not need
    from aif.pairing.pairs import PairPolicy

# Reasons in table `intake` that count something else than rows (see `PromptCounts`).
SIDE_COUNTS = ("empty_completion", "rescored", "alike")


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """Completions of a model that may be split wrongly into reasoning and answer.

    model: its name. If empty, prompts are counted in place of completions: those with a tag in an earlier assistant
        turn.
    kind: the sign that the completions show. `left`: a tag is still in the text. `cut`: reasoning was cut at a tag that
        the reply may only mention. `whole`: the text ends at max_tokens and may be all reasoning, since other
        completions of the model contain reasoning.
    completions: the number of completions, or of prompts.
    prompt_id: the prompt of the example.
    example: an excerpt from one of the completions or prompts.
    """

    model: str
    kind: str
    completions: int
    prompt_id: str
    example: str


@dataclass(frozen=True, slots=True)
class Tally:
    """Numbers of a model's completions or a judge's judgements, by state.

    wanted: all of them, in any state.
    answered: those with a usable reply.
    failed: those that failed permanently.
    later: those that failed and are retried by the next run.
    """

    wanted: int
    answered: int
    failed: int
    later: int

    @property
    def pending(self) -> int:
        """The number of items that are to be requested: those in state `later`, and those without any result yet."""
        return self.wanted - self.answered - self.failed


@dataclass(frozen=True, slots=True)
class ItemCounts:
    """Counts of selected prompts, and of the completions and judgements (items) that the pipeline wants now.

    prompts: the number of selected prompts.
    complete: the number of prompts with all items answered.
    slots: the number of prompts, by their number of planned completions.
    tallies: counts of items by (stage, model or judge), as if every pending completion will be answered.
    missing: the unanswered items, grouped by the reason.
    """

    prompts: int
    complete: int
    slots: dict[int, int]
    tallies: dict[tuple[str, str], Tally]
    missing: tuple[FailureGroup, ...]

    @property
    def completeness(self) -> float:
        """The share (0 to 1) of selected prompts that have every planned completion and every wanted judgement."""
        return self.complete / self.prompts if self.prompts else 1.0

    def total(self, *stages: str) -> Tally:
        """Return the sum of the tallies of these stages: `carried` (completions provided with prompts), `completion`,
        `judgement`."""
        tallies = [tally for (stage, _), tally in self.tallies.items() if stage in stages]
        names = ("wanted", "answered", "failed", "later")
        return Tally(*(sum(getattr(tally, name) for tally in tallies) for name in names))

    @property
    def unplanned(self) -> int:
        """The number of selected prompts for which no completions are planned yet."""
        return self.prompts - sum(self.slots.values())


@dataclass(frozen=True, slots=True)
class PromptCounts:
    """Counts of the rows read and of the selected prompts, by result.

    intake: rows, by result: `selected`, or the reason why left out. Each row is counted once.
    outcomes: selected prompts, by outcome: `paired`, or the reason why not. Each prompt is counted once.
    pairs: the number of pairs.
    empty: provided completions that were left out because they have no text.
    rescored: scores that were ignored because the same completion came earlier with another score, another scale or no
        score.
    alike: prompts that differ from an earlier one only in spaces or Unicode form.
    unrated: completions that were not paired because they have no rating.
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
        """The number of prompts that the pipeline works on: those read, without duplicates and skipped rows."""
        return sum(self.outcomes.values())


@dataclass(frozen=True, slots=True)
class UnratedJudgements:
    """Judgements by one judge that have no ratings for the same reason.

    endpoint: the judge's name.
    kind: the reason: a kind of failure, or "not sent yet".
    items: the number of judgements.
    example: the error message of one of them; empty if there is none.
    """

    endpoint: str
    kind: str
    items: int
    example: str


class ReportQueries(Queries):
    """Queries for printed summaries and for a dataset's card: counts of prompts and items, failures, spend, standings
    of the models, agreement of the judges."""

    def tallies(self, limit: int | None = None) -> dict[tuple[str, str], Tally]:
        """Count the wanted completions and judgements, for each (stage, model or judge): all, answered, failed
        permanently, and to be retried. Only the first `limit` selected prompts count (None: all).

        The stage `carried` has the completions provided with prompts, by author. Judgements are counted as if every
        pending completion will be answered.
        """
        rows = self._rows(
            f"SELECT stage, endpoint, count(*), count(*) FILTER (state = 'answered'), "
            f"count(*) FILTER (state = 'failed'), count(*) FILTER (state = 'later') "
            f"FROM items WHERE {limit_condition(limit)} GROUP BY ALL ORDER BY ALL"
        )
        return {(stage, endpoint): Tally(*counts) for stage, endpoint, *counts in rows}

    def item_counts(self) -> ItemCounts:
        """Count all completions and judgements that the pipeline wants. It takes 0.25 s of CPU for 64,000 prompts, and
        twice that if any is unanswered."""
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
        incomplete = next(items for stage, *_, items in rows if stage is None)
        return ItemCounts(
            prompts,
            sum(slots.values()) - incomplete,
            slots,
            {key: Tally(n.total(), n["answered"], n["failed"], n["later"]) for key, n in counts.items()},
            tuple(self._missing("true")) if incomplete else (),
        )

    def permanent_failures(self) -> list[FailureGroup]:
        """Return the completions and judgements that failed permanently, grouped by model or judge and kind of failure,
        largest group first."""
        # the view takes 1 s for 1,000,000 items, even if none failed
        any_failed = self._rows("SELECT 1 FROM failed WHERE verdict = 'failed' LIMIT 1")
        return self._missing("verdict = 'failed'") if any_failed else []

    def _missing(self, condition: str) -> list[FailureGroup]:
        rows = self._rows(
            "SELECT stage, endpoint, coalesce(kind, ''), verdict, items, coalesce(example, ''), prompt_id "
            f"FROM failures WHERE {condition} ORDER BY kind IS NULL, items DESC, endpoint, kind, verdict"
        )
        return [FailureGroup(*row) for row in rows]

    def unknown_endings(self) -> list[tuple[str, int, str]]:
        """Return (endpoint, number of replies, finish reason) for each finish reason that aif does not know. A
        completion with such a reason counts as truncated at max_tokens; a judgement with it is parsed like any
        other."""
        word = f"json_extract_string(served, '$.{UNKNOWN_FINISH}')"
        return self._rows(
            f"SELECT endpoint, count(*), {word} FROM calls WHERE verdict = 'answered' AND contains(served::VARCHAR, ?) "
            "GROUP BY ALL ORDER BY ALL",
            [f'"{UNKNOWN_FINISH}":'],
        )

    def reasoning_marks(self) -> list[ReasoningMarks]:
        """Return how many completions may be split wrongly into reasoning and answer, for each model and kind of sign,
        and how many prompts have a tag in an earlier assistant turn (see `ReasoningMarks`)."""
        rows = self._rows(
            "SELECT s.model, split_part(coalesce(mark, 'whole'), ': ', 1) AS kind, count(*), min(s.prompt_id), "
            "min_by(mark, s.prompt_id), min_by(s.key, s.prompt_id) FROM slots s JOIN completions c ON s.key = c.key "
            "WHERE mark IS NOT NULL OR (finish = 'length' AND reasoning IS NULL AND c.identity IN "
            "(SELECT identity FROM completions WHERE said IS NOT NULL AND reasoning IS NOT NULL)) GROUP BY ALL "
            "UNION ALL "
            "SELECT '', 'left', count(*), min(prompt_id), min_by(mark, prompt_id), '' FROM selection JOIN prompts "
            "USING (prompt_id) WHERE mark IS NOT NULL HAVING count(*) > 0 ORDER BY ALL"
        )
        return [
            ReasoningMarks(model, kind, n, id, mark.partition(": ")[2] if mark else self._beginning(key))
            for model, kind, n, id, mark, key in rows
        ]

    def _beginning(self, key: str) -> str:
        """Return the first 60 characters of a completion, as one line. (Selecting them in the query of
        `reasoning_marks` would read 2,048 texts of 200 kB.)"""
        rows = self._rows(
            "SELECT regexp_replace(left(text, 60), '\\s+', ' ', 'g') FROM completions WHERE key = ?", [key]
        )
        return str(rows[0][0])

    def outdated_judgements(self) -> list[tuple[str, int, int]]:
        """Return (judge, number of judgements, estimated input tokens) for each judge with pending judgements of
        completions that it has already judged when they had other texts."""
        if not self.get_mark("texts"):
            return []  # almost always: the query takes 0.25 s for 64,000 prompts
        return self._rows(
            "WITH again AS (SELECT d.judge, d.answers, max(k.input_tokens) AS sent FROM needed d "
            f"JOIN judgements o ON {OUTDATED} LEFT JOIN calls k ON o.call_id = k.id "
            "WHERE d.state IN ('pending', 'later') "
            "GROUP BY d.judge, d.identity, d.pass, d.spec, d.material, d.answers) "
            "SELECT judge, count(*), (sum(coalesce(sent, 0)) + sum((SELECT sum(bytes) FROM completions "
            "WHERE key IN (SELECT unnest(answers)))))::BIGINT FROM again GROUP BY judge ORDER BY judge"
        )

    def judged_singly(self) -> dict[str, int]:
        """Return, by judge, the number of prompts whose completions were judged one at a time, because all of them
        together exceed the judge's context window."""
        if not self._rows("SELECT 1 FROM specs WHERE instead IS NOT NULL LIMIT 1"):
            return {}  # the query takes 0.1 s for 64,000 prompts
        return dict(
            self._rows(
                "SELECT judge, count(DISTINCT prompt_id) FROM needed WHERE state = 'answered' "
                "AND spec IN (SELECT instead FROM specs) GROUP BY judge ORDER BY judge"
            )
        )

    def spent(self) -> Spent:
        """Return the cost of all calls ever made. `unknown` includes the most that crashed runs may have spent on calls
        in flight."""
        (row,) = self._rows("SELECT known, unknown, unpriced FROM spent")
        return Spent(*row)

    def prompt_counts(self) -> PromptCounts:
        """Count the rows read by result (selected, or the reason why left out), and the selected prompts by outcome.
        Prompts without an outcome yet are `pending`."""
        intake = dict(self._rows("SELECT reason, sum(rows)::BIGINT FROM intake GROUP BY reason ORDER BY reason"))
        side_counts = [intake.pop(name, 0) for name in SIDE_COUNTS]
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
        return PromptCounts(intake, outcomes, pairs, *side_counts, *unrated[0])

    def replies_digest(self) -> tuple[int, int, int]:
        """Return three numbers that change when replies are added or parsed differently: the number of calls, the
        number of judgements, and a hash of all ratings. An export holds a digest made from these, which shows whether
        the export is out of date."""
        (row,) = self._rows(
            "SELECT (SELECT count(*) FROM calls), count(*), coalesce(bit_xor(hash(key, ratings)), 0) FROM judgements"
        )
        return row[0], row[1], row[2]

    def pair_policy(self) -> "PairPolicy | None":
        """Return the policy that the stored pairs were made with; None before pairs are made."""
        policy = self.get_mark("pairs")
        if not policy:
            return None
        from aif.pairing.pairs import PairPolicy

        return PairPolicy(**orjson.loads(policy))

    def disputed_pairs(self) -> int:
        """Return the number of pairs whose rejected completion some judge scores above the chosen one."""
        return int(self._rows("SELECT count(DISTINCT (prompt_id, n)) FROM dissent")[0][0])

    def standings(self) -> list[dict[str, Any]]:
        """Return the rows of view `standings`: the completions, mean score and pairs of each model, best model
        first."""
        return self._query("FROM standings")

    def leaderboard(self) -> list[dict[str, Any]]:
        """Return the rows of view `leaderboard`: the standings with the mean rating by aspect. It reads every rating:
        2 s of CPU for 64,000 prompts."""
        return self._query("FROM leaderboard")

    def score_agreement(self) -> list[dict[str, Any]]:
        """Return the rows of view `score_agreement`: for every two judges, how far their scores agree."""
        return self._query("FROM score_agreement")

    def spend(self) -> list[dict[str, Any]]:
        """Return the rows of view `spend`: calls, tokens and USD by model and judge."""
        return self._query("FROM spend")

    def source_counts(self) -> list[tuple[str, int, int]]:
        """Return (source, selected prompts, pairs) for each source, most prompts first."""
        return self._rows(
            "SELECT e.source, count(DISTINCT e.prompt_id) AS prompts, count(p.prompt_id) FROM selection e "
            "LEFT JOIN preferences p ON e.prompt_id = p.prompt_id GROUP BY e.source ORDER BY prompts DESC, e.source"
        )

    def call_period(self) -> tuple[datetime, datetime] | None:
        """Return when the first and the last call started; None before any call."""
        ((first, last),) = self._rows("SELECT epoch(min(started)), epoch(max(started)) FROM calls")
        return None if first is None else (datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last, UTC))

    def call_count(self) -> int:
        """Return the number of calls made."""
        return int(self._rows("SELECT count(*) FROM calls")[0][0])

    def rating_digests(self) -> dict[str, str]:
        """Return a digest of each judgement's ratings, by the judgement's key."""
        return dict(self._rows("SELECT key, sha256(to_json(ratings)::VARCHAR) FROM judgements"))

    def unrated_judgements(self, limit: int) -> list[UnratedJudgements]:
        """Return, for each judge and reason, the number of judgements without ratings in the first `limit` selected
        prompts. Judgements whose completions are pending are left out."""
        rows = self._rows(
            "SELECT endpoint, coalesce(kind, 'not sent yet') AS kind, count(*) AS items, coalesce(min(message), '') "
            "AS example FROM items WHERE stage = 'judgement' AND state <> 'answered' AND NOT waits AND position < ? "
            "GROUP BY ALL ORDER BY ALL",
            [limit],
        )
        return [UnratedJudgements(*row) for row in rows]

    def journal_position(self) -> Position:
        """Return the position in the journal up to which the journal's records are in the store."""
        return Position(*self._rows('SELECT segment, "offset" FROM about')[0])
