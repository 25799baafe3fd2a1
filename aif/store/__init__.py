"""What is kept: the journal, the DuckDB store that is made from it, and every question asked of it. The only SQL."""
