"""How a model is called: one client per API, what its replies and errors mean, retries, limits.

It knows requests and replies; it knows no prompt, no rubric and no store."""
