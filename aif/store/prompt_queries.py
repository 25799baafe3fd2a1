"""Queries about one prompt: its completions, judgements and pairs."""

from dataclasses import dataclass
from typing import Any

import orjson

from aif.core.errors import BadInput
from aif.core.types import Prompt, as_messages
from aif.store.query import Queries


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """A prompt with its material (texts shown to judges beside the conversation).

    meta: the unused columns of its source row, as JSON text.
    source: the name of its source; None if the pipeline no longer selects the prompt.
    """

    prompt: Prompt
    meta: str
    source: str | None


@dataclass(frozen=True, slots=True)
class Dissent:
    """A judge that scores the rejected completion of a pair above the chosen one. Both scores are this judge's."""

    judge: str
    score_chosen: float
    score_rejected: float


@dataclass(frozen=True, slots=True)
class PairKeys:
    """A preference pair without texts.

    n: its number within the prompt, from 0.
    chosen, rejected: the keys of its completions.
    dissents: the judges that prefer the rejected completion.
    """

    n: int
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float
    dissents: tuple[Dissent, ...]


@dataclass(frozen=True, slots=True)
class PromptOutcome:
    """The result of pairing a prompt.

    outcome: `paired`, or the reason why the prompt is not paired.
    aspects: the aspects that its completions' scores are made of.
    unrated: the number of completions left out because they have no rating.
    """

    outcome: str
    aspects: tuple[str, ...]
    unrated: int


class PromptQueries(Queries):
    """Queries about one prompt: its conversation, completions, judgements, pairs and outcome."""

    def example_prompt_id(self) -> str:
        """Return the first 12 characters of some paired prompt's id; empty if no prompt is paired."""
        rows = self._rows("SELECT left(min(prompt_id), 12) FROM outcomes WHERE outcome = 'paired'")
        return str(rows[0][0] or "")

    def find_prompt_id(self, prefix: str) -> str:
        """Return the id that starts with `prefix`. Raises BadInput if no id or several ids do."""
        rows = self._rows("SELECT prompt_id FROM prompts WHERE starts_with(prompt_id, ?) LIMIT 3", [prefix])
        if not rows:
            raise BadInput(f"no prompt starts with {prefix!r}; use the dataset's prompt_id column")
        if len(rows) > 1:
            raise BadInput(f"several prompts start with {prefix!r}; give more of the id")
        return str(rows[0][0])

    def prompt(self, prompt_id: str) -> StoredPrompt:
        """Return the prompt with this id, which must exist."""
        ((messages, meta, material, source),) = self._rows(
            "SELECT p.messages, p.meta, p.material, e.source FROM prompts p "
            "LEFT JOIN selection e ON p.prompt_id = e.prompt_id WHERE p.prompt_id = ?",
            [prompt_id],
        )
        slots = orjson.loads(material) if material else {}
        return StoredPrompt(Prompt(prompt_id, as_messages(messages), source or "", material=slots), meta, source)

    def outcome(self, prompt_id: str) -> PromptOutcome | None:
        """Return the prompt's outcome; None if pairing has not run since the prompt was selected."""
        rows = self._rows("SELECT outcome, aspects, unrated FROM outcomes WHERE prompt_id = ?", [prompt_id])
        return PromptOutcome(rows[0][0], tuple(rows[0][1] or ()), rows[0][2] or 0) if rows else None

    def pairs_of(self, prompt_id: str) -> list[PairKeys]:
        """Return the prompt's pairs, ordered by number."""
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

    def models_by_key(self, prompt_id: str) -> dict[str, str]:
        """Return the model of each planned completion of the prompt, by the completion's key."""
        return dict(self._rows("SELECT key, model FROM slots WHERE prompt_id = ?", [prompt_id]))

    def completion_texts(self, prompt_id: str) -> dict[str, str]:
        """Return the texts of all stored completions of the prompt, by completion key. Completions that are no longer
        planned are included."""
        return dict(self._rows("SELECT key, text FROM completions WHERE prompt_id = ?", [prompt_id]))

    def planned_texts(self, prompt_id: str) -> dict[str, str]:
        """Return the texts of the prompt's planned completions by completion key. Completions that are not stored yet
        are left out."""
        query = "SELECT c.key, c.text FROM slots s JOIN completions c ON s.key = c.key WHERE s.prompt_id = ?"
        return dict(self._rows(query, [prompt_id]))

    def score_sources(self, prompt_id: str) -> dict[str, str]:
        """Return the name of the scale, such as the source's name, of each score that came with a completion of the
        prompt. By completion key; scores whose scale is unknown are left out."""
        return dict(
            self._rows("SELECT key, source FROM carried WHERE prompt_id = ? AND source IS NOT NULL", [prompt_id])
        )

    def slots_with_calls(self, prompt_id: str) -> list[dict[str, Any]]:
        """Return a row for each planned completion of the prompt, ordered by number. A row has these columns:

        - of the plan: the columns of view `slot_states`;
        - of the completion: text, reasoning, finish, system;
        - of its scores: score, spread, and by_judge (all judges' scores as one text);
        - of its call: sent, served, seconds, input_tokens, output_tokens, usd, and n, which numbers the calls for the
          completion in a run;
        - of its last failure: raw, a received reply that could not be used.
        """
        return self._query(_SLOTS, [prompt_id])

    def judgements_with_calls(self, prompt_id: str) -> list[dict[str, Any]]:
        """Return a row for each answered judgement of the prompt that the pipeline wants, ordered by judge, pass and
        request. A row has these columns:

        - the columns of table `judgements`;
        - of its call: sent, served, seconds, input_tokens, output_tokens, usd, and n, which numbers the calls for the
          judgement in a run;
        - as JSON: files (its rubric's files) and shown_material (the texts shown beside the conversation).
        """
        return self._query(_JUDGEMENTS, [prompt_id])

    def failed_judgements(self, prompt_id: str) -> list[dict[str, Any]]:
        """Return a row for each of the prompt's unanswered judgements whose last call failed, permanently or not: the
        columns of table `failed` and the judge's name."""
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
