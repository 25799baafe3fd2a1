"""`aif simulate`: serve simulated models and judges."""

import asyncio
from typing import Annotated, Any, Optional

import typer

from aif.cli.console import out, print_message
from aif.core.errors import BadInput, Exit


def simulate(
    model: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME=QUALITY", help="A model and its quality, 0 to 1."),
    ] = None,
    judge: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME=NOISE", help="A judge and its noise, 0 to 1."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8000,
    latency: Annotated[float, typer.Option(min=0, help="Seconds before each reply.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the generated texts.")] = 0,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help="Inject a fault into a fraction of calls, such as rate_limited=0.05."),
    ] = None,
    requests_per_minute: Annotated[Optional[int], typer.Option(min=1, help="Requests that each model accepts.")] = None,  # noqa: UP045
    tokens_per_minute: Annotated[Optional[int], typer.Option(min=1, help="Tokens that each model accepts.")] = None,  # noqa: UP045
) -> None:
    """Serve simulated models of known quality and judges of known noise. With neither, any model name works."""
    from aif.simulator import Fault, Faults, SimulatedModels, Simulator

    cast = SimulatedModels(_numbers(model, "--model"), _numbers(judge, "--judge"), seed, open=not (model or judge))
    shares = _numbers(fault, "--fault")
    if unknown := shares.keys() - set(Fault):
        raise BadInput(f"--fault {sorted(unknown)[0]}: no such fault; there are {', '.join(sorted(Fault))}")
    faults = Faults({Fault(name): share for name, share in shares.items()}, seed)
    limits: dict[str, Any] = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}

    async def serve() -> None:
        async with Simulator(cast, host=host, port=port, latency_s=latency, faults=faults, **limits) as simulator:
            out.print(f"serving at {simulator.base_url} (Ctrl-C stops it)")
            await asyncio.Event().wait()

    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        print_message("\nstopped serving")
        raise typer.Exit(Exit.INTERRUPTED) from None
    except OSError as error:
        raise BadInput(f"{host}:{port}: can't listen: {error.strerror}; use another --port or --host") from error


def _numbers(values: list[str] | None, option: str) -> dict[str, float]:
    """Parse option values, each NAME=NUMBER, to a dict from name to number. Raises BadInput if a value is invalid.
    `option` is the option's name, for the message."""
    numbers = {}
    for value in values or []:
        name, _, number = value.rpartition("=")
        try:
            numbers[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise BadInput(f"{option} {value}: expected NAME=NUMBER")
    return numbers
