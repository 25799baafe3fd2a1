"""Runs a pipeline: prepares prompts and judging requests, calls models and judges, stores their replies, makes pairs.
Also estimates a run's cost and checks its setup (doctor) beforehand.

Prints nothing: progress goes to a Display as frozen snapshots.
"""
