"""Prepare the store for a run: read prompts, plan completions, and list the judging requests. Calls no model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from aif.config import located_yaml
from aif.config.pipeline import Pipeline
from aif.core.errors import BadInput
from aif.core.reasoning import merge_tags
from aif.core.resources import find_resource, shipped
from aif.core.types import PROVIDED_JUDGE, JudgingSpec, Slot, digest
from aif.engine.read_prompts import has_unsourced_scores, update_prompts
from aif.judging.request import judging_spec
from aif.judging.rubric import IMPORTED_SCORES, Rubric, load
from aif.planning.plan import PoolModel, Principles, plan_digest, plan_slots, provided_slots
from aif.servers import model_identity
from aif.store import records
from aif.store.reader import Reader
from aif.store.records import Record
from aif.store.report_queries import Tally

if TYPE_CHECKING:  # callers that only read a store need neither
    from aif.store.database import Store
    from aif.store.journaled_store import JournaledStore


def rubric_of(pipeline: Pipeline) -> Rubric:
    """Return the pipeline's rubric, or IMPORTED_SCORES if scores come with the prompts' completions. Raises BadInput if
    the rubric doesn't give the score that pairs are made by."""
    if pipeline.has_scores:
        return IMPORTED_SCORES
    rubric = load(find_resource(pipeline.rubric, pipeline.folder, "prompts/rubrics", "rubric"))
    if pipeline.pairs.score not in rubric.scores():
        raise BadInput(
            f"{pipeline.path}: pairs.score: rubric {rubric.sheet.name} gives no {pipeline.pairs.score!r} score; "
            f"it gives {' and '.join(rubric.scores()) or 'none'}"
        )
    return rubric


def principles_of(pipeline: Pipeline) -> Principles | None:
    """Load the principles that the pipeline names: shipped principles, or a YAML file; None if it names none."""
    if pipeline.principles is None:
        return None
    # a shipped name comes first: a file of that name beside the pipeline may be anything
    name, folder = pipeline.principles, shipped("prompts", "principles")
    path = folder / f"{name}.yaml"
    if "/" in name or name.endswith(".yaml") or not path.exists():
        path = find_resource(f"{name.removesuffix('.yaml')}.yaml", pipeline.folder, "prompts/principles", "principles")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't be read as UTF-8 text: {error}") from error
    return Principles.parse(located_yaml.parse_yaml(text, lambda line: f"{path}:{line}").data, str(path))


def pool_of(pipeline: Pipeline) -> list[PoolModel]:
    """Return the models that write completions, with the settings on which the plan of completions depends."""
    return [
        PoolModel(
            name, model.declared_identity, pipeline.sampling(model), model.samples, model.system, model.digest_suffix
        )
        for name, model in pipeline.models.items()
    ]


def specs_of(pipeline: Pipeline, rubric: Rubric, provided_sizes: Iterable[int]) -> list[JudgingSpec]:
    """Return the judging requests of a pipeline: every request of the rubric, for every judge. A request that shows all
    completions together is included once for each number of completions that a prompt may have.

    *Provided* completions and scores came with the rows of a source. `provided_sizes` lists the different numbers of
    provided completions per prompt.

    If the rows give scores too, no judge is called. Then the list has one entry for each number of completions. The
    entry stands for the provided scores, and its judge is PROVIDED_JUDGE.
    """
    least, most = pipeline.completions.min_completions, pipeline.completions.per_prompt
    sizes = sorted({*(n for n in provided_sizes if n >= least), *(range(least, most + 1) if pipeline.models else ())})
    if pipeline.has_scores:
        return [
            JudgingSpec(PROVIDED_JUDGE, PROVIDED_JUDGE, 0, PROVIDED_JUDGE, True, n, least, PROVIDED_JUDGE)
            for n in sizes
        ]
    specs = []
    for judge in pipeline.judges.values():
        for name, request in rubric.sheet.requests.items():
            listwise = request.mode == "listwise"
            instead = judging_spec(rubric, name, 1, judge) if listwise and judge.on_overflow == "single" else None
            for n in sizes if listwise else (1,):
                spec = judging_spec(rubric, name, n, judge)
                specs.append(JudgingSpec(judge.name, judge.identity, 0, name, listwise, n, least, spec, instead))
    return specs


def prepare(
    pipeline: Pipeline, journaled: "JournaledStore", rubric: Rubric, tell: Callable[[str], None], reread: bool = True
) -> list[Record]:
    """Update journal and store so that they match the pipeline file and its sources. Calls no model.

    tell: called with each message for the user.
    reread: whether to look for changes of the sources and of the files of models that aif launches. If false, the
        prompts in the journal are used, and those models count as unchanged.

    Returns journal records that say which files the launched models load. They must be added to the journal before the
    first call.
    """
    principles = principles_of(pipeline)
    with Reader.of(journaled.store) as reader:
        identities = model_identity.identify_models(pipeline, reader.texts("model").values(), tell if reread else None)
    fingerprint = update_prompts(pipeline, journaled, tell, reread)
    _store_texts(journaled, rubric, principles)
    mark = _plan_mark(pipeline, principles, fingerprint)
    if journaled.store.get_mark("plan") != mark:
        with Reader.of(journaled.store) as reader:
            journaled.store.replace_slots(_plan(pipeline, principles, reader), mark)
    set_judging_specs(pipeline, rubric, journaled.store)
    _store_materials(pipeline, journaled, rubric, fingerprint)
    _report_outdated(pipeline, journaled.store, tell)
    if changed := [seen for seen in identities if seen.changes]:
        _report_changed_models(changed, journaled, tell)
    return [seen.record for seen in identities]


def _report_changed_models(
    changed: Sequence[model_identity.ModelChange], journaled: "JournaledStore", tell: Callable[[str], None]
) -> None:
    """Report how each of these models has changed on disk, and how many calls are pending in the whole run."""
    with Reader.of(journaled.store) as reader:
        tallies = reader.tallies()
    for seen in changed:
        model = seen.entry
        tally = tallies.get((seen.stage, model.name), Tally(0, 0, 0, 0))
        tell(
            f"{model.name}: its server now loads a different model than in its last run: {seen.changes}. It counts as "
            f"model {model.identity}, which has {tally.answered:,} of {tally.wanted:,} answers; the former model's "
            "answers stay stored, and count again when it is back"
        )
    pending = {
        stage: sum(tally.pending for (of, _), tally in tallies.items() if of == stage)
        for stage in ("completion", "judgement")
    }
    tell(f"pending now, in all: {pending['completion']:,} completions, {pending['judgement']:,} judgements")


def _report_outdated(pipeline: Pipeline, store: "Store", tell: Callable[[str], None]) -> None:
    """Report for each judge how many of its judgements are outdated and will be requested again, and the most that
    these requests can cost (without retries, assuming one token per byte). A judgement is outdated if, with the current
    reasoning tags, its judge would be shown other texts."""
    with Reader.of(store) as reader:
        for name, judgements, sent in reader.outdated_judgements():
            judge = pipeline.judges[name]
            usd = judge.max_cost(sent, judgements * judge.max_tokens)
            cost = (
                "at an unknown price"
                if usd is None
                else f"for ${usd:,.4f} at most, without retries"
                if usd
                else "at no cost"
            )
            tell(f"{name}: {judgements:,} judgements were shown texts that are parsed differently now: retried {cost}")


def set_judging_specs(pipeline: Pipeline, rubric: Rubric, store: "Store") -> None:
    """Store which judging requests each prompt needs: those of every judge, by the number of the prompt's completions.

    Raises BadInput if the pipeline takes scores from its rows instead of judges, and no row has a score.
    """
    with Reader.of(store) as reader:
        sizes = reader.provided_sizes()
        if pipeline.has_scores and not reader.any_provided_score():
            raise BadInput(
                f"{pipeline.path}: prompts: completions.score: no completion of any row has a score; correct the rows, "
                "or remove the key and add judges"
            )
    store.set_judging_specs(specs_of(pipeline, rubric, sizes))


def _store_materials(pipeline: Pipeline, journaled: "JournaledStore", rubric: Rubric, fingerprint: str) -> None:
    """Store the material that judges are shown with a prompt, such as a reference answer. Each text is stored once, by
    its digest; each prompt refers to its material's digest. Does nothing if neither the prompts (`fingerprint`) nor the
    rubric's kinds of material have changed. Raises BadInput if a source has a kind of material that the rubric doesn't
    use."""
    slots = {slot for source in pipeline.prompts for slot in source.material}
    if unknown := sorted(slots - rubric.sheet.material.keys()):
        known = ", ".join(rubric.sheet.material) or "none"
        raise BadInput(
            f"{pipeline.path}: prompts: material.{unknown[0]}: rubric {rubric.sheet.name} has no such slot; it has "
            f"{known}"
        )
    mark = _materials_mark(rubric, fingerprint)
    if journaled.store.get_mark("materials") == mark:
        return
    with Reader.of(journaled.store) as reader:
        for batch in reader.prompts_with_material() if slots else ():
            shown = {name: prompt for prompt in batch if (name := rubric.material_digest(prompt))}
            stored = reader.stored_digests("material", list(shown))
            if new := [(name, prompt) for name, prompt in shown.items() if name not in stored]:
                journaled.keep([records.text(name, "material", rubric.material_of(prompt)) for name, prompt in new])
        journaled.store.set_materials(_material_digests(rubric, reader) if slots else (), mark)


def _material_digests(rubric: Rubric, reader: Reader) -> Iterator[list[tuple[str, str]]]:
    for batch in reader.prompts_with_material():
        yield [(prompt.prompt_id, name) for prompt in batch if (name := rubric.material_digest(prompt))]


def _materials_mark(rubric: Rubric, fingerprint: str) -> str:
    return digest([fingerprint, {name: slot.model_dump() for name, slot in rubric.sheet.material.items()}])


def is_prepared(pipeline: Pipeline, rubric: Rubric, reader: Reader) -> bool:
    """Return whether the store's planned completions and judging requests are those that this pipeline gives for the
    prompts in the store."""
    model_identity.identify_models(pipeline, reader.texts("model").values())
    fingerprint = reader.get_mark("sources") or ""
    marks = {
        "plan": _plan_mark(pipeline, principles_of(pipeline), fingerprint),
        "materials": _materials_mark(rubric, fingerprint),
    }
    tags = reader.get_mark("tags")
    return (
        merge_tags(tags, pipeline.reasoning_tags) == merge_tags(tags, {})
        and all(reader.get_mark(name) == mark for name, mark in marks.items())
        and not has_unsourced_scores(pipeline, reader)
        and reader.judging_specs() == set(specs_of(pipeline, rubric, reader.provided_sizes()))
    )


def _plan_mark(pipeline: Pipeline, principles: Principles | None, fingerprint: str) -> str:
    plan = plan_digest(pool_of(pipeline), pipeline.completions.per_prompt, principles, pipeline.seed)
    return digest([fingerprint, plan])


def _store_texts(journaled: "JournaledStore", rubric: Rubric, principles: Principles | None) -> None:
    texts = {digest(text): text for pool in principles.pools.values() for text in pool} if principles else {}
    with Reader.of(journaled.store) as reader:
        known = reader.stored_digests("principle", list(texts)) | reader.stored_digests("rubric", [rubric.digest])
    new = [records.text(name, "principle", text) for name, text in texts.items() if name not in known]
    if rubric.files and rubric.digest not in known:
        new.append(records.text(rubric.digest, "rubric", dict(rubric.files)))
    if new:
        journaled.keep(new)


def _plan(
    pipeline: Pipeline, principles: Principles | None, reader: Reader
) -> Iterator[Sequence[tuple[int, Slot, str | None]]]:
    pool, per_prompt = pool_of(pipeline), pipeline.completions.per_prompt
    texts = {text: digest(text) for texts in principles.pools.values() for text in texts} if principles else {}
    for batch in reader.selected_prompts():
        provided = reader.provided_completions([prompt.prompt_id for _, prompt in batch])
        yield [
            (position, slot, texts[slot.principle.text] if slot.principle else None)
            for position, prompt in batch
            for slot in (
                provided_slots(prompt.prompt_id, provided[prompt.prompt_id])
                if prompt.prompt_id in provided
                else plan_slots(prompt, pool, per_prompt, principles, pipeline.seed)
            )
        ]
