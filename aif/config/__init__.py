"""The pipeline file: its keys, what each may hold, and errors that say what to type instead.

Reads one file into frozen values. Calls no model and opens no store.
"""
