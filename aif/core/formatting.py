"""Numbers, money and durations formatted for people; text made safe for a terminal. Pure."""

from aif.core.types import Spent


def escape_controls(text: str) -> str:
    """Return the text with control characters replaced by visible signs (␛ for escape), except line breaks and tabs. A
    model's output must not move the reader's cursor."""
    return text.translate(_SIGNS)


# Unicode has pictures for C0 and DEL; it has none for C1, which some terminals obey too
_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_SIGNS |= dict.fromkeys(range(128, 160), 0xFFFD)


def dollars(usd: float | None) -> str:
    """Format an amount: $1,234.50, $0.0123 below one dollar, `unknown` for None."""
    return "unknown" if usd is None else f"${usd:,.2f}" if usd >= 1 or usd == 0 else f"${usd:.4f}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in singular or plural: `1 prompt`, `2,000 prompts`."""
    return f"{number:,} {plural(number, noun)}"


def plural(number: int, noun: str) -> str:
    """Return the noun in singular for 1, else with an s."""
    return noun if number == 1 else f"{noun}s"


def compact(number: int) -> str:
    """Format a count of tokens in few characters: 950, 12.3k, 4.5M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def duration(seconds: float | None) -> str:
    """Format a duration as 1:02:03 or 2:03; `?` for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe_spending(spent: Spent, budget: float | None) -> str:
    """Return a sentence on what all runs with a store have spent and what is left of the budget; empty if there is no
    budget and every cost is known."""
    if budget is None and not spent.unknown:
        return ""
    unknown = f", of which up to {dollars(spent.unknown)} unknown" if spent.unknown else ""
    left = f"; {dollars(spent.left(budget))} of the budget of {dollars(budget)} left" if budget is not None else ""
    return f"{dollars(spent.counted)} spent in all{unknown}{left}"
