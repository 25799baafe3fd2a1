"""What each command prints: one module a command, drawn with rich from values that other packages computed.

A view decides nothing and reads no file or store of its own.
"""
