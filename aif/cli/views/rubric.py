"""A rubric as a person looks at it: its aspects, and exactly what a judge sees."""

import json
from collections.abc import Sequence
from math import isnan, nan
from pathlib import Path

from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from aif.cli.views.progress import say
from aif.core.errors import BadInput
from aif.core.types import Message, Prompt, prompt_id
from aif.core.words import counted
from aif.engine.rubric_trial import Tried, another_best, aspects_of, kendall, means_by_model, rank, scores_of_both
from aif.judging.lint import COMPLETIONS, Finding, sizes
from aif.judging.rubric import Form, Rubric, order, render
from aif.store.reader import Reader

_TURNS = (Message("user", "Why is the sky blue? Answer in one sentence."),)
_EXAMPLE = Prompt(prompt_id(_TURNS), _TURNS, "example")
_COMPLETIONS = (
    "Because air scatters the short, blue waves of sunlight far more than the long, red ones.",
    "The sky is blue because it mirrors the sea.",
)


def tell_rubric(console: Console, rubric: Rubric) -> None:
    """Aspects with scale and weight, requests with their mode."""
    sheet = rubric.sheet
    console.print(f"[bold]{sheet.name}[/bold]  {sheet.description}\ndigest {rubric.digest}\n", soft_wrap=True)
    grid = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("aspect", "scale", "weight", "asked in", "question"):
        grid.add_column(name, overflow="fold")
    for name, aspect in sheet.aspects.items():
        request = next(r for r, ask in sheet.requests.items() if name in ask.aspects)
        scale = f"{aspect.scale[0]}–{aspect.scale[1]}{' or N/A' if aspect.not_applicable else ''}"
        mode = sheet.requests[request].mode
        grid.add_row(name, scale, f"{aspect.weight:g}", f"{request} ({mode})", aspect.question)
    console.print(grid)
    for slot, one in sheet.material.items():
        console.print(f"\nmaterial {slot}: {one.title}. {one.note}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"\nscores for pairs: {', '.join(rubric.scores()) or 'none'}")


def tell_messages(console: Console, messages: Sequence[Message]) -> None:
    """Turns word for word, each under its role."""
    for message in messages:
        console.print(f"\n[bold]{message.role}[/bold]")
        say(console, message.content)


def tell_rendered(console: Console, rubric: Rubric, form: Form, store: Path | None, prefix: str | None) -> None:
    """Every request's messages and schema, for a stored prompt or an example."""
    prompt, texts = _stored(store, prefix) if store and prefix else (_EXAMPLE, list(_COMPLETIONS))
    for request, ask in rubric.sheet.requests.items():
        shown = texts if ask.mode == "listwise" else texts[:1]
        seen = render(rubric, request, prompt, shown, form)
        console.print(Rule(f"[bold]request {request} ({ask.mode}, {len(shown)} of {len(texts)} completions)"))
        tell_messages(console, seen.messages)
        console.print(f"\n[bold]shared[/bold] the first {seen.shared:,} characters of the user message")
        if form == "schema":
            console.print("\n[bold]schema[/bold]")
            console.print(json.dumps(rubric.schema(request, len(shown)), indent=1), markup=False)
    if empty := [slot for slot in rubric.sheet.material if slot not in (rubric.material_of(prompt) or {})]:
        console.print(
            f"\nthis prompt has no {', '.join(empty)}; a prompt that has would show it before the completions"
        )


def _stored(store: Path, prefix: str) -> tuple[Prompt, list[str]]:
    with Reader.open(store) as reader:
        name = reader.find_prompt_id(prefix)
        prompt, texts = reader.prompt(name).prompt, reader.planned_texts(name)
    if not texts:
        raise BadInput(f"{store}: prompt {name[:12]} has no completions yet")
    return prompt, [texts[key] for key in order(name, list(texts), 0)]


def tell_lint(console: Console, findings: list[Finding], rubric: Rubric | None) -> None:
    """A line for each finding, then what each request costs."""
    for error, text in findings:
        console.print("[red]error[/red]   " if error else "[yellow]warning[/yellow] ", end="")
        console.print(text, markup=False, soft_wrap=True)
    if rubric is None:
        return
    console.print(f"\n[bold]Tokens of {rubric.sheet.name} for {COMPLETIONS} completions, about[/bold]")
    grid = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("request", "mode"):
        grid.add_column(name, overflow="fold")
    for name in ("calls", "role", "own text", "schema", "fixed", "reply at most"):
        grid.add_column(name, justify="right", no_wrap=True)
    for one in sizes(rubric):
        numbers = (one.calls, one.role, one.own, one.schema, one.fixed, one.reply)
        grid.add_row(one.request, one.mode, *(f"{n:,}" for n in numbers))
    console.print(grid)
    console.print(
        "calls are a prompt's, tokens a call's; conversation, material and completions come on top", style="dim"
    )


SHOWN = 20  # prompts told one by one


def tell_trial(console: Console, tried: Tried) -> None:
    """Old and new ratings side by side: by model, by prompt, and how far they agree."""
    old, new = tried.names
    rated, kept = len(tried.after), [prompt_id for prompt_id in tried.after if prompt_id in tried.before]
    console.print(f"\n[bold]{counted(rated, 'prompt')} rated by {new}, {len(kept):,} of them by {old} too[/bold]")
    console.print(f"\n[bold]Means by model, {old} → {new}[/bold]")
    console.print(_by_model(tried, kept or list(tried.after)))  # means over other prompts say nothing
    if kept:
        console.print(f"\n[bold]Scores by prompt, {old} → {new}[/bold]")
        console.print(_by_prompt(tried, kept))
        if len(kept) > SHOWN:
            console.print(f"and {len(kept) - SHOWN:,} prompts more", style="dim")
        both = [scores_of_both(tried, prompt_id) for prompt_id in kept]
        console.print(f"\nanother completion is the best in {another_best(both):,} of {len(kept):,} prompts")
        tau = kendall(both)
        said = "none, one of both finds no difference" if tau is None else f"{tau:.2f}"
        agreed = f"agreement on the order of a prompt's completions (Kendall's tau-b, 1 is the same): {said}"
        console.print(agreed, soft_wrap=True)
    for row in tried.failures:
        console.print(
            f"{row.endpoint}: {row.kind}, {row.items} without a rating: {row.example}",
            markup=False,
            soft_wrap=True,
        )


def _by_model(tried: Tried, among: Sequence[str]) -> Table:
    """Means by model, of the score and of the aspects that both rubrics have; best by the new score first."""
    means = [means_by_model(ratings, among) for ratings in (tried.before, tried.after)]
    shared = [name for name in aspects_of(tried.after) if name in aspects_of(tried.before)]
    grid = Table(box=None, padding=(0, 2, 0, 0))
    grid.add_column("model", style="cyan", overflow="fold")
    for head in ("score", *(name if len(name) < 13 else f"{name[:11]}." for name in shared)):
        grid.add_column(head, justify="right", no_wrap=True)
    for model in sorted(means[1], key=lambda name: -means[1][name][""]):
        old, new = (found.get(model, {}) for found in means)
        cells = (f"{_number(old.get(part, nan))} → {_number(new.get(part, nan))}" for part in ("", *shared))
        grid.add_row(model, *cells)
    return grid


def _by_prompt(tried: Tried, kept: Sequence[str]) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("prompt", "model", "score", "rank"):
        grid.add_column(head, justify="right" if head in ("score", "rank") else "left", no_wrap=True)
    for prompt in kept[:SHOWN]:
        before, after = tried.before[prompt], tried.after[prompt]
        olds, news = ([one.score for one in rated.values()] for rated in (before, after))
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
