"""All that is asked of the store but for pairs (results.py) and estimates (forecast.py)."""

from aif.store.prompt_queries import PromptQueries
from aif.store.report_queries import ReportQueries
from aif.store.run_queries import RunQueries


class Reader(RunQueries, ReportQueries, PromptQueries):
    """Answers to what a run, a report and a look at one prompt ask. One thread uses one reader."""
