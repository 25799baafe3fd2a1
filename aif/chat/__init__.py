"""One request to one model: what is asked, what comes back, and what can go wrong."""
