"""`python -m trials.reliability [NUMBER …]` runs all trials, or those given, and writes docs/reliability.md.
`python -m trials.reliability page` writes the page alone, from the results that are there."""

import sys

from trials.reliability import RELIABILITY

if __name__ == "__main__":
    sys.exit(RELIABILITY.main(sys.argv[1:]))
