"""vLLM servers that aif starts.

- `placement` assigns GPUs.
- `command` builds the command line.
- `download` downloads the model.
- `model_identity` identifies the model by its files.
- `fleet` starts, watches, restarts and stops servers.
- `guard` is a process that runs one server, and ends it when aif dies, even by kill -9.

The package may start processes and read model files. It sends servers nothing but health checks.
"""
