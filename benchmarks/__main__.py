"""`python -m benchmarks [NUMBER …]`: measures all, or some, and writes the page; with `page`, that alone."""

import sys

from benchmarks import PERFORMANCE

if __name__ == "__main__":
    sys.exit(PERFORMANCE.main(sys.argv[1:]))
