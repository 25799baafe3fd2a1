"""The simulator's Messages API: its replies, what it refuses, and what its prompt cache bills."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from aif.simulator import SimulatedModels, Simulator, openai_api
from aif.simulator.anthropic_api import CACHED_FROM, Messages, error
from aif.simulator.models import RefusedError
from aif.simulator.text_analysis import count_tokens

MODELS = SimulatedModels(models={"weak": 0.2, "strong": 0.9}, judges={"judge": 0.1}, seed=7)
LONG = "Explain how tide tables are made. " * 200


def ask(text: Any = "Explain how tide tables are made.", **more: Any) -> dict[str, Any]:
    return {"model": "strong", "max_tokens": 400, "messages": [{"role": "user", "content": text}], **more}


def marked(text: str, tail: str = "Be brief.") -> list[dict[str, Any]]:
    """A content whose first block ends in a breakpoint."""
    return [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": tail}]


def answer(body: Any, endpoint: Messages | None = None, max_model_len: int = 32768) -> dict[str, Any]:
    return (endpoint or Messages(MODELS, max_model_len)).begin(body)()


def billed(reply: dict[str, Any]) -> tuple[int, int]:
    """Tokens read from the cache, and written to it."""
    return reply["usage"]["cache_read_input_tokens"], reply["usage"]["cache_creation_input_tokens"]


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "system", [None, "Be honest.", [{"type": "text", "text": "Be "}, {"type": "text", "text": "honest."}]]
)
def test_the_same_conversation_gets_the_text_it_gets_by_chat_completions(system: Any) -> None:
    first = [{"role": "system", "content": "Be honest."}] if system else []
    chat = {"model": "strong", "max_tokens": 400, "messages": [*first, {"role": "user", "content": "Explain tides."}]}
    reply = answer(ask(marked("Explain", " tides."), **({"system": system} if system else {})))

    said = openai_api.answer(MODELS, chat)
    assert reply["content"] == [{"type": "text", "text": said["choices"][0]["message"]["content"]}]
    assert reply["usage"]["input_tokens"] == said["usage"]["prompt_tokens"]
    assert reply["usage"]["output_tokens"] == said["usage"]["completion_tokens"]


def test_a_reply_has_the_shape_of_a_message() -> None:
    reply = answer(ask())

    assert reply["id"].startswith("msg_")
    assert (reply["type"], reply["role"], reply["model"]) == ("message", "assistant", "strong")
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("end_turn", None)
    assert reply["usage"]["output_tokens"] == count_tokens(reply["content"][0]["text"])
    assert billed(reply) == (0, 0)


def test_a_schema_is_followed() -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    reply = answer(ask(output_config={"effort": "low", "format": {"type": "json_schema", "schema": schema}}))

    assert list(json.loads(reply["content"][0]["text"])) == ["ok"]


def test_a_reply_is_cut_at_its_limit_or_at_the_context_s_end() -> None:
    assert answer(ask(max_tokens=5))["stop_reason"] == "max_tokens"
    cut = answer(ask(max_tokens=400), max_model_len=30)
    assert cut["stop_reason"] == "model_context_window_exceeded"
    assert sum(cut["usage"].values()) == 30
    with pytest.raises(RefusedError, match="prompt is too long: 3004 tokens > 100 maximum"):
        answer(ask("word " * 3000), max_model_len=100)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "nobody"}, 404, "nobody"),
        ({"model": None}, 400, "model"),
        ({"max_tokens": None}, 400, "max_tokens: Field required"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": 1.0}, 400, "temperature"),
        ({"temperature": None}, 400, "temperature"),
        ({"top_p": 0.5}, 400, "top_p"),
        ({"seed": 7}, 400, "seed"),
        ({"response_format": {"type": "text"}}, 400, "response_format"),
        ({"messages": []}, 400, "at least one message"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, 400, "prefill"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "non-empty"),
        ({"messages": [{"role": "user", "content": marked("a", "")}]}, 400, "non-empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": marked("a") * 5}]}, 400, "maximum of 4"),
        ({"system": 4}, 400, "system"),
        ({"output_config": {"effort": "minimal"}}, 400, "effort"),
        ({"output_config": {"format": {"type": "json_object"}}}, 400, "format"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"minimum": 1}}}}, 400, "bounds"),
        ({"output_config": {"schema": {}}}, 400, "output_config"),
    ],
)
def test_what_the_api_refuses_is_refused(change: dict[str, Any], status: int, words: str) -> None:
    with pytest.raises(RefusedError, match=words) as refused:
        answer(ask() | change)

    assert refused.value.status == status
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    assert error(refused.value) == {"type": "error", "error": {"type": kind, "message": str(refused.value)}}


# --- what is cached --------------------------------------------------------------------------------------------------


def test_a_prefix_is_written_once_and_read_from_then_on() -> None:
    endpoint = Messages(MODELS, 32768)
    replies = [answer(ask(marked(LONG, tail)), endpoint) for tail in ("Be brief.", "Be honest.", "Be brief.")]

    written = billed(replies[0])[1]
    assert written >= CACHED_FROM
    assert [billed(reply) for reply in replies] == [(0, written), (written, 0), (written, 0)]
    for reply in replies:
        usage = reply["usage"]
        assert usage["input_tokens"] + sum(billed(reply)) == 4 + count_tokens(LONG + "Be brief.")


def test_requests_in_flight_together_all_write_the_cache() -> None:
    """A cache entry can be read once the first reply has begun."""
    endpoint = Messages(MODELS, 32768)
    finishes = [endpoint.begin(ask(marked(LONG, tail))) for tail in ("Be brief.", "Be honest.")]
    together = [billed(finish()) for finish in finishes]

    assert together[0][0] == together[1][0] == 0
    assert together[0][1] == together[1][1] > 0


@pytest.mark.parametrize(
    "other",
    [
        ask(marked(LONG + "!")),
        ask(marked(LONG), model="weak"),
        ask(marked(LONG), system="Be honest."),
        ask(marked(LONG), output_config={"effort": "low"}),
    ],
    ids=["text", "model", "system", "output_config"],
)
def test_another_beginning_is_another_prefix(other: dict[str, Any]) -> None:
    endpoint = Messages(MODELS, 32768)
    answer(ask(marked(LONG)), endpoint)

    assert billed(answer(other, endpoint))[0] == 0


def test_a_short_prefix_or_one_without_a_breakpoint_is_not_cached() -> None:
    endpoint = Messages(MODELS, 32768)
    for content in (marked("Explain tides."), LONG):
        assert [billed(answer(ask(content), endpoint)) for _ in range(2)] == [(0, 0)] * 2


def test_of_several_breakpoints_the_furthest_known_is_read_and_the_rest_written() -> None:
    endpoint = Messages(MODELS, 32768)
    (_, system) = billed(answer(ask("Hi.", system=marked(LONG)[:1]), endpoint))
    read, written = billed(answer(ask(marked(LONG), system=marked(LONG)[:1]), endpoint))

    assert read == system > 0
    assert written == 4 + count_tokens(LONG)


def test_what_is_refused_is_not_cached() -> None:
    endpoint = Messages(MODELS, 1700)
    with pytest.raises(RefusedError):
        answer(ask(marked(LONG, LONG)), endpoint)

    assert billed(answer(ask(marked(LONG)), endpoint))[0] == 0


# --- over a socket ---------------------------------------------------------------------------------------------------


Post = Callable[..., Any]


@pytest_asyncio.fixture
async def post() -> AsyncIterator[Post]:
    async with aiohttp.ClientSession() as session:

        async def send(simulator: Simulator, body: Any, **headers: str) -> tuple[int, Any]:
            given = {"anthropic-version": "2026-10-21"} | {name.replace("_", "-"): v for name, v in headers.items()}
            url = f"{simulator.base_url}/messages"
            async with session.post(url, data=json.dumps(body), headers=given) as reply:
                return reply.status, await reply.json()

        yield send


async def test_the_key_is_required_under_either_header(post: Post) -> None:
    async with Simulator(MODELS, require_key="open-sesame") as simulator:
        missing, wrong = await post(simulator, ask()), await post(simulator, ask(), x_api_key="wrong")
        right = [
            await post(simulator, ask(), **headers)
            for headers in ({"x_api_key": "open-sesame"}, {"Authorization": "Bearer open-sesame"})
        ]

    assert [status for status, _ in right] == [200, 200]
    for status, body in (missing, wrong):
        assert status == 401
        assert body["error"]["type"] == "authentication_error"
        assert "sesame" not in json.dumps(body)


async def test_errors_have_the_api_s_shape_and_calls_are_counted(post: Post) -> None:
    async with Simulator(MODELS) as simulator, aiohttp.ClientSession() as session:
        fine = [await post(simulator, ask(marked(LONG))) for _ in range(2)]
        refused = [await post(simulator, ask(temperature=0)), await post(simulator, [])]
        async with session.post(f"{simulator.base_url}/messages", data=json.dumps(ask())) as reply:
            refused.append((reply.status, await reply.json()))
        async with session.get(simulator.base_url.replace("/v1", "/stats")) as reply:
            stats = await reply.json()

    for status, body in refused:
        assert status == 400
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert "anthropic-version" in refused[2][1]["error"]["message"]
    assert (stats["calls"], stats["refused"], stats["by_model"]) == (4, 2, {"strong": 2})  # one never reached the API
    assert stats["requests"] == {"distinct": 1, "repeated": 1}
    usages = [body["usage"] for _, body in fine]
    assert stats["tokens"] == {
        "input": sum(sum(usage.values()) - usage["output_tokens"] for usage in usages),
        "output": sum(usage["output_tokens"] for usage in usages),
    }
