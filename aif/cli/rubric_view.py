"""A rubric as a person looks at it: its aspects, and exactly what a judge sees."""

import json
from collections.abc import Sequence
from pathlib import Path

import orjson
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from aif.core.errors import BadInput
from aif.core.types import Message, Prompt, as_messages, prompt_id
from aif.engine.progress import say
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
        name = reader.find(prefix)
        row = reader.sql("SELECT messages, material FROM prompts WHERE prompt_id = ?", [name])[0]
        rows = reader.sql(
            "SELECT c.key, c.text FROM slots s JOIN completions c ON s.key = c.key WHERE s.prompt_id = ?", [name]
        )
    if not rows:
        raise BadInput(f"{store}: prompt {name[:12]} has no completions yet")
    texts = {row["key"]: row["text"] for row in rows}
    material = orjson.loads(row["material"]) if row["material"] else {}
    prompt = Prompt(name, as_messages(row["messages"]), "", material=material)
    return prompt, [texts[key] for key in order(name, list(texts), 0)]
