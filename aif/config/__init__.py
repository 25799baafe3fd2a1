"""The pipeline file: its keys, what each may hold, and the errors that say what to type instead.

Parsed once into frozen values. It reads the file and the environment's names; it calls no model."""
