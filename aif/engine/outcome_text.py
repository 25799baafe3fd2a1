"""How a store stands, in words: outcomes, counts that add up, what is missing. Pure."""

from typing import TYPE_CHECKING

from aif.core.words import counted, dollars, spending
from aif.engine.advice import THEN
from aif.engine.budget import Short
from aif.store.report_queries import ItemCounts, PromptCounts, ReasoningMarks, Tally

if TYPE_CHECKING:  # it loads numpy
    from aif.pairing.pairs import PairPolicy

# What became of a prompt, in words. The keys are pairs.REASONS and those store.results adds.
OUTCOMES = {
    "paired": "pairs",
    "tie": "tied: no completion is lower than the best",
    "margin": "lower ones, but none by min_margin",
    "identical": "the lower one has the same text",
    "length_ratio": "the lower one's length is beyond max_length_ratio",
    "model_cap": "its models are on their sides max_per_model times",
    "other_scale": "scores of several sources, and no two of one (give sources of one scale one `source`)",
    "no_such_model": "no completion is by the model of on_policy",
    "best_truncated": "only a completion cut at max_tokens is higher than the rest",
    "all_truncated": "every completion was cut at max_tokens",
    "no_common_aspect": "no aspect is rated for every completion",
    "missing_aspect": "an aspect is missing for one completion",
    "too_few": "fewer than two completions",
    "unrated": "too few completions are rated",
    "too_few_completions": "fewer completions than min_completions",
    "judgement_failed": "no judge gave a readable rating",
    "pending": "pending",
}


def rule_of(policy: "PairPolicy") -> str:
    """How a policy picks, in words."""
    lower = f"lower by at least {policy.min_margin:g}" if policy.min_margin else "lower"
    if policy.max_length_ratio is not None:
        lower += f" and at most {policy.max_length_ratio:g} times as long or as short"
    if policy.name == "all":
        said = f"every completion that was not cut at its limit is chosen over every one {lower}"
        if policy.max_pairs_per_prompt is not None:
            said += f"; of a prompt's pairs the widest {policy.max_pairs_per_prompt} stay"
    else:
        said = "chosen is the best completion that was not cut at its limit"
        if policy.name == "on_policy":
            said += f", of the pairs with {policy.model} on one side"
        said += f"; rejected is {'the lowest of' if policy.name == 'best_vs_worst' else 'drawn from'} those {lower}"
    if policy.max_per_model is not None:
        said += f"; no model is on a side more than {policy.max_per_model:,} times"
    if policy.shares:
        said += "; a score is the mean of shares of each aspect's range, from 0 to 1"
    return said


def marked(one: ReasoningMarks) -> str:
    """The same in words, without the example."""
    if not one.model:
        prompts = counted(one.completions, "prompt")
        return f"{prompts} with what looks like a mark of reasoning in an earlier answer, which judges are shown"
    completions = counted(one.completions, "completion")
    if one.kind == "left":
        return f"{one.model}: {completions} with what looks like a mark of reasoning (see reasoning_tags)"
    if one.kind == "whole":
        return f"{one.model}: {completions} cut at max_tokens, maybe before their reasoning ended, as others have some"
    return f"{one.model}: {completions} cut where the reply may only speak of a mark (see reasoning_tags)"


def beside(books: PromptCounts) -> list[tuple[int, str]]:
    """What was met in rows and left out none, or not them alone."""
    found = [
        (books.empty, "completions left out, having no text"),
        (books.rescored, "scores of completions that had another, or none, before: that holds"),
        (books.alike, "prompts kept that differ from an earlier one in blanks or Unicode form alone"),
        (books.unrated, "completions left out, having no rating"),
    ]
    return [(n, words) for n, words in found if n]


def reached(short: Short, command: str) -> str:
    """That the budget is reached, and what to do."""
    goes_on = f"raise budget_usd, and `{command}` goes on"
    if short.bound > short.budget:
        return (
            f"the budget of {dollars(short.budget)} does not cover one call, which may cost {dollars(short.bound)} (a "
            f"token for each byte sent, and max_tokens received); {goes_on}, or lower max_tokens"
        )
    spent = spending(short.spent, short.budget)
    return f"budget reached: {spent}, and the next call may cost {dollars(short.bound)}; {goes_on}"


EXAMPLE = 160  # characters of what was last said of something missing

STAGES = {"carried": "carried", "completion": "completions", "judgement": "judgements"}


def counts(tally: Tally) -> tuple[int, int, int, int]:
    """What is wanted, and what that is the sum of."""
    return tally.wanted, tally.answered, tally.failed, tally.pending


def balanced(balance: ItemCounts) -> list[str]:
    """The same in words, over all models and over all judges: prompts × slots = answered + failed + pending."""
    times = " + ".join(f"{counted(prompts, 'prompt')} × {n:,}" for n, prompts in balance.slots.items())
    said = []
    for noun, stages in (("completion", ("carried", "completion")), ("judgement", ("judgement",))):
        wanted, answered, failed, pending = counts(balance.total(*stages))
        of = f"{times} = " if noun == "completion" and times else ""
        said.append(f"{of}{counted(wanted, noun)} = {answered:,} answered + {failed:,} failed + {pending:,} pending")
    if balance.unplanned:
        said.append(unplanned(balance))
    return [*said, whole(balance)]


def unplanned(balance: ItemCounts) -> str:
    """That some prompts have no items yet, so that nothing is told of these."""
    return f"{counted(balance.unplanned, 'prompt')} not planned yet: the next run begins with that"


def shortfall(balance: ItemCounts, least: float, typed: str) -> list[str]:
    """What is missing, line by line, where less than a share of the prompts has all that is wanted of it, and what gets
    it; `typed` is the pipeline file as a command takes it."""
    if balance.completeness >= least:
        return []
    said = [f"{whole(balance)}; export.completeness is {least:.4g}. Missing:"]
    for one in balance.missing:
        items = counted(one.items, one.stage)
        if not one.kind:
            said.append(f"  {one.endpoint}: {items} {THEN[one.verdict]}")
        else:
            again = "failed for good" if one.verdict == "failed" else "to be asked again"
            said.append(f"  {one.endpoint}: {items} {again}: {one.kind}, as in: {one.example[:EXAMPLE]}")
    states = {one.verdict for one in balance.missing}
    if states - {"failed"} or not states:
        said.append(f"`aif run {typed}` asks for what is pending")
    if "failed" in states:
        said.append(
            f"`aif failures {typed}` says what to do about what failed, `aif run {typed} --retry-failed` asks again"
        )
    return said


def whole(balance: ItemCounts) -> str:
    """How complete the dataset is that can be made now."""
    if not balance.prompts:
        return "no prompt is selected"
    share = f"{balance.completeness:.1%}"
    if share == "100.0%" and balance.complete < balance.prompts:
        share = "almost 100%"
    return f"{balance.complete:,} of {counted(balance.prompts, 'prompt')} have all that is wanted of them ({share})"
