"""Where prompts come from: files and datasets of the Hub, row by row.

Reads; writes nothing and opens no store.
"""
