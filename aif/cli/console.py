"""Print to standard output and standard error: wrap lines in a terminal, and ignore a closed terminal or pipe."""

import codecs
import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text


class SafeConsole(Console):
    """A rich console that prints nothing more once its terminal or pipe is closed, so that the command still ends with
    its own exit code.

    With rich alone, a broken pipe would end the program, and a closed terminal would raise an error. Control characters
    are escaped, since texts of servers and files may contain them.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        from aif.core.formatting import escape_controls

        super().print(*(escape_controls(item) if isinstance(item, str) else item for item in objects), **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.file.fileno())  # Python flushes the rest when it exits
        os.close(null)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.on_broken_pipe()


out = SafeConsole(highlight=False)
err = SafeConsole(stderr=True, highlight=False)


def print_text(console: Console, text: str, style: str = "", *, label: str = "", verbatim: bool = False) -> None:
    """Print `label` and `text` without markup. A closed terminal or pipe raises no error.

    style: rich style of the label, or of the text if there is no label.
    label: printed before the text; continuation lines of the text are indented by its width.
    verbatim: don't wrap long lines in a terminal.
    """
    from aif.core.formatting import escape_controls

    printed = escape_controls(label + text)
    if console.is_terminal and not verbatim:
        printed = wrap(printed, console.width, len(label))
    line = Text(printed)
    line.stylize(style, 0, len(label) or len(printed))
    with suppress(OSError, SystemExit):  # rich exits at a broken pipe
        console.print(line, soft_wrap=True)


# For terminals that can't show these; any other such character becomes a question mark.
ASCII = {"━": "=", "╸": "-", "─": "-", "…": "...", "×": "x", "→": "->", "·": "|", "–": "-", "≥": ">="}
NEAREST = "aif.nearest"  # the name of the error handler for a stream's encoding


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(ASCII.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error(NEAREST, _nearest)


def can_redraw(console: Console) -> bool:
    """Return whether printed lines can be drawn over: true only in a terminal that isn't dumb. False for a file or CI
    log, even if FORCE_COLOR makes rich take it for a terminal."""
    return console.is_interactive and console.file.isatty()


def print_message(text: str) -> None:
    """Print a message to standard error."""
    print_text(err, text)


def wrap(text: str, width: int, hang: int = 0) -> str:
    """Wrap lines longer than `width` columns. Continuation lines keep the line's indentation, plus `hang` spaces.

    Commands in backticks and words longer than a line are not broken, so that they can be copied.
    """
    return "\n".join(part for line in text.split("\n") for part in _wrapped(line, width, hang))


def _wrapped(line: str, width: int, hang: int) -> Iterator[str]:
    indent = " " * (len(line) - len(line.lstrip(" ")) + hang)
    current = ""
    for spaces, word in re.findall(r"(\s*)(`[^`]*`\S*|\S+)", line):
        if current.strip() and cell_len(current + spaces + word) > width:
            yield current
            current = indent + word
        else:
            current += spaces + word
    yield current
