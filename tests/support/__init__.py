"""What tests and trials share: servers on loopback, stores built without a server, judges' replies."""
