"""Make preference pairs from ratings: scores, pairing policies, labels.

Pure: columns in, columns out. No text, no I/O.
"""
