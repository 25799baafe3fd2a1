"""Ratings to pairs: scores, pairing policies, labels.

Pure: columns in, columns out. No text, no I/O.
"""
