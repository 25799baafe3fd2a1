"""pydantic's errors in words for the person who wrote the file: what is wrong with which key; what to do."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from aif.yamltext import Keys, Problem, Text

_SECRETS = frozenset(("key", "apikey", "token", "hf_token", "auth_token", "access_token", "secret", "password"))


class ClashError(ValueError):
    """Several things wrong in one mapping, their keys counted from it: raised by a validator, told apart here."""

    def __init__(self, found: Sequence[Problem]) -> None:
        super().__init__("; ".join(problem.text for problem in found))
        self.found = found


def problems(error: ValidationError, text: Text, unknown: Callable[[Keys], str]) -> Iterator[Problem]:
    """Everything a ValidationError holds. `unknown(keys)` says what is wrong with a key that has no place."""
    details = error.errors(include_url=False)
    for detail in details:
        keys = tuple(key for key in detail["loc"] if key != "[key]")
        if _follows(detail, details):
            continue
        reason = detail.get("ctx", {}).get("error")
        if isinstance(reason, ClashError):
            yield from (Problem(keys + problem.keys, problem.text) for problem in reason.found)
        elif reason is not None:
            yield Problem(keys, str(reason))
        elif detail["type"] == "extra_forbidden":
            yield Problem(keys, unknown(keys))
        else:
            yield Problem(keys, _said(detail, text.place(keys).written))


def shown(value: Any, written: str | None = None) -> str:
    """A value as the person who wrote it knows it, cut to 60 characters."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list | tuple):
        return "a list"
    return written or str(value).lower()


def unknown_key(key: str, known: Sequence[str]) -> str:
    """What to say of a key that isn't among the known ones."""
    plain = key.lower().replace("-", "_")
    if plain in _SECRETS or plain.endswith("api_key"):
        return (
            "a key has no place in the file; put the key into the environment variable OPENAI_API_KEY, "
            "ANTHROPIC_API_KEY or HF_TOKEN, or into one that api_key_env: names"
        )
    if near := difflib.get_close_matches(key, known, n=1):
        return f"unknown key {key!r}; did you mean {near[0]!r}?"
    return f"unknown key {key!r}; keys known here: {', '.join(known)}"


def _follows(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Whether an error only follows from another that is told anyway."""
    keys = detail["loc"]
    below = any(other["loc"][: len(keys)] == keys and len(other["loc"]) > len(keys) for other in details)
    return detail["type"] == "default_factory_not_called" or (detail["type"] == "too_short" and below)


def _said(detail: ErrorDetails, written: str | None) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    got = shown(value, written)
    if kind == "missing":
        return "missing; this key is needed, add it"
    if kind == "literal_error":
        return _no_choice(value, str(context["expected"]), got)
    if kind in _BOUNDS:
        return f"must be {_BOUNDS[kind]} {context[_LIMITS[kind]]:g}, got {got}"
    if kind == "too_short":
        return "empty; give at least one entry, or take the key out"
    if kind == "string_too_short":
        return "empty; write something, or take the key out"
    if kind == "finite_number":
        return f"expected a finite number, got {got}"
    if kind in _EXPECTED:
        return _wrong_type(_EXPECTED[kind], value, got)
    return f"{detail['msg']}, got {got}"


def _wrong_type(expected: str, value: Any, got: str) -> str:
    text = f"expected {expected}, got {got}"
    if value is None:
        return f"{text}; fill it in, or take the key out"
    if expected == "a text" and not isinstance(value, dict | list | tuple):
        return f"{text}; put it in quotes"
    if expected.endswith("number") and isinstance(value, str) and _numeric(value):
        return f"{text}; take the quotes away"
    return text


def _numeric(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _no_choice(value: Any, expected: str, got: str) -> str:
    choices = expected.replace("'", "").replace(" or ", ", ").split(", ")
    text = f"expected {' | '.join(choices)}, got {got}"
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f"{text}; did you mean {near[0]!r}?" if near else text


_EXPECTED: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "is_instance_of": "a text",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
}
_BOUNDS: Mapping[str, str] = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than_equal": "at most",
}
_LIMITS: Mapping[str, str] = {"greater_than": "gt", "greater_than_equal": "ge", "less_than_equal": "le"}
