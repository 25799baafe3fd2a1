"""What is reported of a store: how items stand, what became of prompts, who wrote what, what it cost."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from aif.core.types import FailureGroup, Spent
from aif.providers.base import UNKNOWN_FINISH
from aif.store.connection import within
from aif.store.journal import Position
from aif.store.query import Queries
from aif.store.run_queries import OUTDATED

if TYPE_CHECKING:  # it loads numpy, 0.2 s of CPU, which `aif status` can do without
    from aif.pairing.pairs import PairPolicy

BESIDE = ("empty_completion", "rescored", "alike")  # what intake counts that is no row left out


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
    missing: tuple[FailureGroup, ...]

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


@dataclass(frozen=True, slots=True)
class Unrated:
    """Judgements of one judge that have no ratings for the same reason: `kind` of failure or `not asked`, how many, and
    an example's message."""

    endpoint: str
    kind: str
    items: int
    example: str


class ReportQueries(Queries):
    """What is reported."""

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

    def failures(self) -> list[FailureGroup]:
        """What has failed for good, by kind, most first. (Where nothing has, to look for it among 1,000,000 items would
        take a second.)"""
        had = self._rows("SELECT 1 FROM failed WHERE verdict = 'failed' LIMIT 1")
        return self._missing("verdict = 'failed'") if had else []

    def _missing(self, which: str) -> list[FailureGroup]:
        rows = self._rows(
            "SELECT stage, endpoint, coalesce(kind, ''), verdict, items, coalesce(example, ''), prompt_id "
            f"FROM failures WHERE {which} ORDER BY kind IS NULL, items DESC, endpoint, kind, verdict"
        )
        return [FailureGroup(*row) for row in rows]

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
            f"JOIN judgements o ON {OUTDATED} LEFT JOIN calls k ON o.call_id = k.id "
            "WHERE d.state IN ('pending', 'later') "
            "GROUP BY d.judge, d.identity, d.pass, d.spec, d.material, d.answers) "
            "SELECT judge, count(*), (sum(coalesce(sent, 0)) + sum((SELECT sum(bytes) FROM completions "
            "WHERE key IN (SELECT unnest(answers)))))::BIGINT FROM again GROUP BY judge ORDER BY judge"
        )

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

    def disputed(self) -> int:
        """Pairs of which some judge rates the rejected completion above the chosen one."""
        return int(self._rows("SELECT count(DISTINCT (prompt_id, n)) FROM dissent")[0][0])

    def standings(self) -> list[dict[str, Any]]:
        """The rows of view `standings`: who wrote what, best first, without means by aspect."""
        return self._query("FROM standings")

    def leaderboard(self) -> list[dict[str, Any]]:
        """The rows of view `leaderboard`. It reads every rating: 2 s of CPU for 64,000 prompts."""
        return self._query("FROM leaderboard")

    def score_agreement(self) -> list[dict[str, Any]]:
        """The rows of view `score_agreement`: how far each two judges agree."""
        return self._query("FROM score_agreement")

    def spend(self) -> list[dict[str, Any]]:
        """The rows of view `spend`: calls, tokens and USD by model and judge."""
        return self._query("FROM spend")

    def sources(self) -> list[tuple[str, int, int]]:
        """Each source with how many of its prompts are selected and how many pairs were made of them, most first."""
        return self._rows(
            "SELECT e.source, count(DISTINCT e.prompt_id) AS prompts, count(p.prompt_id) FROM selection e "
            "LEFT JOIN preferences p ON e.prompt_id = p.prompt_id GROUP BY e.source ORDER BY prompts DESC, e.source"
        )

    def call_period(self) -> tuple[datetime, datetime] | None:
        """When the first and the last call were started; None before the first."""
        ((first, last),) = self._rows("SELECT epoch(min(started)), epoch(max(started)) FROM calls")
        return None if first is None else (datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last, UTC))

    def calls(self) -> int:
        """The number of calls made."""
        return int(self._rows("SELECT count(*) FROM calls")[0][0])

    def rating_digests(self) -> dict[str, str]:
        """A digest of each judgement's ratings, by the judgement's key."""
        return dict(self._rows("SELECT key, sha256(to_json(ratings)::VARCHAR) FROM judgements"))

    def unrated(self, limit: int) -> list[Unrated]:
        """Judgements without ratings that could be asked for, of the prompts before position `limit`."""
        rows = self._rows(
            "SELECT endpoint, coalesce(kind, 'not asked') AS kind, count(*) AS items, coalesce(min(message), '') "
            "AS example FROM items WHERE stage = 'judgement' AND state <> 'answered' AND NOT waits AND position < ? "
            "GROUP BY ALL ORDER BY ALL",
            [limit],
        )
        return [Unrated(*row) for row in rows]

    def journal_position(self) -> Position:
        """How far into its journal the store has come."""
        return Position(*self._rows('SELECT segment, "offset" FROM about')[0])
