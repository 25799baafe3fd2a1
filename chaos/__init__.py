"""The promises of docs/reliability.md, each tried against the simulator.

`make chaos` runs every trial at full length and writes the page from what it measured; `make test` runs each in short.
A trial is a module here with

    NUMBER, PROMISE                   which promise, and the promise in one line
    trial(folder, full) -> Figures    tries it in an empty folder; what was measured
    broken(figures) -> list[str]      what of the promise did not hold; empty where it was kept
    told(figures) -> str              the figures in a sentence or two

What was asked, and what came of it, is counted at the server, by key.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol, cast

Figures = Mapping[str, Any]  # JSON values


class Trial(Protocol):
    """What the module of a trial has."""

    NUMBER: int
    PROMISE: str

    def trial(self, folder: Path, full: bool) -> Figures: ...
    def broken(self, figures: Figures) -> list[str]: ...
    def told(self, figures: Figures) -> str: ...


def trials() -> list[Trial]:
    """All of them, by number."""
    return sorted(_found(), key=lambda one: one.NUMBER)


def _found() -> Iterator[Trial]:
    for info in iter_modules(__path__):
        module = import_module(f"chaos.{info.name}") if not info.name.startswith("_") else None
        if hasattr(module, "PROMISE"):
            yield cast(Trial, module)
