"""One row: its prompt, what it brings besides, what is left out and why, and what is refused."""

import json
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.config.sections import Source
from aif.core.errors import BadInput
from aif.core.types import BadRow, Message, Prompt, ProvidedCompletion, prompt_id
from aif.sources.prompt_rows import META_BYTES, META_ROW_BYTES, Skipped, read_row

ROW = Source(file="p.jsonl")

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Why is the sky blue?"}
ASSISTANT = {"role": "assistant", "content": "Rayleigh scattering."}


def only(row: Any, source: Source = ROW, where: str = "here") -> Prompt | Skipped:
    (item,) = read_row(row, source, where)
    return item


def turns(*rows: dict[str, Any]) -> Prompt | Skipped:
    return only({"prompt": list(rows)})


def as_prompt(item: Prompt | Skipped) -> Prompt:
    assert isinstance(item, Prompt), item
    return item


def roles(item: Prompt | Skipped) -> list[str]:
    return [message.role for message in as_prompt(item).messages]


def test_a_text_is_a_single_user_turn() -> None:
    prompt = as_prompt(only({"prompt": " Why? ", "n": 1}, ROW, "here"))
    assert prompt.messages == (Message("user", " Why? "),), "the text stays as it is"
    assert prompt.prompt_id == prompt_id(prompt.messages)
    assert prompt.source == "p"
    assert prompt.meta == {"n": 1}


def test_trailing_assistant_turns_are_cut_off_and_no_others() -> None:
    assert roles(turns(SYSTEM, USER, ASSISTANT, USER, ASSISTANT, ASSISTANT)) == ["system", "user", "assistant", "user"]
    assert turns(USER, ASSISTANT) == turns(USER)
    assert as_prompt(turns(USER)).prompt_id == as_prompt(only({"prompt": USER["content"]}, ROW, "x")).prompt_id


def test_sharegpt_names_are_understood() -> None:
    shared = turns({"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"})
    assert shared == turns(
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}
    )
    filled = {"role": None, "content": None, "from": "human", "value": "a"}  # two layouts in one table
    assert as_prompt(turns(filled)).messages == (Message("user", "a"),)


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (None, "empty", "'prompt' is null"),
        ("", "empty", "nothing but white space"),
        (" \n\t", "empty", "nothing but white space"),
        ("\u200b\u2060", "empty", "nothing but white space"),
        ([], "empty", "0 turns"),
        ([USER, {"role": "user", "content": " "}], "empty", "nothing but white space"),
        ("x" * 100_001, "too_long", "100001 characters, max_chars is 100000"),
        ([SYSTEM | {"content": "x" * 99_999}, USER], "too_long", "100019 characters"),
        ([ASSISTANT], "no_user_turn", "1 turns, none to be answered"),
        ([SYSTEM], "no_user_turn", "the last turn is of role system"),
        ([SYSTEM, ASSISTANT], "no_user_turn", "the last turn is of role system"),
        ([USER, SYSTEM, USER], "bad_row", "a system turn that is not the first"),
        ([SYSTEM, SYSTEM, USER], "bad_row", "a system turn that is not the first"),
        ([{"role": "tool", "content": "x"}, USER], "bad_row", "turn 0: role 'tool' is none of system, user"),
        ([{"content": "x"}], "bad_row", "turn 0: role 'None'"),
        ([USER, {"role": "user", "content": None}], "bad_row", "turn 1: content is null, not a text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "bad_row", "turn 0: content is a list, not a text"),
        (["a"], "bad_row", "turn 0: a text, not {role, content}"),
    ],
)
def test_rows_left_out(value: Any, reason: str, detail: str) -> None:
    item = only({"prompt": value}, ROW, "p.jsonl:3")
    assert isinstance(item, Skipped)
    assert (item.reason, item.where) == (reason, "p.jsonl:3")
    assert item.detail.startswith(detail)


def test_a_prompt_of_just_max_chars_is_taken() -> None:
    as_prompt(only({"prompt": "x" * 10}, Source(file="p.jsonl", max_chars=10), "here"))


@pytest.mark.parametrize(
    ("row", "settings", "said"),
    [
        ([1], {}, 'p:1: expected an object of columns, got a list; write {"prompt": "..."}'),
        ("a", {}, "p:1: expected an object of columns, got a text"),
        (
            {"text": "a", "n": 1},
            {},
            "p:1: no column 'prompt' (columns: text, n); correct the row, or field: in the pipeline file",
        ),
        ({}, {"field": "text"}, "p:1: no column 'text' (columns: none)"),
        ({"prompt": 7}, {}, "p:1: 'prompt' holds a number, not a text or a list of {role, content}; correct the row"),
        ({"prompt": {"role": "user"}}, {}, "p:1: 'prompt' holds an object"),
        (
            {"prompt": "a"},
            {"source_field": "origin"},
            "p:1: no column 'origin' (columns: prompt); correct the row, or source_field:",
        ),
        ({"prompt": "a", "o": None}, {"source_field": "o"}, "p:1: 'o' holds no name of a source; fill it in"),
        ({"prompt": "a", "o": " "}, {"source_field": "o"}, "p:1: 'o' holds no name of a source"),
    ],
)
def test_rows_refused(row: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as raised:
        only(row, Source(file="p.jsonl", **settings), "p:1")
    assert str(raised.value).startswith(said)


def test_source_field_names_the_source_of_each_row() -> None:
    prompt = as_prompt(only({"prompt": "a", "origin": "flan"}, Source(hub="a/b", source_field="origin"), "x"))
    assert prompt.source == "flan"


def test_meta_holds_the_other_columns_that_json_can_and_that_are_short() -> None:
    row = {
        "prompt": "a",
        "answers": ["x"],
        "image": b"\x89PNG",
        "long": "x" * META_BYTES,
        "fits": "x" * (META_BYTES - 2),
    }
    assert as_prompt(only(row, ROW, "x")).meta == {"answers": ["x"], "fits": "x" * (META_BYTES - 2)}


# conversations given as text


@pytest.mark.parametrize(
    "written",
    [
        json.dumps([USER, ASSISTANT]),
        "\n " + json.dumps([USER], indent=2) + "\n",
        json.dumps([{"from": "human", "value": USER["content"]}]),
    ],
)
def test_a_text_that_is_a_json_list_of_turns_is_read_as_turns(written: str) -> None:
    assert as_prompt(only({"prompt": written})).messages == (Message("user", USER["content"]),)
    assert only({"prompt": json.dumps([{"role": "robot", "content": "x"}])}) == Skipped(
        "bad_row", "here", "turn 0: role 'robot' is none of system, user, assistant, human, gpt"
    )


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("[]", "0 turns, none to be answered"),
        ("[1, 2]", "turn 0: a number, not {role, content}"),
        ('["a"]', "turn 0: a text, not {role, content}"),
        ('["a", null]', "turn 0: a text, not {role, content}"),
        ('[{"role": "user"}]', "turn 0: content is null, not a text"),
        ('[{"role": "user", "content": "x"}, 1]', "turn 1: a number, not {role, content}"),
        ('[{"role": "user", "content": "x", "content": "y"}]', "an object has the key 'content' twice"),
        ("['a', \"it's\"]", "'prompt' holds a list as Python prints it; write it as JSON"),
        ("['a'\n 'b' None]", "'prompt' holds a list as Python prints it; write it as JSON"),
    ],
)
def test_a_text_with_a_json_list_is_parsed_as_that_list(written: str, said: str) -> None:
    item = only({"prompt": written})
    assert isinstance(item, Skipped)
    assert item.detail == said


def test_a_text_that_is_one_turn_is_that_turn() -> None:
    assert as_prompt(only({"prompt": json.dumps(USER)})).messages == (Message("user", USER["content"]),)
    assert brought({"answers": json.dumps(ASSISTANT), "by": "m"}, field="answers", model="by") == [
        ProvidedCompletion("m", ASSISTANT["content"])
    ]


@pytest.mark.parametrize(
    "written", ["[brackets]", "[" * 5000, "{}", '{"role": "user"}', "['a'] is a list", "[link](x)"]
)
def test_any_other_text_is_what_is_asked(written: str) -> None:
    assert as_prompt(only({"prompt": written})).messages == (Message("user", written),)


# transcripts


def test_a_transcript_as_anthropic_writes_it_is_read_as_turns() -> None:
    said = "\n\nHuman: What?\n\nAssistant: That.\n\nMore.\n\nHuman: Why?\n\nAssistant:"
    asked = (Message("user", "What?"), Message("assistant", "That.\n\nMore."), Message("user", "Why?"))
    assert as_prompt(only({"prompt": said})).messages == asked
    assert as_prompt(only({"prompt": f"{said} So."})).messages == asked, "a trailing assistant turn is cut off"
    assert brought({"answers": f"{said} So.", "by": "m"}, field="answers", model="by") == [
        ProvidedCompletion("m", "So.")
    ]


@pytest.mark.parametrize(
    "written",
    [
        "\n\nHuman: a\n\nHuman: b",
        "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c",
        "Human: a\n\nAssistant:",
        "Be kind.\r\n\r\nHuman: a\r\n\r\nAssistant:",
        "User: a\nAssistant: b\nUser: c",
        "### Human: a### Assistant: b",
        "A chat. USER: a ASSISTANT:",
    ],
)
def test_other_transcripts_are_left_out(written: str) -> None:
    said = "'prompt' holds a conversation in one text; write it as a list of {role, content}"
    assert only({"prompt": written}) == Skipped("bad_row", "here", said)


@pytest.mark.parametrize("written", ["<|im_start|>user\na", "<s>[INST] a [/INST]", "<start_of_turn>user\na"])
def test_the_output_of_a_chat_template_is_left_out(written: str) -> None:
    said = "'prompt' holds the output of a chat template; write it as a list of {role, content}"
    assert only({"prompt": written}) == Skipped("bad_row", "here", said)


@pytest.mark.parametrize(
    "written", ["Human: a", "Why is it 'Human: a\nAssistant: b' in the docs?", "user: a\npassword: b", "Assistant: hi"]
)
def test_words_that_are_no_transcript_are_asked(written: str) -> None:
    assert as_prompt(only({"prompt": written})).messages == (Message("user", written),)


# what a file could not give


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"prompt": "a\ud800"}, {}),
        ({"prompt": [USER, ASSISTANT, {"role": "user", "content": "\udc00"}]}, {}),
        ({"prompt": '[{"role": "user", "content": "\\ud800"}]'}, {}),
        ({"prompt": "a", "gold": "\ud800"}, {"material": {"reference": "gold"}}),
        ({"prompt": "a", "o": "\ud800"}, {"source_field": "o"}),
        ({"prompt": "a", "text": "\ud800", "model": "m"}, {"completions": {"field": "text"}}),
        ({"prompt": "a", "text": "b", "model": "\ud800"}, {"completions": {"field": "text"}}),
    ],
)
def test_a_row_with_half_a_character_is_left_out(row: dict[str, Any], settings: dict[str, Any]) -> None:
    said = "a text with half a character (a lone surrogate)"
    assert only(row, carrying(**settings)) == Skipped("bad_row", "here", said)


def test_half_a_character_in_a_column_without_a_use_does_no_harm() -> None:
    assert as_prompt(only({"prompt": "a", "x": "\ud800", "\ud800": 1, "n": 1})).meta == {"n": 1}
    with pytest.raises(BadInput, match=r"no column 'prompt' \(columns: \ufffd\)"):
        only({"\ud800": 1})


def test_a_cell_that_could_not_be_read_leaves_out_the_row_if_it_is_used() -> None:
    lost = BadRow("too far")
    assert only(lost) == Skipped("bad_row", "here", "too far")
    assert as_prompt(only({"prompt": "a", "at": lost, "n": 1})).meta == {"n": 1}
    said = Skipped("bad_row", "here", "'gold' can't be read: too far")
    assert only({"prompt": "a", "gold": lost}, carrying(material={"reference": "gold"})) == said
    for name in ("text", "model", "score"):
        row = {"prompt": "a", "text": "t", "model": "m", "score": 1} | {name: lost}
        entry = {"completions": {"field": "text", "score": "score"}}
        assert only(row, carrying(**entry)) == Skipped("bad_row", "here", f"{name!r} can't be read: too far")


def test_a_list_as_python_prints_it_is_no_prompt() -> None:
    item = only({"prompt": str([USER, ASSISTANT])})
    assert item == Skipped("bad_row", "here", "'prompt' holds a list as Python prints it; write it as JSON")
    asked = str([{"name": "x"}])
    assert as_prompt(only({"prompt": asked})).messages == (Message("user", asked),)
    asked = f"What is {[USER]}?"
    assert as_prompt(only({"prompt": asked})).messages == (Message("user", asked),)


# material


def shown(value: Any) -> dict[str, str]:
    source = Source(file="p.jsonl", material={"reference": "gold"})
    return dict(as_prompt(only({"prompt": "a", "gold": value, "n": 1}, source)).material)


@pytest.mark.parametrize(
    ("value", "material"),
    [
        ("42", {"reference": "42"}),
        (" as it is\n", {"reference": " as it is\n"}),
        (["one", "two"], {"reference": "one\n\ntwo"}),
        (["one", None, " ", "two"], {"reference": "one\n\ntwo"}),
        (None, {}),
        ("", {}),
        (" \n", {}),
        ([], {}),
        ([None], {}),
    ],
)
def test_material_is_text_or_is_not_there(value: Any, material: dict[str, str]) -> None:
    assert shown(value) == material


@pytest.mark.parametrize(
    ("value", "said"),
    [(42, "a number"), (True, "true or false"), ({"a": "b"}, "an object"), (["a", 1], "a list with a number")],
)
def test_material_of_another_kind_is_refused(value: Any, said: str) -> None:
    with pytest.raises(BadInput) as raised:
        shown(value)
    assert str(raised.value) == (
        f"here: 'gold' holds {said}, not a text or a list of texts; correct the row, or material.reference: in the "
        "pipeline file"
    )


def test_material_may_be_long_and_is_no_meta() -> None:
    source = Source(file="p.jsonl", material={"reference": "gold", "context": "page"})
    row = {"prompt": "a", "gold": "g" * 10 * META_BYTES, "page": "p", "n": 1}
    prompt = as_prompt(only(row, source))
    assert prompt.material == {"reference": row["gold"], "context": "p"}
    assert prompt.meta == {"n": 1}
    with pytest.raises(BadInput, match=r"no column 'page' \(columns: prompt, gold\); .* material.context: in the"):
        only({"prompt": "a", "gold": "x"}, source)


# completions that come with the row

OBJECTS = {"field": "answers", "text": "said", "model": "by", "score": "points"}
LISTS = {"field": "answers", "model": "by", "score": "points"}


def carrying(**settings: Any) -> Source:
    return Source.model_validate({"file": "p.jsonl", **settings})


def brought(row: dict[str, Any], **entry: Any) -> list[ProvidedCompletion | str]:
    """The completions that a row brings, and the places of those that are left out."""
    found = read_row({"prompt": "a", **row}, carrying(completions=entry), "p:1")
    prompt = as_prompt(found[-1])
    left = [item for item in found[:-1] if isinstance(item, Skipped)]
    assert {item.reason for item in left} <= {"empty_completion"}
    return [*(f"{item.where}: {item.detail}" for item in left), *prompt.provided]


def test_a_list_of_objects() -> None:
    answers = [{"said": "A", "by": "m", "points": 4}, {"said": "B ", "by": "n", "points": 2.5}]
    assert brought({"answers": answers}, **OBJECTS) == [
        ProvidedCompletion("m", "A", 4.0),
        ProvidedCompletion("n", "B ", 2.5),
    ]
    assert brought({"answers": answers}, **OBJECTS | {"score": None}) == [
        ProvidedCompletion("m", "A"),
        ProvidedCompletion("n", "B "),
    ]
    assert brought({"answers": json.dumps(answers), "by": "someone"}, **OBJECTS) == brought(
        {"answers": answers}, **OBJECTS
    )


def test_a_list_of_texts_beside_lists_of_models_and_scores() -> None:
    row = {"answers": ["A", "B"], "by": ["m", "n"], "points": [4, None]}
    assert brought(row, **LISTS) == [ProvidedCompletion("m", "A", 4.0), ProvidedCompletion("n", "B", None)]
    assert brought(row | {"by": "m"}, **LISTS) == [
        ProvidedCompletion("m", "A", 4.0),
        ProvidedCompletion("m", "B", None),
    ]
    assert brought(row | {"points": None}, **LISTS) == [ProvidedCompletion("m", "A"), ProvidedCompletion("n", "B")]
    cells = {name: json.dumps(value) for name, value in row.items()}
    assert brought(cells, **LISTS) == brought(row, **LISTS)


def test_one_completion_a_row() -> None:
    assert brought({"answers": "A", "by": "m", "points": "4.5"}, **LISTS) == [ProvidedCompletion("m", "A", 4.5)]
    as_json = '["apple", "pear"]'
    assert brought({"answers": as_json, "by": "m"}, field="answers", model="by") == [ProvidedCompletion("m", as_json)]


@pytest.mark.parametrize(
    "said",
    [
        "B",
        {"role": "assistant", "content": "B"},
        [USER, {"role": "assistant", "content": "B"}],
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "B"}],
    ],
)
def test_a_completion_may_be_given_as_turns_that_end_with_it(said: Any) -> None:
    assert brought({"answers": [{"said": said, "by": "m", "points": 1}]}, **OBJECTS) == [
        ProvidedCompletion("m", "B", 1)
    ]
    assert brought(
        {"answers": [said, said + said if isinstance(said, list) else said], "by": ["m", "n"]},
        field="answers",
        model="by",
    ) == [
        ProvidedCompletion("m", "B"),
        ProvidedCompletion("n", "B"),
    ]
    if isinstance(said, list):
        assert brought({"chosen": said, "by": "m"}, field="chosen", model="by") == [ProvidedCompletion("m", "B")]
        assert brought({"chosen": json.dumps(said), "by": "m"}, field="chosen", model="by") == [
            ProvidedCompletion("m", "B")
        ]


def test_objects_that_look_like_turns_but_name_their_model_are_completions() -> None:
    answers = [{"role": "assistant", "content": text, "model": "m"} for text in "AB"]
    assert brought({"answers": answers}, field="answers", text="content") == [
        ProvidedCompletion("m", "A"),
        ProvidedCompletion("m", "B"),
    ]


def test_a_completion_without_a_text_is_left_out_and_the_others_stay() -> None:
    answers = [
        {"said": text, "by": "m", "points": 1}
        for text in (None, "A", " \n", {"role": "assistant", "content": None}, "\u200b\ufeff")
    ]
    assert brought({"answers": answers}, **OBJECTS) == [
        "p:1 completion 0: no text",
        "p:1 completion 2: nothing but white space",
        "p:1 completion 3: no text",
        "p:1 completion 4: nothing but white space",
        ProvidedCompletion("m", "A", 1),
    ]
    assert brought({"answers": ["A", None], "by": ["m", None]}, field="answers", model="by") == [
        "p:1 completion 1: no text",
        ProvidedCompletion("m", "A"),
    ]


@pytest.mark.parametrize("none", [None, [], "[]"])
def test_a_row_may_bring_no_completion(none: Any) -> None:
    assert brought({"answers": none}, **LISTS) == []


def test_the_same_text_of_the_same_model_is_one_completion() -> None:
    row = {"answers": ["A", "B", "A", "A"], "by": ["m", "m", "m", "n"], "points": [1, 2, 3, 4]}
    assert brought(row, **LISTS) == [
        ProvidedCompletion("m", "A", 1),
        ProvidedCompletion("m", "B", 2),
        ProvidedCompletion("n", "A", 4),
    ]


@pytest.mark.parametrize(
    ("score", "number"),
    [
        (3, 3.0),
        (-0.5, -0.5),
        (0, 0.0),
        (Decimal("2.5"), 2.5),
        ("7", 7.0),
        (" 1e2 ", 100.0),
        ("-.5", -0.5),
        (None, None),
        ("", None),
        (" ", None),
        (float("nan"), None),
        (Decimal("NaN"), None),
    ],
)
def test_scores_are_numbers_or_not_there(score: Any, number: float | None) -> None:
    assert brought({"answers": "A", "by": "m", "points": score}, **LISTS) == [ProvidedCompletion("m", "A", number)]


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (True, "true or false, not a number"),
        ("N/A", "'N/A', not a number"),
        ("nan", "'nan', not a number"),
        ("inf", "'inf', not a number"),
        ("true", "'true', not a number"),
        ("4/5", "'4/5', not a number"),
        ("4 of 5", "'4 of 5', not a number"),
        ("0x4", "'0x4', not a number"),
        ("1_000", "'1_000', not a number"),
        ("٣", "'٣', not a number"),
        ([1], "a list, not a number"),
        ({}, "an object, not a number"),
        (float("inf"), "not finite"),
        ("1e999", "not finite"),
        (10**400, "not finite"),
        (1.7e308, "beyond 1e+300"),
    ],
)
def test_a_score_that_is_no_finite_number_is_refused(score: Any, said: str) -> None:
    with pytest.raises(BadInput) as raised:
        brought({"answers": "A", "by": "m", "points": score}, **LISTS)
    assert str(raised.value) == f"p:1 completion 0: its score is {said}; correct it, or make it null"


ONE = {"said": "A", "by": "m", "points": 1}


@pytest.mark.parametrize(
    ("row", "entry", "said"),
    [
        (
            {},
            LISTS,
            "p:1: no column 'answers' (columns: prompt); correct the row, or completions.field: in the pipeline file",
        ),
        (
            {"answers": "A"},
            LISTS,
            "p:1: no column 'by' (columns: prompt, answers); correct the row, or completions.model:",
        ),
        ({"answers": "A", "by": "m"}, LISTS, "p:1: no column 'points' (columns: prompt, answers, by); correct the row"),
        ({"answers": 7, "by": "m", "points": 1}, LISTS, "p:1 completion 0: expected a text or the assistant's {role, "),
        ({"answers": ["A"]}, OBJECTS, "p:1: no column 'by' (columns: prompt, answers)"),
        ({"answers": [ONE, "B"]}, OBJECTS, "p:1 completion 1: expected an object with 'said' and 'by', got a text"),
        ({"answers": [ONE, None]}, OBJECTS, "p:1 completion 1: expected an object with 'said' and 'by', got null"),
        (
            {"answers": [ONE, {"text": "B", "by": "n"}]},
            OBJECTS,
            "p:1 completion 1: no key 'said' (keys: text, by); correct the row, or completions.text: in the pipeline",
        ),
        ({"answers": [ONE, {"said": "B"}]}, OBJECTS, "p:1 completion 1: no key 'by' (keys: said); correct the row, or"),
        (
            {"answers": [{"said": "B", "by": "m", "score": 1}]},
            OBJECTS,
            "p:1 completion 0: no key 'points' (keys: said, by, score); correct the row, or completions.score:",
        ),
        (
            {"answers": [ONE | {"by": None}]},
            OBJECTS,
            "p:1 completion 0: the name of its model is null, not a text; fill",
        ),
        ({"answers": [ONE | {"by": " "}]}, OBJECTS, "p:1 completion 0: the name of its model is blank, not a text"),
        ({"answers": [ONE | {"by": 3}]}, OBJECTS, "p:1 completion 0: the name of its model is a number, not a text"),
        (
            {"answers": [ONE | {"said": 3}]},
            OBJECTS,
            "p:1 completion 0: expected a text or the assistant's {role, content}",
        ),
        ({"answers": [ONE | {"said": [USER]}]}, OBJECTS, "p:1 completion 0: its last turn is of role 'user', not the"),
        (
            {"answers": [ONE | {"said": ["A"]}]},
            OBJECTS,
            "p:1 completion 0: expected a text or the assistant's {role, con",
        ),
        (
            {"answers": ["A", "B"], "by": ["m"], "points": [1, 2]},
            LISTS,
            "p:1: 'answers' holds a list of 2, but 'by' a list of 1; correct the row: both must be lists of the same",
        ),
        (
            {"answers": ["A"], "by": ["m"], "points": 3},
            LISTS,
            "p:1: 'answers' holds a list of 1, but 'points' a number;",
        ),
        ({"answers": ["A"], "by": None, "points": [3]}, LISTS, "p:1: 'answers' holds a list of 1, but 'by' null;"),
        (
            {"answers": str([ONE])},
            OBJECTS,
            "p:1: 'answers' holds a list as Python prints it; write it as JSON",
        ),
    ],
)
def test_completions_that_are_not_as_declared(row: dict[str, Any], entry: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as raised:
        brought(row, **entry)
    assert str(raised.value).startswith(said)


def test_one_object_may_lack_a_score() -> None:
    assert brought({"answers": [ONE, {"said": "B", "by": "n"}]}, **OBJECTS) == [
        ProvidedCompletion("m", "A", 1),
        ProvidedCompletion("n", "B"),
    ]


@pytest.mark.parametrize(
    ("row", "meta"),
    [
        ({"answers": [ONE], "by": "kept", "points": 9}, {"by": "kept", "points": 9}),
        ({"answers": ["A"], "by": ["m"], "points": [9]}, {}),
        ({"answers": "A", "by": "m", "points": 9}, {}),
    ],
)
def test_columns_of_completions_are_no_meta(row: dict[str, Any], meta: dict[str, Any]) -> None:
    (item,) = read_row({"prompt": "a", **row}, carrying(completions=OBJECTS), "here")
    assert as_prompt(item).meta == meta


def test_a_row_left_out_takes_its_completions_with_it() -> None:
    row = {"prompt": " ", "answers": [ONE | {"said": ""}]}
    assert read_row(row, carrying(completions=OBJECTS), "p:1") == [Skipped("empty", "p:1", "nothing but white space")]


# whatever a row holds

TEXT = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["\n\nHuman: a", "\n\nHuman: a\n\nAssistant: b", "User: a\nAssistant:", '["a"]', "['a']", "\ud800", "[INST]"]
)  # with halves of characters
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant", "human", "gpt", "tool"]) | JSON,
        "content": TEXT | JSON,
        "from": JSON,
        "value": JSON,
    },
)


COMPLETION = st.fixed_dictionaries(
    {}, optional={"text": st.text(max_size=8) | JSON | TURN, "model": st.sampled_from("mn") | JSON, "score": JSON}
)
LOST = st.builds(BadRow, TEXT)
COLUMNS = st.fixed_dictionaries(
    {"prompt": LOST | TEXT | JSON | st.lists(TURN | JSON, max_size=5)},
    optional={
        "meta": LOST | JSON,
        "gold": LOST | JSON,
        "answers": LOST | JSON | st.lists(COMPLETION | TURN | JSON, max_size=4) | st.lists(COMPLETION).map(json.dumps),
        "model": st.sampled_from("mn") | JSON,
        "score": JSON,
    },
)
ENTRIES = [
    ROW,
    Source(file="p.jsonl", material={"reference": "gold"}),
    carrying(completions={"field": "answers"}),
    carrying(completions={"field": "answers", "score": "score"}, material={"reference": "gold"}),
]


@given(JSON | COLUMNS, st.sampled_from(ENTRIES))
def test_whatever_a_row_holds_it_is_a_prompt_or_left_out_or_refused(row: Any, source: Source) -> None:
    said, found = None, []
    try:
        found = read_row(row, source, "here")
    except BadInput as error:
        said = str(error)
    assert (said is None) == bool(found)
    assert said is None or said.startswith(("here: ", "here completion "))
    for item in found[:-1]:
        assert isinstance(item, Skipped)
        assert item.reason == "empty_completion"
    for item in found[-1:]:
        if isinstance(item, Prompt):
            assert item.messages[-1].role == "user"
            assert item.messages[-1].content.strip()
            assert all(message.role != "system" for message in item.messages[1:])
            assert item.prompt_id == prompt_id(item.messages)
            json.dumps(dict(item.meta), allow_nan=False).encode()
            orjson.dumps(
                [dict(item.meta), item.source, dict(item.material), [[c.model, c.text] for c in item.provided]]
            )
            assert all(text.strip() for text in item.material.values())
            assert all(one.model.strip() and one.text.strip() for one in item.provided)
            assert len({(one.model, one.text) for one in item.provided}) == len(item.provided)
            json.dumps([one.score for one in item.provided], allow_nan=False)
        else:
            assert item.detail


@given(st.lists(TURN, max_size=5))
def test_reading_what_was_read_changes_nothing(rows: list[dict[str, Any]]) -> None:
    first = turns(*rows)
    if isinstance(first, Prompt):
        again = as_prompt(turns(*({"role": m.role, "content": m.content} for m in first.messages)))
        assert again.prompt_id == first.prompt_id


def test_columns_that_are_too_much_together_are_left_out_from_where_they_are() -> None:
    row = {"prompt": "a"} | {f"c{n}": "x" * (META_BYTES - 100) for n in range(20)} | {"last": 1}
    meta = as_prompt(only(row, ROW, "x")).meta

    assert list(meta) == [*(f"c{n}" for n in range(8)), "last"]
    assert sum(len(orjson.dumps(value)) for value in meta.values()) <= META_ROW_BYTES
