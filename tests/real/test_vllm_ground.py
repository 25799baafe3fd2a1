"""What the product relies on in vLLM, held to a real server: seeds, schemas, usage, errors, counters, and its end."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.real.vllm_server import Server, running

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]


def fixed(properties: dict[str, Any]) -> dict[str, Any]:
    """An object with exactly these keys."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def ratings_schema(longest: int) -> dict[str, Any]:
    """A rationale and a rating for four aspects of four completions."""
    rating = {"rationale": {"type": "string", "maxLength": longest}, "rating": {"enum": ["1", "2", "3", "4", "5"]}}
    return fixed({str(number): fixed({aspect: fixed(rating) for aspect in ASPECTS}) for number in range(1, 5)})


def by_schema(schema: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {
        "model": "judge",
        "messages": QUESTION,
        "response_format": {"type": "json_schema", "json_schema": {"name": "ratings", "schema": schema}},
    } | settings


def test_a_seed_makes_a_completion_reproducible(vllm_server: Server) -> None:
    asked = {"messages": QUESTION, "max_tokens": 64, "temperature": 1.0}
    texts = [
        vllm_server.chat(asked | {"model": model, "seed": seed})[1]["choices"][0]["message"]["content"]
        for model, seed in (("tiny-a", 7), ("tiny-a", 7), ("tiny-b", 7), ("tiny-a", 8))
    ]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0] != texts[3]


def test_completions_end_by_themselves(vllm_server: Server) -> None:
    """A pool that only ever ran into its limit would give no pair to train on."""
    asked = {"messages": QUESTION, "max_tokens": 512, "temperature": 1.0}
    finishes = [vllm_server.chat(asked | {"seed": seed})[1]["choices"][0]["finish_reason"] for seed in range(10)]
    assert set(finishes) == {"stop"}


@pytest.mark.parametrize("longest", [60, 120, 400])
def test_a_schema_is_followed_and_ends(vllm_server: Server, longest: int) -> None:
    """What a reader must live with: raw control characters inside strings (xgrammar forbids only line breaks there,
    hence strict=False), and strings longer than maxLength, since broken UTF-8 is one character to xgrammar and up to
    three U+FFFD once decoded."""
    for seed in range(3):
        status, answer = vllm_server.chat(
            by_schema(ratings_schema(longest), seed=seed, temperature=1.0, max_tokens=6000)
        )
        assert status == 200
        assert answer["choices"][0]["finish_reason"] == "stop"
        ratings = json.loads(answer["choices"][0]["message"]["content"], strict=False)
        assert [*ratings] == ["1", "2", "3", "4"]
        for completion in ratings.values():
            assert [*completion] == [*ASPECTS]
            for aspect in completion.values():
                assert aspect["rating"] in {"1", "2", "3", "4", "5"}
                assert len(aspect["rationale"].replace("\ufffd", "")) <= longest


def test_usage_counts_the_cached_part(vllm_server: Server) -> None:
    """Cached tokens come in whole blocks of 128, and are only told with --enable-prompt-tokens-details."""
    asked = {"messages": [{"role": "user", "content": "The same beginning. " * 100}], "max_tokens": 4}
    first, second = (vllm_server.chat(asked)[1]["usage"] for _ in range(2))
    assert first["total_tokens"] == first["prompt_tokens"] + first["completion_tokens"]
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens"] == first["prompt_tokens"]
    assert 0 < second["prompt_tokens_details"]["cached_tokens"] < second["prompt_tokens"]


def test_a_prompt_beyond_the_context_is_refused(vllm_server: Server) -> None:
    status, answer = vllm_server.chat({"messages": [{"role": "user", "content": "word " * 9000}], "max_tokens": 8})
    assert status == 400
    assert answer["error"]["message"].startswith("This model's maximum context length is 8192 tokens. However, your")
    assert {key: answer["error"][key] for key in ("type", "param", "code")} == {
        "type": "BadRequestError",
        "param": "input_tokens",
        "code": 400,
    }


def test_max_tokens_beyond_the_context_is_refused(vllm_server: Server) -> None:
    status, answer = vllm_server.chat({"messages": QUESTION, "max_tokens": 9000})
    assert status == 400
    assert answer["error"] == {
        "message": "max_tokens=9000 cannot be greater than max_model_len=8192. Please request fewer output tokens. "
        "(parameter=max_tokens, value=9000)",
        "type": "BadRequestError",
        "param": "max_tokens",
        "code": 400,
    }


def test_max_tokens_are_cut_to_what_the_prompt_leaves(vllm_server: Server) -> None:
    """Prompt and max_tokens together beyond the context are no error: the completion just ends there, as `length`."""
    asked = {"messages": [{"role": "user", "content": "so " * 7000}], "max_tokens": 8000, "ignore_eos": True}
    status, answer = vllm_server.chat(asked | {"temperature": 0})
    assert status == 200
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 8192


def test_an_unknown_model_is_refused(vllm_server: Server) -> None:
    status, answer = vllm_server.chat({"model": "nope", "messages": QUESTION})
    assert status == 404
    assert answer["error"] == {
        "message": "The model `nope` does not exist. Valid aliases: tiny-a, tiny-b, tiny-c, tiny-d, judge.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


def test_a_wrong_path_is_no_unknown_model(vllm_server: Server) -> None:
    assert vllm_server.post("/v1/v1/chat/completions", {}) == (404, {"detail": "Not Found"})


def test_a_schema_it_cannot_follow_is_refused(vllm_server: Server) -> None:
    status, answer = vllm_server.chat(by_schema({"type": "objekt"}, max_tokens=8))
    assert status == 400
    assert "Unsupported type" in answer["error"]["message"]


def test_calls_are_counted_at_the_server(vllm_server: Server) -> None:
    answered, refused = vllm_server.calls(), vllm_server.calls("4xx")
    finished = vllm_server.count("vllm:request_success_total")
    for seed in range(3):
        vllm_server.chat({"messages": QUESTION, "max_tokens": 4, "seed": seed})
    vllm_server.chat({"model": "nope", "messages": QUESTION})
    assert vllm_server.calls() - answered == 3
    assert vllm_server.calls("4xx") - refused == 1
    assert vllm_server.count("vllm:request_success_total") - finished == 3


OWNER = """
import os, sys
from pathlib import Path
from tests.real.vllm_server import running

with running(["sh", "-c", "trap '' TERM; sleep 600 & wait"], Path(sys.argv[1]), os.environ) as process:
    print(process.pid, flush=True)
    sys.stdin.read()
"""


def members(group: int) -> list[int]:
    """Processes of the group that still run; what only waits for init to be reaped doesn't count."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended while we looked
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def is_gone(group: int) -> bool:
    """Whether nothing of the group runs any more, after at most ten seconds."""
    deadline = time.monotonic() + 10
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not members(group)


def test_no_server_outlives_an_owner_that_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "log")],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert owner.stdout is not None
        group = int(owner.stdout.readline())
        assert members(group)
    finally:
        owner.kill()
        owner.communicate()
    assert is_gone(group)


def test_no_server_outlives_its_block(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), running(["sleep", "600"], tmp_path / "log", os.environ) as process:
        raise KeyboardInterrupt
    assert is_gone(process.pid)
