"""`python -m aif` is `aif`."""

from aif.cli import main

main()
