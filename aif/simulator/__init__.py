"""A stand-in for every provider, on loopback: models that write, judges that rate, and faults on demand.

Used by the quickstart and by tests; answers as the real APIs do. Knows nothing of a run.
"""

from aif.simulator.faults import Arrival, Fault, Faults, Mishap
from aif.simulator.models import Cast
from aif.simulator.server import Call, Simulator

__all__ = ["Arrival", "Call", "Cast", "Fault", "Faults", "Mishap", "Simulator"]
