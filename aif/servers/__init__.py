"""vLLM servers that aif starts: place them on GPUs, download models, start, watch, restart and stop them.

`placement` assigns GPUs, `command` builds the command line, `download` downloads the model, `model_identity` identifies
it by its files, `fleet` starts, watches and restarts servers. `guard` is a process that runs each server and ends it
when aif dies, even by kill -9. The package may start processes and read model files. It sends servers nothing but
health checks.
"""
