"""Read the prompts of a pipeline's sources into the journal, where the sources have changed."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from aif.config.pipeline import Pipeline
from aif.core.batching import batched, utf8_size
from aif.core.errors import BadInput
from aif.core.types import Prompt, ProvidedCompletion, digest, normalized
from aif.planning.plan import provided_key
from aif.sources.load import read_prompts, source_fingerprint
from aif.sources.prompt_rows import Skipped
from aif.store import records
from aif.store.reader import Reader
from aif.store.records import Record

if TYPE_CHECKING:  # callers that only read a store need no journaled store
    from aif.store.journaled_store import JournaledStore

PAGE = 2000  # rows, at most
MAX_CARRIED = 65_535  # completions that come with one prompt: the store numbers them in 16 bits
MAX_REPORTED = 5  # rows of each kind of problem that are printed


def update_prompts(pipeline: Pipeline, journaled: "JournaledStore", tell: Callable[[str], None], reread: bool) -> str:
    """Read the sources if they changed since they were last read to the end. Return a fingerprint of what was read: it
    changes with the sources' settings and content.

    Without `reread`, sources that were read to the end before are not checked for changes. In two cases the sources are
    read again in any case:

    - Damaged lines of the journal may have been prompts.
    - The sources have scores that must not be compared with each other, and for some stored scores the source is
      unknown.

    If a source can't be reached, the prompts in the journal are used. Raises BadInput in these cases:

    - A source can't be reached, and the sources were never read to the end.
    - A source can't be reached, `reread` is set, and the sources' settings have changed.
    - No row can be used.
    - One prompt has more than MAX_CARRIED completions.
    - Two different prompts have the same id.
    """
    with Reader.of(journaled.store) as reader:
        lost = journaled.store.damaged_lines or has_unsourced_scores(pipeline, reader)
    previous = journaled.store.get_mark("sources")
    if previous and not reread and not lost:
        return previous
    # which rows are left out depends on whether there are models
    declared = digest([bool(pipeline.models), *(source.model_dump(mode="json") for source in pipeline.prompts)])
    try:
        fingerprints = [source_fingerprint(source, base=pipeline.folder) for source in pipeline.prompts]
    except BadInput as error:
        if previous is None or (reread and not previous.startswith(declared)):
            raise
        tell(f"{error}; using the prompts that were read before")
        return previous
    fingerprint = f"{declared}:{digest(fingerprints)}"
    if previous == fingerprint and not lost:
        return fingerprint
    tell("reading prompts")
    counts: Counter[tuple[str, str]] = Counter()
    try:
        for page in _pages(_rows(pipeline), counts, journaled, tell, bool(pipeline.models)):
            journaled.keep(page)
    except _Collision as collision:
        last, prompts = collision.prompt, (row for _, row in _rows(pipeline) if isinstance(row, Prompt))
        same_id = (prompt for prompt in prompts if prompt.prompt_id == last.prompt_id)
        first = next(prompt.where for prompt in same_id if len(prompt.messages) != len(last.messages))
        raise BadInput(
            f"{last.where}: this row and {first} have the same id {last.prompt_id}, because the text of one is the "
            "other's turns as JSON; remove one of them"
        ) from collision
    if not counts:
        raise BadInput(f"{pipeline.path}: prompts: the sources hold no rows")
    reasons: Counter[str] = Counter()
    for (_, reason), n in counts.items():
        reasons[reason] += n
    if not reasons["selected"]:
        why = ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in sorted(reasons.items()) if n)
        raise BadInput(
            f"{pipeline.path}: prompts: every row was left out ({why}); correct the rows, or field: of the sources"
        )
    journaled.keep([records.selected(fingerprint, counts)])
    journaled.clear_damage()
    return fingerprint


def has_unsourced_scores(pipeline: Pipeline, reader: Reader) -> bool:
    """Return whether the sources' scores are on several scales, and for some stored scores the scale is not stored.

    A *scale* is the scores that may be compared with each other: those of one source, or of sources with the same name.
    """
    return len(pipeline.score_scales) > 1 and reader.any_score_without_source()


class _Collision(Exception):
    """Two different prompts have the same id. This happens if the text of a one-turn prompt is the JSON of the other
    prompt's turns, since the id is a digest of the text or of that JSON."""

    def __init__(self, prompt: Prompt) -> None:
        super().__init__(prompt.prompt_id)
        self.prompt = prompt


def _rows(pipeline: Pipeline) -> Iterator[tuple[str, Prompt | Skipped]]:
    for source in pipeline.prompts:
        for row in read_prompts(source, base=pipeline.folder):
            yield source.source, row


def _pages(
    rows: Iterable[tuple[str, Prompt | Skipped]],
    counts: Counter[tuple[str, str]],
    journaled: "JournaledStore",
    tell: Callable[[str], None],
    has_models: bool,
) -> Iterator[list[Record]]:
    """Yield the journal records of at most PAGE rows at a time, and count these rows by (source, reason) in `counts`.
    The reason is "selected", or why the row adds no prompt.

    A row whose prompt was read before, from this or another source, counts as "duplicate". If it has new completions,
    it counts as "gathered" instead, and they are added to that prompt. If the pipeline has no models (`has_models` is
    false), prompts without completions are left out.
    """
    start = reported = alike = rescored = 0
    seen: dict[int, str] = {}
    for chunk in batched(rows, _size, PAGE):
        prompts = [(source, row) for source, row in chunk if isinstance(row, Prompt)]
        skipped = [(source, row) for source, row in chunk if isinstance(row, Skipped)]
        counts.update((source, row.reason) for source, row in skipped)
        bad = [row for _, row in skipped if row.reason == "bad_row"][: MAX_REPORTED - reported]
        for row in bad:
            tell(f"{row.where}: left out: {row.detail}")
        reported += len(bad)
        counts.update((source, "no_completions") for source, prompt in prompts if not (has_models or prompt.provided))
        page = _Page.of(
            [(source, prompt) for source, prompt in prompts if has_models or prompt.provided],
            journaled,
            first=start == 0,
        )
        for source, prompt in page.selected:
            first = seen.setdefault(_normalized(prompt), prompt.where)
            if first != prompt.where:
                page.counts[source, "alike"] += 1
                alike += 1
                if alike <= MAX_REPORTED:
                    tell(f"{prompt.where}: kept, though an earlier prompt differs only in {_FORM}: {first}")
        for message in page.rescored[: max(0, MAX_REPORTED - rescored)]:
            tell(message)
        rescored += len(page.rescored)
        counts.update(page.counts)
        yield page.records(start)
        start += len(page.selected) or 1
    if alike > MAX_REPORTED:
        tell(f"{alike:,} prompts in all differ from an earlier prompt only in {_FORM}")


_FORM = "whitespace at its ends or the Unicode form of its characters"


def _normalized(prompt: Prompt) -> int:
    """Return a hash of a prompt's turns that is the same for prompts that differ only in Unicode form, or in whitespace
    at the ends of texts."""
    return hash(tuple((turn.role, normalized(turn.content)) for turn in prompt.messages))


@dataclass(frozen=True, slots=True)
class _Page:
    """What a batch of rows adds to the store and to the selection (the prompts that the pipeline uses now).

    selected: prompts to add to the selection, as (source, prompt).
    prompts: the selected prompts to write to the store, because they are new or their meta or material has changed.
    carried: completions that came with prompts, to add to the selection, as (prompt id, completion key, score, name of
        the score's scale).
    completions: the completions to write to the store, because they are new, as (completion key, prompt id,
        completion).
    rescored: a message for each completion that an earlier row had with another score.
    counts: number of rows by (source, reason). The reason is "selected", or why the row adds no prompt.
    """

    selected: list[tuple[str, Prompt]]
    prompts: list[Prompt]
    carried: list[tuple[str, str, float | None, str | None]]
    completions: list[tuple[str, str, ProvidedCompletion]]
    rescored: list[str]
    counts: Counter[tuple[str, str]]

    @classmethod
    def of(cls, rows: Sequence[tuple[str, Prompt]], journaled: "JournaledStore", first: bool) -> "_Page":
        keys = [[provided_key(prompt.prompt_id, c) for c in _row_completions(prompt)] for _, prompt in rows]
        ids, all_keys = [prompt.prompt_id for _, prompt in rows], [key for row in keys for key in row]
        with Reader.of(journaled.store) as reader:
            stored, stored_keys = reader.known_prompts(ids), reader.stored_completions(all_keys)
            # the first page ignores what an interrupted reading left
            taken, gathered = (set(), {}) if first else reader.already_gathered(ids, all_keys)
            sizes = Counter[str]({} if first or not all_keys else reader.provided_counts(ids))
        page = cls([], [], [], [], [], Counter())
        turns = {prompt_id: stored[prompt_id][2] for prompt_id in taken}
        for (source, prompt), row_keys in zip(rows, keys, strict=True):
            new = page._new(source, prompt, row_keys, gathered)
            seen = prompt.prompt_id in taken
            if turns.setdefault(prompt.prompt_id, len(prompt.messages)) != len(prompt.messages):
                raise _Collision(prompt)
            page.counts[source, ("gathered" if new else "duplicate") if seen else "selected"] += 1
            if not seen:
                page.selected.append((source, prompt))
                if stored.get(prompt.prompt_id) != _stored_form(prompt):
                    page.prompts.append(prompt)
            sizes[prompt.prompt_id] += len(new)
            if sizes[prompt.prompt_id] > MAX_CARRIED:
                raise BadInput(
                    f"{prompt.where}: with this row {sizes[prompt.prompt_id]:,} completions belong to one prompt "
                    f"({prompt.messages[-1].content[:60]!r}), more than {MAX_CARRIED:,}; correct field: in the "
                    "pipeline file, which names the column of the prompt: rows of one prompt are gathered"
                )
            page.carried.extend((prompt.prompt_id, key, c.score, c.scale) for key, c in new)
            page.completions.extend((key, prompt.prompt_id, c) for key, c in new if key not in stored_keys)
            taken.add(prompt.prompt_id)
        return page

    def _new(
        self, source: str, prompt: Prompt, keys: Sequence[str], gathered: dict[str, tuple[float | None, str | None]]
    ) -> list[tuple[str, ProvidedCompletion]]:
        """Return (key, completion) for each completion of the row that no earlier row had.

        source: name of the row's source.
        keys: the keys of all completions of the row.
        gathered: by key, the (score, name of the scale) of the completions of earlier rows. The new ones are added.

        If an earlier row had the same completion with another score, a message is added to the page's `rescored`, and
        the earlier score is used.
        """
        new = []
        for key, completion in zip(keys, _row_completions(prompt), strict=True):
            if key not in gathered:
                new.append((key, completion))
            elif completion.score is not None and gathered[key] != (completion.score, completion.scale):
                self.counts[source, "rescored"] += 1
                score, scale = gathered[key]
                first = "no score" if score is None else f"score {score:g} ({scale})"
                self.rescored.append(
                    f"{prompt.where}: a completion of {completion.model} has score {completion.score:g} here; it had "
                    f"{first} before, and keeps that"
                )
            gathered.setdefault(key, (completion.score, completion.scale))
        return new

    def records(self, start: int) -> list[Record]:
        """Return the journal records of the page. `start` is the position of its first prompt in the selection."""
        rows = [(prompt.prompt_id, prompt.source) for _, prompt in self.selected]
        return [
            *(records.prompt(prompt) for prompt in self.prompts),
            *(records.carried(*completion) for completion in self.completions),
            records.page(start, rows, self.carried),
        ]


def _row_completions(prompt: Prompt) -> tuple[ProvidedCompletion, ...]:
    return (*prompt.provided, *prompt.rescored)


def _stored_form(prompt: Prompt) -> tuple[str, str | None, int]:
    """Return (meta, material, number of turns) of a prompt in the form in which the store holds them, so that they can
    be compared. Meta and material are JSON."""
    material = orjson.dumps(dict(prompt.material)).decode() if prompt.material else None
    return orjson.dumps(dict(prompt.meta)).decode(), material, len(prompt.messages)


def _size(row: tuple[str, Prompt | Skipped]) -> int:
    prompt = row[1]
    if isinstance(prompt, Skipped):
        return 0
    meta = len(orjson.dumps(dict(prompt.meta)))
    texts = (*(turn.content for turn in prompt.messages), *prompt.material.values())
    return meta + utf8_size(*texts, *(completion.text for completion in prompt.provided))
