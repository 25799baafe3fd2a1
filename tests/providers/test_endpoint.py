"""Models and judges during a run: when a call may go, when one takes no further call, and what a request is made into
when made again."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from aif.core.types import Message, Usage
from aif.judging.request import resampled_request
from aif.providers.base import CallError, Kind, Quota, Reply, Request
from aif.providers.concurrency import ItemHistory
from aif.providers.endpoint import Endpoint, Halted
from aif.providers.rate_limits import RateLimiter
from trials.reliability.fast_clock import leap as run

REQUEST = Request((Message("user", "x" * 400),), 100)
BAD = CallError(Kind.BAD_REQUEST, "temperature is not supported")
LIMITED = CallError(Kind.RATE_LIMITED, "slow down")
GONE = CallError(Kind.CONNECTION, "nobody there")

Server = Callable[[float], CallError | Reply | None]  # what it says at a time, from 0


@dataclass
class Client:
    """Answers after `takes_s` as the server says when the call comes; remembers when calls came."""

    server: Server
    takes_s: float = 0.5
    came: list[float] = field(default_factory=list)

    async def ask(self, request: Request) -> Reply:
        self.came.append(asyncio.get_running_loop().time() - 1000.0)
        said = self.server(self.came[-1])
        await asyncio.sleep(self.takes_s)
        if isinstance(said, CallError):
            raise said
        return said or Reply("yes", "stop", None)

    async def aclose(self) -> None:
        pass


def endpoint(server: Server, most: int = 8, rpm: float | None = None, tpm: float | None = None) -> Endpoint:
    clock = asyncio.get_running_loop().time
    rate_limiter, free = RateLimiter(rpm, tpm), lambda *usage: 0.0
    one = Endpoint("m", "completion", "m", Client(server), most, free, free, rate_limiter, clock=clock)
    one.jitter = lambda: 1.0
    return one


async def asked(one: Endpoint, calls: int) -> list[Kind | None]:
    """So many calls by as many workers as may be in flight, and how each ended; halted ones are left out."""
    ended: list[Kind | None] = []
    left = calls

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            try:
                async with one.attempt(REQUEST, ItemHistory()) as attempt:
                    await attempt.send()
                ended.append(None)
            except CallError as error:
                ended.append(error.kind)
            except Halted:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(one.concurrency):
            group.create_task(work())
    return ended


def came(one: Endpoint) -> list[float]:
    assert isinstance(one.client, Client)
    return one.client.came


def test_after_a_429_everybody_waits_and_one_call_asks_whether_it_is_over() -> None:
    async def main() -> None:
        limited = CallError(Kind.RATE_LIMITED, "slow down", retry_after=20.0)
        one = endpoint(lambda now: limited if 0.5 <= now < 75 else None)
        await asked(one, 100)
        during = [at for at in came(one) if 1.0 < at < 75]

        assert during == [21.0, 41.5, 62.0]
        assert one.refused is None
        assert came(one)[-1] < 90

    run(main())


def test_limits_that_are_given_are_kept_and_used() -> None:
    async def main() -> None:
        one = endpoint(lambda now: None, most=8, rpm=600)
        await asked(one, 1200)
        times = came(one)

        assert all(len([at for at in times if begin <= at <= begin + 60]) <= 600 for begin in times)
        assert len([at for at in times if at < 60]) >= 570
        assert await asked(endpoint(lambda now: None, most=8), 10) == [None] * 10

    run(main())


def test_tokens_count_as_the_provider_counted_them() -> None:
    """100 by characters, 400 by the provider's count, and 100 to write: 500 of 30,000 make 60 a minute."""

    async def main() -> None:
        reply = Reply("yes", "stop", Usage(400, 1))
        one = endpoint(lambda now: reply, most=8, tpm=30_000)
        await asked(one, 180)
        assert 58 <= len([at for at in came(one) if 60 <= at < 120]) <= 60

    run(main())


def test_what_headers_say_is_learned_from_answers_and_refusals() -> None:
    async def main() -> None:
        quotas = (Quota("requests", 60, 0, 60.0),)
        limited = CallError(Kind.RATE_LIMITED, "slow down", retry_after=1.0, quotas=quotas)
        one = endpoint(lambda now: limited if now < 0.5 else Reply("yes", "stop", None, quotas=quotas), most=8)
        await asked(one, 100)
        assert 58 <= len([at for at in came(one) if 10 <= at < 70]) <= 61

    run(main())


def test_a_reply_that_can_t_be_read_tells_of_limits_and_tokens_as_well() -> None:
    async def main() -> None:
        reply = Reply("what?", "stop", Usage(400, 1), quotas=(Quota("requests", 60, 0, 60.0),))
        one = endpoint(lambda now: reply, most=1)
        with pytest.raises(CallError):
            async with one.attempt(REQUEST, ItemHistory()) as attempt:
                raise CallError(Kind.UNREADABLE, "no rating", reply=await attempt.send())

        assert one.answered == 0
        assert one.rate_limiter.cost(400, 100).prompt > 100, "400 characters were 400 tokens"
        one.rate_limiter.record_limit_hit(2000.0)
        one.rate_limiter.take(one.rate_limiter.cost(400, 100), 2000.0)
        assert one.rate_limiter.wait(one.rate_limiter.cost(400, 100), 2000.0) > 0

    run(main())


@pytest.mark.parametrize("kind", [Kind.UNAUTHORIZED, Kind.QUOTA_EXHAUSTED, Kind.UNKNOWN_MODEL])
def test_what_only_a_person_can_fix_stops_the_endpoint_at_once_also_in_the_middle(kind: Kind) -> None:
    async def main() -> None:
        refusal = CallError(kind, "HTTP 401: bad key", explicit=True)
        one = endpoint(lambda now: refusal if now >= 100 else None, most=8)
        await asked(one, 10_000)

        assert one.refused == "HTTP 401: bad key"
        assert len([at for at in came(one) if at >= 100]) <= 8

    run(main())


def test_an_endpoint_that_refuses_a_shape_is_asked_no_more() -> None:
    async def main() -> None:
        one = endpoint(lambda now: BAD, most=1)
        callers = [ItemHistory(), ItemHistory(), ItemHistory(sampled=True)]
        for caller in callers:
            with pytest.raises(CallError):
                async with one.attempt(REQUEST, caller) as attempt:
                    await attempt.send()

        assert [caller.blame for caller in callers] == ["unknown", "unknown", "endpoint"]
        assert (
            one.refused
            == "3 items were refused for the same reason, and none was answered: temperature is not supported"
        )
        assert await asked(one, 9) == []

    run(main())


def test_where_nobody_ever_answers_is_not_asked_for_ever() -> None:
    async def main() -> None:
        one = endpoint(lambda now: GONE)
        await asked(one, 500)

        assert one.refused is not None
        assert one.refused.endswith("last error: connection: nobody there")
        assert len(came(one)) < 20
        assert 60 <= came(one)[-1] < 90

    run(main())


def test_an_outage_is_waited_for_and_half_an_hour_of_it_ends_the_endpoint() -> None:
    async def main() -> None:
        for outage, error in ((1200, GONE), (1200, LIMITED), (7200, GONE), (7200, LIMITED)):
            began = asyncio.get_running_loop().time() - 1000
            one = endpoint(lambda now, e=error, at=began, s=outage: e if 10 < now - at < s else None)  # type: ignore[misc]
            await asked(one, 400)

            during = [at for at in came(one) if 12 < at - began < min(outage, 1800)]
            assert len(during) <= 45, "one call a minute or less"
            assert (one.refused is None) == (outage < 1800)

    run(main())


def test_a_halt_frees_everybody_who_waits() -> None:
    async def main() -> None:
        one = endpoint(lambda now: CallError(Kind.RATE_LIMITED, "slow down", retry_after=60.0))
        asyncio.get_running_loop().call_later(10, one.stop)
        await asked(one, 100)

        assert asyncio.get_running_loop().time() == 1010
        assert one.in_flight == 0

    run(main())


def test_a_call_waits_for_a_server_and_what_befell_the_former_one_is_forgotten() -> None:
    async def main() -> None:
        one = endpoint(lambda now: GONE if now < 100 else None)
        loop = asyncio.get_running_loop()
        loop.call_later(20, one.up.clear)  # the server is known to be gone
        loop.call_later(100, one.up.set)
        await asked(one, 40)

        assert [at for at in came(one) if 20 < at < 100] == []
        assert len([at for at in came(one) if at == 100]) == 8

    run(main())


def test_a_call_that_is_cancelled_gives_its_place_back() -> None:
    async def main() -> None:
        one = endpoint(lambda now: None, most=1)
        first = asyncio.create_task(asked(one, 1))
        await asyncio.sleep(0.1)
        assert one.in_flight == 1
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert one.in_flight == 0
        assert await asked(one, 3) == [None] * 3

    run(main())


def test_servers_that_are_launched_add_places_before_the_first_call() -> None:
    async def main() -> None:
        one = endpoint(lambda now: None, most=8)
        one.concurrency *= 2
        await asked(one, 20)
        assert len([at for at in came(one) if at == 0]) == 16

    run(main())


def test_what_it_does_instead_of_answering_is_said() -> None:
    async def main() -> None:
        one = endpoint(lambda now: CallError(Kind.RATE_LIMITED, "slow down", retry_after=42.0))
        assert one.waiting_text() is None
        waiting = asyncio.create_task(asked(one, 100))
        await asyncio.sleep(10.5)
        assert one.waiting_text() == "rate limited, retries in 32 s"
        one.halt.set()
        assert one.waiting_text() is None, "it waits for nothing any more"
        one.halt.clear()
        one.server_status = "starting"
        assert one.waiting_text() == "starting"
        one.stop()
        await waiting

    run(main())


def test_a_request_is_changed_only_by_what_another_sample_can_avoid() -> None:
    """Also where a 429 came in between: a reply known to be of no use is not asked for again."""
    request = Request((Message("user", "hi"),), 100, seed=7)
    cut, unread = CallError(Kind.TRUNCATED, "cut"), CallError(Kind.UNREADABLE, "what?")
    made = [
        resampled_request(request, resamples, failure)
        for resamples, failure in ((0, None), (1, cut), (2, cut), (3, cut), (1, unread))
    ]

    assert [(one.seed, one.max_tokens) for one in made] == [(7, 100), (8, 200), (9, 400), (10, 400), (8, 100)]
