"""Calling models: a client for each API, what replies and errors mean, retries, concurrency, rate limits.

Knows requests and replies. Knows no prompt, no rubric and no store.
"""
