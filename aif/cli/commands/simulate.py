"""`aif simulate`: serve simulated models and judges."""

import asyncio
from typing import Annotated, Any, Optional

import typer

from aif.cli.common import out, print_message
from aif.core.errors import BadInput, Exit


def simulate(
    model: Annotated[Optional[list[str]], typer.Option(metavar="NAME=QUALITY", help="A model, quality 0 to 1.")] = None,  # noqa: UP045
    judge: Annotated[Optional[list[str]], typer.Option(metavar="NAME=NOISE", help="A judge, noise from 0.")] = None,  # noqa: UP045
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    latency: Annotated[float, typer.Option(min=0, help="Seconds before each answer.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Other seeds write other texts.")] = 0,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help="What befalls a share of the calls, such as rate_limited=0.05."),
    ] = None,
    requests_per_minute: Annotated[Optional[int], typer.Option(min=1, help="What each model takes.")] = None,  # noqa: UP045
    tokens_per_minute: Annotated[Optional[int], typer.Option(min=1, help="What each model takes.")] = None,  # noqa: UP045
) -> None:
    """Serve models of declared quality, judges of declared noise, as providers do; any name, if none is given."""
    from aif.simulator import Cast, Fault, Faults, Simulator

    cast = Cast(_pairs(model, "--model"), _pairs(judge, "--judge"), seed, open=not (model or judge))
    shares = _pairs(fault, "--fault")
    if unknown := shares.keys() - set(Fault):
        raise BadInput(f"--fault {sorted(unknown)[0]}: no such fault; there are {', '.join(sorted(Fault))}")
    faults = Faults({Fault(name): share for name, share in shares.items()}, seed)
    limits: dict[str, Any] = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}

    async def serve() -> None:
        async with Simulator(cast, host=host, port=port, latency_s=latency, faults=faults, **limits) as simulator:
            out.print(f"serving at {simulator.base_url} (Ctrl-C ends it)")
            await asyncio.Event().wait()

    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        print_message("\nno longer serving")
        raise typer.Exit(Exit.INTERRUPTED) from None
    except OSError as error:
        raise BadInput(
            f"{host}:{port}: can't be listened on: {error.strerror}; name another --port or --host"
        ) from error


def _pairs(values: list[str] | None, option: str) -> dict[str, float]:
    found = {}
    for value in values or []:
        name, _, number = value.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise BadInput(f"{option} {value}: expected NAME=NUMBER")
    return found
