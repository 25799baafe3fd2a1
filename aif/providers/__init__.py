"""How a model is called: a client for each API, what replies and errors mean, retries, concurrency, rate limits.

Knows requests and replies; knows no prompt, no rubric and no store.
"""
