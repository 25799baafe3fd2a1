"""13. Servers are killed or hang during a run, and runs that launched servers are stopped or killed."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from aif.config.pipeline import load
from aif.core.errors import Exit
from aif.store.journal import replay
from aif.store.reader import Reader
from tests.support.processes import until
from trials.harness import ROOT
from trials.reliability import Figures
from trials.reliability.simulated_run import pipeline, served, start

NUMBER = 13
PROMISE = (
    "A server that dies or hangs is restarted, or its load moves; a stopped run ends in order, and no process is left "
    "however a run ends."
)
MARK = "FAKE_FOLDER"  # in the environment of all processes of a fake server, its guard's too
GONE_S = 15.0  # the guard's grace period for a server, and a margin
PROMPTS, FEW = 20, 8
LATENCY_S, OTHERS_LATENCY_S = 0.1, 0.3
REAL = "AIF_REAL_PYTHON"


def trial(folder: Path, full: bool) -> Figures:
    draw = random.Random(13)
    times, prompts = (25, PROMPTS) if full else (1, FEW)
    died = [_killed_under_a_run(folder / f"died-{n}", draw, prompts) for n in range(times)]
    # a run started under nohup ignores SIGHUP
    ways = [way for way in STOPS if signal.getsignal(STOPS[way][0]) is not signal.SIG_IGN] if full else []
    stopped = {way: _stopped(folder / f"stopped-{n}", STOPS[way]) for n, way in enumerate(ways)}
    ends = list(KILLS) if full else []
    killed = {who: _killed(folder / f"killed-{n}", KILLS[who]) for n, who in enumerate(ends)}
    return {
        "runs": len(died),
        "codes": sorted({run["code"] for run in died}),
        "kills": 2 * len(died),
        "calls": sum(run["calls"] for run in died),
        "without_answer": sum(run["without_answer"] for run in died),
        "asked_twice": sum(run["asked_twice"] for run in died),
        "left": sum(run["left"] for run in died),
        "longest_away_s": max(run["away_s"] for run in died),
        "stopped": stopped,
        "killed": killed,
        "hung": _hung(folder / "hung") if full else None,
        "dies_always": _dies_always(folder / "dies") if full else None,
        "real": kill_real_vllm(folder / "real", os.environ[REAL]) if full and os.environ.get(REAL) else None,
    }


def violations(figures: Figures) -> list[str]:
    problems = [
        f"{figures[name]} {words}"
        for name, words in (
            ("without_answer", "items had no answer after servers were killed"),
            ("asked_twice", "answered requests were repeated"),
            ("left", "processes were left after a run"),
        )
        if figures[name]
    ]
    if figures["codes"] != [Exit.DONE]:
        problems.append(f"runs whose servers were killed ended with exit codes {figures['codes']}")
    for way, stop in figures["stopped"].items():
        if stop["code"] != Exit.INTERRUPTED:
            problems.append(f"{way}: exit code {stop['code']}")
        if stop["left"]:
            problems.append(f"{way}: {stop['left']} processes were left")
        if stop["lost"]:
            problems.append(f"{way}: {stop['lost']} replies were lost")
        if not stop["said"]:
            problems.append(f"{way}: how to resume was not printed")
    problems += [f"kill -9 of {who}: {left} processes were left" for who, left in figures["killed"].items() if left]
    if (hung := figures["hung"]) and (hung["without_answer"] or hung["left"] or not hung["restarts"]):
        problems.append(f"a hanging server: {hung}")
    if (dies := figures["dies_always"]) and (dies["code"] != Exit.REFUSED or not dies["said"] or dies["starts"] != 4):
        problems.append(f"a server that always dies: {dies}")
    if (real := figures["real"]) and (real["without_answer"] or real["left"] or not real["restarts"]):
        problems.append(f"the real vLLM: {real}")
    return problems


def summary(figures: Figures) -> str:
    real = figures["real"]
    real_words = (
        f"a real vLLM was away for {real['away_s']:.0f} s" if real else f"no real vLLM was tried ({REAL} not set)"
    )
    return (
        f"{figures['kills']} servers killed during {figures['runs']} runs of {figures['calls']:,} calls: "
        f"{figures['without_answer']} items without an answer, {figures['asked_twice']} answered requests repeated, "
        f"away for at most {figures['longest_away_s']:.1f} s; {real_words}. {len(figures['stopped'])} ways to stop a "
        f"run and {len(figures['killed'])} ways to kill it left {_left(figures)} processes."
    )


def _left(figures: Figures) -> int:
    stopped = sum(stop["left"] for stop in figures["stopped"].values())
    return int(figures["left"] + stopped + sum(figures["killed"].values()))


# --- servers that die -------------------------------------------------------------------------------------------------


def _killed_under_a_run(folder: Path, draw: random.Random, prompts: int) -> dict[str, Any]:
    """Kill two servers during a run: one that aif launched, and one of two external servers of another model."""
    with ExitStack() as stack:
        judge = stack.enter_context(served())
        fakes = FakeServers(folder)
        others = [stack.enter_context(ExternalServer(fakes)) for _ in range(2)]
        launched = {**fakes.launch(), "samples": 2, "concurrency": 4}
        urls = {"provider": "vllm", "base_url": [server.url for server in others], "samples": 2, "concurrency": 4}
        path = _pipeline(folder, judge.base_url, {"launched": launched, "urls": urls}, prompts=prompts)
        process = stack.enter_context(_running(path))
        first = draw.randint(1, prompts)
        until(lambda: fakes.answered("launched") >= first, "the first answers")
        (server,) = fakes.alive("launched")
        os.kill(server, signal.SIGKILL)
        began = time.monotonic()
        until(lambda: fakes.answered("urls") >= first, "the others' first answers")
        draw.choice(others).away(draw.uniform(0.0, 0.5))
        until(lambda: fakes.alive_other_than("launched", server) or process.poll() is not None, "the server's return")
        away_s = time.monotonic() - began
        process.communicate(timeout=120)
        for server_left in others:
            server_left.kill()
        times = Counter(call["key"] for call in fakes.calls() if call["answered"])
        return {
            "code": process.returncode,
            "calls": len(fakes.calls()),
            "without_answer": _without_answer(path),
            "asked_twice": sum(1 for n in times.values() if n > 1),
            "away_s": round(away_s, 1),
            "left": len(fakes.processes()),
        }


def _hung(folder: Path) -> dict[str, Any]:
    """Stop a server with SIGSTOP during a run, so that it hangs but no connection breaks."""
    with _over_a_server(folder, prompts=16, timeout_s=3.0) as (path, process, fakes):
        until(lambda: len(fakes.calls()) >= 8, "the first answers")
        (server,) = fakes.alive("launched")
        os.kill(server, signal.SIGSTOP)
        output, _ = process.communicate(timeout=180)
        assert process.returncode == Exit.DONE, output
        return {
            "restarts": output.count("hangs"),
            "without_answer": _without_answer(path),
            "left": len(fakes.processes()),
        }


def _dies_always(folder: Path) -> dict[str, Any]:
    """Kill a server each time it is up: aif restarts it three times, then refuses its model."""
    with _over_a_server(folder, prompts=40, concurrency=2) as (_, process, fakes):
        for starts in range(1, 5):
            until(partial(fakes.has, starts, 2 * starts), "a start, and an answer")
            os.kill(fakes.alive("launched")[0], signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        return {
            "code": process.returncode,
            "starts": len(fakes.started("launched")),
            "said": "launched: its server ended: killed by signal 9" in output and "launched is served" in output,
            "left": _left_after(fakes),
        }


# --- runs that end ----------------------------------------------------------------------------------------------------

STOPS: dict[str, Sequence[signal.Signals]] = {
    "Ctrl-C": [signal.SIGINT],
    "SIGTERM": [signal.SIGTERM],
    "SIGHUP": [signal.SIGHUP],
    "Ctrl-C twice": [signal.SIGINT, signal.SIGINT],
}


def _stopped(folder: Path, signals: Sequence[signal.Signals]) -> dict[str, Any]:
    """Stop a run with a launched server by signals, in the middle of its calls."""
    with _over_a_server(folder, prompts=200) as (_, process, fakes):
        until(lambda: len(fakes.calls()) >= 8, "the first answers")
        began = time.monotonic()
        for n, signal_sent in enumerate(signals):
            if n:
                time.sleep(0.02)
            process.send_signal(signal_sent)
        output, _ = process.communicate(timeout=60)
        took_s = time.monotonic() - began
        left = len(fakes.processes())
        answered = sum(call["answered"] for call in fakes.calls())
        journaled = _journaled_completions(folder)
        # a run that exits at once may not journal the replies to calls in flight
        flying = 4 if len(signals) > 1 else 0
        return {
            "code": process.returncode,
            "seconds": round(took_s, 1),
            "lost": max(0, answered - journaled - flying),
            "left": left,
            "said": "resumes" in output,
        }


def _guard(fakes: "FakeServers") -> int:
    """Return the process id of the launched server's guard: its parent."""
    return _parent(fakes.alive("launched")[0])


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _witness(fakes: "FakeServers") -> int:
    guard = _guard(fakes)
    return next(pid for pid in fakes.processes() if _parent(pid) == guard and pid != fakes.alive("launched")[0])


def _kill_aif(aif: int, fakes: "FakeServers") -> None:
    os.kill(aif, signal.SIGKILL)


def _kill_aif_over_one_that_hangs(aif: int, fakes: "FakeServers") -> None:
    os.kill(fakes.alive("launched")[0], signal.SIGSTOP)
    os.kill(aif, signal.SIGKILL)


def _kill_guard(aif: int, fakes: "FakeServers") -> None:
    os.kill(_guard(fakes), signal.SIGKILL)
    os.kill(aif, signal.SIGKILL)


def _kill_witness_then_guard(aif: int, fakes: "FakeServers") -> None:
    witness, guard = _witness(fakes), _guard(fakes)
    os.kill(witness, signal.SIGKILL)
    until(lambda: any(pid != witness and _parent(pid) == guard for pid in fakes.processes()), "another witness")
    time.sleep(0.5)
    os.kill(guard, signal.SIGKILL)
    os.kill(aif, signal.SIGKILL)


KILLS = {
    "aif": _kill_aif,
    "aif over a server that hangs": _kill_aif_over_one_that_hangs,
    "the guard, then aif": _kill_guard,
    "the witness, then the guard, then aif": _kill_witness_then_guard,
}


def _killed(folder: Path, kill: Any) -> int:
    """Kill processes during a run; return how many of the launched server's processes are left."""
    with _over_a_server(folder, prompts=200) as (_, process, fakes):
        until(lambda: len(fakes.calls()) >= 8, "the first answers")
        kill(process.pid, fakes)
        process.communicate(timeout=60)
        return _left_after(fakes)


def _left_after(fakes: "FakeServers") -> int:
    deadline = time.monotonic() + GONE_S
    while fakes.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    return len(fakes.processes())


# --- fake servers -----------------------------------------------------------------------------------------------------


class FakeServers:
    """Servers of tests/support/fakes/vllm, with their records and calls in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "fakes"
        self.model = folder / "model"
        for path in (self.folder, self.model):
            path.mkdir(parents=True)

    @property
    def environ(self) -> dict[str, str]:
        paths = os.pathsep.join([str(ROOT / "tests" / "support" / "fakes"), str(ROOT)])
        return {"PYTHONPATH": paths, MARK: str(self.folder), "FAKE_LATENCY": str(LATENCY_S)}

    def launch(self) -> dict[str, Any]:
        return {"provider": "vllm", "launch": {"model": str(self.model), "env": self.environ}}

    def calls(self) -> list[dict[str, Any]]:
        file = self.folder / "calls.jsonl"
        lines = file.read_bytes().splitlines() if file.exists() else []
        return [orjson.loads(line) for line in lines if line.endswith(b"}")]

    def answered(self, model: str) -> int:
        return sum(call["model"] == model and call["answered"] for call in self.calls())

    def started(self, name: str) -> list[int]:
        """Return the process ids of all servers started under a name, in no order."""
        records = [orjson.loads(file.read_bytes()) for file in self.folder.glob("*.json")]
        return [
            record["pid"]
            for record in records
            if record["words"][record["words"].index("--served-model-name") + 1] == name
        ]

    def has(self, starts: int, answers: int) -> bool:
        return len(self.started("launched")) == starts and self.answered("launched") >= answers

    def alive(self, name: str) -> list[int]:
        return [pid for pid in self.started(name) if pid in self.processes()]

    def alive_other_than(self, name: str, pid: int) -> bool:
        return any(other != pid for other in self.alive(name))

    def processes(self) -> set[int]:
        return _marked(MARK, str(self.folder))


def _marked(name: str, value: str) -> set[int]:
    """Return the processes with this variable in their environment, by /proc; ended processes have none."""
    wanted, pids = f"{name}={value}".encode(), set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                pids.add(int(entry.name))
        except OSError:  # it has ended, or belongs to another user
            continue
    return pids


class ExternalServer:
    """A fake server that aif has not launched; it can be killed and restarted at the same port."""

    def __init__(self, fakes: FakeServers) -> None:
        self._fakes = fakes
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> "ExternalServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        words = ["--model", "any", "--served-model-name", "other", "--host", "127.0.0.1", "--port", str(self._port)]
        self._server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words],
            env=os.environ | self._fakes.environ | {"FAKE_LATENCY": str(OTHERS_LATENCY_S)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def away(self, seconds: float) -> None:
        self.kill()
        time.sleep(seconds)
        self.start()

    def kill(self) -> None:
        """Kill the server and its engine, which are a process group."""
        if self._server.returncode is None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()


@contextmanager
def _running(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start `aif run`, and kill it if it is still running at the end of the block."""
    process = start("run", path, "--yes", environ={"CUDA_VISIBLE_DEVICES": ""})
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def _over_a_server(
    folder: Path, prompts: int, **changes: Any
) -> Iterator[tuple[Path, "subprocess.Popen[str]", FakeServers]]:
    """Start a run whose only model has a server launched by aif; yield pipeline file, process and servers."""
    fakes = FakeServers(folder)
    launched = {**fakes.launch(), "samples": 4, "concurrency": 4, **changes}
    with served() as judge:
        path = _pipeline(folder, judge.base_url, {"launched": launched}, prompts)
        with _running(path) as process:
            yield path, process, fakes


def _pipeline(folder: Path, judge_url: str, pool: dict[str, Any], prompts: int) -> Path:
    """Write a pipeline of `trials.reliability.simulated_run` with the models in `pool`."""
    import yaml

    path = pipeline(folder, judge_url, prompts, judges={"concurrency": 4, "price": {"input": 0, "output": 0}})
    data = yaml.safe_load(path.read_text())
    data["models"] = {name: {"model": name, **settings} for name, settings in pool.items()}
    path.write_text(yaml.safe_dump(data))
    return path


def _without_answer(path: Path) -> int:
    with Reader.open(load(path).store) as reader:
        return sum(tally.wanted - tally.answered for tally in reader.tallies().values())


# --- a real vLLM ------------------------------------------------------------------------------------------------------


def kill_real_vllm(folder: Path, python: str) -> dict[str, Any]:
    """Kill vLLM's own server, on the CPU, during a run. `python` is the interpreter of an environment with vLLM."""
    mark = "AIF_TRIAL_REAL"
    folder.mkdir()
    model = folder / "tiny"
    build = f"from pathlib import Path; from tests.real.tiny_model import build; build(Path({str(model)!r}), 1)"
    subprocess.run([python, "-c", build], cwd=ROOT, check=True, capture_output=True)
    args = ["--max-num-seqs", "8", "--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"]
    env = {
        mark: str(folder), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CACHE_ROOT": str(folder / "cache"),
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    launch = {"model": str(model), "python": python, "max_model_len": 2048, "args": args, "env": env}
    with ExitStack() as stack:
        judge = stack.enter_context(served())
        launched = {"provider": "vllm", "launch": launch, "samples": 4, "concurrency": 8}
        path = _pipeline(folder, judge.base_url, {"real": launched}, prompts=100)
        process = stack.enter_context(_running(path))
        wait_minutes(lambda: _journaled_completions(folder) >= 40)

        def servers() -> list[int]:
            return [
                pid for pid in _marked(mark, str(folder)) if b"api_server" in _command_line(pid) and not _is_guard(pid)
            ]

        (server,) = servers()
        os.kill(server, signal.SIGKILL)
        began = time.monotonic()
        wait_minutes(lambda: any(pid != server for pid in servers()))
        before = _journaled_completions(folder)  # by now everything answered before the kill is journaled
        wait_minutes(lambda: _journaled_completions(folder) > before + 8)  # more than were in flight
        away_s = time.monotonic() - began
        output, _ = process.communicate(timeout=600)
        return {
            "code": process.returncode,
            "restarts": output.count("starting it again"),
            "away_s": round(away_s, 1),
            "without_answer": _unanswered_otherwise(path),
            "left": len(_marked(mark, str(folder))),
        }


def wait_minutes(condition: Any) -> None:
    """Wait up to ten minutes: a real server takes minutes to start on busy cores."""
    for _ in range(10):
        try:
            return until(condition)
        except AssertionError:
            continue
    raise AssertionError("ten minutes passed")


def _journaled_completions(folder: Path) -> int:
    """Return the number of completions in the journal of the run in `folder`."""
    records = (record for _, record in replay(folder / "store" / "feedback.journal") if isinstance(record, dict))
    calls = (record for record in records if record["t"] == "call")
    return sum(call["stage"] == "completion" and call["verdict"] == "answered" for call in calls)


def _command_line(pid: int) -> bytes:
    """Return a process's command line; empty if it has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _is_guard(pid: int) -> bool:
    return b"guard.py" in _command_line(pid)


def _unanswered_otherwise(path: Path) -> int:
    """Return the number of items without an answer, except those for which the model of random weights said nothing."""
    with Reader.open(load(path).store) as reader:
        rows = reader._query(
            "SELECT count(*) AS n FROM slots WHERE key NOT IN (SELECT key FROM completions) AND key NOT IN "
            "(SELECT key FROM calls WHERE kind = 'empty')"
        )
    return int(rows[0]["n"])
