"""The command line: what each command does, and all that is printed to a terminal.

Decides nothing that a library's user would need: that stands below.
"""
