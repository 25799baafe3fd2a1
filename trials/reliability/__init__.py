"""The promises of docs/reliability.md, each tried against the simulator (`make chaos`; in short by `make test`).

See trials/harness.py for what a trial is. What was asked, and what came of it, is counted at the server, by key.
"""

from trials.harness import Figures, Page

RELIABILITY = Page("trials.reliability", "reliability", "kept")

__all__ = ["RELIABILITY", "Figures"]
