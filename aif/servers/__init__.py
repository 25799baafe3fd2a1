"""vLLM servers that aif starts: where they run, what they load, who ends them."""
