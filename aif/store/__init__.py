"""Storage: the append-only journal of everything paid for, and the DuckDB store that is built from it and queried.

The only package that contains SQL or imports DuckDB. It calls no model.
"""
