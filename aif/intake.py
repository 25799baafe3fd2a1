"""Before the first call: prompts into the store, the plan over them, and what the rubric will ask."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TypeVar

from aif import events, sources, yamltext
from aif.config import Pipeline
from aif.errors import BadInput
from aif.events import Record
from aif.ledger import Ledger
from aif.plan import PoolModel, Principles, plan_digest, slots
from aif.queries import Reader
from aif.records import Prompt, Slot, digest
from aif.resources import find
from aif.rubric import Rubric, load, spec_digest
from aif.sources import Skipped
from aif.store import Spec

PAGE = 500
TOLD = 5  # rows that can't be used are named, up to so many

T = TypeVar("T")


def rubric_of(pipeline: Pipeline) -> Rubric:
    """The pipeline's rubric, which must give the score that pairs are made by."""
    rubric = load(find(pipeline.rubric, pipeline.beside, "prompts/rubrics", "rubric"))
    if pipeline.pairs.score not in rubric.scores():
        raise BadInput(
            f"{pipeline.path}: pairs.score: rubric {rubric.sheet.name} gives no {pipeline.pairs.score!r} score; "
            f"it gives {' and '.join(rubric.scores()) or 'none'}"
        )
    return rubric


def principles_of(pipeline: Pipeline) -> Principles | None:
    if pipeline.principles is None:
        return None
    path = find(
        f"{pipeline.principles.removesuffix('.yaml')}.yaml", pipeline.beside, "prompts/principles", "principles"
    )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't be read as UTF-8 text: {error}") from error
    return Principles.of(yamltext.read(text, lambda line: f"{path}:{line}").data, str(path))


def pool_of(pipeline: Pipeline) -> list[PoolModel]:
    return [
        PoolModel(name, model.identity, pipeline.sampling(model), model.samples, model.system)
        for name, model in pipeline.models.items()
    ]


def specs_of(pipeline: Pipeline, rubric: Rubric) -> list[Spec]:
    """What the rubric asks of each judge, for every number of completions a prompt may come to have."""
    least, most = pipeline.completions.min_completions, pipeline.completions.per_prompt
    found = []
    for judge in pipeline.judges.values():
        settings = asdict(judge.sampling)
        for name, ask in rubric.sheet.requests.items():
            listwise = ask.mode == "listwise"
            for n in range(least, most + 1) if listwise else (1,):
                spec = spec_digest(rubric, name, n, judge.reply, settings)
                found.append(Spec(judge.name, judge.identity, 0, name, listwise, n, least, spec))
    return found


def prepare(
    pipeline: Pipeline, ledger: Ledger, rubric: Rubric, tell: Callable[[str], None], reread: bool = True
) -> None:
    """Brings store and journal to what the pipeline file and its sources say now. Calls no model.

    Without `reread` the prompts are those the journal has, wherever their sources are now.
    """
    principles = principles_of(pipeline)
    fingerprint = _read_sources(pipeline, ledger, tell, reread)
    _keep_texts(ledger, rubric, principles)
    mark = digest(
        [fingerprint, plan_digest(pool_of(pipeline), pipeline.completions.per_prompt, principles, pipeline.seed)]
    )
    if ledger.store.marked("plan") != mark:
        with Reader.of(ledger.store) as reader:
            ledger.store.replan(_planned(pipeline, principles, reader), mark)
    ledger.store.judged_by(specs_of(pipeline, rubric))


def _keep_texts(ledger: Ledger, rubric: Rubric, principles: Principles | None) -> None:
    with Reader.of(ledger.store) as reader:
        known = reader.texts("principle").keys() | reader.texts("rubric").keys()
    texts = {digest(text): text for pool in principles.pools.values() for text in pool} if principles else {}
    new = [events.text(name, "principle", text) for name, text in texts.items() if name not in known]
    if rubric.digest not in known:
        new.append(events.text(rubric.digest, "rubric", dict(rubric.files)))
    if new:
        ledger.keep(new)


def _planned(
    pipeline: Pipeline, principles: Principles | None, reader: Reader
) -> Iterator[Sequence[tuple[int, Slot, str | None]]]:
    pool, per_prompt = pool_of(pipeline), pipeline.completions.per_prompt
    texts = {text: digest(text) for texts in principles.pools.values() for text in texts} if principles else {}
    for batch in reader.selection():
        yield [
            (position, slot, texts[slot.principle.text] if slot.principle else None)
            for position, prompt in batch
            for slot in slots(prompt, pool, per_prompt, principles, pipeline.seed)
        ]


def _read_sources(pipeline: Pipeline, ledger: Ledger, tell: Callable[[str], None], reread: bool) -> str:
    """Reads the sources where they have changed since they were last read whole. Returns their fingerprint.

    Sources that can't be reached now, but were read whole as declared, are as they were: the journal has their prompts.
    """
    marked = ledger.store.marked("sources")
    if marked and not reread:
        return marked
    declared = digest([entry.model_dump(mode="json") for entry in pipeline.prompts])
    try:
        found = [sources.fingerprint(entry, beside=pipeline.beside) for entry in pipeline.prompts]
    except BadInput as error:
        if marked is None or not marked.startswith(declared):
            raise
        tell(f"{error}; going on with the prompts that were read before")
        return marked
    fingerprint = f"{declared}:{digest(found)}"
    if marked == fingerprint:
        return fingerprint
    tell("reading prompts")
    counts: Counter[tuple[str, str]] = Counter()
    for records in _pages(_rows(pipeline), counts, ledger, tell):
        ledger.keep(records)
    if not counts:
        raise BadInput(f"{pipeline.path}: prompts: the sources hold no rows")
    ledger.keep([events.selected(fingerprint, counts)])
    return fingerprint


def _rows(pipeline: Pipeline) -> Iterator[tuple[str, Prompt | Skipped]]:
    for entry in pipeline.prompts:
        for found in sources.read(entry, beside=pipeline.beside):
            yield entry.source, found


def _pages(
    rows: Iterable[tuple[str, Prompt | Skipped]],
    counts: Counter[tuple[str, str]],
    ledger: Ledger,
    tell: Callable[[str], None],
) -> Iterator[list[Record]]:
    """Journal records, a page of prompts at a time. A prompt met again counts as a duplicate of its first source."""
    start = told = 0
    for chunk in _chunks(rows, PAGE):
        prompts = [(name, found) for name, found in chunk if isinstance(found, Prompt)]
        left_out = [(name, found) for name, found in chunk if isinstance(found, Skipped)]
        counts.update((name, found.reason) for name, found in left_out)
        told += _tell_bad_rows([found for _, found in left_out if found.reason == "bad_row"], tell, TOLD - told)
        with Reader.of(ledger.store) as reader:
            stored, taken = reader.known([prompt.prompt_id for _, prompt in prompts])
        if start == 0:
            taken = set()  # what an interrupted reading left behind
        fresh: list[Prompt] = []
        for name, prompt in prompts:
            duplicate = prompt.prompt_id in taken
            counts[name, "duplicate" if duplicate else "selected"] += 1
            if not duplicate:
                taken.add(prompt.prompt_id)
                fresh.append(prompt)
        page = events.page(start, [(prompt.prompt_id, prompt.source) for prompt in fresh])
        yield [*(events.prompt(prompt) for prompt in fresh if prompt.prompt_id not in stored), page]
        start += len(fresh) or 1


def _tell_bad_rows(rows: Sequence[Skipped], tell: Callable[[str], None], most: int) -> int:
    """Names the first rows that can't be used; all are counted. Returns how many were named."""
    for row in rows[:most]:
        tell(f"{row.where}: left out: {row.detail}")
    return min(len(rows), most)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
