"""vLLM servers that aif starts, one package for their whole life.

`placement` assigns GPUs, `command` builds the command line, `download` fetches the model, `model_identity` says which
model the files are, `fleet` starts, watches and restarts servers. `guard` is a process beside each server that ends it
when aif dies, even by kill -9. May start processes and read model files; calls no model beyond a health check.
"""
