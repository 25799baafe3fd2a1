"""Trials: measure at full length what docs/reliability.md and docs/performance.md promise, and write these pages."""
