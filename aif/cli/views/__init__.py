"""Print the results of the commands with rich. Each module has the output of one command or a part that several share.

The values are computed by other packages; `show`, `summary` and `rubric` query the store's Reader.
"""
