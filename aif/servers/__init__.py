"""vLLM servers that aif starts: where they run, what they load, who ends them.

Starts and ends processes, and reads models' files. Asks nothing of a model but whether it is up.
"""
