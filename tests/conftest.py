"""Fixtures for all tests: no API key in the environment, a simulator, a Hub."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import settings

from tests.support.model_hub import serving_hub
from tests.support.serving import Served, serving

# A process in the background of a script ignores Ctrl-C, and one started by nohup SIGHUP; so do their children, which
# the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine must not fail a property test.
settings.register_profile("aif", deadline=None)
settings.load_profile("aif")


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Remove API keys from the environment, and keep caches out of the home folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for name in [name for name in os.environ if name.endswith(("_API_KEY", "_TOKEN"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def hub() -> Iterator[str]:
    """Return the address of a Hub with a few small repositories."""
    with serving_hub() as address:
        yield address


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Return a function that starts a simulator in a thread; all are stopped at the end."""
    with ExitStack() as stack:

        def start(**options: Any) -> Served:
            return stack.enter_context(serving(**options))

        yield start
