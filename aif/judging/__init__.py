"""What a judge is asked, and what its reply says: rubrics, their requests, the parser, the linter.

Reads rubric folders. Calls no judge and opens no store.
"""
