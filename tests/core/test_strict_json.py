"""JSON that names nothing twice."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.core.strict_json import DuplicateKeyError as NamedTwice
from aif.core.strict_json import make_decoder, parse_row

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


class Twice(Exception):
    pass


read = make_decoder(Twice)


@given(VALUES)
def test_what_names_nothing_twice_is_read_as_json_reads_it(value: object) -> None:
    assert read(json.dumps(value)) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=1), st.data())
def test_a_name_given_twice_is_told(found: dict[str, int], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(found)))
    pairs = [*found.items(), (name, data.draw(st.integers()))]
    text = "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in pairs) + "}"
    with pytest.raises(Twice) as told:
        read(f'[{{"deep": {text}}}]')
    assert told.value.args == (name,)


def test_of_however_many_names_one_given_twice_is_told_at_once() -> None:
    """All calls of a run wait meanwhile. A look at all the names before each took 14 s of these."""
    text = "{" + "".join(f'"{n}": 0, ' for n in range(50_000)) + '"49999": 1}'
    began = time.process_time()
    with pytest.raises(Twice):
        read(text)
    assert time.process_time() - began < 2


def test_a_tab_within_a_string_is_read_and_no_number_made_of_a_word() -> None:
    assert read('{"a": "x\ty"}') == {"a": "x\ty"}
    assert make_decoder(Twice, lambda word: word)("[NaN, -Infinity]") == ["NaN", "-Infinity"]
    with pytest.raises(ValueError, match="Expecting"):
        read("{'a': 1}")


# rows


@given(VALUES.map(lambda value: json.loads(json.dumps(value), parse_int=float)), st.booleans())
def test_a_row_is_read_as_json_reads_it(value: object, ascii_only: bool) -> None:
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
def test_a_row_as_programs_write_it(text: str, value: object) -> None:
    assert parse_row(text) == value


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', r'[{"b": {"a": "\u0022", "\u0061": ""}}]', '{"a": NaN, "a": 1}'])
def test_a_row_that_names_something_twice_is_told(text: str) -> None:
    with pytest.raises(NamedTwice, match="an object has the key 'a' twice"):
        parse_row(text)
