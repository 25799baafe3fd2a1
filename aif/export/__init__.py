"""Datasets: their formats, the card, the files, and the Hub.

Writes folders whole or not at all. Calls no model.
"""
