"""What `aif show` prints of one prompt: requests, raw replies, ratings, and why its pair was chosen."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from aif.cli.console import print_text
from aif.cli.views.rubric import print_messages
from aif.core.formatting import counted
from aif.core.types import PROVIDED_JUDGE, Principle, Prompt, provided_identity
from aif.engine.outcome_text import OUTCOME_TEXTS, policy_text
from aif.judging.rubric import render
from aif.planning.plan import sent_messages
from aif.store.journal_batches import Rubrics
from aif.store.reader import Reader


def print_prompt(console: Console, reader: Reader, prefix: str) -> None:
    """Print everything about the prompt whose id starts with `prefix`. Raises BadInput if none or several match."""
    prompt_id = reader.find_prompt_id(prefix)
    stored = reader.prompt(prompt_id)
    prompt = stored.prompt
    console.print(_head(f"prompt {prompt_id}"))
    print_text(console, f"source {stored.source or '(no longer selected)'}   meta {stored.meta}")
    print_messages(console, prompt.messages)
    _print_outcome(console, reader, prompt_id, selected=stored.source is not None)
    principles = reader.texts("principle")
    names = _print_completions(console, reader, prompt, principles)
    _print_judgements(console, reader, prompt, names)


def _format_score(score: float) -> str:
    """Return a score with 3 decimals; with 6 significant digits if it is tiny or huge, as a likelihood may be."""
    return f"{score:.3f}" if 0.001 <= abs(score) < 1e6 or not score else f"{score:.6g}"


def _head(words: str) -> Rule:
    return Rule(Text(words, style="bold"))


def _print_outcome(console: Console, reader: Reader, prompt_id: str, selected: bool) -> None:
    console.print(_head("outcome"))
    outcome = reader.outcome(prompt_id)
    if outcome is None:
        console.print(
            "no pair yet; `aif run` and `aif export` make pairs" if selected else
            "none: the pipeline's sources no longer have this prompt, or their limits leave it out"
        )  # fmt: skip
        return
    policy = reader.pair_policy()
    if outcome.unrated:
        console.print(f"left out: {counted(outcome.unrated, 'completion')} without any rating", highlight=False)
    if policy is None or outcome.outcome != "paired":
        console.print(f"no pair: {OUTCOME_TEXTS[outcome.outcome]} ({outcome.outcome})", highlight=False)
        return
    models, pairs = reader.models_by_key(prompt_id), reader.pairs_of(prompt_id)
    for pair in pairs:
        if len(pairs) > 1:
            console.print(f"[bold]pair {pair.n + 1} of {len(pairs)}")
        sides = (("chosen", pair.chosen, pair.score_chosen), ("rejected", pair.rejected, pair.score_rejected))
        for side, key, score in sides:
            print_text(console, f"{side:<8} {models.get(key, 'a former model')}, score {_format_score(score)} ({key})")
        for dissent in pair.dissents:
            scores = f"{dissent.score_chosen:.3f} < {dissent.score_rejected:.3f}"
            print_text(console, f"but      {dissent.judge} prefers the rejected answer: {scores}")
    print_text(
        console, f"because  {policy.name} by {policy.score} over {', '.join(outcome.aspects)}: {policy_text(policy)}"
    )


def _print_completions(
    console: Console, reader: Reader, prompt: Prompt, principles: Mapping[str, str]
) -> dict[str, str]:
    """Print the completions of a prompt. Return their display names by completion key.

    A display name is the model's name. If the model has several completions of the prompt, the start of the key is
    added. `principles` are the texts of principles by digest.
    """
    slots = reader.slots_with_calls(prompt.prompt_id)
    written = Counter(slot["model"] for slot in slots)
    names = {
        slot["key"]: slot["model"] if written[slot["model"]] == 1 else f"{slot['model']} ({slot['key'][:8]})"
        for slot in slots
    }
    for slot in slots:
        score = f", score {_format_score(slot['score'])}" if slot["score"] is not None else ""
        console.print(_head(f"completion {slot['key']}"))
        print_text(console, f"by {slot['model']}: {slot['state']}{score}", "bold")
        if slot["finish"] == "length":
            console.print("cut at max_tokens, so it can be rejected but never chosen")
        if slot["spread"] is not None:
            print_text(console, f"by judge {slot['by_judge']}; spread {slot['spread']:.3f}")
        if slot["identity"] == provided_identity(slot["model"]):
            console.print("it came with the prompt; no model was called for it", highlight=False)
            print_text(console, f"\n{slot['text']}", verbatim=True)
            continue
        console.print(
            f"model {slot['identity']}, sample {slot['sample']}, seed {slot['seed']}", highlight=False, markup=False
        )
        if slot["text"] is None:
            if slot["kind"]:
                print_text(console, f"{slot['kind']}: {slot['message']}")
            if slot["raw"]:
                print_text(console, f"received: {slot['raw']}", verbatim=True)
            continue
        principle = Principle("", principles[slot["principle"]]) if slot["principle"] else None
        sent = sent_messages(prompt, principle, slot["system"])
        head = sent[0].content if sent[0].role == "system" else None
        if head:
            print_text(console, f"sent with the system turn: {head}", "dim", verbatim=True)
        elif sent != prompt.messages:
            print_text(console, f"sent with the first turn as: {sent[0].content}", "dim", verbatim=True)
        _print_call(console, slot)
        if slot["reasoning"]:
            console.print("[bold]reasoning[/bold] (never judged, never exported)")
            print_text(console, slot["reasoning"], "dim", verbatim=True)
        print_text(console, f"\n{slot['text']}", verbatim=True)
    return names


def _print_call(console: Console, row: Mapping[str, Any]) -> None:
    usd = "price unknown" if row["usd"] is None else f"${row['usd']:.6f}"
    console.print(
        f"settings {row['sent']}  served {row['served']}\n"
        f"{row['input_tokens']} tokens in, {row['output_tokens']} out, {row['seconds']} s, attempt {row['n']}, {usd}",
        markup=False, highlight=False, style="dim", soft_wrap=True,
    )  # fmt: skip


def _print_judgements(console: Console, reader: Reader, prompt: Prompt, names: Mapping[str, str]) -> None:
    texts = reader.completion_texts(prompt.prompt_id)
    rubrics = Rubrics()
    for row in reader.judgements_with_calls(prompt.prompt_id):
        if row["identity"] == PROVIDED_JUDGE:
            _print_source_scores(console, reader, row, names)
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
            console.print("judged alone: all completions together exceed the judge's context window", highlight=False)
        _print_call(console, row)
        material = orjson.loads(row["shown_material"]) if row["shown_material"] else {}
        asked = replace(prompt, material={slot: piece["text"] for slot, piece in material.items()})
        seen = render(rubric, row["request"], asked, [texts[key] for key in shown], row["form"])
        print_messages(console, seen.messages)
        console.print("\n[bold]the judge's reply[/bold]")
        print_text(console, row["text"], verbatim=True)
        console.print("\n[bold]parsed as[/bold]")
        for rating in row["ratings"]:
            score = "N/A" if rating["score"] is None else f"{rating['score']:g}"
            types = f" types {rating['types']}" if rating["types"] else ""
            name = names.get(rating["completion"], "")
            print_text(console, f"{name}, {rating['aspect']}: {score}{types}: {rating['rationale']}")
    for failure in reader.failed_judgements(prompt.prompt_id):
        console.print(
            _head(f"judgement by {failure['judge']} without a rating: {failure['request']}, {failure['verdict']}")
        )
        print_text(console, f"{failure['kind']}: {failure['message']}")
        if failure["raw"]:
            print_text(console, failure["raw"], verbatim=True)


def _print_source_scores(console: Console, reader: Reader, row: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Print the scores that a source provided for a prompt's completions. `row` is the stored judgement that holds them
    as ratings.

    If the prompt is in several sources, each score is printed with its source, since scores of different sources aren't
    compared to make pairs. `names` are the completions' names by key.
    """
    console.print(_head("scores that came with the completions"))
    sources = reader.score_sources(row["prompt_id"])
    for rating in row["ratings"]:
        of = f", of source {sources[rating['completion']]}" if len(set(sources.values())) > 1 else ""
        print_text(console, f"{names.get(rating['completion'], '')}: {rating['score']:g}{of}")
