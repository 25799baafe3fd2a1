"""Ratings to pairs: scores, policies, labels. Pure: columns in, columns out."""
