"""Trials of the promises in docs/reliability.md against the simulator (`make chaos`; short runs in `make test`).

See trials/harness.py for what a trial is. Requests and replies are counted at the server, by the digest of the body.
"""

from trials.harness import Figures, Page

RELIABILITY = Page("trials.reliability", "reliability", "kept")

__all__ = ["RELIABILITY", "Figures"]
