"""Group messages that differ only in names and numbers, so that a problem many endpoints share takes one line."""

import re
from collections.abc import Iterable, Sequence

SHOWN_NAMES = 2
NAME_WIDTH = 24


def pattern(message: str, name: str = "") -> str:
    """Replace in an error message what differs between endpoints by #: the endpoint's `name`, and words that are not
    all letters (numbers, ids, URLs, quoted names). Messages with the same pattern have the same cause."""
    words = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "#", message).split() if name else message.split()
    return " ".join(word if word.strip(".,:;!?()[]").isalpha() else "#" for word in words)


def grouped(messages: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group (endpoint, message) pairs by the pattern of the message; return the first message of each -> endpoints."""
    groups: dict[str, tuple[str, list[str]]] = {}
    for name, message in messages:
        groups.setdefault(pattern(message, name), (message, []))[1].append(name)
    return dict(groups.values())


def few(names: Sequence[str]) -> str:
    """Return the first two names, shortened, and how many more there are: `a, b and 10 more`."""
    shown = ", ".join(shortened(name) for name in names[:SHOWN_NAMES])
    return f"{shown} and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else shown


def shortened(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1]}…"
