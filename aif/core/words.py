"""Numbers, money and durations as people read them; text that is safe on a terminal. Pure."""

from aif.core.types import Spent


def visible(text: str) -> str:
    """The text with its control characters as signs (␛ for escape), but for line breaks and tabs: what a model wrote
    must not move the cursor of whoever reads it."""
    return text.translate(_SIGNS)


# C0 and DEL have pictures of their own; C1, which some terminals obey too, has none
_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_SIGNS |= dict.fromkeys(range(128, 160), 0xFFFD)


def dollars(usd: float | None) -> str:
    """An amount as people read it; what is not known is said."""
    return "unknown" if usd is None else f"${usd:,.2f}" if usd >= 1 or usd == 0 else f"${usd:.4f}"


def counted(number: int, noun: str) -> str:
    """So many of something: 1 prompt, 2,000 prompts."""
    return f"{number:,} {of(number, noun)}"


def of(number: int, noun: str) -> str:
    """The noun for so many."""
    return noun if number == 1 else f"{noun}s"


def compact(number: int) -> str:
    """A count of tokens in few letters: 950, 12.3k, 4.5M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def clock(seconds: float | None) -> str:
    """A duration as 1:02:03 or 2:03."""
    if seconds is None:
        return "?"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def spending(spent: Spent, budget: float | None) -> str:
    """What a store has spent and what is left of the budget, where there is a budget, or not all is known."""
    if budget is None and not spent.unknown:
        return ""
    unknown = f", of which up to {dollars(spent.unknown)} unknown" if spent.unknown else ""
    left = f"; {dollars(spent.left(budget))} of the budget of {dollars(budget)} left" if budget is not None else ""
    return f"{dollars(spent.counted)} spent in all{unknown}{left}"
