"""Texts about a store's results: prompts by outcome, completion and judgement counts, what is missing. No I/O."""

from typing import TYPE_CHECKING

from aif.core.formatting import counted, describe_spending, dollars
from aif.engine.advice import NEXT_STEPS
from aif.engine.budget import BudgetShortfall
from aif.store.report_queries import ItemCounts, PromptCounts, ReasoningMarks, Tally

if TYPE_CHECKING:  # it loads numpy
    from aif.pairing.pairs import PairPolicy

# By outcome of a prompt, as make_pairs.ALL_OUTCOMES lists them.
OUTCOME_TEXTS = {
    "paired": "pairs",
    "tie": "tied: no completion scores below the best",
    "margin": "no completion is below the best by min_margin",
    "identical": "chosen and rejected have the same text",
    "length_ratio": "the rejected completion's length is beyond max_length_ratio",
    "model_cap": "its models have been chosen or rejected max_per_model times",
    "other_scale": "scores of several sources, and no two from one source (give sources of one scale one `source`)",
    "no_such_model": "no completion is by the model of on_policy",
    "best_truncated": "only a completion cut at max_tokens scores above the rest",
    "all_truncated": "every completion was cut at max_tokens",
    "no_common_aspect": "no aspect is rated for every completion",
    "missing_aspect": "an aspect is missing for one completion",
    "too_few": "fewer than two completions",
    "unrated": "too few completions are rated",
    "too_few_completions": "fewer completions than min_completions",
    "judgement_failed": "no judge gave a readable rating",
    "pending": "pending",
}

STAGE_NAMES = {"carried": "carried", "completion": "completions", "judgement": "judgements"}

EXAMPLE = 160  # characters of an error message that are shown as an example


def policy_text(policy: "PairPolicy") -> str:
    """Return a sentence on how a pairing policy picks chosen and rejected."""
    rejected = f"at least {policy.min_margin:g} below" if policy.min_margin else "below"
    length = ""
    if policy.max_length_ratio is not None:
        length = f", at most {policy.max_length_ratio:g} times as long or as short"
    if policy.name == "all":
        text = f"every completion that was not cut at its limit is chosen over every completion {rejected} it{length}"
        if policy.max_pairs_per_prompt is not None:
            text += f"; of each prompt the {policy.max_pairs_per_prompt} pairs with the largest margin stay"
    else:
        text = "chosen is the best completion that was not cut at its limit"
        if policy.name == "on_policy":
            text += f", in pairs with {policy.model} as chosen or rejected"
        pick = "the lowest of" if policy.name == "best_vs_worst" else "drawn from"
        text += f"; rejected is {pick} those {rejected} it{length}"
    if policy.max_per_model is not None:
        text += f"; each model is chosen at most {policy.max_per_model:,} times, and rejected at most as often"
    if policy.shares:
        text += "; a score is the mean of each aspect's rating scaled from 0 to 1"
    return text


def reasoning_mark_text(marked: ReasoningMarks) -> str:
    """Return a sentence that says in how many completions of a model reasoning may be removed wrongly, and why.

    The reasons: a reasoning tag is left in the text; the text was cut at a tag that may be only a quotation; the reply
    ends at max_tokens and may be all reasoning. If `marked.model` is "", the sentence counts prompts that have a tag
    left in an earlier assistant turn.
    """
    if not marked.model:
        prompts = counted(marked.completions, "prompt")
        return f"{prompts} with what looks like a reasoning mark in an earlier answer, which judges are shown"
    completions = counted(marked.completions, "completion")
    if marked.kind == "left":
        return f"{marked.model}: {completions} with what looks like a reasoning mark (see reasoning_tags)"
    if marked.kind == "whole":
        return (
            f"{marked.model}: {completions} cut at max_tokens, maybe before their reasoning ended; other completions "
            "of this model have reasoning"
        )
    return f"{marked.model}: {completions} cut at a mark that the reply may only quote (see reasoning_tags)"


def row_notes(rows: PromptCounts) -> list[tuple[int, str]]:
    """Return (count, text) for each oddity that `rows` counts, such as completions left out because they have no text,
    or prompts that are almost alike. Counts of 0 are omitted."""
    notes = [
        (rows.empty, "completions left out: no text"),
        (rows.rescored, "completions scored again, with another score; the first score is used"),
        (rows.alike, "prompts that differ from an earlier prompt only in whitespace or Unicode form"),
        (rows.unrated, "completions left out: no rating"),
    ]
    return [(n, text) for n, text in notes if n]


def budget_reached_text(shortfall: BudgetShortfall, command: str) -> str:
    """Return a sentence that says how much was spent, what the next call may cost, and that `command` resumes the
    run."""
    resume = f"raise budget_usd, and `{command}` resumes"
    if shortfall.bound > shortfall.budget:
        return (
            f"the budget of {dollars(shortfall.budget)} does not cover one call, which may cost "
            f"{dollars(shortfall.bound)} (a token for each byte sent, and max_tokens received); {resume}, or lower "
            "max_tokens"
        )
    spent = describe_spending(shortfall.spent, shortfall.budget)
    return f"budget reached: {spent}, and the next call may cost {dollars(shortfall.bound)}; {resume}"


def tally_counts(tally: Tally) -> tuple[int, int, int, int]:
    """Return (wanted, answered, failed, pending) of a tally; the last three add up to the first."""
    return tally.wanted, tally.answered, tally.failed, tally.pending


def balance_lines(balance: ItemCounts) -> list[str]:
    """Return lines that count the items of a store: completions, judgements, prompts that are not planned yet (if any),
    and complete prompts. Example: "20 completions = 17 answered + 2 failed + 1 pending"."""
    times = " + ".join(f"{counted(prompts, 'prompt')} × {n:,}" for n, prompts in balance.slots.items())
    lines = []
    for noun, stages in (("completion", ("carried", "completion")), ("judgement", ("judgement",))):
        wanted, answered, failed, pending = tally_counts(balance.total(*stages))
        product = f"{times} = " if noun == "completion" and times else ""
        total = counted(wanted, noun)
        lines.append(f"{product}{total} = {answered:,} answered + {failed:,} failed + {pending:,} pending")
    if balance.unplanned:
        lines.append(unplanned_text(balance))
    return [*lines, completeness_text(balance)]


def unplanned_text(balance: ItemCounts) -> str:
    """Return a sentence that says how many prompts have no planned completions yet and so are missing from the other
    counts."""
    return f"{counted(balance.unplanned, 'prompt')} not planned yet: the next run plans them first"


def shortfall_lines(balance: ItemCounts, least: float, typed: str) -> list[str]:
    """Return lines that list what is missing, and the commands that complete it; none if the share of complete prompts
    (0 to 1) is at least `least`. `typed` is the pipeline file's path as the user typed it."""
    if balance.completeness >= least:
        return []
    lines = [f"{completeness_text(balance)}; export.completeness is {least:.4g}. Missing:"]
    for failing in balance.missing:
        items = counted(failing.items, failing.stage)
        if not failing.kind:
            lines.append(f"  {failing.endpoint}: {items}, {NEXT_STEPS[failing.verdict]}")
        else:
            state = "failed permanently" if failing.verdict == "failed" else "to be retried"
            lines.append(f"  {failing.endpoint}: {items} {state}: {failing.kind}, as in: {failing.example[:EXAMPLE]}")
    verdicts = {failing.verdict for failing in balance.missing}
    if verdicts - {"failed"} or not verdicts:
        lines.append(f"`aif run {typed}` requests what is pending")
    if "failed" in verdicts:
        lines.append(f"`aif failures {typed}` shows how to fix the failures, `aif run {typed} --retry-failed` retries")
    return lines


def completeness_text(balance: ItemCounts) -> str:
    """Return how many prompts are complete, such as "2,925 of 3,000 prompts complete (97.5%)"."""
    if not balance.prompts:
        return "no prompt is selected"
    share = f"{balance.completeness:.1%}"
    if share == "100.0%" and balance.complete < balance.prompts:
        share = "almost 100%"
    return f"{balance.complete:,} of {counted(balance.prompts, 'prompt')} complete ({share})"
