"""Datasets: their formats, data files and card, and their publication on the Hub.

A format's rows and columns are in `formats` and `ultrafeedback`; `dataset` writes an export, `publish` sends it.
An export folder is written completely or not at all. Calls no model.
"""
