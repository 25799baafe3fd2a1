"""Simulate the providers on a loopback server: models that write, judges that rate, and injected faults.

The quickstart and the tests use it; it answers as the real APIs do and knows nothing of a run. A model has a `quality`
from 0 to 1, which decides how well its completions are written (completions.py). A judge sees only the texts that it
is sent, never a quality: it estimates each text's quality and adds noise (judgements.py).
"""

from aif.simulator.faults import Arrival, Fault, Faults, InjectedFault
from aif.simulator.models import SimulatedModels
from aif.simulator.server import Call, Simulator

__all__ = ["Arrival", "Call", "Fault", "Faults", "InjectedFault", "SimulatedModels", "Simulator"]
