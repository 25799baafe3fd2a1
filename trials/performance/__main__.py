"""`python -m trials.performance [NUMBER …]` runs all trials, or those given, and writes docs/performance.md.
`python -m trials.performance page` writes the page alone, from the results that are there."""

import sys

from trials.performance import PERFORMANCE

if __name__ == "__main__":
    sys.exit(PERFORMANCE.main(sys.argv[1:]))
