"""What the commands print: one module a command, drawn with rich from values that other packages computed.

A view decides nothing and opens no file. `show`, `summary` and `rubric` query the store's Reader.
"""
