"""Fixtures of the tests of aif/providers: scripted servers on this machine, and a request."""

import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from aif.core.types import Message
from aif.providers.base import Request
from tests.support.loopback import Answer, Answering, Served


@pytest_asyncio.fixture
async def answering() -> AsyncIterator[Answering]:
    """Starts servers that answer as scripted, and stops them at the end."""
    runners: list[web.AppRunner] = []

    async def start(*answers: Answer, ssl_context: ssl.SSLContext | None = None) -> Served:
        served = Served(list(answers))
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", served.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context)
        await site.start()
        served.url = f"{'https' if ssl_context else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        return served

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture(scope="session")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """What a server needs for https at 127.0.0.1 with a certificate that only it has signed."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not here")
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    made = ["openssl", *words.split(), "-keyout", "own.key", "-out", "own.crt"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "own.crt", folder / "own.key")
    return context


@pytest.fixture
def request_() -> Request:
    return Request((Message("user", "What is 2 + 2?"),), max_tokens=64, temperature=0.5, seed=7)
