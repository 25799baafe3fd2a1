"""Fixtures for every room: no key in the environment, and a simulator to talk to."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import settings

from tests.support.model_hub import serving_hub
from tests.support.serving import Served, serving

# What a script puts into the background ignores Ctrl-C, what nohup starts a terminal that closes, and so does all that
# these start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A machine that is busy is no failure.
settings.register_profile("aif", deadline=None)
settings.load_profile("aif")


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A test that needs a key sets one, and nothing is kept in the home of who tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for name in [name for name in os.environ if name.endswith(("_API_KEY", "_TOKEN"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a Hub with a few small repositories."""
    with serving_hub() as address:
        yield address


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts simulators, each in a thread of its own, and stops them at the end."""
    with ExitStack() as stack:

        def start(**options: Any) -> Served:
            return stack.enter_context(serving(**options))

        yield start
