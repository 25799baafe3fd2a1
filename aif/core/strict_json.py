"""Parse JSON of models, servers and data files, which deviates from the standard in known ways. Pure."""

import json
import re
from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any

import orjson


def parse_body(content: bytes) -> Any:
    """Parse the JSON body of a response. Accepts what servers really send: raw control characters, lone surrogates, a
    byte order mark.

    Raises ValueError or RecursionError for anything but JSON.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content, strict=False)


def make_decoder(
    duplicate_error: Callable[[str], Exception], constant: Callable[[str], Any] | None = None
) -> Callable[[str], Any]:
    """Return a function that parses a JSON text.

    It raises `duplicate_error(key)` if an object has the same key twice, since it is unknown which value is meant. The
    words NaN, Infinity and -Infinity become `constant(word)` if `constant` is given, else floats. Strings may hold raw
    control characters: vLLM's structured output sometimes lets a tab through. Raises ValueError or RecursionError for
    anything but JSON.
    """

    def check_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(pairs)
        if len(unique) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            raise duplicate_error(next(name for name, count in counts.items() if count > 1))
        return unique

    return json.JSONDecoder(strict=False, object_pairs_hook=check_unique, parse_constant=constant).decode


class DuplicateKeyError(ValueError):
    """A JSON object has the same key twice."""


_lenient = make_decoder(
    lambda name: DuplicateKeyError(f"an object has the key {replace_surrogates(name)!r} twice"),
    {"NaN": None, "Infinity": inf, "-Infinity": -inf}.__getitem__,
)


def parse_row(text: str) -> Any:
    """Parse a JSON row as other programs write it: with lone surrogates, or with NaN (read as None), which tables use
    for null.

    Raises ValueError (`DuplicateKeyError` if an object has a key twice) or RecursionError.
    """
    try:
        value = orjson.loads(text)
        # orjson keeps the last of two equal keys, so the output then has fewer quotes; checking each object took 34 µs
        # a row
        unique = "\\u0022" not in text and text.count('"') == orjson.dumps(value).count(b'"')
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        unique = False
    return value if unique else _lenient(text)


_JSON_TYPES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def json_type(value: Any) -> str:
    """Return the JSON type of a value with its article, such as `a list`; for other values the name of the class."""
    return _JSON_TYPES.get(type(value), type(value).__name__)


_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may escape half a character; UTF-8 has no encoding for it


def replace_surrogates(text: str) -> str:
    """Return the text with each lone surrogate replaced by U+FFFD, so that it can be encoded as UTF-8."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
