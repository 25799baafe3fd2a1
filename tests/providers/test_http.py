"""aif/providers/http.py: what a call that did not come through is, by the errors that clients raise."""

import asyncio

import aiohttp
import pytest

from aif.providers.base import CallError, Kind
from aif.providers.http import deadline

URL = "http://somewhere:8000/v1"


async def _fails(error: BaseException, seconds: float = 60.0) -> CallError:
    with pytest.raises(CallError) as caught:
        async with deadline(seconds, URL, ()):
            raise error
    return caught.value


async def test_a_host_that_never_takes_a_connection_was_sent_nothing() -> None:
    """Packets are dropped where there is no route: an hour of that would else use up a budget."""
    timed_out = aiohttp.ConnectionTimeoutError("Connection timeout to host")
    timed_out.__cause__ = asyncio.CancelledError()
    lost = await _fails(timed_out)

    assert (lost.kind, lost.unsent) == (Kind.CONNECTION, True)
    assert lost.message == "somewhere:8000: Connection timeout to host"


async def test_a_connection_that_broke_may_have_been_paid_for() -> None:
    lost = await _fails(aiohttp.ServerDisconnectedError())

    assert (lost.kind, lost.unsent) == (Kind.CONNECTION, False)


async def test_a_cancellation_of_somebody_else_is_a_lost_connection_and_ones_own_passes_through() -> None:
    lost = await _fails(asyncio.CancelledError())
    assert (lost.kind, lost.unsent) == (Kind.CONNECTION, True)

    async def call() -> None:
        async with deadline(60.0, URL, ()):
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_deadline_is_of_the_whole() -> None:
    with pytest.raises(CallError, match=r"within 0\.01 s") as caught:
        async with deadline(0.01, URL, ()):
            await asyncio.Event().wait()

    assert caught.value.kind is Kind.TIMEOUT
