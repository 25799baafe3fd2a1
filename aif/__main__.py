"""`python -m aif` runs the `aif` command."""

from aif.cli.main import main

main()
