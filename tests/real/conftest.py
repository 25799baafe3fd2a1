"""Fixtures of the real suite (`make test-real`): a tiny model made on the spot, vLLM serving it, TRL beside them.

The fast suite never comes here: `real` is in pytest's norecursedirs.
"""

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.real.vllm_server import Server, vllm


class Serve(Protocol):
    """`vllm` with its model and its log filled in."""

    def __call__(
        self, names: tuple[str, ...], *, max_model_len: int = ..., max_num_seqs: int = ..., flags: tuple[str, ...] = ()
    ) -> AbstractContextManager[Server]: ...


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors elsewhere; here most come from torch, vLLM and TRL, which are not ours to mend."""
    config.addinivalue_line("filterwarnings", "default")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama, its tokenizer and its chat template."""
    from tests.real.tiny_model import build  # torch takes seconds to import, and not every test needs it

    return build(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def serve_vllm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Starts another server of the tiny model: `with serve_vllm(("judge",), flags=("--seed", "1")) as server: …`."""

    def start(names: tuple[str, ...], **settings: Any) -> AbstractContextManager[Server]:
        return vllm(tiny_model, tmp_path_factory.mktemp("vllm") / "vllm.log", names, **settings)

    return start


@pytest.fixture(scope="session")
def vllm_server(serve_vllm: Serve) -> Iterator[Server]:
    """One server for the whole session: a pool of four names and a judge, all the same tiny model."""
    with serve_vllm(("tiny-a", "tiny-b", "tiny-c", "tiny-d", "judge")) as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the end of the server's log under a failure of a test that used it."""
    report = yield
    server = getattr(item, "funcargs", {}).get("vllm_server")
    if report.failed and isinstance(server, Server):
        report.sections.append(("end of vLLM's log", server.tail()))
    return report
