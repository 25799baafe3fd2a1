"""Group messages that differ only in names and numbers, so that a problem many endpoints share takes one line."""

import re
from collections.abc import Iterable, Sequence

SHOWN_NAMES = 2
NAME_WIDTH = 24


def pattern(message: str, name: str = "") -> str:
    """Return a message without what differs from endpoint to endpoint: its own name, and every word with a digit or a
    sign in it (numbers, ids, URLs, quoted names)."""
    words = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "#", message).split() if name else message.split()
    return " ".join(word if word.strip(".,:;!?()[]").isalpha() else "#" for word in words)


def grouped(messages: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group (name, message) pairs whose messages match in pattern: the first message -> the names."""
    groups: dict[str, tuple[str, list[str]]] = {}
    for name, message in messages:
        groups.setdefault(pattern(message, name), (message, []))[1].append(name)
    return dict(groups.values())


def few(names: Sequence[str]) -> str:
    """Return the first names, shortened, and how many more there are."""
    shown = ", ".join(shortened(name) for name in names[:SHOWN_NAMES])
    return f"{shown} and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else shown


def shortened(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1]}…"
