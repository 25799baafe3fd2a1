"""Before the first call: prompts into the store, the plan over them, and what the rubric will ask."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from aif.config import located_yaml
from aif.config.pipeline import Pipeline
from aif.core.errors import BadInput
from aif.core.paging import pages, utf8
from aif.core.reasoning import known
from aif.core.resources import find, shipped
from aif.core.types import CARRIED, Prompt, Provided, Slot, Spec, digest, plain
from aif.judging.request import judging_spec
from aif.judging.rubric import SCORED, Rubric, load
from aif.planning.plan import PoolModel, Principles, carried_key, carried_slots, plan_digest, slots
from aif.servers import model_identity
from aif.sources import load as sources
from aif.sources.prompt_rows import Skipped
from aif.store import records as events
from aif.store.reader import Reader
from aif.store.records import Record
from aif.store.report_queries import Tally

if TYPE_CHECKING:  # who only asks has no use for them
    from aif.store.database import Store
    from aif.store.journaled_store import JournaledStore

PAGE = 2000  # rows, at most
CARRIED_MOST = 65_535  # completions that come with one prompt: the store numbers so many
TOLD = 5  # rows that can't be used are named, up to so many


def rubric_of(pipeline: Pipeline) -> Rubric:
    """The pipeline's rubric, which must give the score that pairs are made by."""
    if pipeline.scored:
        return SCORED
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
    # a name is a shipped one first: a file beside the pipeline that happens to be called so may be anything
    said, shelf = pipeline.principles, shipped("prompts", "principles")
    path = shelf / f"{said}.yaml"
    if "/" in said or said.endswith(".yaml") or not path.exists():
        path = find(f"{said.removesuffix('.yaml')}.yaml", pipeline.beside, "prompts/principles", "principles")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't be read as UTF-8 text: {error}") from error
    return Principles.of(located_yaml.read(text, lambda line: f"{path}:{line}").data, str(path))


def pool_of(pipeline: Pipeline) -> list[PoolModel]:
    return [
        PoolModel(name, model.declared, pipeline.sampling(model), model.samples, model.system, model.other)
        for name, model in pipeline.models.items()
    ]


def specs_of(pipeline: Pipeline, rubric: Rubric, carried: Iterable[int]) -> list[Spec]:
    """What the rubric asks of each judge, for every number of completions a prompt may come to have; `carried` are the
    numbers that come with prompts."""
    least, most = pipeline.completions.min_completions, pipeline.completions.per_prompt
    sizes = sorted({*(n for n in carried if n >= least), *(range(least, most + 1) if pipeline.models else ())})
    if pipeline.scored:
        return [Spec(CARRIED, CARRIED, 0, CARRIED, True, n, least, CARRIED) for n in sizes]
    found = []
    for judge in pipeline.judges.values():
        for name, ask in rubric.sheet.requests.items():
            listwise = ask.mode == "listwise"
            instead = judging_spec(rubric, name, 1, judge) if listwise and judge.on_overflow == "single" else None
            for n in sizes if listwise else (1,):
                spec = judging_spec(rubric, name, n, judge)
                found.append(Spec(judge.name, judge.identity, 0, name, listwise, n, least, spec, instead))
    return found


def prepare(
    pipeline: Pipeline, ledger: "JournaledStore", rubric: Rubric, tell: Callable[[str], None], reread: bool = True
) -> list[Record]:
    """Brings store and journal to what the pipeline file and its sources say now. Calls no model.

    Without `reread` the prompts are those the journal has, wherever their sources are now, and launched models are what
    they were when they were last asked. Returns what is to be kept before anything is asked: what they are now.
    """
    principles = principles_of(pipeline)
    with Reader.of(ledger.store) as reader:
        seen = model_identity.known(pipeline, reader.texts("model").values(), tell if reread else None)
    fingerprint = _read_sources(pipeline, ledger, tell, reread)
    _keep_texts(ledger, rubric, principles)
    mark = _plan_mark(pipeline, principles, fingerprint)
    if ledger.store.get_mark("plan") != mark:
        with Reader.of(ledger.store) as reader:
            ledger.store.replace_slots(_planned(pipeline, principles, reader), mark)
    say_who_judges(pipeline, rubric, ledger.store)
    _keep_materials(pipeline, ledger, rubric, fingerprint)
    _tell_outdated(pipeline, ledger.store, tell)
    if changed := [one for one in seen if one.changes]:
        _tell_changed(changed, ledger, tell)
    return [one.record for one in seen]


def _tell_changed(seen: Sequence[model_identity.Seen], ledger: "JournaledStore", tell: Callable[[str], None]) -> None:
    """Says of models that are others now what changed, and how much is to be asked."""
    with Reader.of(ledger.store) as reader:
        tallies = reader.tallies()
    for found in seen:
        tally = tallies.get((found.stage, found.one.name), Tally(0, 0, 0, 0))
        tell(
            f"{found.one.name}: its server loads something else than what was last asked: {found.changes}. It is the "
            f"model {found.one.identity}, which has {tally.answered:,} of {tally.wanted:,} answers; those of the other "
            "are kept, and are back when it is"
        )
    asked = {
        stage: sum(tally.pending for (of, _), tally in tallies.items() if of == stage)
        for stage in ("completion", "judgement")
    }
    tell(f"to ask now, in all: {asked['completion']:,} completions, {asked['judgement']:,} judgements")


def _tell_outdated(pipeline: Pipeline, store: "Store", tell: Callable[[str], None]) -> None:
    """Says which judgements are to be asked again, since reasoning is told apart otherwise now in texts that they were
    shown, and what that costs at most: what they were sent, and a token for each byte of the texts."""
    with Reader.of(store) as reader:
        for name, judgements, sent in reader.outdated_judgements():
            judge = pipeline.judges[name]
            usd = judge.bound(sent, judgements * judge.max_tokens)
            cost = (
                "at a price that is not known"
                if usd is None
                else f"for ${usd:,.4f} at most, each asked once"
                if usd
                else "for nothing"
            )
            tell(f"{name}: {judgements:,} judgements were shown texts that are read otherwise now: asked again {cost}")


def say_who_judges(pipeline: Pipeline, rubric: Rubric, store: "Store") -> None:
    """Tells the store which requests the present rubric makes of the present judges.

    Raises BadInput where scores are to take the judges' place, and there are none.
    """
    with Reader.of(store) as reader:
        sizes = reader.provided_sizes()
        if pipeline.scored and not reader.any_provided_score():
            raise BadInput(
                f"{pipeline.path}: prompts: completions.score: no completion of any row has a score; correct the rows, "
                "or take the key out and name judges"
            )
    store.set_judging_specs(specs_of(pipeline, rubric, sizes))


def _keep_materials(pipeline: Pipeline, ledger: "JournaledStore", rubric: Rubric, fingerprint: str) -> None:
    """Keeps what the rubric shows the judge of each prompt's material, by digest, and says which prompt has which."""
    slots = {slot for source in pipeline.prompts for slot in source.material}
    if unknown := sorted(slots - rubric.sheet.material.keys()):
        known = ", ".join(rubric.sheet.material) or "none"
        raise BadInput(
            f"{pipeline.path}: prompts: material.{unknown[0]}: rubric {rubric.sheet.name} has no such slot; it has "
            f"{known}"
        )
    mark = _materials_mark(rubric, fingerprint)
    if ledger.store.get_mark("materials") == mark:
        return
    with Reader.of(ledger.store) as reader:
        for batch in reader.prompts_with_material() if slots else ():
            shown = {name: prompt for prompt in batch if (name := rubric.material_digest(prompt))}
            held = reader.stored_digests("material", list(shown))
            if new := [(name, prompt) for name, prompt in shown.items() if name not in held]:
                ledger.keep([events.text(name, "material", rubric.material_of(prompt)) for name, prompt in new])
        ledger.store.set_materials(_shown(rubric, reader) if slots else (), mark)


def _shown(rubric: Rubric, reader: Reader) -> Iterator[list[tuple[str, str]]]:
    for batch in reader.prompts_with_material():
        yield [(prompt.prompt_id, name) for prompt in batch if (name := rubric.material_digest(prompt))]


def _materials_mark(rubric: Rubric, fingerprint: str) -> str:
    return digest([fingerprint, {name: slot.model_dump() for name, slot in rubric.sheet.material.items()}])


def is_prepared(pipeline: Pipeline, rubric: Rubric, reader: Reader) -> bool:
    """Whether the store has the plan and the judging that the pipeline wants, over the prompts it has."""
    model_identity.known(pipeline, reader.texts("model").values())
    fingerprint = reader.get_mark("sources") or ""
    marks = {
        "plan": _plan_mark(pipeline, principles_of(pipeline), fingerprint),
        "materials": _materials_mark(rubric, fingerprint),
    }
    read = reader.get_mark("tags")
    return (
        known(read, pipeline.tags) == known(read, {})
        and all(reader.get_mark(name) == mark for name, mark in marks.items())
        and not unsourced(pipeline, reader)
        and reader.judging_specs() == set(specs_of(pipeline, rubric, reader.provided_sizes()))
    )


def _plan_mark(pipeline: Pipeline, principles: Principles | None, fingerprint: str) -> str:
    plan = plan_digest(pool_of(pipeline), pipeline.completions.per_prompt, principles, pipeline.seed)
    return digest([fingerprint, plan])


def _keep_texts(ledger: "JournaledStore", rubric: Rubric, principles: Principles | None) -> None:
    texts = {digest(text): text for pool in principles.pools.values() for text in pool} if principles else {}
    with Reader.of(ledger.store) as reader:
        known = reader.stored_digests("principle", list(texts)) | reader.stored_digests("rubric", [rubric.digest])
    new = [events.text(name, "principle", text) for name, text in texts.items() if name not in known]
    if rubric.files and rubric.digest not in known:
        new.append(events.text(rubric.digest, "rubric", dict(rubric.files)))
    if new:
        ledger.keep(new)


def _planned(
    pipeline: Pipeline, principles: Principles | None, reader: Reader
) -> Iterator[Sequence[tuple[int, Slot, str | None]]]:
    pool, per_prompt = pool_of(pipeline), pipeline.completions.per_prompt
    texts = {text: digest(text) for texts in principles.pools.values() for text in texts} if principles else {}
    for batch in reader.selected_prompts():
        carried = reader.provided_completions([prompt.prompt_id for _, prompt in batch])
        yield [
            (position, slot, texts[slot.principle.text] if slot.principle else None)
            for position, prompt in batch
            for slot in (
                carried_slots(prompt.prompt_id, carried[prompt.prompt_id])
                if prompt.prompt_id in carried
                else slots(prompt, pool, per_prompt, principles, pipeline.seed)
            )
        ]


def _read_sources(pipeline: Pipeline, ledger: "JournaledStore", tell: Callable[[str], None], reread: bool) -> str:
    """Reads the sources where they have changed since they were last read whole. Returns their fingerprint.

    They are read again, too, where the journal has lost a line to damage, since it may have held some of them, and
    where it doesn't tell whose scale scores are on. Sources that can't be reached now, but were read whole as declared,
    are as they were: the journal has their prompts.
    """
    with Reader.of(ledger.store) as reader:
        lost = ledger.store.damaged_lines or unsourced(pipeline, reader)
    marked = ledger.store.get_mark("sources")
    if marked and not reread and not lost:
        return marked
    # what is left out for want of a pool is another thing with one
    declared = digest([bool(pipeline.models), *(entry.model_dump(mode="json") for entry in pipeline.prompts)])
    try:
        found = [sources.fingerprint(entry, beside=pipeline.beside) for entry in pipeline.prompts]
    except BadInput as error:
        if marked is None or (reread and not marked.startswith(declared)):
            raise
        tell(f"{error}; going on with the prompts that were read before")
        return marked
    fingerprint = f"{declared}:{digest(found)}"
    if marked == fingerprint and not lost:
        return fingerprint
    tell("reading prompts")
    counts: Counter[tuple[str, str]] = Counter()
    try:
        for records in _pages(_rows(pipeline), counts, ledger, tell, bool(pipeline.models)):
            ledger.keep(records)
    except _Collision as met:
        last, prompts = met.prompt, (found for _, found in _rows(pipeline) if isinstance(found, Prompt))
        same = (one for one in prompts if one.prompt_id == last.prompt_id)
        first = next(one.where for one in same if len(one.messages) != len(last.messages))
        raise BadInput(
            f"{last.where}: one of this row and {first} is a text that is the other's turns as JSON, so both have the "
            f"id {last.prompt_id}; take one out"
        ) from met
    if not counts:
        raise BadInput(f"{pipeline.path}: prompts: the sources hold no rows")
    reasons: Counter[str] = Counter()
    for (_, reason), rows in counts.items():
        reasons[reason] += rows
    if not reasons["selected"]:
        why = ", ".join(f"{reason.replace('_', ' ')} {rows:,}" for reason, rows in sorted(reasons.items()) if rows)
        raise BadInput(
            f"{pipeline.path}: prompts: every row was left out ({why}); correct the rows, or field: of the sources"
        )
    ledger.keep([events.selected(fingerprint, counts)])
    ledger.clear_damage()
    return fingerprint


def unsourced(pipeline: Pipeline, reader: Reader) -> bool:
    """Whether scores came from several sources, and it is not known of some from which."""
    return len(pipeline.scales) > 1 and reader.any_score_without_source()


class _Collision(Exception):
    """A prompt with the id of another one. An id is of a text, or of turns as JSON, which a text may be."""

    def __init__(self, prompt: Prompt) -> None:
        super().__init__(prompt.prompt_id)
        self.prompt = prompt


def _rows(pipeline: Pipeline) -> Iterator[tuple[str, Prompt | Skipped]]:
    for entry in pipeline.prompts:
        for found in sources.read(entry, beside=pipeline.beside):
            yield entry.source, found


def _pages(
    rows: Iterable[tuple[str, Prompt | Skipped]],
    counts: Counter[tuple[str, str]],
    ledger: "JournaledStore",
    tell: Callable[[str], None],
    pool: bool,
) -> Iterator[list[Record]]:
    """Journal records, a page of rows at a time.

    A prompt met again counts as a duplicate of its first source, or as gathered if it brings further completions: they
    all come to the one prompt, from whichever file. Without a pool a prompt that brings none is left out.
    """
    start = told = alike = rescored = 0
    seen: dict[int, str] = {}
    for chunk in pages(rows, _held, PAGE):
        prompts = [(name, found) for name, found in chunk if isinstance(found, Prompt)]
        left_out = [(name, found) for name, found in chunk if isinstance(found, Skipped)]
        counts.update((name, found.reason) for name, found in left_out)
        told += _tell_bad_rows([found for _, found in left_out if found.reason == "bad_row"], tell, TOLD - told)
        bare = [name for name, prompt in prompts if not (pool or prompt.carried)]
        counts.update((name, "no_completions") for name in bare)
        page = _Page.of(
            [(name, prompt) for name, prompt in prompts if pool or prompt.carried], ledger, first=start == 0
        )
        for name, prompt in page.fresh:
            first = seen.setdefault(_bare(prompt), prompt.where)
            if first != prompt.where:
                page.counts[name, "alike"] += 1
                alike += 1
                if alike <= TOLD:
                    tell(f"{prompt.where}: kept, though an earlier prompt differs only in {_FORM}: {first}")
        for said in page.rescored[: max(0, TOLD - rescored)]:
            tell(said)
        rescored += len(page.rescored)
        counts.update(page.counts)
        yield page.records(start)
        start += len(page.fresh) or 1
    if alike > TOLD:
        tell(f"{alike:,} prompts in all differ from an earlier one only in {_FORM}")


_FORM = "blanks at its ends or the Unicode form of its characters"


def _bare(prompt: Prompt) -> int:
    """A number that prompts of one text have, however it is composed and whatever blanks it ends with."""
    return hash(tuple((turn.role, plain(turn.content)) for turn in prompt.messages))


@dataclass(frozen=True, slots=True)
class _Page:
    """What some rows add: prompts not met before, with their entry's name, prompts to be kept; completions not met
    before, and to be kept; which were met with another score."""

    fresh: list[tuple[str, Prompt]]
    prompts: list[Prompt]
    carried: list[tuple[str, str, float | None, str | None]]
    completions: list[tuple[str, str, Provided]]
    rescored: list[str]
    counts: Counter[tuple[str, str]]

    @classmethod
    def of(cls, rows: Sequence[tuple[str, Prompt]], ledger: "JournaledStore", first: bool) -> "_Page":
        keys = [[carried_key(prompt.prompt_id, one) for one in _came(prompt)] for _, prompt in rows]
        ids, every = [prompt.prompt_id for _, prompt in rows], [key for some in keys for key in some]
        with Reader.of(ledger.store) as reader:
            stored, held = reader.known_prompts(ids), reader.stored_completions(every)
            # what an interrupted reading left behind is nothing that this one has taken
            taken, gathered = (set(), {}) if first else reader.already_gathered(ids, every)
            had = Counter[str]({} if first or not every else reader.provided_counts(ids))
        page = cls([], [], [], [], [], Counter())
        turns = {prompt_id: stored[prompt_id][2] for prompt_id in taken}
        for (source, prompt), own in zip(rows, keys, strict=True):
            new = page._new(source, prompt, own, gathered)
            met = prompt.prompt_id in taken
            if turns.setdefault(prompt.prompt_id, len(prompt.messages)) != len(prompt.messages):
                raise _Collision(prompt)
            page.counts[source, ("gathered" if new else "duplicate") if met else "selected"] += 1
            if not met:
                page.fresh.append((source, prompt))
                if stored.get(prompt.prompt_id) != _kept_beside(prompt):
                    page.prompts.append(prompt)
            had[prompt.prompt_id] += len(new)
            if had[prompt.prompt_id] > CARRIED_MOST:
                raise BadInput(
                    f"{prompt.where}: with this row {had[prompt.prompt_id]:,} completions come to one prompt "
                    f"({prompt.messages[-1].content[:60]!r}), more than {CARRIED_MOST:,}; correct field: in the "
                    "pipeline file, which names the column of the prompt: rows of one prompt are gathered"
                )
            page.carried.extend((prompt.prompt_id, key, one.score, one.scale) for key, one in new)
            page.completions.extend((key, prompt.prompt_id, one) for key, one in new if key not in held)
            taken.add(prompt.prompt_id)
        return page

    def _new(
        self, source: str, prompt: Prompt, keys: Sequence[str], gathered: dict[str, tuple[float | None, str | None]]
    ) -> list[tuple[str, Provided]]:
        """The completions of a row that were not met before. One that was keeps the score it was met with."""
        new = []
        for key, one in zip(keys, _came(prompt), strict=True):
            if key not in gathered:
                new.append((key, one))
            elif one.score is not None and gathered[key] != (one.score, one.scale):
                self.counts[source, "rescored"] += 1
                score, scale = gathered[key]
                had = "without a score" if score is None else f"scored {score:g} ({scale})"
                said = f"a completion of {one.model} is scored {one.score:g} here; it was {had} before, and that holds"
                self.rescored.append(f"{prompt.where}: {said}")
            gathered.setdefault(key, (one.score, one.scale))
        return new

    def records(self, start: int) -> list[Record]:
        rows = [(prompt.prompt_id, prompt.source) for _, prompt in self.fresh]
        return [
            *(events.prompt(prompt) for prompt in self.prompts),
            *(events.carried(*completion) for completion in self.completions),
            events.page(start, rows, self.carried),
        ]


def _came(prompt: Prompt) -> tuple[Provided, ...]:
    return (*prompt.carried, *prompt.again)


def _kept_beside(prompt: Prompt) -> tuple[str, str | None, int]:
    """Meta, material and number of turns of a prompt as the store holds them."""
    material = orjson.dumps(dict(prompt.material)).decode() if prompt.material else None
    return orjson.dumps(dict(prompt.meta)).decode(), material, len(prompt.messages)


def _tell_bad_rows(rows: Sequence[Skipped], tell: Callable[[str], None], most: int) -> int:
    """Names the first rows that can't be used; all are counted. Returns how many were named."""
    for row in rows[:most]:
        tell(f"{row.where}: left out: {row.detail}")
    return min(len(rows), most)


def _held(row: tuple[str, Prompt | Skipped]) -> int:
    """The bytes of what a row gives."""
    prompt = row[1]
    if isinstance(prompt, Skipped):
        return 0
    meta = len(orjson.dumps(dict(prompt.meta)))
    texts = (*(turn.content for turn in prompt.messages), *prompt.material.values())
    return meta + utf8(*texts, *(one.text for one in prompt.carried))
