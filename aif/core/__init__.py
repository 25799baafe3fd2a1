"""Values and errors that every other package uses: types, ids, files on disk, strict JSON, secrets.

It imports no other package of aif, and does no network."""
