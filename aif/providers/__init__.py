"""Call models: a client for each API, what replies and errors mean, retries, concurrency, rate limits.

It deals with requests and replies only: nothing here depends on rubrics, pipelines or the store.
"""
