"""`python -m chaos [NUMBER …]`: tries the promises, or some of them, and writes the page; with `page`, that alone."""

import sys

from chaos import RELIABILITY

if __name__ == "__main__":
    sys.exit(RELIABILITY.main(sys.argv[1:]))
