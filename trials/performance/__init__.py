"""Trials of the promises in docs/performance.md: speed, memory and cost (`make bench`; `make bench-peers` for others).

See trials/harness.py for what a trial is. A trial of performance has in addition

    measurement_errors(figures) -> list[str]     why the measurement can't be trusted, on a machine of any speed
"""

from trials.harness import Figures, Page

PERFORMANCE = Page("trials.performance", "performance", "reached")

__all__ = ["PERFORMANCE", "Figures"]
