"""What every other package uses: the field's values, ids, errors, strict JSON, shipped files, words for people.

Imports no other package of aif. No network, no store, no model.
"""
