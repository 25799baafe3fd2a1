"""Which completions a prompt gets. Pure: prompt and seed in, slots out."""
