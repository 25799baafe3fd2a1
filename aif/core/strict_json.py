"""JSON as models and servers write it, and of which nothing is guessed. Pure."""

import json
import re
from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any

import orjson


def parse(content: bytes) -> Any:
    """A JSON body, also one with raw control characters, lone surrogates or a byte order mark, as servers send them.

    Raises ValueError or RecursionError for what is not JSON.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content, strict=False)


def reader(twice: Callable[[str], Exception], constant: Callable[[str], Any] | None = None) -> Callable[[str], Any]:
    """Reads the value in a text. Strings may hold raw control characters: vLLM's structured output lets a tab through
    now and then. What an object names twice raises `twice(name)`, since of two contents nobody could say which is
    meant; NaN and Infinity go to `constant`, if there is one. Raises ValueError or RecursionError for what is no JSON.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = Counter(name for name, _ in pairs)
            raise twice(next(name for name, times in names.items() if times > 1))
        return found

    return json.JSONDecoder(strict=False, object_pairs_hook=once, parse_constant=constant).decode


class Twice(ValueError):
    """An object names a key twice."""


_lenient = reader(
    lambda name: Twice(f"an object names {encodable(name)!r} twice"),
    {"NaN": None, "Infinity": inf, "-Infinity": -inf}.__getitem__,
)


def row(text: str) -> Any:
    """The JSON of a row as programs write it, also with lone surrogates, or NaN, which is how tables say null.

    Raises ValueError (`Twice` where a key is there twice) or RecursionError.
    """
    try:
        found = orjson.loads(text)
        # orjson gives the last of two keys alike, which then has fewer quotes; to look at each object took 34 µs a row
        once = "\\u0022" not in text and text.count('"') == orjson.dumps(found).count(b'"')
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        once = False
    return found if once else _lenient(text)


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def shape_of(value: Any) -> str:
    """What a value is in JSON's words; what JSON has not, by its type."""
    return _KINDS.get(type(value), type(value).__name__)


_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may escape half a character; neither journal nor store can hold it


def encodable(text: str) -> str:
    """The text with lone surrogates replaced, so that it can be written as UTF-8."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
