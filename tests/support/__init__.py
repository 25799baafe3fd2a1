"""Shared by tests and trials: servers on loopback, stores built without a server, judges' replies."""
