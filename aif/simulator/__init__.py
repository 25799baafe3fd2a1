"""Simulate the providers on a loopback server, for the quickstart and the tests. Replies have the real APIs' form.

- Models write completions. A model's *quality* (0 to 1) decides how well (completions.py).
- Judges rate completions. A judge sees only the texts that it is sent, never a quality. It estimates the quality of
  each text and adds noise (judgements.py).
- Faults, such as an error status or a broken reply, are injected into a share of the calls (faults.py).
"""

from aif.simulator.faults import Arrival, Fault, Faults, InjectedFault
from aif.simulator.models import SimulatedModels
from aif.simulator.server import Call, Simulator

__all__ = ["Arrival", "Call", "Fault", "Faults", "InjectedFault", "SimulatedModels", "Simulator"]
