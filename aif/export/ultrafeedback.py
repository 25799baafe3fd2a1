"""The `ultrafeedback` format: a row is a prompt with all its completions, ratings and judgements. Pure.

The layout is openbmb/UltraFeedback's (arXiv:2310.01377), with these differences:

- More columns: whether a completion is missing or truncated, whether a rating is missing, and which judge gave it.
- `annotations` is a list with an entry for each judge and aspect, so that it fits every rubric. In openbmb's dataset,
  it is a struct with a field for each aspect.
- A rating is a number or null, never a text such as "N/A".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pyarrow as pa

from aif.core.types import Principle, Rating, as_dicts
from aif.export.layout import TURNS, Layout, Row, arrow_schema, last_turn_faults
from aif.store.result_queries import CompletionResult, JudgementResult, PromptResult

OVERALL = "overall"  # the aspect whose rating and rationale are openbmb's overall_score and critique
NOT_ASKED = "not_asked"  # a `reason`, beside the kinds of failure


@dataclass(frozen=True, slots=True)
class AnnotatedPrompt:
    """A prompt with everything that its row shows.

    whole: the prompt with its completions and judgements.
    aspects: names of the aspects that each request of the rubric asks for, by the request's name.
    principles: system prompts given to models, by digest.
    """

    whole: PromptResult
    aspects: Mapping[str, Sequence[str]]
    principles: Mapping[str, Principle]


def _row(prompt: AnnotatedPrompt) -> Row:
    whole = prompt.whole
    annotations = _annotations(whole.verdicts, prompt.aspects)
    return {
        "source": whole.source,
        "instruction": whole.messages[-1].content,
        "messages": as_dicts(whole.messages),
        "models": [answer.model for answer in whole.answers],
        "completions": [
            _completion(answer, prompt.principles.get(answer.principle or ""), annotations.get(answer.key, []))
            for answer in whole.answers
        ],
        "correct_answers": _reference_answers(whole.meta.get("correct_answers")),
        "incorrect_answers": _reference_answers(whole.meta.get("incorrect_answers")),
        "material": [{"slot": slot, "text": text} for slot, text in whole.material.items()],
        "judgements": [_judgement(verdict) for verdict in whole.verdicts if verdict.key],
        "prompt_id": whole.prompt_id,
    }


def _completion(answer: CompletionResult, principle: Principle | None, annotations: list[Row]) -> Row:
    overall = [row for row in annotations if row["aspect"] == OVERALL and row["state"] == "rated"]
    return {
        "model": answer.model,
        "principle": principle.pool if principle else None,
        "custom_system_prompt": principle.text if principle else None,
        "response": answer.text,
        "state": _state(answer.state),
        "reason": None if answer.state == "answered" else (answer.kind or NOT_ASKED),
        "finish": answer.finish,
        "annotations": annotations,
        "critique": overall[0]["Rationale"] or None if overall else None,  # empty for scores from the prompt's source
        "overall_score": _mean([row["Rating"] for row in overall]),
        "fine-grained_score": _fine_grained(annotations),
        "score": answer.score,
        "completion_id": answer.key,
    }


def _state(state: str) -> str:
    """Return the state of a completion or judgement as it is exported: "later" (failed, and to be retried) becomes
    "pending"; others stay."""
    return "pending" if state == "later" else state


def _annotations(verdicts: Sequence[JudgementResult], aspects: Mapping[str, Sequence[str]]) -> dict[str, list[Row]]:
    """Return the annotations of each completion, by its key: one for each judge, aspect and pass, rated or not.

    A judge that judges a completion repeatedly has several passes. `aspects` are the names of aspects by request.
    """
    rows: dict[str, list[Row]] = {}
    for verdict in verdicts:
        ratings = {(rating.completion, rating.aspect): rating for rating in verdict.ratings}
        for key in verdict.answers:
            for aspect in aspects[verdict.request]:
                rows.setdefault(key, []).append(_annotation(verdict, aspect, ratings.get((key, aspect))))
    return rows


def _annotation(verdict: JudgementResult, aspect: str, rating: Rating | None) -> Row:
    return {
        "judge": verdict.judge,
        "aspect": aspect,
        "state": rating.state if rating else "missing",
        "Rating": rating.score if rating else None,
        "Rationale": rating.rationale if rating else None,
        "Type": list(rating.types) if rating else [],
        "reason": None if rating else (verdict.kind or NOT_ASKED),
        "judgement": verdict.key,
    }


def _judgement(verdict: JudgementResult) -> Row:
    return {
        "id": verdict.key,
        "judge": verdict.judge,
        "request": verdict.request,
        "pass": verdict.judge_pass,
        "state": _state(verdict.state),
        "reason": verdict.kind,
        "shown": list(verdict.shown),
        "text": verdict.text,
    }


def _fine_grained(annotations: Sequence[Row]) -> float | None:
    """Average the ratings of each aspect except "overall" over judges, and return the mean of these averages. None if
    there is no rating."""
    rated: dict[str, list[float]] = {}
    for row in annotations:
        if row["state"] == "rated" and row["aspect"] != OVERALL:
            rated.setdefault(row["aspect"], []).append(row["Rating"])
    return _mean([fmean(ratings) for ratings in rated.values()])


def _mean(numbers: Sequence[float]) -> float | None:
    return fmean(numbers) if numbers else None


def _reference_answers(value: Any) -> list[str]:
    """Return the reference answers of a prompt as a list; `value` may be one text or a list. "None" is left out:
    openbmb writes ["None"] if there are none."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text != "None"]


def _faults(row: Row) -> Iterator[str]:
    yield from last_turn_faults(row["messages"])
    if row["instruction"] != row["messages"][-1]["content"]:
        yield "instruction is not the last turn"
    if row["models"] != [completion["model"] for completion in row["completions"]]:
        yield "models are not those of the completions"
    judgements = {judgement["id"] for judgement in row["judgements"]}
    for completion in row["completions"]:
        state, answered = completion["state"], completion["state"] == "answered"
        if (completion["response"] is not None) != answered or (completion["reason"] is None) != answered:
            yield f"completion {completion['completion_id']} is {state}, but its response or reason contradicts that"
        for annotation in completion["annotations"]:
            yield from _annotation_faults(annotation, judgements)


def _annotation_faults(annotation: Row, judgements: set[str]) -> Iterator[str]:
    state = annotation["state"]
    name = f"the rating in {annotation['aspect']} by {annotation['judge']}"
    if (state == "rated") != (annotation["Rating"] is not None):
        yield f"{name} is {state}, but its number contradicts that"
    if (state == "missing") != (annotation["reason"] is not None):
        yield f"{name} is {state}, but its reason contradicts that"
    if annotation["judgement"] not in judgements and (annotation["judgement"] or state != "missing"):
        yield f"{name} is of a judgement that is not there"


_ANNOTATION = arrow_schema(
    judge=pa.string(), aspect=pa.string(), state=pa.string(), Rating=pa.float64(), Rationale=pa.string(),
    Type=pa.list_(pa.int32()), reason=pa.string(), judgement=pa.string(),
)  # fmt: skip

_COMPLETION = arrow_schema(
    model=pa.string(), principle=pa.string(), custom_system_prompt=pa.string(), response=pa.string(),
    state=pa.string(), reason=pa.string(), finish=pa.string(), annotations=pa.list_(pa.struct(_ANNOTATION)),
    critique=pa.string(), overall_score=pa.float64(), **{"fine-grained_score": pa.float64()}, score=pa.float64(),
    completion_id=pa.string(),
)  # fmt: skip

_JUDGEMENT = arrow_schema(
    id=pa.string(), judge=pa.string(), request=pa.string(), **{"pass": pa.int32()}, state=pa.string(),
    reason=pa.string(), shown=pa.list_(pa.string()), text=pa.string(),
)  # fmt: skip

_SCHEMA = arrow_schema(
    source=pa.string(), instruction=pa.string(), messages=TURNS, models=pa.list_(pa.string()),
    completions=pa.list_(pa.struct(_COMPLETION)), correct_answers=pa.list_(pa.string()),
    incorrect_answers=pa.list_(pa.string()),
    material=pa.list_(pa.struct(arrow_schema(slot=pa.string(), text=pa.string()))),
    judgements=pa.list_(pa.struct(_JUDGEMENT)), prompt_id=pa.string(),
)  # fmt: skip

ULTRAFEEDBACK = Layout("ultrafeedback", "prompts", _SCHEMA, _row, _faults)
