"""The simulator: a loopback server that answers like vLLM and OpenAI, with models of declared quality and judges of
declared noise, all seeded. Pipelines are rehearsed against it before money is spent; tests and benchmarks talk to it.
"""

from aif.simulator.server import Cast, Simulator

__all__ = ["Cast", "Simulator"]
