"""The cost question before a run: what is shown, what is asked in a terminal, and what each answer does."""

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aif.core.errors import Exit
from aif.simulator import InjectedFault
from aif.simulator.faults import Fault
from tests.engine.test_orchestrator import aif, run, write
from tests.support.serving import POOL, Served

Serve = Callable[..., Served]

QUESTION = "Continue? [y/N] "
PRICE = {"input": 1000, "output": 1000}  # a tenth of a cent a token: a few prompts are more than a dollar


def priced(folder: Path, served: Served, price: dict[str, int] | None = PRICE, **changes: Any) -> Path:
    judge = {"provider": "openai", "base_url": served.base_url, **({"price": price} if price else {})}
    return write(folder, served, count=4, judges={"judge": judge}, **changes)


def at_a_terminal(*words: str | Path, answer: bytes | signal.Signals = b"") -> tuple[int, str]:
    """Types a command at a terminal, and the answer when it asks; gives the exit code and all that was seen."""
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "aif", *map(str, words)]
    screen = {**os.environ, "COLUMNS": "100", "TERM": "dumb"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=screen, start_new_session=True)
    os.close(theirs)
    seen, waiting = b"", True
    with suppress(OSError):  # Linux's way to say that nobody is at the other end any more
        while read := _read(mine, process, answer, waiting):
            seen += read
            if waiting and QUESTION.encode() in seen:
                waiting = False
                if isinstance(answer, bytes):
                    os.write(mine, answer)
                else:
                    process.send_signal(answer)
    code = process.wait(60)
    os.close(mine)
    return code, seen.decode()


def _read(screen: int, process: subprocess.Popen[bytes], answer: bytes | signal.Signals, waiting: bool) -> bytes:
    """What appears next. A signal that came just before the program began to read is sent again, as people do."""
    for _ in range(60):
        if select.select([screen], [], [], 1)[0]:
            return os.read(screen, 4096)
        if not waiting and isinstance(answer, signal.Signals):
            process.send_signal(answer)
    raise AssertionError("nothing more appeared for a minute")


def test_yes_goes_on(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    code, seen = at_a_terminal("run", priced(tmp_path, served), answer=b"y\n")

    assert code == Exit.DONE, seen
    assert served.stats()["calls"] == 20
    assert seen.index("estimate: 20 calls") < seen.index(QUESTION)


@pytest.mark.parametrize(("answer", "code"), [(b"\n", 2), (b"n\n", 2), (b"\x04", 2), (signal.SIGINT, 130)])
def test_anything_else_asks_nothing_and_loses_nothing(
    tmp_path: Path, serve: Serve, answer: bytes | signal.Signals, code: int
) -> None:
    served = serve()
    path = priced(tmp_path, served)
    ended, seen = at_a_terminal("run", path, answer=answer)

    assert ended == code, seen
    assert seen.count("aif: not started; no model was called") == 1
    assert "resumes" not in seen
    assert "Traceback" not in seen
    assert served.stats()["calls"] == 0
    _, after = run(path)
    assert not after.incomplete


@pytest.mark.parametrize("words", [["--yes"], ["--set", "confirm_usd=1000000"]])
def test_what_is_agreed_to_or_cheap_is_not_asked_about(tmp_path: Path, serve: Serve, words: list[str]) -> None:
    code, seen = at_a_terminal("run", priced(tmp_path, serve()), *words)

    assert code == Exit.DONE, seen
    assert QUESTION not in seen


def test_an_unknown_price_is_asked_about_however_few_the_calls(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    code, seen = at_a_terminal("run", priced(tmp_path, served, price=None), "--limit", "1", answer=b"\n")

    assert (code, served.stats()["calls"]) == (Exit.BAD_INPUT, 0)
    assert "dollars unknown for judge, set `price`" in " ".join(seen.split())


def test_a_batch_job_is_told_in_a_line_and_goes_on(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = priced(tmp_path, served)
    done = aif("run", path)

    assert done.returncode == Exit.DONE
    assert "estimate: 20 calls" in done.stderr
    assert QUESTION not in done.stderr

    done = aif("run", path)
    assert "estimate:" not in done.stderr, "there is nothing left to call"


def test_failures_wait_where_they_were_when_the_answer_is_no(tmp_path: Path, serve: Serve) -> None:
    served = serve(faults=lambda call: InjectedFault(Fault.REFUSAL) if call.model == "judge" else None)
    path = priced(tmp_path, served, completions={"max_tokens": 64})
    run(path)
    before = aif("failures", path).stdout
    assert "--retry-failed" in before
    code, seen = at_a_terminal("run", path, "--retry-failed", answer=b"n\n")

    assert code == Exit.BAD_INPUT
    assert "estimate: 4 calls" in seen
    assert aif("failures", path).stdout == before


def test_an_estimate_calls_nobody_and_a_run_after_it_goes_on_from_there(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = priced(tmp_path, served)
    told = aif("estimate", path)

    assert told.returncode == Exit.DONE, told.stderr
    assert "estimate: 20 calls" in told.stdout
    assert served.stats()["calls"] == 0
    run(path)
    assert "nothing to call: all 20 answers are stored" in aif("estimate", path).stdout


def test_a_probe_is_asked_for_and_all_it_asked_is_kept(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = priced(tmp_path, served)
    refused = aif("estimate", path, "--probe", "2")
    assert refused.returncode == Exit.BAD_INPUT
    assert "no terminal to confirm the cost of --probe; pass --yes" in refused.stderr
    assert at_a_terminal("estimate", path, "--probe", "2", answer=b"n\n")[0] == Exit.BAD_INPUT
    assert served.stats()["calls"] == 0

    told = aif("estimate", path, "--probe", "2", "--yes")
    assert told.returncode == Exit.DONE, told.stderr
    assert "probe of the first 2 prompts: estimate: 10 calls" in told.stderr
    assert "estimate: 10 calls" in told.stdout
    assert "measured on 2 calls" in told.stdout
    run(path)
    assert served.stats()["requests"] == {"distinct": 20, "repeated": 0}


def test_a_probe_that_is_cut_short_names_the_probe_to_repeat(tmp_path: Path, serve: Serve) -> None:
    path = priced(tmp_path, serve(require_key="sesame"))
    ended = aif("estimate", path, "--probe", "2", "--yes")
    assert ended.returncode == Exit.REFUSED
    assert f"stopped; fix this and rerun `aif estimate {path} --probe 2`:" in ended.stderr


def test_a_probe_of_ones_own_models_is_not_asked_for(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    models = {name: {"provider": "vllm", "base_url": served.base_url} for name in (*POOL, "judge")}
    path = write(tmp_path, served, judges={"judge": models.pop("judge")}, models=models)

    told = aif("estimate", path, "--probe", "1")
    assert told.returncode == Exit.DONE, told.stderr
    assert served.stats()["calls"] == 5


@pytest.mark.parametrize(
    "words", [["--limit", "0"], ["--probe", "-1"], ["--probe", "many"], ["--set", "confirm_usd=-1"]]
)
def test_wrong_words_are_refused(tmp_path: Path, serve: Serve, words: list[str]) -> None:
    told = aif("estimate", priced(tmp_path, serve()), *words)

    assert told.returncode == Exit.BAD_INPUT
    assert "Traceback" not in told.stderr
