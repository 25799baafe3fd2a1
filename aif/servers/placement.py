"""Which servers run on which GPUs, and when. Pure.

What runs at the same time is a shift. All in one shift where they fit, so that judging overlaps with completing; else
models in as few shifts as first-fit (the largest first) gives, then judges in shifts after them. An endpoint is up in
one shift only: it is served to its end there, so that a model's weights are loaded once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aif.core.errors import BadInput
from aif.core.types import Stage

CPU = ("cpu",)  # a machine without GPUs is one place, which every server takes whole

Key = tuple[str, str]  # stage and name


@dataclass(frozen=True, slots=True)
class Wish:
    """A model or judge to be launched: GPUs for each server, and how many servers; None is one or more."""

    stage: Stage
    name: str
    gpus: int
    replicas: int | None = None

    @property
    def key(self) -> Key:
        return self.stage, self.name

    @property
    def least(self) -> int:
        """GPUs it can't do without."""
        return self.gpus * (self.replicas or 1)


@dataclass(frozen=True, slots=True)
class Place:
    """One server: whose it is, and its GPUs."""

    stage: Stage
    name: str
    gpus: tuple[str, ...]

    @property
    def key(self) -> Key:
        return self.stage, self.name


Shift = tuple[Place, ...]


def shifts(wishes: Sequence[Wish], gpus: Sequence[str]) -> tuple[Shift, ...]:
    """The shifts in order, on a machine with these GPUs (or `CPU`). `wishes` are of those that have work pending.

    GPUs that a shift leaves idle get further servers of those in it that name no `replicas`, evenly. Raises BadInput
    for a wish that can never fit.
    """
    for wish in wishes:
        if wish.least > len(gpus):
            raise BadInput(_too_big(wish, gpus))
    if sum(wish.least for wish in wishes) <= len(gpus):
        together = [list(wishes)] if wishes else []
    else:
        together = [
            *_first_fit((wish for wish in wishes if wish.stage == "completion"), len(gpus)),
            *_first_fit((wish for wish in wishes if wish.stage == "judgement"), len(gpus)),
        ]
    return tuple(_placed(shift, gpus) for shift in together)


def described(shift: Shift) -> str:
    """Which servers run where, in words."""
    at: dict[str, list[str]] = {}
    for place in shift:
        at.setdefault(place.name, []).append("the CPU" if place.gpus == CPU else f"GPU {'+'.join(place.gpus)}")
    return "; ".join(f"{name} on {', '.join(places)}" for name, places in at.items())


def _too_big(wish: Wish, gpus: Sequence[str]) -> str:
    asked = f"launch.gpus is {wish.gpus}" + (f", launch.replicas {wish.replicas}" if wish.replicas else "")
    if tuple(gpus) == CPU:
        return f"{wish.name}: {asked}, but no GPU is found here, and a CPU takes one server with gpus: 1; lower it"
    there = f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''} (numbers {', '.join(gpus)})"
    return f"{wish.name}: {asked}, so it needs {wish.least} GPUs; here are {there}; lower gpus or replicas"


def _first_fit(wishes: Iterable[Wish], size: int) -> list[list[Wish]]:
    """Each wish, the largest first, into the first shift that has room for it."""
    made: list[list[Wish]] = []
    for wish in sorted(wishes, key=lambda one: -one.least):
        for shift in made:
            if sum(one.least for one in shift) + wish.least <= size:
                shift.append(wish)
                break
        else:
            made.append([wish])
    return made


def _placed(shift: Sequence[Wish], gpus: Sequence[str]) -> Shift:
    servers = {wish.key: wish.replicas or 1 for wish in shift}
    idle = len(gpus) - sum(wish.least for wish in shift)
    while more := [wish for wish in shift if wish.replicas is None and wish.gpus <= idle]:
        least = min(more, key=lambda wish: servers[wish.key])
        servers[least.key] += 1
        idle -= least.gpus
    free = iter(gpus)
    return tuple(
        Place(wish.stage, wish.name, tuple(next(free) for _ in range(wish.gpus)))
        for wish in shift
        for _ in range(servers[wish.key])
    )
