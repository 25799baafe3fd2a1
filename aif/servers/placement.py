"""Plan which servers run on which GPUs, and when. Pure.

A *shift* is a set of servers that run at the same time.

- If all servers fit on the GPUs, there is one shift. Judging then overlaps with completing.
- Else shifts of models come first, then shifts of judges. Each is packed by first-fit, largest first.
- An endpoint (a model or judge) runs in one shift until all its calls are made. So a model's weights are loaded once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aif.core.errors import BadInput
from aif.core.types import Stage

CPU = ("cpu",)  # the "GPUs" of a machine without any: a single place, for one server at a time

EndpointKey = tuple[str, str]  # stage and name


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """What a launched model or judge asks for.

    stage: "completion" for a model, "judgement" for a judge.
    name: its name in the pipeline file.
    gpus: number of GPUs for each of its servers.
    replicas: number of its servers. None asks for one server, and for more on GPUs that would be idle.
    """

    stage: Stage
    name: str
    gpus: int
    replicas: int | None = None

    @property
    def key(self) -> EndpointKey:
        return self.stage, self.name

    @property
    def min_gpus(self) -> int:
        """The number of GPUs for all its servers together; for one server if `replicas` is None."""
        return self.gpus * (self.replicas or 1)


@dataclass(frozen=True, slots=True)
class Placement:
    """A server to start, and where.

    stage: "completion" if it serves a model, "judgement" if it serves a judge.
    name: name of that model or judge in the pipeline file.
    gpus: ids of the GPUs that it runs on.
    """

    stage: Stage
    name: str
    gpus: tuple[str, ...]

    @property
    def key(self) -> EndpointKey:
        return self.stage, self.name


Shift = tuple[Placement, ...]  # the servers that run at the same time


def plan_shifts(requests: Sequence[GpuRequest], gpus: Sequence[str]) -> tuple[Shift, ...]:
    """Return the shifts (sets of servers that run at the same time) in the order to run them. `gpus` are the ids of the
    machine's GPUs, or the constant `CPU`.

    If a shift leaves GPUs idle, its endpoints whose `replicas` is None get more servers there, as evenly as possible.
    Raises BadInput if an endpoint needs more GPUs than there are.
    """
    for request in requests:
        if request.min_gpus > len(gpus):
            raise BadInput(_too_big(request, gpus))
    if sum(request.min_gpus for request in requests) <= len(gpus):
        together = [list(requests)] if requests else []
    else:
        together = [
            *_first_fit((request for request in requests if request.stage == "completion"), len(gpus)),
            *_first_fit((request for request in requests if request.stage == "judgement"), len(gpus)),
        ]
    return tuple(_place(shift, gpus) for shift in together)


def describe_shift(shift: Shift) -> str:
    """Return a text that says which servers of a shift run on which GPUs: "small on GPU 0, GPU 1; large on GPU 2+3"
    (two servers with one GPU each, one with two)."""
    devices: dict[str, list[str]] = {}
    for server in shift:
        devices.setdefault(server.name, []).append("the CPU" if server.gpus == CPU else f"GPU {'+'.join(server.gpus)}")
    return "; ".join(f"{name} on {', '.join(where)}" for name, where in devices.items())


def _too_big(request: GpuRequest, gpus: Sequence[str]) -> str:
    asked = f"launch.gpus is {request.gpus}" + (f", launch.replicas {request.replicas}" if request.replicas else "")
    if tuple(gpus) == CPU:
        return (
            f"{request.name}: {asked}, but this machine has no GPU, and a CPU takes one server with gpus: 1; lower it"
        )
    there = f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''} (numbers {', '.join(gpus)})"
    return f"{request.name}: {asked}, so it needs {request.min_gpus} GPUs; here are {there}; lower gpus or replicas"


def _first_fit(requests: Iterable[GpuRequest], size: int) -> list[list[GpuRequest]]:
    """Pack the requests into shifts that need at most `size` GPUs each: each request, largest first, joins the first
    shift that has room for it, else begins another."""
    shifts: list[list[GpuRequest]] = []
    for request in sorted(requests, key=lambda request: -request.min_gpus):
        for shift in shifts:
            if sum(other.min_gpus for other in shift) + request.min_gpus <= size:
                shift.append(request)
                break
        else:
            shifts.append([request])
    return shifts


def _place(shift: Sequence[GpuRequest], gpus: Sequence[str]) -> Shift:
    """Return the servers of a shift with their GPUs. Idle GPUs are used for more servers of the endpoints whose
    `replicas` is None."""
    servers = {request.key: request.replicas or 1 for request in shift}
    idle = len(gpus) - sum(request.min_gpus for request in shift)
    while growing := [request for request in shift if request.replicas is None and request.gpus <= idle]:
        fewest = min(growing, key=lambda request: servers[request.key])
        servers[fewest.key] += 1
        idle -= fewest.gpus
    free = iter(gpus)
    return tuple(
        Placement(request.stage, request.name, tuple(next(free) for _ in range(request.gpus)))
        for request in shift
        for _ in range(servers[request.key])
    )
