"""The promises of docs/performance.md: speed, memory and cost (`make bench`; `make bench-peers` beside others).

See trials/harness.py for what a trial is. One of these has besides

    unsound(figures) -> list[str]     why the measurement can't be believed, on a machine however slow
"""

from trials.harness import Figures, Page

PERFORMANCE = Page("trials.performance", "performance", "reached")

__all__ = ["PERFORMANCE", "Figures"]
