"""Injected faults as a client sees them over a real socket, and rate limits under a faster clock."""

import asyncio
import json
import time
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pytest

from aif.core.errors import BadInput
from aif.simulator import Arrival, Call, Fault, Faults, InjectedFault, SimulatedModels, Simulator
from aif.simulator.models import RefusedError
from aif.simulator.rate_limits import RateLimitBuckets
from trials.reliability import fast_clock

MODELS = SimulatedModels({"model": 0.5}, {}, 7)
BODY = {"model": "model", "messages": [{"role": "user", "content": "How do tides work?"}], "max_tokens": 50}


async def post(simulator: Simulator, path: str = "/chat/completions", **more: Any) -> tuple[int, Any, bytes]:
    headers = {"Authorization": "Bearer sk-planted", "anthropic-version": "2026-10-21"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(simulator.base_url + path, json=BODY | more) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


def always(fault: Fault, **how: Any) -> Any:
    return lambda arrival: InjectedFault(fault, **how)


@pytest.mark.parametrize("path", ["/chat/completions", "/messages"])
@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.RATE_LIMITED, 429),
        (Fault.SERVER_ERROR, 500),
        (Fault.OVERLOADED, 503),
        (Fault.UNAUTHORIZED, 401),
        (Fault.FORBIDDEN, 403),
        (Fault.UNKNOWN_MODEL, 404),
    ],
)
async def test_a_refusal_has_the_shape_of_its_api_and_repeats_the_key(path: str, fault: Fault, status: int) -> None:
    async with Simulator(MODELS, faults=always(fault)) as simulator:
        got, _, body = await post(simulator, path)
    assert got == status
    assert "sk-planted" in json.loads(body)["error"]["message"]


async def test_an_empty_account_is_reported_as_each_provider_does() -> None:
    async with Simulator(MODELS, faults=always(Fault.QUOTA)) as simulator:
        assert [(await post(simulator, path))[0] for path in ("/chat/completions", "/messages")] == [429, 400]


async def test_retry_after_in_seconds_as_a_date_or_not_at_all() -> None:
    said = iter(["121", "date:90", None])
    async with Simulator(MODELS, faults=lambda _: InjectedFault(Fault.RATE_LIMITED, next(said))) as simulator:
        headers = [(await post(simulator))[1] for _ in range(3)]
    assert headers[0]["Retry-After"] == "121"
    until, now = (parsedate_to_datetime(headers[1][name]) for name in ("Retry-After", "Date"))
    assert 88 <= (until - now).total_seconds() <= 91
    assert "Retry-After" not in headers[2]


async def test_broken_replies_have_status_200() -> None:
    bodies = {}
    for fault in (Fault.HTML, Fault.BROKEN_JSON, Fault.NO_CHOICES, Fault.CONTROL):
        async with Simulator(MODELS, faults=always(fault)) as simulator:
            status, _, bodies[fault] = await post(simulator)
        assert status == 200
    assert bodies[Fault.HTML].startswith(b"<html>")
    with pytest.raises(ValueError):
        json.loads(bodies[Fault.BROKEN_JSON])
    assert json.loads(bodies[Fault.NO_CHOICES])["choices"] is None
    assert b"\x01\x0b" in bodies[Fault.CONTROL]
    assert json.loads(bodies[Fault.CONTROL], strict=False)["choices"]


@pytest.mark.parametrize(
    ("fault", "text", "reason"),
    [
        (Fault.EMPTY, "", "stop"),
        (Fault.BLANKS, " " * 250_000, "stop"),
        (Fault.REFUSAL, "", "content_filter"),
        (Fault.SAYS, "these words", "stop"),
    ],
)
async def test_a_reply_with_another_text(fault: Fault, text: str, reason: str) -> None:
    async with Simulator(MODELS, faults=always(fault, text="these words")) as simulator:
        _, _, body = await post(simulator)
        _, _, anthropic = await post(simulator, "/messages")
    (choice,) = json.loads(body)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, reason)
    assert "".join(block["text"] for block in json.loads(anthropic)["content"]) == text


async def test_a_connection_that_ends_within_the_body() -> None:
    async with Simulator(MODELS, faults=always(Fault.CUT)) as simulator:
        with pytest.raises(aiohttp.ClientPayloadError):
            await post(simulator)


async def test_a_response_that_comes_twice() -> None:
    async with Simulator(MODELS, faults=always(Fault.DUPLICATE)) as simulator:
        url = simulator.base_url.removeprefix("http://").removesuffix("/v1")
        reader, writer = await asyncio.open_connection(*url.split(":"))
        body = json.dumps(BODY).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        replies = []
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            replies.append(await reader.readexactly(length))
        writer.close()
    assert replies[0] == replies[1]


async def test_a_client_that_gives_up_ends_its_call_and_is_billed() -> None:
    told: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
    async with Simulator(MODELS, faults=always(Fault.HANG, seconds=3600), on_call=told.set_result) as simulator:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await post(simulator)
        call = await told
    assert (call.status, call.sent, call.fault) == (None, False, Fault.HANG)
    assert call.usage
    assert call.usage["completion_tokens"] > 0


async def test_on_call_gets_every_call_with_its_key_and_count() -> None:
    calls: list[Call] = []
    async with Simulator(MODELS, on_call=calls.append) as simulator:
        for seed in (1, 2, 1):
            await post(simulator, seed=seed)
    assert [call.nth for call in calls] == [1, 1, 2]
    assert calls[0].key == calls[2].key != calls[1].key
    assert all(call.sent and call.status == 200 and call.ended >= call.began for call in calls)


def test_each_fault_gets_its_share_of_the_calls_in_any_order() -> None:
    faults = Faults({Fault.SERVER_ERROR: 0.2, Fault.RATE_LIMITED: 0.1}, retry_after=("1", None))
    arrivals = [Arrival("m", str(n), 1, n, 0.0) for n in range(2000)]
    met = [faults(arrival) for arrival in arrivals]
    assert met == [faults(Arrival("m", str(n), 1, 2000 - n, 9.0)) for n in range(2000)]
    kinds = [injected.fault if injected else None for injected in met]
    assert 320 < kinds.count(Fault.SERVER_ERROR) < 480
    assert 140 < kinds.count(Fault.RATE_LIMITED) < 260
    assert {injected.retry_after for injected in met if injected and injected.fault is Fault.RATE_LIMITED} == {
        "1",
        None,
    }
    assert faults(Arrival("m", "1", 2, 0, 0.0)) != faults(Arrival("m", "1", 1, 0, 0.0)) or met[1] is None


def test_a_lasting_fault_comes_again_on_every_retry() -> None:
    faults = Faults({Fault.SERVER_ERROR: 0.5}, lasting=True)
    for key in map(str, range(50)):
        assert len({faults(Arrival("m", key, nth, nth, 0.0)) for nth in range(1, 6)}) == 1


def test_shares_above_1_are_refused() -> None:
    with pytest.raises(BadInput, match="above 1"):
        Faults({Fault.EMPTY: 0.6, Fault.HTML: 0.6})


def test_a_rate_limiter_refills_continuously_and_counts_refused_requests() -> None:
    limiter = RateLimitBuckets(60, None, burst_s=2)
    limiter.take(0, 0.0)
    limiter.take(0, 0.0)
    for at in (0.5, 1.0):  # half a request has come back each time, and goes with the refusal
        with pytest.raises(RefusedError) as refused:
            limiter.take(0, at)
        assert float(refused.value.headers["Retry-After"]) == pytest.approx(0.5)
    limiter.take(0, 2.0)


def test_tokens_are_limited_too_and_headers_report_what_is_left() -> None:
    limiter = RateLimitBuckets(None, 600)
    limiter.take(400, 0.0)
    with pytest.raises(RefusedError, match="tokens per min"):
        limiter.take(400, 0.0)
    assert limiter.headers(0.0, anthropic=False) == {
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "200",
        "x-ratelimit-reset-tokens": "40.000s",
    }
    limiter.take(400, 20.0)


async def test_a_limited_server_says_so_in_its_headers() -> None:
    async with Simulator(MODELS, requests_per_minute=1, tokens_per_minute=1000) as simulator:
        first, second = await post(simulator), await post(simulator, "/messages")
    assert (first[0], first[1]["x-ratelimit-remaining-requests"]) == (200, "0")
    assert (second[0], second[1]["anthropic-ratelimit-requests-limit"]) == (429, "1")
    assert float(second[1]["Retry-After"]) > 50


def test_a_scaled_clock_drives_both_sides() -> None:
    async def asked() -> float:
        async with Simulator(MODELS, latency_s=30) as simulator:
            began = asyncio.get_running_loop().time()
            status, _, _ = await post(simulator)
            assert status == 200
            return asyncio.get_running_loop().time() - began

    began = time.monotonic()
    took = fast_clock.run(asked(), speed=200)
    assert took >= 30
    assert time.monotonic() - began < 15
