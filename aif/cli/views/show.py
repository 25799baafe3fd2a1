"""What `aif show` prints of one prompt: requests, raw replies, ratings, and why its pair was chosen."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import orjson
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from aif.cli.console import print_text
from aif.cli.views.rubric import print_messages
from aif.core.types import CARRIED, Principle, Prompt, as_messages, carried_identity
from aif.core.words import counted
from aif.engine.outcome_text import OUTCOMES, rule_of
from aif.judging.rubric import render
from aif.planning.plan import sent_messages
from aif.store.journal_batches import Rubrics
from aif.store.reader import Reader


def print_prompt(console: Console, reader: Reader, prefix: str) -> None:
    """Print everything about the prompt whose id starts with `prefix`. Raises BadInput if there is none or several."""
    prompt_id = reader.find(prefix)
    row = reader.sql(
        "SELECT p.messages, p.meta, e.source FROM prompts p LEFT JOIN selection e ON p.prompt_id = e.prompt_id "
        "WHERE p.prompt_id = ?",
        [prompt_id],
    )[0]
    prompt = Prompt(prompt_id, as_messages(row["messages"]), row["source"] or "")
    console.print(_head(f"prompt {prompt_id}"))
    print_text(console, f"source {row['source'] or '(no longer selected)'}   meta {row['meta']}")
    print_messages(console, prompt.messages)
    _print_outcome(console, reader, prompt_id, selected=row["source"] is not None)
    principles = reader.texts("principle")
    names = _print_completions(console, reader, prompt, principles)
    _print_judgements(console, reader, prompt, names)


def _points(score: float) -> str:
    """A score with enough digits to tell it from others: some are likelihoods."""
    return f"{score:.3f}" if 0.001 <= abs(score) < 1e6 or not score else f"{score:.6g}"


def _head(words: str) -> Rule:
    return Rule(Text(words, style="bold"))


def _print_outcome(console: Console, reader: Reader, prompt_id: str, selected: bool) -> None:
    console.print(_head("outcome"))
    rows = reader.sql("SELECT * FROM outcomes WHERE prompt_id = ?", [prompt_id])
    if not rows:
        console.print(
            "no pair yet; `aif run` and `aif export` make pairs" if selected else
            "none: the pipeline's sources no longer have this prompt, or their limits leave it out"
        )  # fmt: skip
        return
    outcome, policy = rows[0], reader.paired_by()
    if outcome["unrated"]:
        console.print(f"left out: {counted(outcome['unrated'], 'completion')} without any rating", highlight=False)
    if policy is None or outcome["outcome"] != "paired":
        console.print(f"no pair: {OUTCOMES[outcome['outcome']]} ({outcome['outcome']})", highlight=False)
        return
    models = {r["key"]: r["model"] for r in reader.sql("SELECT key, model FROM slots WHERE prompt_id = ?", [prompt_id])}
    pairs = reader.sql("SELECT * FROM preferences WHERE prompt_id = ? ORDER BY n", [prompt_id])
    for pair in pairs:
        if len(pairs) > 1:
            console.print(f"[bold]pair {pair['n'] + 1} of {len(pairs)}")
        for side in ("chosen", "rejected"):
            key = pair[side]
            score = _points(pair[f"score_{side}"])
            print_text(console, f"{side:<8} {models.get(key, 'a former model')}, score {score} ({key})")
        for row in reader.sql("SELECT * FROM dissent WHERE prompt_id = ? AND n = ?", [prompt_id, pair["n"]]):
            scores = f"{row['score_chosen']:.3f} < {row['score_rejected']:.3f}"
            print_text(console, f"but      {row['judge']} prefers the rejected answer: {scores}")
    print_text(
        console, f"because  {policy.name} by {policy.score} over {', '.join(outcome['aspects'])}: {rule_of(policy)}"
    )


_SLOTS = """
SELECT s.*, f.raw, c.text, c.reasoning, c.finish, c.system, x.score, x.spread,
       (SELECT string_agg(format('{} {:.3f}', y.judge, y.score), ', ' ORDER BY y.judge)
        FROM judge_scores y WHERE y.completion = s.key) AS by_judge,
       k.sent, k.served, k.seconds, k.n, k.input_tokens, k.output_tokens, k.usd
FROM slot_states s LEFT JOIN completions c ON s.key = c.key LEFT JOIN failed f ON s.key = f.key
LEFT JOIN calls k ON c.call_id = k.id LEFT JOIN scores x ON s.key = x.completion
WHERE s.prompt_id = ? ORDER BY s.slot
"""


def _print_completions(
    console: Console, reader: Reader, prompt: Prompt, principles: Mapping[str, str]
) -> dict[str, str]:
    """Print the completions. Return a name for each by key: its model, with the key if the model wrote several."""
    slots = reader.sql(_SLOTS, [prompt.prompt_id])
    written = Counter(slot["model"] for slot in slots)
    names = {
        slot["key"]: slot["model"] if written[slot["model"]] == 1 else f"{slot['model']} ({slot['key'][:8]})"
        for slot in slots
    }
    for slot in slots:
        score = f", score {_points(slot['score'])}" if slot["score"] is not None else ""
        console.print(_head(f"completion {slot['key']}"))
        print_text(console, f"by {slot['model']}: {slot['state']}{score}", "bold")
        if slot["finish"] == "length":
            console.print("cut at max_tokens, so it can be rejected but never chosen")
        if slot["spread"] is not None:
            print_text(console, f"by judge {slot['by_judge']}; spread {slot['spread']:.3f}")
        if slot["identity"] == carried_identity(slot["model"]):
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


_JUDGEMENTS = """
SELECT j.* REPLACE (d.judge AS judge), k.sent, k.served, k.seconds, k.n, k.input_tokens, k.output_tokens, k.usd,
       t.content AS files, m.content AS shown_material
FROM needed d JOIN judgements j ON d.judgement = j.key LEFT JOIN calls k ON j.call_id = k.id
LEFT JOIN texts t ON j.rubric = t.digest LEFT JOIN texts m ON j.material = m.digest
WHERE d.prompt_id = ?
ORDER BY d.judge, j.pass, j.request, j.key
"""


def _print_judgements(console: Console, reader: Reader, prompt: Prompt, names: Mapping[str, str]) -> None:
    texts = dict(_texts(reader, prompt.prompt_id))
    rubrics = Rubrics()
    for row in reader.sql(_JUDGEMENTS, [prompt.prompt_id]):
        if row["identity"] == CARRIED:
            _print_carried_scores(console, reader, row, names)
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
    for failure in reader.sql(
        "SELECT f.*, d.judge FROM failed f JOIN needed d ON d.failure = f.key WHERE d.prompt_id = ?",
        [prompt.prompt_id],
    ):
        console.print(
            _head(f"judgement by {failure['judge']} without a rating: {failure['request']}, {failure['verdict']}")
        )
        print_text(console, f"{failure['kind']}: {failure['message']}")
        if failure["raw"]:
            print_text(console, failure["raw"], verbatim=True)


def _print_carried_scores(console: Console, reader: Reader, row: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Print scores that came with the prompt, with their sources if there are several: these are never compared."""
    console.print(_head("scores that came with the completions"))
    carried = reader.sql("SELECT key, source FROM carried WHERE prompt_id = ?", [row["prompt_id"]])
    sources = {row["key"]: row["source"] for row in carried if row["source"]}
    for rating in row["ratings"]:
        of = f", of source {sources[rating['completion']]}" if len(set(sources.values())) > 1 else ""
        print_text(console, f"{names.get(rating['completion'], '')}: {rating['score']:g}{of}")


def _texts(reader: Reader, prompt_id: str) -> Iterator[tuple[str, str]]:
    for row in reader.sql("SELECT key, text FROM completions WHERE prompt_id = ?", [prompt_id]):
        yield row["key"], row["text"]
