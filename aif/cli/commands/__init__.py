"""One module a command: it loads the pipeline, calls the engine, and hands the results to a view to print.

Heavy imports stay inside the functions, so that `aif --help` and `aif status` start fast.
"""
