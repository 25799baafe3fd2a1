"""The pipeline file: its keys, the values that each may have, and errors that say what to type instead.

Reads a file into frozen values. Calls no model and opens no store.
"""
