"""All queries on the store, except those for datasets (result_queries.py) and estimates (estimate_queries.py)."""

from aif.store.prompt_queries import PromptQueries
from aif.store.report_queries import ReportQueries
from aif.store.run_queries import RunQueries


class Reader(RunQueries, ReportQueries, PromptQueries):
    """A read-only connection to a store, with the queries for runs, for reports, and about a single prompt."""
