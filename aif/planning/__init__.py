"""Which completions a prompt gets: by which models, with which seeds and principles.

Pure: prompt and pool in, slots (planned completions) out.
"""
