"""Fixtures of the tests of aif/chat: servers on this machine, and a request."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from aif.chat.base import Request
from aif.records import Message
from tests.chat.loopback import Answer, Answering, Served


@pytest_asyncio.fixture
async def answering() -> AsyncIterator[Answering]:
    """Starts servers that answer as scripted, and stops them at the end."""
    runners: list[web.AppRunner] = []

    async def start(*answers: Answer) -> Served:
        served = Served(list(answers))
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", served.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return served

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
def request_() -> Request:
    return Request((Message("user", "What is 2 + 2?"),), max_tokens=64, temperature=0.5, seed=7)
