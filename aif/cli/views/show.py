"""One prompt from a published row back to everything: what was sent, what came back, how it was read, why it paired."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from aif.cli.views.progress import say
from aif.cli.views.rubric import tell_messages
from aif.core.types import CARRIED, Principle, Prompt, carried_identity
from aif.core.words import counted
from aif.engine.outcome_text import OUTCOMES, rule_of
from aif.judging.rubric import render
from aif.planning.plan import sent_messages
from aif.store.journal_batches import Rubrics
from aif.store.reader import Reader


def tell_story(console: Console, reader: Reader, prefix: str) -> None:
    """Prints the story of the prompt whose id begins with `prefix`. Raises BadInput where there is none."""
    prompt_id = reader.find_prompt_id(prefix)
    stored = reader.prompt(prompt_id)
    prompt = stored.prompt
    console.print(_head(f"prompt {prompt_id}"))
    said = f"source {stored.source or '(no longer selected)'}   meta {stored.meta}"
    say(console, said)
    tell_messages(console, prompt.messages)
    _tell_outcome(console, reader, prompt_id, selected=stored.source is not None)
    principles = reader.texts("principle")
    names = _tell_completions(console, reader, prompt, principles)
    _tell_judgements(console, reader, prompt, names)


def _points(score: float) -> str:
    """A score so that it can be told from another: some are likelihoods."""
    return f"{score:.3f}" if 0.001 <= abs(score) < 1e6 or not score else f"{score:.6g}"


def _head(words: str) -> Rule:
    return Rule(Text(words, style="bold"))


def _tell_outcome(console: Console, reader: Reader, prompt_id: str, selected: bool) -> None:
    console.print(_head("outcome"))
    outcome = reader.outcome(prompt_id)
    if outcome is None:
        console.print(
            "no pair was made of it yet; `aif run` or `aif export` makes them" if selected else
            "none: the pipeline's sources no longer hold it, or its limits leave it out"
        )  # fmt: skip
        return
    policy = reader.pair_policy()
    if outcome.unrated:
        console.print(f"left out: {counted(outcome.unrated, 'completion')} without any rating", highlight=False)
    if policy is None or outcome.outcome != "paired":
        console.print(f"no pair: {OUTCOMES[outcome.outcome]} ({outcome.outcome})", highlight=False)
        return
    models, pairs = reader.models_by_key(prompt_id), reader.pairs_of(prompt_id)
    for pair in pairs:
        if len(pairs) > 1:
            console.print(f"[bold]pair {pair.n + 1} of {len(pairs)}")
        sides = (("chosen", pair.chosen, pair.score_chosen), ("rejected", pair.rejected, pair.score_rejected))
        for side, key, score in sides:
            said = f"{side:<8} {models.get(key, 'a former model')}, score {_points(score)} ({key})"
            console.print(said, highlight=False, markup=False)
        for one in pair.dissents:
            said = f"but      {one.judge} has it the other way: {one.score_chosen:.3f}, {one.score_rejected:.3f}"
            console.print(said, highlight=False, markup=False)
    console.print(
        f"because  {policy.name} by {policy.score} over {', '.join(outcome.aspects)}: {rule_of(policy)}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


def _tell_completions(
    console: Console, reader: Reader, prompt: Prompt, principles: Mapping[str, str]
) -> dict[str, str]:
    """Returns what each is called from here on: by its model, and by its key too where the model wrote several."""
    slots = reader.slots_with_calls(prompt.prompt_id)
    written = Counter(slot["model"] for slot in slots)
    names = {
        slot["key"]: slot["model"] if written[slot["model"]] == 1 else f"{slot['model']} ({slot['key'][:8]})"
        for slot in slots
    }
    for slot in slots:
        score = f", score {_points(slot['score'])}" if slot["score"] is not None else ""
        console.print(_head(f"completion {slot['key']}"))
        say(console, f"by {slot['model']}: {slot['state']}{score}", "bold")
        if slot["finish"] == "length":
            console.print("cut at max_tokens, so it may be rejected but never chosen")
        if slot["spread"] is not None:
            console.print(f"by judge {slot['by_judge']}; spread {slot['spread']:.3f}", highlight=False, markup=False)
        if slot["identity"] == carried_identity(slot["model"]):
            console.print("it came with the prompt; nobody was asked for it", highlight=False)
            say(console, f"\n{slot['text']}")
            continue
        console.print(
            f"model {slot['identity']}, sample {slot['sample']}, seed {slot['seed']}", highlight=False, markup=False
        )
        if slot["text"] is None:
            if slot["kind"]:
                say(console, f"{slot['kind']}: {slot['message']}")
            if slot["raw"]:
                say(console, f"received: {slot['raw']}")
            continue
        principle = Principle("", principles[slot["principle"]]) if slot["principle"] else None
        sent = sent_messages(prompt, principle, slot["system"])
        head = sent[0].content if sent[0].role == "system" else None
        if head:
            say(console, f"sent with the system turn: {head}", "dim")
        elif sent != prompt.messages:
            say(console, f"sent with the first turn as: {sent[0].content}", "dim")
        _tell_call(console, slot)
        if slot["reasoning"]:
            console.print("[bold]reasoning[/bold] (never judged, never exported)")
            say(console, slot["reasoning"], "dim")
        say(console, f"\n{slot['text']}")
    return names


def _tell_call(console: Console, row: Mapping[str, Any]) -> None:
    usd = "price unknown" if row["usd"] is None else f"${row['usd']:.6f}"
    console.print(
        f"settings {row['sent']}  served {row['served']}\n"
        f"{row['input_tokens']} tokens in, {row['output_tokens']} out, {row['seconds']} s, attempt {row['n']}, {usd}",
        markup=False, highlight=False, style="dim", soft_wrap=True,
    )  # fmt: skip


def _tell_judgements(console: Console, reader: Reader, prompt: Prompt, names: Mapping[str, str]) -> None:
    texts = reader.completion_texts(prompt.prompt_id)
    rubrics = Rubrics()
    for row in reader.judgements_with_calls(prompt.prompt_id):
        if row["identity"] == CARRIED:
            _tell_carried_scores(console, reader, row, names)
            continue
        rubrics.files[row["rubric"]] = orjson.loads(row["files"])
        rubric = rubrics.get(row["rubric"])
        assert rubric is not None
        console.print(_head(f"judgement {row['key']} by {row['judge']}: {row['request']}"))
        shown = row["completions"]
        order = ", ".join(f"{i} = {names.get(key, 'a former model')}" for i, key in enumerate(shown, 1))
        console.print(
            f"rubric {rubric.sheet.name} {row['rubric'][:12]}, order shown: {order}", highlight=False, markup=False
        )
        if len(shown) == 1 and rubric.sheet.requests[row["request"]].mode == "listwise":
            console.print("asked by itself, since all completions together did not fit the judge", highlight=False)
        _tell_call(console, row)
        material = orjson.loads(row["shown_material"]) if row["shown_material"] else {}
        asked = replace(prompt, material={slot: one["text"] for slot, one in material.items()})
        seen = render(rubric, row["request"], asked, [texts[key] for key in shown], row["form"])
        tell_messages(console, seen.messages)
        console.print("\n[bold]the judge's reply[/bold]")
        say(console, row["text"])
        console.print("\n[bold]read as[/bold]")
        for rating in row["ratings"]:
            said = "N/A" if rating["score"] is None else f"{rating['score']:g}"
            types = f" types {rating['types']}" if rating["types"] else ""
            name = names.get(rating["completion"], "")
            say(console, f"{name}, {rating['aspect']}: {said}{types}: {rating['rationale']}")
    for failure in reader.failed_judgements(prompt.prompt_id):
        said = f"judgement by {failure['judge']} without a rating: {failure['request']}, {failure['verdict']}"
        console.print(_head(said))
        say(console, f"{failure['kind']}: {failure['message']}")
        if failure["raw"]:
            say(console, failure["raw"])


def _tell_carried_scores(console: Console, reader: Reader, row: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """With their sources where these are several: those of two are not compared."""
    console.print(_head("scores that came with the completions"))
    sources = reader.score_sources(row["prompt_id"])
    for rating in row["ratings"]:
        of = f", of source {sources[rating['completion']]}" if len(set(sources.values())) > 1 else ""
        said = f"{names.get(rating['completion'], '')}: {rating['score']:g}{of}"
        console.print(said, markup=False, highlight=False)
