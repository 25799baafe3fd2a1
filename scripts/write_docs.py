"""Writes the parts of docs/ that the program itself knows: commands, exit codes, the store's schema.

`make docs` runs it; tests/test_docs.py fails when what it would write differs from what is there.
"""

from pathlib import Path
from typing import Any

import typer

from aif.cli.main import app
from aif.core.errors import Exit

ROOT = Path(__file__).resolve().parent.parent

EXITS = {
    Exit.DONE: "done",
    Exit.BUG: "a bug in aif, or a system error (a file, the disk)",
    Exit.BAD_INPUT: "bad input (the pipeline file, a source, an argument), or the confirmation was declined",
    Exit.FAILURES: "unanswered items (see `aif failures`): `aif run` finished with failures, or an export was refused",
    Exit.BUDGET: "the budget is reached: raise `budget_usd` and run the same command to resume",
    Exit.REFUSED: "a provider refuses all calls: key, quota, model; fix it and run the same command to resume",
    Exit.LOCKED: "another process holds the store",
    Exit.DAMAGED: "the store or the journal can't be read",
    Exit.DISK: "the disk is full (free some space and run the same command to resume), or memory is (the message says "
    "what to lower)",
    Exit.INTERRUPTED: "interrupted; the same command resumes",
}


def cli() -> str:
    """docs/cli.md."""
    command: Any = typer.main.get_command(app)
    parts = ["# Commands\n", "Printed by the program itself (`make docs`).\n"]
    for name, one in command.commands.items():
        for full, each in (
            [(f"{name} {sub}", c) for sub, c in one.commands.items()] if hasattr(one, "commands") else [(name, one)]
        ):
            parts.append(_command(full, each))
    parts.append("## Exit codes\n\n| code | when |\n|---|---|")
    parts.append("\n".join(f"| {int(code)} | {words} |" for code, words in EXITS.items()) + "\n")
    return "\n".join(parts)


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join(["aif", name, *(p.metavar or p.name.upper() for p in arguments)])
    lines = [f"## `{usage}`\n", f"{command.help}\n"]
    lines += [f"- `{p.metavar or p.name.upper()}` {p.help}" for p in arguments if p.help]
    for p in options:
        value = "" if p.is_flag else f" {p.metavar or p.type_descriptor.annotation.__name__.upper()}"
        default = f" Default: {p.default}." if p.default not in (None, False, ()) and not p.is_flag else ""
        lines.append(f"- `{p.opts[0]}{value}` {p.help}{default}")
    return "\n".join(lines) + "\n"


def store() -> str:
    """docs/store.md: prose by hand, the schema as it is."""
    prose = (ROOT / "docs" / "store.md").read_text(encoding="utf-8").partition("<!-- schema -->")[0]
    schema = (ROOT / "data" / "schemas" / "store.sql").read_text(encoding="utf-8")
    return f"{prose}<!-- schema -->\n\n```sql\n{schema}```\n"


PAGES = {"cli.md": cli, "store.md": store}

if __name__ == "__main__":
    for name, write in PAGES.items():
        (ROOT / "docs" / name).write_text(write(), encoding="utf-8")
