"""Group messages that differ only in names and numbers, so that a problem of many endpoints is printed once."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

from aif.core.formatting import escape_controls

SHOWN_NAMES = 2
NAME_WIDTH = 24


def pattern(message: str, name: str = "") -> str:
    """Return an error message with # in place of the endpoint's `name` and of each word that isn't all letters (ids,
    URLs).

    Messages with the same pattern are taken to have the same cause.
    """
    words = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "#", message).split() if name else message.split()
    return " ".join(word if word.strip(".,:;!?()[]").isalpha() else "#" for word in words)


def grouped(messages: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group (endpoint, message) pairs by the message's pattern. Return a dict from the first message of each group to
    its endpoints' names."""
    groups: dict[str, tuple[str, list[str]]] = {}
    for name, message in messages:
        groups.setdefault(pattern(message, name), (message, []))[1].append(name)
    merged: dict[str, list[str]] = {}  # a name that is a word of the message makes a pattern of its own
    for message, names in groups.values():
        merged.setdefault(message, []).extend(names)
    return merged


def few(names: Sequence[str]) -> str:
    """Return the first two names, shortened, and how many more there are: `a, b and 10 more`."""
    shown = ", ".join(shortened(name) for name in names[:SHOWN_NAMES])
    return f"{shown} and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else shown


def shortened(name: str, width: int = NAME_WIDTH) -> str:
    """Shorten a name to `width` columns, such as `…/Mistral-7B-In…ct-v0.2`: leave out its organization and, if that
    isn't enough, a part of its middle, since similar names often differ at the end."""
    if cell_len(name) <= width:
        return name
    _, slash, model = name.rpartition("/")
    short = f"…/{model}" if slash and model else name
    if cell_len(short) <= width:
        return short
    first = 2 * width // 3
    start, end = set_cell_size(short, first), set_cell_size(short[::-1], max(0, width - first - 1))[::-1]
    return f"{start.strip()}…{end.strip()}"


@dataclass(frozen=True, slots=True)
class Name:
    """A table cell with an endpoint's name, shortened if it is wider than its column. `style` is a rich style."""

    text: str
    style: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(shortened(escape_controls(self.text), options.max_width), self.style, no_wrap=True, overflow="crop")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, cell_len(escape_controls(self.text)))
