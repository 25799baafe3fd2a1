"""A run: prepares prompts and judging requests, calls models and judges, keeps what they say, makes pairs; and what is
known before a run (estimate, doctor).

Prints nothing: a screen is told how it goes.
"""
