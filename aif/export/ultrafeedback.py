"""A prompt with all of its completions, ratings and judgements as a row: the layout of openbmb/UltraFeedback. Pure.

Names are openbmb's where the thing is (arXiv:2310.01377); what it leaves unsaid is said: whether there is a completion,
whether it was cut, whether there is a rating and by which judge. openbmb has a struct with a field for each aspect;
here `annotations` is a list of judge and aspect, so that every rubric and any number of judges have the same columns.
A rating is a number or null, never a text such as "N/A".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pyarrow as pa

from aif.core.types import Principle, Rating, as_dicts
from aif.export.layout import TURNS, Layout, Row, columns, unanswered
from aif.store.result_queries import CompletionResult, JudgementResult, PromptResult

OVERALL = "overall"  # the aspect of this name is openbmb's critique with its overall score
NOT_ASKED = "not_asked"  # the reason why there is no answer yet, beside the kinds of failure


@dataclass(frozen=True, slots=True)
class Annotated:
    """A prompt with all that is known of it; which aspects each request asks about, and principles by digest."""

    whole: PromptResult
    aspects: Mapping[str, Sequence[str]]
    principles: Mapping[str, Principle]


def _row(one: Annotated) -> Row:
    whole = one.whole
    annotations = _annotations(whole.verdicts, one.aspects)
    return {
        "source": whole.source,
        "instruction": whole.messages[-1].content,
        "messages": as_dicts(whole.messages),
        "models": [answer.model for answer in whole.answers],
        "completions": [
            _completion(answer, one.principles.get(answer.principle or ""), annotations.get(answer.key, []))
            for answer in whole.answers
        ],
        "correct_answers": _texts(whole.meta.get("correct_answers")),
        "incorrect_answers": _texts(whole.meta.get("incorrect_answers")),
        "material": [{"slot": slot, "text": text} for slot, text in whole.material.items()],
        "judgements": [_judgement(verdict) for verdict in whole.verdicts if verdict.key],
        "prompt_id": whole.prompt_id,
    }


def _completion(answer: CompletionResult, principle: Principle | None, annotations: list[Row]) -> Row:
    overall = [one for one in annotations if one["aspect"] == OVERALL and one["state"] == "rated"]
    return {
        "model": answer.model,
        "principle": principle.pool if principle else None,
        "custom_system_prompt": principle.text if principle else None,
        "response": answer.text,
        "state": _state(answer.state),
        "reason": None if answer.state == "answered" else (answer.kind or NOT_ASKED),
        "finish": answer.finish,
        "annotations": annotations,
        "critique": overall[0]["Rationale"] or None if overall else None,  # a score that a row carried has none
        "overall_score": _mean([one["Rating"] for one in overall]),
        "fine-grained_score": _fine_grained(annotations),
        "score": answer.score,
        "completion_id": answer.key,
    }


def _state(state: str) -> str:
    """What will be asked again is pending, like what was not asked yet."""
    return "pending" if state == "later" else state


def _annotations(verdicts: Sequence[JudgementResult], aspects: Mapping[str, Sequence[str]]) -> dict[str, list[Row]]:
    """By completion, a row for each aspect that a judge was to rate it in."""
    found: dict[str, list[Row]] = {}
    for verdict in verdicts:
        ratings = {(rating.completion, rating.aspect): rating for rating in verdict.ratings}
        for key in verdict.answers:
            for aspect in aspects[verdict.request]:
                found.setdefault(key, []).append(_annotation(verdict, aspect, ratings.get((key, aspect))))
    return found


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
    """The mean over the aspects that were rated, each first averaged over its judges, without the overall one."""
    rated: dict[str, list[float]] = {}
    for one in annotations:
        if one["state"] == "rated" and one["aspect"] != OVERALL:
            rated.setdefault(one["aspect"], []).append(one["Rating"])
    return _mean([fmean(ratings) for ratings in rated.values()])


def _mean(numbers: Sequence[float]) -> float | None:
    return fmean(numbers) if numbers else None


def _texts(value: Any) -> list[str]:
    """Answers that a prompt's row brought, as a list of texts or one; openbmb writes ["None"] where it has none."""
    several = value if isinstance(value, list) else [value]
    return [text for text in several if isinstance(text, str) and text != "None"]


def _faults(row: Row) -> Iterator[str]:
    yield from unanswered(row["messages"])
    if row["instruction"] != row["messages"][-1]["content"]:
        yield "instruction is not the last turn"
    if row["models"] != [one["model"] for one in row["completions"]]:
        yield "models are not those of the completions"
    judgements = {one["id"] for one in row["judgements"]}
    for one in row["completions"]:
        answered = one["state"] == "answered"
        if (one["response"] is not None) != answered or (one["reason"] is None) != answered:
            yield f"completion {one['completion_id']} is {one['state']}, but its response or reason says otherwise"
        for rating in one["annotations"]:
            yield from _rating_faults(rating, judgements)


def _rating_faults(rating: Row, judgements: set[str]) -> Iterator[str]:
    what = f"the rating in {rating['aspect']} by {rating['judge']}"
    if (rating["state"] == "rated") != (rating["Rating"] is not None):
        yield f"{what} is {rating['state']}, but its number says otherwise"
    if (rating["state"] == "missing") != (rating["reason"] is not None):
        yield f"{what} is {rating['state']}, but its reason says otherwise"
    if rating["judgement"] not in judgements and (rating["judgement"] or rating["state"] != "missing"):
        yield f"{what} is of a judgement that is not there"


_ANNOTATION = columns(
    judge=pa.string(), aspect=pa.string(), state=pa.string(), Rating=pa.float64(), Rationale=pa.string(),
    Type=pa.list_(pa.int32()), reason=pa.string(), judgement=pa.string(),
)  # fmt: skip

_COMPLETION = columns(
    model=pa.string(), principle=pa.string(), custom_system_prompt=pa.string(), response=pa.string(),
    state=pa.string(), reason=pa.string(), finish=pa.string(), annotations=pa.list_(pa.struct(_ANNOTATION)),
    critique=pa.string(), overall_score=pa.float64(), **{"fine-grained_score": pa.float64()}, score=pa.float64(),
    completion_id=pa.string(),
)  # fmt: skip

_JUDGEMENT = columns(
    id=pa.string(), judge=pa.string(), request=pa.string(), **{"pass": pa.int32()}, state=pa.string(),
    reason=pa.string(), shown=pa.list_(pa.string()), text=pa.string(),
)  # fmt: skip

_COLUMNS = columns(
    source=pa.string(), instruction=pa.string(), messages=TURNS, models=pa.list_(pa.string()),
    completions=pa.list_(pa.struct(_COMPLETION)), correct_answers=pa.list_(pa.string()),
    incorrect_answers=pa.list_(pa.string()), material=pa.list_(pa.struct(columns(slot=pa.string(), text=pa.string()))),
    judgements=pa.list_(pa.struct(_JUDGEMENT)), prompt_id=pa.string(),
)  # fmt: skip

ULTRAFEEDBACK = Layout("ultrafeedback", "prompts", _COLUMNS, _row, _faults)
