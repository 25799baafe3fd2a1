"""Judging: rubrics, the requests made from them, the parser of replies, the rubric linter.

Reads rubric folders. Calls no judge and opens no store.
"""
