"""The simulator: a loopback server that answers like vLLM, OpenAI and Anthropic, with models of declared quality and
judges of declared noise, all seeded. Pipelines are rehearsed against it before money is spent; tests and
benchmarks talk to it.
"""

from aif.simulator.cast import Cast
from aif.simulator.faults import Arrival, Fault, Faults, Mishap
from aif.simulator.server import Call, Simulator

__all__ = ["Arrival", "Call", "Cast", "Fault", "Faults", "Mishap", "Simulator"]
