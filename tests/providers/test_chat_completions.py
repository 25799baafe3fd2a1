"""aif/providers/chat_completions.py, with values alone."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.config.sections import Price
from aif.core.types import Message, Usage, is_blank
from aif.providers import anthropic_messages, chat_completions
from aif.providers.base import CallError, Kind, Options, Quota, Reply, Request
from aif.providers.error_replies import MAX_MESSAGE_CHARS
from tests.support.loopback import KEY, completion, message

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["format", "ratings"],
    "properties": {
        "format": {"type": "string", "maxLength": 9, "minLength": 1, "pattern": "^a"},
        "ratings": {"type": "array", "minItems": 4, "maxItems": 4, "items": {"$ref": "#/$defs/maximum"}},
    },
    "$defs": {"maximum": {"enum": ["1", {"maxLength": 1}], "minimum": 1}},
}


def read(data: Any) -> Any:
    return chat_completions.read_reply(data, {})


def with_usage(usage: Any) -> dict[str, Any]:
    return completion() | {"usage": usage}


def test_a_body_for_openai_s_own_endpoint() -> None:
    request = Request((Message("system", "Be brief."), Message("user", "Hi")), max_tokens=9, top_p=0.9, schema=SCHEMA)
    body = chat_completions.request_body(request, "gpt", Options("openai"))

    assert body == {
        "model": "gpt",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "max_completion_tokens": 9,
        "top_p": 0.9,
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "reply",
                "strict": True,
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["format", "ratings"],
                    "properties": {
                        "format": {"type": "string"},
                        "ratings": {"type": "array", "items": {"$ref": "#/$defs/maximum"}},
                    },
                    "$defs": {"maximum": {"enum": ["1", {"maxLength": 1}]}},
                },
            },
        },
    }
    assert chat_completions.sent_settings(body) == {
        "model": "gpt",
        "max_completion_tokens": 9,
        "top_p": 0.9,
        "response_format": "json_schema",
    }


def test_a_body_for_any_other_server_keeps_the_bounds() -> None:
    body = chat_completions.request_body(
        Request((Message("user", "Hi"),), max_tokens=9, temperature=0.0, schema=SCHEMA), "m"
    )

    assert body["max_tokens"] == 9
    assert body["temperature"] == 0.0
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert "max_completion_tokens" not in body


def test_what_is_none_is_not_sent() -> None:
    body = chat_completions.request_body(Request((Message("user", "Hi"),), max_tokens=9), "m")

    assert body.keys() == {"model", "messages", "max_tokens"}
    assert chat_completions.sent_settings(body) == {"model": "m", "max_tokens": 9}


def test_what_an_endpoint_wants_of_every_request() -> None:
    request = Request((Message("user", "Hi"),), max_tokens=9, seed=7, top_p=0.9, extra='{"stop":["END"],"top_k":40}')
    options = Options("openai", frozenset({"seed"}), "flex")
    said = {"max_tokens": 9, "service_tier": "flex", "stop": ["END"], "top_k": 40}

    assert chat_completions.sent_settings(chat_completions.request_body(request, "m", options)) == {
        "model": "m", "max_completion_tokens": 9, "top_p": 0.9, "service_tier": "flex", "stop": ["END"], "top_k": 40,
    }  # fmt: skip
    assert (
        anthropic_messages.sent_settings(anthropic_messages.request_body(request, "m", Options(service_tier="flex")))
        == {"model": "m"} | said
    )


def test_which_tier_served_a_reply() -> None:
    assert read(completion("Four.") | {"service_tier": "default"}).served["service_tier"] == "default"
    said = {"usage": {"input_tokens": 1, "output_tokens": 2, "service_tier": "priority"}}
    assert anthropic_messages.read_reply(message("Four.") | said, {}).served["service_tier"] == "priority"


@pytest.mark.parametrize(
    "text", [" Four. \n", "a\n\n<think>b</think>", "\x00\x01a\u200b", "```</think>```", "</think>"]
)
def test_a_text_is_not_altered(text: str) -> None:
    reply = read(completion(text))

    assert reply.text == text
    assert reply.reasoning is None


@pytest.mark.parametrize(
    ("content", "field", "text", "reasoning"),
    [
        ("<think>\n2 + 2\n</think>\n\nFour. ", None, "Four. ", "2 + 2"),
        ("\n<think></think>\nFour.", None, "Four.", None),
        ("<think>a</think>b</think>c", None, "b</think>c", "a"),
        ("I see.\nSo:\n</think>\n\nFour.", None, "Four.", "I see.\nSo:"),
        ("Four.", "2 + 2", "Four.", "2 + 2"),
        ("<think>a</think>Four.", "2 + 2", "Four.", "2 + 2\na"),
    ],
)
def test_reasoning_is_told_apart(content: str, field: str | None, text: str, reasoning: str | None) -> None:
    for name in ("reasoning_content", "reasoning"):
        said: dict[str, Any] = {name: field}
        reply = read(completion(content, **said))

        assert (reply.text, reply.reasoning) == (text, reasoning)


def test_a_thought_without_end_leaves_no_text() -> None:
    with pytest.raises(CallError) as caught:
        read(completion("<think>2 + 2 is", "length"))

    assert caught.value.kind is Kind.EMPTY
    assert caught.value.reply is not None
    assert caught.value.reply.finish == "length"
    assert caught.value.reply.reasoning == "2 + 2 is"
    assert caught.value.reply.usage == Usage(input=12, output=5)


def test_what_is_no_reply_is_kept_with_what_it_used() -> None:
    """The provider bills it, and the text that was cut short may tell why."""
    for data, text in (
        (completion("Fo", "abort"), "Fo"),
        (completion() | {"choices": None}, ""),
        (completion() | {"choices": completion()["choices"] * 2}, ""),
    ):
        with pytest.raises(CallError) as caught:
            chat_completions.parse_response(200, {}, json.dumps(data).encode(), sent={"model": "m"}, keys=())
        kept = caught.value.reply

        assert caught.value.kind is Kind.BAD_REPLY
        assert kept is not None
        assert (kept.text, kept.finish, kept.usage) == (text, None, Usage(input=12, output=5))
        assert (kept.sent, kept.served["model"]) == ({"model": "m"}, "tiny-2024")
        assert json.loads(caught.value.raw) == data


def test_a_body_that_names_something_twice_is_no_reply() -> None:
    """JSON leaves open which of two contents holds, and parsers take the last; an escape hides that it is the same."""
    for content in ('"content": "4", "content": "5"', '"content": "4", "c\\u006fntent": "5"'):
        whole = f'{{"choices": [{{"message": {{{content}}}, "finish_reason": "stop"}}]}}'
        with pytest.raises(CallError, match="names 'content' twice") as caught:
            chat_completions.parse_response(200, {}, whole.encode(), sent={}, keys=())

        assert caught.value.kind is Kind.BAD_REPLY
        assert caught.value.raw == whole


@given(st.text())
def test_a_text_is_said_in_its_body_or_is_none(text: str) -> None:
    """The model's words less its thoughts, and never anything besides."""
    said = json.dumps(completion(text)).encode()
    try:
        reply, kind = chat_completions.parse_response(200, {}, said, sent={}, keys=()), None
    except CallError as error:
        reply, kind = error.reply or Reply("", None, None), error.kind
    assert reply.text in text
    assert reply.usage == Usage(input=12, output=5)
    assert kind == (Kind.EMPTY if is_blank(reply.text) else None)


def test_a_completion_cut_at_its_limit_is_a_reply() -> None:
    assert read(completion("Fo", "length")).finish == "length"


@pytest.mark.parametrize(
    ("word", "finish"),
    [
        ("eos", "stop"),
        ("EOS_TOKEN", "stop"),
        ("COMPLETE", "stop"),
        (" Stop ", "stop"),
        ("FinishReason.STOP", "stop"),
        ("finish_reason_max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("model-length", "length"),
        ("ERROR_LIMIT", "length"),
    ],
)
def test_the_field_s_words_for_an_end(word: str, finish: str) -> None:
    reply = read(completion("Fo", word))

    assert (reply.finish, reply.truncated) == (finish, finish == "length")
    assert "finish_reason" not in reply.served


@pytest.mark.parametrize("word", ["SAFETY", "sensitive", "content_filtered", "PROHIBITED_CONTENT", "ERROR_TOXIC"])
def test_its_words_for_a_filter(word: str) -> None:
    with pytest.raises(CallError) as caught:
        read(completion("Fo", word))

    assert caught.value.kind is Kind.BLOCKED


@pytest.mark.parametrize("word", ["error", "abort", "insufficient_system_resource", "network_error", "CANCELLED"])
def test_its_words_for_a_failure(word: str) -> None:
    with pytest.raises(CallError, match=f"finished by {word}") as caught:
        read(completion("Fo", word))

    assert (caught.value.kind, caught.value.explicit, caught.value.resamplable) == (Kind.BAD_REPLY, True, False)
    assert caught.value.reply is not None
    assert caught.value.reply.text == "Fo"


@pytest.mark.parametrize(
    ("word", "kept"),
    [("tool_calls", "tool_calls"), ("Weird\ud83d", "Weird\ufffd"), (None, "no word"), (7, "no word"), ([], "no word")],
)
def test_a_reply_that_ended_by_another_word_is_kept_as_if_it_were_cut(word: Any, kept: str) -> None:
    """It was paid for; a judgement in it may be whole."""
    reply = read(completion("Fo", word))

    assert (reply.text, reply.finish, reply.truncated) == ("Fo", "length", False)
    assert reply.served["finish_reason"] == kept


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": [{"type": "text", "text": "Fo"}, {"type": "text", "text": "ur."}]}, "Four.", None),
        ({"content": ["Fo", "ur."]}, "Four.", None),
        ({"content": {"type": "output_text", "text": "Four."}}, "Four.", None),
        (  # Mistral
            {
                "content": [
                    {
                        "type": "thinking",
                        "thinking": [{"type": "text", "text": "2 + 2"}, {"type": "text", "text": "So."}],
                    },
                    {"type": "text", "text": "Four."},
                ]
            },
            "Four.",
            "2 + 2\nSo.",
        ),
        ({"content": [{"type": "image", "data": "x"}, {"type": "text", "text": "Four."}]}, "Four.", None),
        ({"content": "Four.", "reasoning_details": [{"type": "reasoning.text", "text": "2 + 2"}]}, "Four.", "2 + 2"),
        ({"content": "Four.", "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}, "Four.", None),
        (  # OpenRouter says it twice
            {"content": "Four.", "reasoning": "2 + 2", "reasoning_details": [{"summary": "2 + 2"}]},
            "Four.",
            "2 + 2",
        ),
        ({"content": "Four.", "reasoning_content": [{"thinking": "2 + 2"}]}, "Four.", "2 + 2"),
        ({"content": "Four.", "reasoning": None, "reasoning_content": ""}, "Four.", None),
        ({"content": "Four.", "thinking": "2 + 2"}, "Four.", "2 + 2"),  # Ollama
        ({"content": "So.</think>Four.", "reasoning": "2 + 2"}, "Four.", "2 + 2\nSo."),  # a parser that ended early
    ],
)
def test_content_and_thoughts_in_parts(message: dict[str, Any], text: str, reasoning: str | None) -> None:
    reply = read({"choices": [{"message": message, "finish_reason": "stop"}]})

    assert (reply.text, reply.reasoning, reply.usage) == (text, reasoning, None)


@pytest.mark.parametrize("choice", [{"delta": {"content": "Four."}}, {"text": "Four."}])
def test_a_choice_in_the_shape_of_another_api(choice: dict[str, Any]) -> None:
    assert read({"choices": [choice | {"finish_reason": "stop"}]}).text == "Four."


def test_no_content_beside_a_thought_is_empty_and_keeps_it() -> None:
    with pytest.raises(CallError, match="all of it went into reasoning") as caught:
        read(completion(None, "length", reasoning_content="2 + 2 is"))

    assert caught.value.kind is Kind.EMPTY
    assert caught.value.reply is not None
    assert caught.value.reply.reasoning == "2 + 2 is"


def test_an_error_beside_a_part_of_a_reply_keeps_what_was_paid_for() -> None:
    data = completion("Fo", "error")
    data["choices"][0]["error"] = {"code": 502, "message": f"Provider went away, {KEY}"}
    with pytest.raises(CallError) as caught:
        chat_completions.parse_response(200, {"retry-after": "3"}, json.dumps(data).encode(), sent={}, keys=[KEY])
    error = caught.value

    assert (error.kind, error.retry_after) == (Kind.SERVER_ERROR, 3.0)
    assert error.reply is not None
    assert (error.reply.text, error.reply.usage) == ("Fo", Usage(input=12, output=5))
    assert KEY not in error.message + error.raw
    assert "went away" in error.raw


def test_an_error_that_is_null_is_none() -> None:
    nothing: Any
    for nothing in (None, "", {}, []):
        assert read(completion("Four.") | {"error": nothing}).text == "Four."


def test_a_reply_with_any_status_of_success() -> None:
    assert (
        chat_completions.parse_response(201, {}, json.dumps(completion("Four.")).encode(), sent={}, keys=()).text
        == "Four."
    )


def test_a_refusal_is_kept() -> None:
    with pytest.raises(CallError) as caught:
        read(completion(None, refusal="I can't help with that."))

    assert caught.value.kind is Kind.BLOCKED
    assert caught.value.reply is not None
    assert (caught.value.reply.text, caught.value.reply.finish) == ("I can't help with that.", "refusal")


@pytest.mark.parametrize("content", [[4], 4, {"text": 4}, [["a"]], [{"type": "text"}], True])
def test_a_content_that_is_no_text(content: Any) -> None:
    with pytest.raises(CallError) as caught:
        read(completion(content))

    assert caught.value.kind is Kind.BAD_REPLY


@pytest.mark.parametrize(
    ("usage", "read_as"),
    [
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 7},
                "completion_tokens_details": {"reasoning_tokens": 6},
            },
            Usage(input=9, output=8, cached=7, reasoning=6),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 8, "prompt_tokens_details": None},
            Usage(input=9, output=8),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": None}},
            Usage(input=9, output=8),
        ),
        # thoughts in the total alone: xAI, Gemini
        (
            {
                "prompt_tokens": 20,
                "completion_tokens": 8,
                "total_tokens": 90,
                "completion_tokens_details": {"reasoning_tokens": 62},
            },
            Usage(input=20, output=70, reasoning=62),
        ),
        # or beside the output, without a total
        (
            {"prompt_tokens": 20, "completion_tokens": 8, "completion_tokens_details": {"reasoning_tokens": 62}},
            Usage(input=20, output=70, reasoning=62),
        ),
        # counted by another tokenizer, where the total says that they are within the output
        (
            {
                "prompt_tokens": 20,
                "completion_tokens": 60,
                "total_tokens": 80,
                "completion_tokens_details": {"reasoning_tokens": 62},
            },
            Usage(input=20, output=60, reasoning=60),
        ),
        # a cache beside the input
        (
            {"prompt_tokens": 9, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 70}},
            Usage(input=79, output=8, cached=70),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 8,
                "total_tokens": 87,
                "prompt_tokens_details": {"cached_tokens": 70},
            },
            Usage(input=79, output=8, cached=70),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 6},
            },
            Usage(input=9, output=8, cached=2, written=6),
        ),
        # a total that is less than its parts is no total
        ({"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 3}, Usage(input=9, output=8)),
        ({"prompt_tokens": 9, "total_tokens": 17}, Usage(input=9, output=8)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        ({"prompt_tokens": 9, "completion_tokens": 0}, None),
        ({"prompt_tokens": 0, "completion_tokens": 8}, None),
        (
            {"prompt_tokens": 2**31 - 1, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 2**31 - 1}},
            Usage(input=2**31 - 1, output=8, cached=2**31 - 1),
        ),
        ({"prompt_tokens": 2**30, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 2**31 - 1}}, None),
        ({"prompt_tokens": 9}, None),
        ({"prompt_tokens": "9", "completion_tokens": 8}, None),
        ({"prompt_tokens": True, "completion_tokens": 8}, None),
        ({"prompt_tokens": -1, "completion_tokens": 8}, None),
        ({"prompt_tokens": 9.0, "completion_tokens": 8}, None),
        ({"prompt_tokens": 10**30, "completion_tokens": 8}, None),
        (None, None),
        ([9, 8], None),
    ],
)
def test_usage(usage: Any, read_as: Usage | None) -> None:
    assert read(with_usage(usage)).usage == read_as


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'"a\tb"', "a\tb"),  # a raw tab, as vLLM sends now and then
        (b'"\\ud83d\\ude00 \\ud83d"', "\U0001f600 \ufffd"),
        (b'"\xed\xa0\x80"', "\ufffd"),
        ('"\u00e9\u4e2d"'.encode(), "\u00e9\u4e2d"),
    ],
)
def test_bodies_that_a_strict_parser_refuses(content: bytes, text: str) -> None:
    whole = b'\xef\xbb\xbf{"choices": [{"message": {"content": ' + content + b'}, "finish_reason": "stop"}]}'
    reply = chat_completions.parse_response(200, {}, whole, sent={}, keys=())

    assert reply.text == text
    assert reply.text.encode()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("stop"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["choices", "message", "content", "finish_reason", "usage", "refusal", "error", "id"]),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_any_json_is_a_reply_or_a_call_error(data: Any) -> None:
    for answer in (data, {"choices": [data]}, {"choices": [{"message": data, "finish_reason": "stop"}]}):
        try:
            reply = read(answer)
        except CallError as refused:
            outcome = refused.kind in (Kind.BAD_REPLY, Kind.EMPTY, Kind.BLOCKED)
        else:
            outcome = not is_blank(reply.text)
        assert outcome


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.integers(-5, 50) | st.sampled_from([0, 2**31 - 1, 2**40, None, "7", 1.5, True])
            for name in ("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens")
        }
        | {
            name: st.none()
            | st.dictionaries(st.sampled_from(["cached_tokens", "cache_write_tokens", part]), st.integers(-5, 90))
            for name, part in (("prompt_tokens_details", "x"), ("completion_tokens_details", "reasoning_tokens"))
        }
        | {name: st.integers(-5, 90) for name in ("cache_read_input_tokens", "cache_creation_input_tokens")},
    )
)
def test_usage_adds_up_or_is_unknown_and_no_call_costs_less_than_nothing(usage: Any) -> None:
    price = Price(input=3.0, cached_input=0.3, cache_write=3.75, output=15.0)
    for reply in (read(with_usage(usage)), anthropic_messages.read_reply(message("Four.", usage=usage), {})):
        if (used := reply.usage) is None:
            continue
        assert 0 <= used.cached + used.written <= used.input
        assert 0 <= used.reasoning <= used.output
        assert min(used.input, used.output) > 0
        assert price.cost(used) > 0


def test_deep_nesting_is_no_bug() -> None:
    deep = "[" * 990 + "]" * 990
    for answer in (
        deep,
        f'{{"error": {deep}}}',
        f'{{"error": {{"code": {deep}, "message": {deep}}}}}',
        f'{{"choices": [{{"message": {{"content": "a"}}, "finish_reason": {deep}}}]}}',
        f'{{"choices": [{{"message": {{"content": {deep}}}, "finish_reason": "stop"}}]}}',
    ):
        for status, kind in ((200, Kind.BAD_REPLY), (400, Kind.BAD_REQUEST)):
            with pytest.raises(CallError) as caught:
                chat_completions.parse_response(status, {}, answer.encode(), sent={}, keys=())

            assert caught.value.kind is kind


def test_what_the_headers_say_of_limits_comes_with_replies_and_errors() -> None:
    said = {
        "X-RateLimit-Limit-Requests": "60",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "1m",
    }
    quota = (Quota("requests", 60, 9, 60.0),)

    assert (
        chat_completions.parse_response(200, said, json.dumps(completion()).encode(), sent={}, keys=()).quotas == quota
    )
    with pytest.raises(CallError) as caught:
        chat_completions.parse_response(429, said, b"", sent={}, keys=())
    assert caught.value.quotas == quota


@pytest.mark.parametrize("before", range(MAX_MESSAGE_CHARS - 60, MAX_MESSAGE_CHARS + 5))
def test_no_part_of_a_key_is_left_in_what_is_no_reply(before: int) -> None:
    said = "x" * before + KEY
    for content in (said, f'{{"error": "{said}"}}', f'{{"choices": [{{"error": "{said}", "message": {{}}}}]}}'):
        with pytest.raises(CallError) as caught:
            chat_completions.parse_response(200, {}, content.encode(), sent={}, keys=[KEY])

        assert caught.value.kind is Kind.BAD_REPLY
        assert KEY[:5] not in caught.value.message + caught.value.raw


CHUNKS = [
    {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "reasoning_content": "hm"}}]},
    *({"id": "c1", "choices": [{"index": 0, "delta": {"content": words}}]} for words in ("Paris ", "is nice.")),
    {"id": "c1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"id": "c1", "choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}},
]


def _events(*data: Any, end: str = "data: [DONE]\n\n") -> bytes:
    return "".join([": ping\n\n", *(f"event: x\ndata: {json.dumps(one)}\n\n" for one in data), end]).encode()


def test_a_reply_that_comes_by_events_unasked_is_read() -> None:
    reply = chat_completions.parse_response(200, {}, _events(*CHUNKS), sent={}, keys=())
    assert (reply.text, reply.finish, reply.reasoning) == ("Paris is nice.", "stop", "hm")
    assert reply.usage == Usage(20, 3)
    assert chat_completions.parse_response(
        200, {}, json.dumps(completion("Four.")).encode() + b"\n\ndata: [DONE]\n", sent={}, keys=()
    ).text


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (_events(*CHUNKS, end=""), Kind.BAD_REPLY),  # cut
        (_events(*CHUNKS[:2], {"error": {"message": "Invalid API key", "code": 401}}), Kind.UNAUTHORIZED),
        (_events(), Kind.BAD_REPLY),
        (_events(1, [2], "3"), Kind.BAD_REPLY),
        (_events({"choices": [1]}, {"choices": {"a": 1}}), Kind.BAD_REPLY),
        (_events({"choices": [{"delta": "Paris"}]}, {"choices": "x"}), Kind.BAD_REPLY),
        (_events({"choices": [{"delta": None}]}, {"choices": [{}]}), Kind.BAD_REPLY),
        (b"data: {\ndata: [DONE]\n", Kind.BAD_REPLY),
    ],
)
def test_a_stream_that_is_no_reply(content: bytes, kind: Kind) -> None:
    with pytest.raises(CallError) as caught:
        chat_completions.parse_response(200, {}, content, sent={}, keys=())
    assert caught.value.kind is kind, caught.value.message


def test_a_reply_that_was_written_and_can_t_be_used_is_worth_another_sample() -> None:
    for odd, resamplable in ((completion("Four.")["choices"] * 2, True), ([], True)):
        with pytest.raises(CallError) as caught:
            read(completion("Four.") | {"choices": odd})
        assert caught.value.resamplable == resamplable
    unwritten: tuple[dict[str, Any], ...] = ({"choices": []}, completion("Four.", finish="abort"))
    for said in unwritten:
        with pytest.raises(CallError) as caught:
            read(said)
        assert not caught.value.resamplable, "nothing was written, or the server gave up"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "delta", "content", "error", "usage", "finish_reason"]), inner)
    ),
    max_leaves=9,
)


@given(st.lists(st.dictionaries(st.sampled_from(["choices", "error", "usage", "id"]), JSON), max_size=3))
def test_whatever_stands_in_a_stream_is_a_reply_or_an_error_of_a_call(chunks: list[Any]) -> None:
    with suppress(CallError):
        chat_completions.parse_response(200, {}, _events(*chunks), sent={}, keys=())
