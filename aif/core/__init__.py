"""What every other package uses: domain values and their ids, errors, strict JSON, shipped files, text formatting.

Imports no other package of aif. Uses no network, no store and no model.
"""
