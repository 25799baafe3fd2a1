"""What is kept: the journal of all that was paid for, the DuckDB store made from it, and every question asked of it.

The only package with SQL. Calls no model.
"""
