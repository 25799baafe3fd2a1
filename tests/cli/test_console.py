"""What is said to nobody ends nothing."""

import io
import os
import pty
import subprocess
import sys

import pytest

from aif.cli.console import SafeConsole, print_text, wrap


def test_a_terminal_that_was_closed_hears_nothing_more() -> None:
    mine, theirs = pty.openpty()
    with open(theirs, "w") as file:  # noqa: PTH123 - a handle has no path
        screen = SafeConsole(file=file)
        screen.print("Is anybody there?")
        assert os.read(mine, 64) == b"Is anybody there?\r\n"
        os.close(mine)
        screen.print("And now?")
        assert screen.quiet


def test_a_pipe_that_nobody_reads_hears_nothing_more() -> None:
    read, write = os.pipe()
    with open(write, "w") as file:  # noqa: PTH123
        screen = SafeConsole(file=file)
        os.close(read)
        screen.print("Is anybody there?")
        assert screen.quiet


def test_others_hear_all() -> None:
    heard = io.StringIO()
    screen = SafeConsole(file=heard)
    screen.print("one")
    screen.print("two")

    assert heard.getvalue() == "one\ntwo\n"


def test_what_a_server_says_moves_no_cursor() -> None:
    heard = io.StringIO()
    SafeConsole(file=heard).print("\x1b]0;mine\x07 \x1b[2J", "fine")

    assert heard.getvalue() == "␛]0;mine␇ ␛[2J fine\n"


def test_what_a_terminal_can_t_show_is_replaced() -> None:
    said = "from aif.cli import main as cli; cli.app = lambda: cli.out.print('→ „é“ 2 × 3 ━━╸──'); cli.main()"
    environ = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    ended = subprocess.run([sys.executable, "-c", said], env=environ, capture_output=True)

    assert ended.stdout == "-> ?é? 2 × 3 ==---\n".encode("latin-1")
    assert not ended.stderr


def test_in_a_terminal_lines_break_at_spaces_and_commands_stay_whole() -> None:
    text = (
        "the store is behind; `aif export a.yaml` updates it\n    /a/path/that/is/longer/than/the/line and more of it"
    )
    assert wrap(text, 30).splitlines() == [
        "the store is behind;",
        "`aif export a.yaml` updates it",
        "    /a/path/that/is/longer/than/the/line",
        "    and more of it",
    ]
    assert wrap("ok   the disk is full", 16, hang=5).splitlines() == ["ok   the disk is", "     full"]
    assert wrap("a  b\n\n c", 30) == "a  b\n\n c"
    assert wrap("漢字 漢字", 6).splitlines() == ["漢字", "漢字"]


@pytest.mark.parametrize(("terminal", "verbatim", "lines"), [(True, False, 2), (True, True, 1), (False, False, 1)])
def test_a_file_and_a_verbatim_text_get_no_line_breaks(terminal: bool, verbatim: bool, lines: int) -> None:
    screen = io.StringIO()
    console = SafeConsole(file=screen, width=20, force_terminal=terminal, color_system=None)
    print_text(console, "[b]first[/b] of some words", label="FAIL ", verbatim=verbatim)

    assert len(screen.getvalue().splitlines()) == lines
    assert " ".join(screen.getvalue().split()) == "FAIL [b]first[/b] of some words"
