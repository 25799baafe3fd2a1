"""Trials measure what docs/reliability.md and docs/performance.md promise, and write the tables of these pages."""
