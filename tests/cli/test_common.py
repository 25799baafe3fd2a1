"""What is said to nobody ends nothing."""

import io
import os
import pty
import subprocess
import sys

from aif.cli.common import SafeConsole


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
    said = "from aif.cli import main as cli; cli.app = lambda: cli.out.print('→ „é“'); cli.main()"
    environ = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    ended = subprocess.run([sys.executable, "-c", said], env=environ, capture_output=True)

    assert ended.stdout == "? ?é?\n".encode("latin-1")
    assert not ended.stderr
