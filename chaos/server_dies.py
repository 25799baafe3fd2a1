"""Servers that are killed or hang under a run, and runs that are stopped or killed over their servers."""

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
from chaos import Figures
from chaos.house import pipeline, served, start
from measured import ROOT
from tests.processes import until

NUMBER = 13
PROMISE = (
    "A server that dies or hangs is started again, or its load moves; a stopped run ends in order, and no process is "
    "left however one ends."
)
MARK = "FAKE_FOLDER"  # in the environment of every process that a fake server consists of, its guard's too
GONE_S = 15.0  # the guard's grace for a server, and some
PROMPTS, FEW = 20, 8
LATENCY_S, OTHERS_LATENCY_S = 0.1, 0.3
REAL = "AIF_REAL_PYTHON"


def trial(folder: Path, full: bool) -> Figures:
    draw = random.Random(13)
    times, prompts = (25, PROMPTS) if full else (1, FEW)
    died = [_killed_under_a_run(folder / f"died-{n}", draw, prompts) for n in range(times)]
    # started under nohup, a run takes no notice of SIGHUP
    ways = [way for way in STOPS if signal.getsignal(STOPS[way][0]) is not signal.SIG_IGN] if full else []
    stopped = {way: _stopped(folder / f"stopped-{n}", STOPS[way]) for n, way in enumerate(ways)}
    ends = list(KILLS) if full else []
    killed = {who: _killed(folder / f"killed-{n}", KILLS[who]) for n, who in enumerate(ends)}
    return {
        "runs": len(died),
        "codes": sorted({one["code"] for one in died}),
        "kills": 2 * len(died),
        "calls": sum(one["calls"] for one in died),
        "without_answer": sum(one["without_answer"] for one in died),
        "asked_twice": sum(one["asked_twice"] for one in died),
        "left": sum(one["left"] for one in died),
        "longest_away_s": max(one["away_s"] for one in died),
        "stopped": stopped,
        "killed": killed,
        "hung": _hung(folder / "hung") if full else None,
        "dies_always": _dies_always(folder / "dies") if full else None,
        "real": killed_for_real(folder / "real", os.environ[REAL]) if full and os.environ.get(REAL) else None,
    }


def broken(figures: Figures) -> list[str]:
    wrong = [
        f"{figures[what]} {words}"
        for what, words in (
            ("without_answer", "items had no answer after servers were killed"),
            ("asked_twice", "answered requests were asked again"),
            ("left", "processes were left after a run"),
        )
        if figures[what]
    ]
    if figures["codes"] != [Exit.DONE]:
        wrong.append(f"runs whose servers were killed ended with exit codes {figures['codes']}")
    for way, one in figures["stopped"].items():
        if one["code"] != Exit.INTERRUPTED:
            wrong.append(f"{way}: exit code {one['code']}")
        if one["left"]:
            wrong.append(f"{way}: {one['left']} processes were left")
        if one["lost"]:
            wrong.append(f"{way}: {one['lost']} replies were lost")
        if not one["said"]:
            wrong.append(f"{way}: how to go on was not said")
    wrong += [f"kill -9 of {who}: {left} processes were left" for who, left in figures["killed"].items() if left]
    if (hung := figures["hung"]) and (hung["without_answer"] or hung["left"] or not hung["restarts"]):
        wrong.append(f"a server that hangs: {hung}")
    if (dies := figures["dies_always"]) and (dies["code"] != Exit.REFUSED or not dies["said"] or dies["starts"] != 4):
        wrong.append(f"a server that always dies: {dies}")
    if (real := figures["real"]) and (real["without_answer"] or real["left"] or not real["restarts"]):
        wrong.append(f"the real vLLM: {real}")
    return wrong


def told(figures: Figures) -> str:
    real = figures["real"]
    seen = f"a real one was away for {real['away_s']:.0f} s" if real else f"a real one was not tried ({REAL} not set)"
    return (
        f"{figures['kills']} servers killed under {figures['runs']} runs of {figures['calls']:,} calls: "
        f"{figures['without_answer']} items without an answer, {figures['asked_twice']} answered requests asked again, "
        f"away for at most {figures['longest_away_s']:.1f} s; {seen}. {len(figures['stopped'])} ways to stop a run "
        f"and {len(figures['killed'])} to kill one left {_left(figures)} processes."
    )


def _left(figures: Figures) -> int:
    stopped = sum(one["left"] for one in figures["stopped"].values())
    return int(figures["left"] + stopped + sum(figures["killed"].values()))


# --- servers that die -------------------------------------------------------------------------------------------------


def _killed_under_a_run(folder: Path, draw: random.Random, prompts: int) -> dict[str, Any]:
    """Of two models, one that aif launches and one at two URLs that are not its own, a server each is killed."""
    with ExitStack() as stack:
        judge = stack.enter_context(served())
        fakes = Fakes(folder)
        others = [stack.enter_context(Other(fakes)) for _ in range(2)]
        launched = {**fakes.launch(), "samples": 2, "concurrency": 4}
        urls = {"provider": "vllm", "base_url": [one.url for one in others], "samples": 2, "concurrency": 4}
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
        for one in others:
            one.kill()
        times = Counter(call["key"] for call in fakes.calls() if call["answered"])
        return {
            "code": process.returncode,
            "calls": len(fakes.calls()),
            "without_answer": _without_answer(path),
            "asked_twice": sum(1 for one in times.values() if one > 1),
            "away_s": round(away_s, 1),
            "left": len(fakes.processes()),
        }


def _hung(folder: Path) -> dict[str, Any]:
    """A server that is stopped: no connection breaks."""
    with _over_a_server(folder, prompts=16, timeout_s=3.0) as (path, process, fakes):
        until(lambda: len(fakes.calls()) >= 8, "the first answers")
        (server,) = fakes.alive("launched")
        os.kill(server, signal.SIGSTOP)
        said, _ = process.communicate(timeout=180)
        assert process.returncode == Exit.DONE, said
        return {
            "restarts": said.count("hangs"),
            "without_answer": _without_answer(path),
            "left": len(fakes.processes()),
        }


def _dies_always(folder: Path) -> dict[str, Any]:
    """A server that is killed whenever it is up: three times more it is started, then its model is refused."""
    with _over_a_server(folder, prompts=40, concurrency=2) as (_, process, fakes):
        for starts in range(1, 5):
            until(partial(fakes.has, starts, 2 * starts), "a start, and an answer")
            os.kill(fakes.alive("launched")[0], signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
        return {
            "code": process.returncode,
            "starts": len(fakes.started("launched")),
            "said": "launched: its server ended: killed by signal 9" in said and "launched is served" in said,
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
    """A run with a launched server, stopped in the middle."""
    with _over_a_server(folder, prompts=200) as (_, process, fakes):
        until(lambda: len(fakes.calls()) >= 8, "the first answers")
        began = time.monotonic()
        for n, one in enumerate(signals):
            if n:
                time.sleep(0.02)
            process.send_signal(one)
        said, _ = process.communicate(timeout=60)
        took_s = time.monotonic() - began
        left = len(fakes.processes())
        answered = sum(call["answered"] for call in fakes.calls())
        kept = _kept(folder)
        # left at once, what was in flight may be answered and not be kept
        flying = 4 if len(signals) > 1 else 0
        return {
            "code": process.returncode,
            "seconds": round(took_s, 1),
            "lost": max(0, answered - kept - flying),
            "left": left,
            "said": "resumes" in said,
        }


def _guard(fakes: "Fakes") -> int:
    """The guard of the one launched server: its parent."""
    return _parent(fakes.alive("launched")[0])


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _witness(fakes: "Fakes") -> int:
    guard = _guard(fakes)
    return next(pid for pid in fakes.processes() if _parent(pid) == guard and pid != fakes.alive("launched")[0])


def _kill_aif(aif: int, fakes: "Fakes") -> None:
    os.kill(aif, signal.SIGKILL)


def _kill_aif_over_one_that_hangs(aif: int, fakes: "Fakes") -> None:
    os.kill(fakes.alive("launched")[0], signal.SIGSTOP)
    os.kill(aif, signal.SIGKILL)


def _kill_guard(aif: int, fakes: "Fakes") -> None:
    os.kill(_guard(fakes), signal.SIGKILL)
    os.kill(aif, signal.SIGKILL)


def _kill_witness_then_guard(aif: int, fakes: "Fakes") -> None:
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
    """How many processes are left of a launched server when those over it are killed."""
    with _over_a_server(folder, prompts=200) as (_, process, fakes):
        until(lambda: len(fakes.calls()) >= 8, "the first answers")
        kill(process.pid, fakes)
        process.communicate(timeout=60)
        return _left_after(fakes)


def _left_after(fakes: "Fakes") -> int:
    deadline = time.monotonic() + GONE_S
    while fakes.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    return len(fakes.processes())


# --- what runs --------------------------------------------------------------------------------------------------------


class Fakes:
    """tests/fakes/vllm in a folder of its own: its servers as they told of themselves, and their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "fakes"
        self.model = folder / "model"
        for one in (self.folder, self.model):
            one.mkdir(parents=True)

    @property
    def environ(self) -> dict[str, str]:
        paths = os.pathsep.join([str(ROOT / "tests" / "fakes"), str(ROOT)])
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
        """The servers of one name, in no order."""
        records = [orjson.loads(file.read_bytes()) for file in self.folder.glob("*.json")]
        return [one["pid"] for one in records if one["words"][one["words"].index("--served-model-name") + 1] == name]

    def has(self, starts: int, answers: int) -> bool:
        return len(self.started("launched")) == starts and self.answered("launched") >= answers

    def alive(self, name: str) -> list[int]:
        return [pid for pid in self.started(name) if pid in self.processes()]

    def alive_other_than(self, name: str, pid: int) -> bool:
        return any(one != pid for one in self.alive(name))

    def processes(self) -> set[int]:
        return _marked(MARK, str(self.folder))


def _marked(name: str, value: str) -> set[int]:
    """The processes that have this in their environment, as /proc tells; ended ones have none."""
    wanted, found = f"{name}={value}".encode(), set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
        except OSError:  # ended meanwhile, or not ours
            continue
    return found


class Other:
    """A fake server that is not aif's: it can be killed, and started again at its port."""

    def __init__(self, fakes: Fakes) -> None:
        self._fakes = fakes
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> "Other":
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
        """With its engine: a group of its own."""
        if self._server.returncode is None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()


@contextmanager
def _running(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """`aif run`, of which nothing is left should the trial itself fail."""
    process = start("run", path, "--yes", environ={"CUDA_VISIBLE_DEVICES": ""})
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def _over_a_server(folder: Path, prompts: int, **changes: Any) -> Iterator[tuple[Path, "subprocess.Popen[str]", Fakes]]:
    """A run whose one model has a server that it launched itself: its pipeline file, its process, the servers."""
    fakes = Fakes(folder)
    launched = {**fakes.launch(), "samples": 4, "concurrency": 4, **changes}
    with served() as judge:
        path = _pipeline(folder, judge.base_url, {"launched": launched}, prompts)
        with _running(path) as process:
            yield path, process, fakes


def _pipeline(folder: Path, judge_url: str, pool: dict[str, Any], prompts: int) -> Path:
    """A pipeline of `chaos.house` with another pool."""
    import yaml

    path = pipeline(folder, judge_url, prompts, judges={"concurrency": 4, "price": {"input": 0, "output": 0}})
    said = yaml.safe_load(path.read_text())
    said["models"] = {name: {"model": name, **one} for name, one in pool.items()}
    path.write_text(yaml.safe_dump(said))
    return path


def _without_answer(path: Path) -> int:
    with Reader.open(load(path).store) as reader:
        return sum(tally.wanted - tally.answered for tally in reader.tallies().values())


# --- the real one -----------------------------------------------------------------------------------------------------


def killed_for_real(folder: Path, python: str) -> dict[str, Any]:
    """vLLM's own server on the CPU, of the environment of a Python, killed in the middle of a run."""
    mark = "AIF_CHAOS_REAL"
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
        until_long(lambda: _kept(folder) >= 40)

        def servers() -> list[int]:
            return [pid for pid in _marked(mark, str(folder)) if b"api_server" in _words(pid) and not _guards(pid)]

        (server,) = servers()
        os.kill(server, signal.SIGKILL)
        began = time.monotonic()
        until_long(lambda: any(pid != server for pid in servers()))
        had = _kept(folder)  # by now, all that was answered before
        until_long(lambda: _kept(folder) > had + 8)  # more than were in flight
        away_s = time.monotonic() - began
        said, _ = process.communicate(timeout=600)
        return {
            "code": process.returncode,
            "restarts": said.count("starting it again"),
            "away_s": round(away_s, 1),
            "without_answer": _unanswered_otherwise(path),
            "left": len(_marked(mark, str(folder))),
        }


def until_long(condition: Any) -> None:
    """A real server takes minutes on busy cores."""
    for _ in range(10):
        try:
            return until(condition)
        except AssertionError:
            continue
    raise AssertionError("ten minutes passed")


def _kept(folder: Path) -> int:
    """The completions in the journal of a pipeline of `chaos.house`."""
    records = (record for _, record in replay(folder / "store" / "feedback.journal") if isinstance(record, dict))
    calls = (record for record in records if record["t"] == "call")
    return sum(call["stage"] == "completion" and call["verdict"] == "answered" for call in calls)


def _words(pid: int) -> bytes:
    """A process's command line; nothing of one that has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _guards(pid: int) -> bool:
    return b"guard.py" in _words(pid)


def _unanswered_otherwise(path: Path) -> int:
    """Items without an answer, but for those where a model of random weights had nothing to say."""
    with Reader.open(load(path).store) as reader:
        rows = reader.sql(
            "SELECT count(*) AS n FROM slots WHERE key NOT IN (SELECT key FROM completions) AND key NOT IN "
            "(SELECT key FROM calls WHERE kind = 'empty')"
        )
    return int(rows[0]["n"])
