"""Where the commands print: standard output and standard error, wrapped for a terminal and safe against closed ones."""

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
    """A console that goes quiet once its terminal or pipe is closed, so that the command still ends in order with its
    own exit code (rich would exit at a broken pipe and doesn't know a closed terminal). Control characters in text
    from servers and files are shown, not obeyed."""

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
    """Print `text` without markup, after `label`; `style` is the label's if there is one. In a terminal, lines break at
    spaces unless the text is `verbatim`; elsewhere they stay whole. A closed screen raises nothing."""
    from aif.core.formatting import escape_controls

    printed = escape_controls(label + text)
    if console.is_terminal and not verbatim:
        printed = wrap(printed, console.width, len(label))
    line = Text(printed)
    line.stylize(style, 0, len(label) or len(printed))
    with suppress(OSError, SystemExit):  # rich exits at a broken pipe
        console.print(line, soft_wrap=True)


def can_redraw(console: Console) -> bool:
    """Return whether lines can be drawn over: not in a dumb terminal, nor in a file or CI log, which rich takes for a
    terminal if FORCE_COLOR is set."""
    return console.is_interactive and console.file.isatty()


def print_message(text: str) -> None:
    """Print a message to standard error."""
    print_text(err, text)


def wrap(text: str, width: int, hang: int = 0) -> str:
    """Break lines longer than `width` columns at spaces, and continue them at the line's own indentation plus `hang`.
    Words longer than a line and commands in backticks stay unbroken, so that they can be copied."""
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
