"""Where prompts come from: files and Hub datasets, row by row."""
