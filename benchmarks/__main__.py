"""`python -m benchmarks [NUMBER …]`: measures all, or some, and writes the page; with `page`, that alone."""

import sys

from benchmarks import PERFORMANCE

if __name__ == "__main__":
    if sys.argv[1:] == ["page"]:
        PERFORMANCE.write()
    else:
        sys.exit(PERFORMANCE.run([int(number) for number in sys.argv[1:]]))
