"""Print rubrics, the requests that judges get, a rubric's errors, and how the scores by two rubrics compare."""

import json
from collections.abc import Sequence
from math import isnan, nan
from pathlib import Path

from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from aif.cli.console import print_text
from aif.core.errors import BadInput
from aif.core.formatting import counted
from aif.core.types import Message, Prompt, prompt_id
from aif.engine.rubric_trial import (
    TrialResult,
    aspects_of,
    count_changed_best,
    kendall,
    means_by_model,
    rank,
    scores_of_both,
)
from aif.judging.lint import COMPLETIONS, Finding, request_sizes
from aif.judging.rubric import ReplyForm, Rubric, render, shown_order
from aif.store.reader import Reader

_TURNS = (Message("user", "Why is the sky blue? Answer in one sentence."),)
_EXAMPLE = Prompt(prompt_id(_TURNS), _TURNS, "example")
_COMPLETIONS = (
    "Because air scatters the short, blue waves of sunlight far more than the long, red ones.",
    "The sky is blue because it mirrors the sea.",
)


def print_rubric(console: Console, rubric: Rubric) -> None:
    """Print a rubric's description, aspects, material, and the names of its scores that can be used to make pairs.

    Each aspect has its scale, weight, question and the request that asks for it.
    """
    sheet = rubric.sheet
    print_text(console, sheet.description, "bold", label=f"{sheet.name}  ")
    print_text(console, f"digest {rubric.digest}\n")
    grid = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("aspect", "scale", "weight", "request", "question"):
        grid.add_column(name, no_wrap=name == "aspect")
    for name, aspect in sheet.aspects.items():
        request = next(r for r, ask in sheet.requests.items() if name in ask.aspects)
        scale = f"{aspect.scale[0]}–{aspect.scale[1]}{' or N/A' if aspect.not_applicable else ''}"
        mode = sheet.requests[request].mode
        grid.add_row(name, scale, f"{aspect.weight:g}", f"{request} ({mode})", aspect.question)
    console.print(grid)
    for slot, material in sheet.material.items():
        print_text(console, f"\nmaterial {slot}: {material.title}. {material.note}")
    console.print(f"\nscores for pairs: {', '.join(rubric.scores()) or 'none'}")


def print_messages(console: Console, messages: Sequence[Message]) -> None:
    """Print messages verbatim, each under its role."""
    for message in messages:
        console.print(f"\n[bold]{message.role}[/bold]")
        print_text(console, message.content, verbatim=True)


def print_rendered(console: Console, rubric: Rubric, form: ReplyForm, store: Path | None, prefix: str | None) -> None:
    """Print the messages that a judge gets for each request of a rubric.

    form: "schema" prints the reply's JSON schema as well; "text" prints the messages alone.
    store: path of the store that has the prompt to show; None for an example prompt.
    prefix: the first characters of the prompt's id; None for an example prompt.
    """
    prompt, texts = _stored(store, prefix) if store and prefix else (_EXAMPLE, list(_COMPLETIONS))
    for request, ask in rubric.sheet.requests.items():
        shown = texts if ask.mode == "listwise" else texts[:1]
        seen = render(rubric, request, prompt, shown, form)
        console.print(Rule(f"[bold]request {request} ({ask.mode}, {len(shown)} of {len(texts)} completions)"))
        print_messages(console, seen.messages)
        console.print(f"\n[bold]shared[/bold] the first {seen.shared:,} characters of the user message")
        if form == "schema":
            console.print("\n[bold]schema[/bold]")
            console.print(json.dumps(rubric.schema(request, len(shown)), indent=1), markup=False)
    if empty := [slot for slot in rubric.sheet.material if slot not in (rubric.material_of(prompt) or {})]:
        console.print(f"\nthis prompt has no {', '.join(empty)}; with it, the judge sees it before the completions")


def _stored(store: Path, prefix: str) -> tuple[Prompt, list[str]]:
    with Reader.open(store) as reader:
        name = reader.find_prompt_id(prefix)
        prompt, texts = reader.prompt(name).prompt, reader.planned_texts(name)
    if not texts:
        raise BadInput(f"{store}: prompt {name[:12]} has no completions yet")
    return prompt, [texts[key] for key in shown_order(name, list(texts), 0)]


def print_lint(console: Console, findings: list[Finding], rubric: Rubric | None) -> None:
    """Print a line for each error or warning, then a table of the tokens that each request costs. `rubric` is None if
    it can't be loaded; then there is no table."""
    for error, text in findings:
        label, style = ("error   ", "red") if error else ("warning ", "yellow")
        print_text(console, text, style, label=label)
    if rubric is None:
        return
    console.print(f"\n[bold]Estimated tokens of {rubric.sheet.name} for {COMPLETIONS} completions[/bold]")
    grid = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("request", "mode"):
        grid.add_column(name)
    for name in ("calls", "role", "own text", "schema", "fixed", "reply at most"):
        grid.add_column(name, justify="right", no_wrap=True)
    for size in request_sizes(rubric):
        numbers = (size.calls, size.role, size.request_text, size.schema, size.fixed, size.max_reply)
        grid.add_row(size.request, size.mode, *(f"{n:,}" for n in numbers))
    console.print(grid)
    console.print(
        "calls are per prompt, tokens per call; conversation, material and completions are extra", style="dim"
    )


SHOWN = 20  # prompts with a row each


def print_trial(console: Console, tried: TrialResult) -> None:
    """Print the scores by the old and by the tried rubric side by side, by model and by prompt, and how far they agree.
    Then print judgements that failed."""
    old, new = tried.names
    rated, both_rated = len(tried.after), [prompt_id for prompt_id in tried.after if prompt_id in tried.before]
    console.print(f"\n[bold]{counted(rated, 'prompt')} rated by {new}, {len(both_rated):,} of them by {old} too[/bold]")
    console.print(f"\n[bold]Means by model, {old} → {new}[/bold]")
    console.print(_by_model(tried, both_rated or list(tried.after)))  # means over different prompts can't be compared
    if both_rated:
        console.print(f"\n[bold]Scores by prompt, {old} → {new}[/bold]")
        console.print(_by_prompt(tried, both_rated))
        if len(both_rated) > SHOWN:
            console.print(f"and {len(both_rated) - SHOWN:,} more prompts", style="dim")
        both = [scores_of_both(tried, prompt_id) for prompt_id in both_rated]
        console.print(
            f"\na different completion is best in {count_changed_best(both):,} of {len(both_rated):,} prompts"
        )
        tau = kendall(both)
        value = "undefined, since one rubric finds no difference" if tau is None else f"{tau:.2f}"
        print_text(
            console, f"agreement on the order of a prompt's completions (Kendall's tau-b, 1 is the same): {value}"
        )
    for row in tried.failures:
        example = f": {row.example}" if row.example else ""
        print_text(console, f"{row.endpoint}: {row.kind}, {row.items} without a rating{example}")


def _by_model(tried: TrialResult, prompts: Sequence[str]) -> Table:
    """Return a table with a row for each model: its mean score over `prompts` and its mean rating in each aspect that
    both rubrics have, as old → new.

    The model with the best new score comes first.
    """
    means = [means_by_model(ratings, prompts) for ratings in (tried.before, tried.after)]
    shared = [name for name in aspects_of(tried.after) if name in aspects_of(tried.before)]
    grid = Table(box=None, padding=(0, 2, 0, 0))
    grid.add_column("model", style="cyan", no_wrap=True)
    for head in ("score", *(name if len(name) < 13 else f"{name[:11]}." for name in shared)):
        grid.add_column(head, justify="right", no_wrap=True)
    for model in sorted(means[1], key=lambda name: -means[1][name][""]):
        old, new = (mean.get(model, {}) for mean in means)
        cells = (f"{_number(old.get(part, nan))} → {_number(new.get(part, nan))}" for part in ("", *shared))
        grid.add_row(model, *cells)
    return grid


def _by_prompt(tried: TrialResult, prompts: Sequence[str]) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("prompt", "model", "score", "rank"):
        grid.add_column(head, justify="right" if head in ("score", "rank") else "left", no_wrap=True)
    for prompt in prompts[:SHOWN]:
        before, after = tried.before[prompt], tried.after[prompt]
        olds, news = ([rated.score for rated in ratings.values()] for ratings in (before, after))
        name = prompt[:12]
        for key in sorted((key for key in after if key in before), key=lambda key: -after[key].score):
            old, new = before[key].score, after[key].score
            was, now = rank(old, olds), rank(new, news)
            moved = str(now) if was == now else f"[bold]{was} → {now}[/bold]"
            grid.add_row(name, after[key].model, f"{_number(old)} → {_number(new)}", moved)
            name = ""
    return grid


def _number(value: float) -> str:
    return "–" if isnan(value) else f"{value:.2f}"
