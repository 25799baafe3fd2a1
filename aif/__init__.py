"""aif turns prompts into preference datasets by AI feedback."""

__version__ = "0.1.0"
