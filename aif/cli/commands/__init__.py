"""The commands, one module for each: load the pipeline, call the engine, and print the results with a view.

Heavy imports stay inside the functions, so that `aif --help` and `aif status` start fast.
"""
