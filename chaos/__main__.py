"""`python -m chaos [NUMBER …]`: tries the promises, or some of them, and writes the page; with `page`, that alone."""

import sys

from chaos import RELIABILITY

if __name__ == "__main__":
    if sys.argv[1:] == ["page"]:
        RELIABILITY.write()
    else:
        sys.exit(RELIABILITY.run([int(number) for number in sys.argv[1:]]))
