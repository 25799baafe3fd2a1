"""Datasets: formats, card, files, and the Hub."""
