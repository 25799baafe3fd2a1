"""Group messages that differ only in names and numbers, so that a problem of many endpoints is printed once."""

import re
from collections.abc import Iterable, Sequence

SHOWN_NAMES = 2
NAME_WIDTH = 24


def pattern(message: str, name: str = "") -> str:
    """Return an error message with # for the endpoint's `name` and for each word that isn't all letters (ids, URLs).

    Messages with the same pattern have the same cause.
    """
    words = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "#", message).split() if name else message.split()
    return " ".join(word if word.strip(".,:;!?()[]").isalpha() else "#" for word in words)


def grouped(messages: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group (endpoint, message) pairs by the message's pattern. Return the endpoints by their group's first message."""
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
