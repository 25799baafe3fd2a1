"""Which completions a prompt gets, by which model, with which seed and principle.

Pure: prompt and pool in, slots out.
"""
