"""Runs a pipeline: prepares prompts and judging requests, calls models and judges, stores their replies, makes pairs.
Also what precedes a run: its cost estimate and checks of its setup (doctor).

Prints nothing: progress goes to a Display as frozen snapshots.
"""
