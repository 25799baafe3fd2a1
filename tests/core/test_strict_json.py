"""JSON without duplicate keys."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.core.strict_json import DuplicateKeyError, make_decoder, parse_row

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


class Duplicate(Exception):
    pass


read = make_decoder(Duplicate)


@given(VALUES)
def test_json_without_duplicate_keys_is_parsed_as_by_json(value: object) -> None:
    assert read(json.dumps(value)) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=1), st.data())
def test_a_duplicate_key_is_refused(found: dict[str, int], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(found)))
    pairs = [*found.items(), (name, data.draw(st.integers()))]
    text = "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in pairs) + "}"
    with pytest.raises(Duplicate) as told:
        read(f'[{{"deep": {text}}}]')
    assert told.value.args == (name,)


def test_a_duplicate_key_among_many_is_refused_at_once() -> None:
    """All calls of a run wait meanwhile. Comparing each key with all earlier keys took 14 s for these."""
    text = "{" + "".join(f'"{n}": 0, ' for n in range(50_000)) + '"49999": 1}'
    began = time.process_time()
    with pytest.raises(Duplicate):
        read(text)
    assert time.process_time() - began < 2


def test_a_tab_in_a_string_is_accepted_and_no_word_becomes_a_number() -> None:
    assert read('{"a": "x\ty"}') == {"a": "x\ty"}
    assert make_decoder(Duplicate, lambda word: word)("[NaN, -Infinity]") == ["NaN", "-Infinity"]
    with pytest.raises(ValueError, match="Expecting"):
        read("{'a': 1}")


# rows


@given(VALUES.map(lambda value: json.loads(json.dumps(value), parse_int=float)), st.booleans())
def test_a_row_is_parsed_as_by_json(value: object, ascii_only: bool) -> None:
    assert parse_row(json.dumps(value, ensure_ascii=ascii_only)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'{"\ud800": "a\udc00"}', {"\ud800": "a\udc00"}),
        ('"\ud800"', "\ud800"),
        ('["a\tb", NaN, Infinity, -Infinity]', ["a\tb", None, float("inf"), -float("inf")]),
        (r'{"a": "\u0022", "b": "\\"}', {"a": '"', "b": "\\"}),
        ("[" * 300 + "]" * 300, json.loads("[" * 300 + "]" * 300)),
    ],
)
def test_a_row_as_other_programs_write_it(text: str, value: object) -> None:
    assert parse_row(text) == value


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', r'[{"b": {"a": "\u0022", "\u0061": ""}}]', '{"a": NaN, "a": 1}'])
def test_a_row_with_a_duplicate_key_is_refused(text: str) -> None:
    with pytest.raises(DuplicateKeyError, match="an object has the key 'a' twice"):
        parse_row(text)
