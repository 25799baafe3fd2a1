"""aif/providers/anthropic_messages.py, with values alone."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.core.types import Message, Usage
from aif.providers import anthropic_messages, chat_completions
from aif.providers.base import CallError, Kind, Reply, Request
from tests.support.loopback import message

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["maxLength"],
    "properties": {"maxLength": {"type": "string", "maxLength": 9}},
}
UNBOUNDED = SCHEMA | {"properties": {"maxLength": {"type": "string"}}}


def read(data: Any) -> Reply:
    return anthropic_messages.read_reply(data, {})


def test_a_body_takes_system_turns_out_and_leaves_what_the_api_refuses() -> None:
    turns = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hi."), Message("user", "So?"))
    body = anthropic_messages.request_body(Request(turns, max_tokens=9, temperature=0.0, top_p=0.9, seed=7), "claude")

    assert body == {
        "model": "claude",
        "max_tokens": 9,
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "So?"},
        ],
    }
    assert anthropic_messages.sent_settings(body) == {"model": "claude", "max_tokens": 9}


def test_turns_go_as_they_are() -> None:
    """The API takes turns of one role in a row as one, and conversations that an assistant begins."""
    turns = (Message("assistant", "Hello."), Message("user", "Hi"), Message("user", "So?"))
    body = anthropic_messages.request_body(Request(turns, max_tokens=9), "claude")

    assert [turn["role"] for turn in body["messages"]] == ["assistant", "user", "user"]
    assert "system" not in body


def test_what_is_shared_ends_in_a_breakpoint() -> None:
    request = Request((Message("system", "Judge."), Message("user", "Hi"), Message("user", "ABCde")), 9, shared=3)
    body = anthropic_messages.request_body(request, "claude")

    assert body["messages"] == [
        {"role": "user", "content": "Hi"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "ABC", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "de"},
            ],
        },
    ]
    assert anthropic_messages.sent_settings(body) == {"model": "claude", "max_tokens": 9, "cache_control": "ephemeral"}


def test_no_empty_block_follows_what_is_shared() -> None:
    body = anthropic_messages.request_body(Request((Message("user", "ABC"),), 9, shared=3), "claude")

    assert [block["text"] for block in body["messages"][0]["content"]] == ["ABC"]


def test_schema_and_effort_are_the_output_s_config() -> None:
    request = Request((Message("user", "Hi"),), 9, reasoning_effort="low", schema=SCHEMA)
    body = anthropic_messages.request_body(request, "claude")

    assert body["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": UNBOUNDED}}
    assert anthropic_messages.sent_settings(body)["output_config"] == {"effort": "low", "format": "json_schema"}
    assert body["output_config"]["format"]["schema"] == UNBOUNDED  # telling what was sent has changed nothing


def test_texts_are_joined_and_thoughts_kept_apart() -> None:
    content = [
        {"type": "thinking", "thinking": "2 + 2", "signature": "x"},
        {"type": "text", "text": " Fo"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "thinking", "thinking": "is 4"},
        {"type": "text", "text": "ur.\n"},
    ]
    reply = read(message(content=content))

    assert (reply.text, reply.reasoning) == (" Four.\n", "2 + 2\nis 4")


def test_a_thought_in_the_text_is_told_apart_too() -> None:
    """A server that runs a reasoning model without a parser for its thoughts."""
    reply = read(message("<think>2 + 2</think>Four."))

    assert (reply.text, reply.reasoning) == ("Four.", "2 + 2")


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
    ],
)
def test_how_a_reply_ended(stop: str, finish: str) -> None:
    assert read(message("Fo", stop=stop)).finish == finish


@pytest.mark.parametrize("stop", ["tool_use", "pause_turn", "compaction", None, 4, ["end_turn"]])
def test_any_other_end_leaves_open_whether_the_reply_is_whole(stop: Any) -> None:
    """It was paid for: kept as if it were cut, with the word, and told from a cut that is known."""
    reply = read(message("Fo", stop=stop))

    assert (reply.text, reply.finish, reply.truncated) == ("Fo", "length", False)
    assert reply.served["finish_reason"] == (stop if isinstance(stop, str) else "no word")


def test_a_refusal_keeps_what_was_said_and_paid_for() -> None:
    details = {"type": "refusal", "category": "bio", "explanation": "Not this."}
    with pytest.raises(CallError, match="bio: Not this") as caught:
        read(message("Well, ", stop="refusal", stop_details=details))

    assert caught.value.kind is Kind.BLOCKED
    assert caught.value.reply is not None
    assert (caught.value.reply.text, caught.value.reply.finish) == ("Well, ", "refusal")
    assert caught.value.reply.usage == Usage(input=12, output=5)


@pytest.mark.parametrize(
    ("usage", "read_as"),
    [
        (
            {
                "input_tokens": 9,
                "output_tokens": 8,
                "cache_read_input_tokens": 7,
                "cache_creation_input_tokens": 6,
                "output_tokens_details": {"thinking_tokens": 5},
            },
            Usage(input=22, output=8, cached=7, reasoning=5, written=6),
        ),
        ({"input_tokens": 9, "output_tokens": 0, "cache_read_input_tokens": None}, None),
        ({"input_tokens": 0, "output_tokens": 1, "cache_read_input_tokens": 9}, Usage(input=9, output=1, cached=9)),
        ({"input_tokens": 0, "output_tokens": 0}, None),
        ({"input_tokens": 9}, None),
        ({"input_tokens": -1, "output_tokens": 8}, None),
        ({"input_tokens": True, "output_tokens": 8}, None),
        ({"input_tokens": "9", "output_tokens": 8}, None),
        (None, None),
        ([9, 8], None),
    ],
)
def test_usage(usage: Any, read_as: Usage | None) -> None:
    assert read(message("Four.", usage=usage)).usage == read_as


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["end_turn", "refusal"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["content", "type", "text", "thinking", "stop_reason", "stop_details", "usage", "error"]
                ),
                inner,
                max_size=4,
            )
        ),
    ).filter(lambda data: not re.search(r"\b[45]\d\d\b", repr(data)))  # an error of that status, see below
)
def test_any_json_is_a_reply_or_a_call_error(data: Any) -> None:
    for answer in (data, message(content=data), message(content=[data]), message("a", stop=data, stop_details=data)):
        try:
            reply = read(answer)
        except CallError as refused:
            outcome = refused.kind in (Kind.BAD_REPLY, Kind.EMPTY, Kind.BLOCKED)
        else:
            outcome = bool(reply.text.strip()) and bool(reply.text.encode())
        assert outcome


def test_a_status_in_a_body_without_content_is_the_error_s() -> None:
    for code, kind in ((400, Kind.BAD_REQUEST), ("503", Kind.SERVER_ERROR)):
        with pytest.raises(CallError, match=f"HTTP 200 with an error {code}") as caught:
            read({"type": code})
        assert caught.value.kind is kind


def test_deep_nesting_is_no_bug() -> None:
    deep = "[" * 990 + "]" * 990
    for answer in (deep, f'{{"error": {deep}}}', f'{{"content": {deep}}}', f'{{"content": [], "stop_reason": {deep}}}'):
        with pytest.raises(CallError) as caught:
            chat_completions.parse_response(
                200, {}, answer.encode(), sent={}, keys=(), read=anthropic_messages.read_reply
            )

        assert caught.value.kind is Kind.BAD_REPLY
