"""The command line: all that is printed to a terminal."""
