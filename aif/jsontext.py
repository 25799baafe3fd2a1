"""JSON as models and servers write it, and of which nothing is guessed. Pure."""

import json
from collections.abc import Callable
from typing import Any


def loads(text: str, twice: Callable[[str], Exception], constant: Callable[[str], Any] | None = None) -> Any:
    """The value in a text. Strings may hold raw control characters: vLLM's structured output lets a tab through now and
    then. What an object names twice raises `twice(name)`, since of two contents nobody could say which is meant; NaN
    and Infinity go to `constant`, if there is one. Raises ValueError or RecursionError for what is not JSON."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise twice(name)
            found[name] = value
        return found

    return json.loads(text, strict=False, object_pairs_hook=once, parse_constant=constant)
