"""What the store holds of one prompt."""

from dataclasses import dataclass
from typing import Any

import orjson

from aif.core.errors import BadInput
from aif.core.types import Prompt, as_messages
from aif.store.query import Queries


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """A prompt with its material; `meta` is the JSON text of its row's other columns, `source` None where the pipeline
    no longer selects it."""

    prompt: Prompt
    meta: str
    source: str | None


@dataclass(frozen=True, slots=True)
class Dissent:
    """A judge who rates a pair's rejected completion above its chosen one, with its own scores of the two."""

    judge: str
    score_chosen: float
    score_rejected: float


@dataclass(frozen=True, slots=True)
class PairKeys:
    """A pair by the keys of its completions, with their scores and the judges who disagree. `n` counts the pairs of a
    prompt from 0."""

    n: int
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float
    dissents: tuple[Dissent, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a prompt when pairs were last made: `paired` or why not; the aspects that its scores are made of,
    and how many completions were left out for want of a rating."""

    outcome: str
    aspects: tuple[str, ...]
    unrated: int


class PromptQueries(Queries):
    """What is asked of one prompt."""

    def example(self) -> str:
        """The first digits of a paired prompt's id, or nothing."""
        rows = self._rows("SELECT left(min(prompt_id), 12) FROM outcomes WHERE outcome = 'paired'")
        return str(rows[0][0] or "")

    def find(self, prefix: str) -> str:
        """The id of the one prompt whose id begins so."""
        rows = self._rows("SELECT prompt_id FROM prompts WHERE starts_with(prompt_id, ?) LIMIT 3", [prefix])
        if not rows:
            raise BadInput(f"no prompt {prefix!r} in the store; `prompt_id` of an exported row is what is looked for")
        if len(rows) > 1:
            raise BadInput(f"several prompts begin with {prefix!r}; give more of the id")
        return str(rows[0][0])

    def prompt(self, prompt_id: str) -> StoredPrompt:
        """The prompt with this whole id."""
        ((messages, meta, material, source),) = self._rows(
            "SELECT p.messages, p.meta, p.material, e.source FROM prompts p "
            "LEFT JOIN selection e ON p.prompt_id = e.prompt_id WHERE p.prompt_id = ?",
            [prompt_id],
        )
        slots = orjson.loads(material) if material else {}
        return StoredPrompt(Prompt(prompt_id, as_messages(messages), source or "", material=slots), meta, source)

    def outcome(self, prompt_id: str) -> Outcome | None:
        """What became of the prompt; None where no pairs were made since it was selected."""
        rows = self._rows("SELECT outcome, aspects, unrated FROM outcomes WHERE prompt_id = ?", [prompt_id])
        return Outcome(rows[0][0], tuple(rows[0][1] or ()), rows[0][2] or 0) if rows else None

    def pairs_of(self, prompt_id: str) -> list[PairKeys]:
        """The prompt's pairs in order."""
        dissents: dict[int, list[Dissent]] = {}
        query = "SELECT n, judge, score_chosen, score_rejected FROM dissent WHERE prompt_id = ?"
        for n, *scores in self._rows(query, [prompt_id]):
            dissents.setdefault(n, []).append(Dissent(*scores))
        rows = self._rows(
            "SELECT n, chosen, rejected, score_chosen, score_rejected FROM preferences WHERE prompt_id = ? ORDER BY n",
            [prompt_id],
        )
        return [
            PairKeys(n, chosen, rejected, high, low, tuple(dissents.get(n, ())))
            for n, chosen, rejected, high, low in rows
        ]

    def authors(self, prompt_id: str) -> dict[str, str]:
        """The models that write the prompt's planned completions, by the completion's key."""
        return dict(self._rows("SELECT key, model FROM slots WHERE prompt_id = ?", [prompt_id]))

    def completion_texts(self, prompt_id: str) -> dict[str, str]:
        """The texts of the prompt's completions by key, of former plans too."""
        return dict(self._rows("SELECT key, text FROM completions WHERE prompt_id = ?", [prompt_id]))

    def planned_texts(self, prompt_id: str) -> dict[str, str]:
        """The texts of the completions that the present plan wants of the prompt, by key."""
        query = "SELECT c.key, c.text FROM slots s JOIN completions c ON s.key = c.key WHERE s.prompt_id = ?"
        return dict(self._rows(query, [prompt_id]))

    def score_sources(self, prompt_id: str) -> dict[str, str]:
        """Whose scale the score is on that came with a completion, by the completion's key, where that is known."""
        return dict(
            self._rows("SELECT key, source FROM carried WHERE prompt_id = ? AND source IS NOT NULL", [prompt_id])
        )

    def slots_with_calls(self, prompt_id: str) -> list[dict[str, Any]]:
        """The prompt's slots, with the columns of view `slot_states`, of the completion (text, reasoning, finish,
        system), its scores (score, spread, by_judge) and the call that it came of (sent, served, seconds, n, tokens,
        usd); `raw` is what was received and could not be used."""
        return self._query(_SLOTS, [prompt_id])

    def judgements_with_calls(self, prompt_id: str) -> list[dict[str, Any]]:
        """The prompt's judgements that the pipeline wants, with the columns of table `judgements`, of their calls, and
        as JSON the files of their rubrics (`files`) and the material that was shown (`shown_material`)."""
        return self._query(_JUDGEMENTS, [prompt_id])

    def failed_judgements(self, prompt_id: str) -> list[dict[str, Any]]:
        """The prompt's judgements that have no ratings, with the columns of table `failed` and the judge's name."""
        query = "SELECT f.*, d.judge FROM failed f JOIN needed d ON d.failure = f.key WHERE d.prompt_id = ?"
        return self._query(query, [prompt_id])


_SLOTS = """
SELECT s.*, f.raw, c.text, c.reasoning, c.finish, c.system, x.score, x.spread,
       (SELECT string_agg(format('{} {:.3f}', y.judge, y.score), ', ' ORDER BY y.judge)
        FROM judge_scores y WHERE y.completion = s.key) AS by_judge,
       k.sent, k.served, k.seconds, k.n, k.input_tokens, k.output_tokens, k.usd
FROM slot_states s LEFT JOIN completions c ON s.key = c.key LEFT JOIN failed f ON s.key = f.key
LEFT JOIN calls k ON c.call_id = k.id LEFT JOIN scores x ON s.key = x.completion
WHERE s.prompt_id = ? ORDER BY s.slot
"""

_JUDGEMENTS = """
SELECT j.* REPLACE (d.judge AS judge), k.sent, k.served, k.seconds, k.n, k.input_tokens, k.output_tokens, k.usd,
       t.content AS files, m.content AS shown_material
FROM needed d JOIN judgements j ON d.judgement = j.key LEFT JOIN calls k ON j.call_id = k.id
LEFT JOIN texts t ON j.rubric = t.digest LEFT JOIN texts m ON j.material = m.digest
WHERE d.prompt_id = ?
ORDER BY d.judge, j.pass, j.request, j.key
"""
