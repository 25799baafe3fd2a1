"""Read prompts, row by row, from files and from datasets on the Hub.

Writes nothing and opens no store.
"""
