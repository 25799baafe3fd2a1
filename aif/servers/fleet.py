"""vLLM servers: started shift by shift, awaited, watched, started again, stopped.

Each server runs under a guard (guard.py) that ends it however aif ends. An endpoint's servers are up from its shift's
start until it is `done`; its client is told their URLs as they come and go. What goes wrong with a server is its
endpoint's alone: the others go on.
"""

import asyncio
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice, takewhile
from pathlib import Path
from threading import Event
from typing import IO, Self

import aiohttp

from aif.config.pipeline import Pipeline
from aif.core.environment import ENVIRON
from aif.core.errors import BadInput
from aif.core.file_permissions import USER_UMASK
from aif.providers.endpoint import Endpoint
from aif.providers.vllm import VllmChat
from aif.servers.command import Launched, command, environment, fetching, gpus, lacks_vllm, launched, secrets
from aif.servers.model_identity import changed
from aif.servers.placement import CPU, Key, Place, Shift, described, shifts

GRACE_S = 10.0  # vLLM 0.32 on a CPU ends within 1 s of SIGTERM
GUARD = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))]
# Ports go by blocks below those that systems give out by themselves (from 32768 or 49152), so that no connection takes
# one in the 20 s between choosing and listening. vLLM's own processes talk over ports of the same block (VLLM_PORT).
FIRST_PORT, LAST_PORT, BLOCK = 17_000, 32_000, 40

# A server that logs without end (328 MB in 4 s were seen) leaves so many bytes of its log's begin and of its end.
LOG_KEPT = 10 * 2**20
LOG_END = 2**16  # bytes of a log that are looked at for what went wrong; each call is a line there

_ERROR = re.compile(r"\b\w*(?:Error|Exception)\b|\berror\b")
_CALM = re.compile(r"(?:DEBUG|INFO|WARNING)\b")  # a warning may name an error that could come
_NAMED = re.compile(r"[\w.]*(?:Error|Exception)\b:? ")
_PREFIX = re.compile(r"^(?:\([^)]* pid=\d+\) )?(?:(?:ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^]]*\] ?)?")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
# the cause stands before
_POINTLESS = ("Engine core initialization failed", "See root cause above", "WorkerProc initialization failed")
_OTHERS = (
    "its model's files are no longer those that it was planned by; `aif run` takes them for the model they are now"
)


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: between looks at a server that starts, and at one that serves, which is ended when none of them finds it
    well for `hung_s`; and before each time one that died is started again. One that has served for `steady_s` has all
    of those before it again."""

    poll_s: float = 0.5
    look_s: float = 10.0
    hung_s: float = 120.0  # busy cores make a server slow to say that it is well
    again_s: tuple[float, ...] = (1.0, 10.0, 30.0)
    steady_s: float = 1800.0


@dataclass
class Fleet:
    """The servers of one run, for those endpoints that have work. `tell` says a line to a person; `logs` is the folder
    of the servers' logs."""

    pipeline: Pipeline
    launched: Sequence[Launched]
    endpoints: Sequence[Endpoint]
    shifts: Sequence[Shift]
    logs: Path
    tell: Callable[[str], None]
    environ: Mapping[str, str]
    patience: Patience = field(default_factory=Patience)

    @classmethod
    async def of(
        cls,
        pipeline: Pipeline,
        endpoints: Sequence[Endpoint],
        pending: Collection[Key],
        logs: Path,
        tell: Callable[[str], None],
        environ: Mapping[str, str] = ENVIRON,
    ) -> Self:
        """Raises BadInput where a server can't be had: no vLLM, no such folder, too few GPUs."""
        found = launched(pipeline, pending)
        planned = shifts([one.wish for one in found], gpus(environ)) if found else ()
        for one in found:
            if why := await lacks_vllm(one, environment(one, environ, secrets(pipeline))):
                raise BadInput(f"{one.one.name}: {why}")
        return cls(pipeline, found, endpoints, planned, logs, tell, environ)

    def __post_init__(self) -> None:
        """Endpoints learn what they will have: those that were to be launched and have no work take none, and calls in
        flight, where the pipeline says nothing, are for each server."""
        places = [place for shift in self.shifts for place in shift]
        servers = Counter(place.key for place in places)
        logs = self._logs(places)
        own = {one.key: one for one in self.launched}
        self._crews: dict[Key, _Crew] = {}
        for endpoint in self.endpoints:
            key = endpoint.stage, endpoint.name
            if key in own:
                if "concurrency" not in own[key].one.model_fields_set:
                    endpoint.concurrency *= servers[key]
                endpoint.server_status = "waiting"
                at = [(place, log) for place, log in zip(places, logs, strict=True) if place.key == key]
                self._crews[key] = _Crew(self, own[key], endpoint, at)
            elif not endpoint.up.is_set():
                endpoint.stop()

    def _logs(self, places: Sequence[Place]) -> list[Path]:
        """A log for each place, by its endpoint's name as far as a file can have it."""
        count: Counter[str] = Counter()
        logs = []
        for place in places:
            name = re.sub(r"[^\w.-]+", "-", place.name)
            count[name] += 1
            logs.append(self.logs / f"{name}-{count[name]}.log")
        return logs

    async def attend(self) -> None:
        """Goes through the shifts, each until its endpoints are done."""
        for number, shift in enumerate(self.shifts, 1):
            crews = [self._crews[key] for key in dict.fromkeys(place.key for place in shift)]
            await _some_wanted_or_all_done([crew.endpoint for crew in crews])
            needed = [crew for crew in crews if not crew.endpoint.done.is_set()]
            if needed:
                there = described(tuple(place for crew in needed for place in crew.places))
                self.tell(f"servers {number} of {len(self.shifts)}: {there}; logs in {self.logs}")
            async with asyncio.TaskGroup() as group:
                for crew in needed:
                    group.create_task(crew.serve())


class _Crew:
    """The servers of one endpoint."""

    def __init__(
        self, fleet: Fleet, launched: Launched, endpoint: Endpoint, places: Sequence[tuple[Place, Path]]
    ) -> None:
        assert isinstance(endpoint.client, VllmChat)
        self.endpoint = endpoint
        self._client = endpoint.client
        self._fleet = fleet
        self._launched = launched
        self._places = places
        self._urls: list[str] = []

    @property
    def places(self) -> list[Place]:
        return [place for place, _ in self._places]

    async def serve(self) -> None:
        """Keeps the servers up until the endpoint is done."""
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(self._keep_all())
            await self.endpoint.done.wait()
            keeping.cancel()
        self.endpoint.server_status = None

    async def _keep_all(self) -> None:
        """Returns when no server can be had any more; the endpoint is refused then."""
        try:
            why = await self._fetched()
        except OSError as error:
            why = f"its model's files can't be fetched: {error}"
        if why is None:
            async with asyncio.TaskGroup() as group:
                keepers = [group.create_task(self._keep(place, log)) for place, log in self._places]
            why = keepers[-1].result()
        self.endpoint.refuse(why)

    async def _fetched(self) -> str | None:
        """Brings the model's files, before the clock of `ready_s` starts. Returns why, if they can't be had."""
        if self._launched.is_folder:
            return None
        self.endpoint.server_status = "fetching"
        where, last = self._places[0][1], ""
        with _appending(where, f"the files of {self._launched.model}") as log:
            words = fetching(self._launched)
            async with _guarded(words, self._environ(), stdout=PIPE, stderr=log) as process:
                assert process.stdout is not None
                async for line in process.stdout:
                    last = line.decode(errors="replace").strip()
                    self._tell(last)
                await process.wait()
        return None if process.returncode == 0 else last or f"its model's files can't be had; see {where}"

    async def _keep(self, place: Place, log: Path) -> str:
        """Keeps one server up. Returns why, when it is given up."""
        clock, patience = asyncio.get_running_loop().time, self._fleet.patience
        left: list[float] | None = None  # waits before it is started again; not known before it was ever up
        while True:
            up = None
            try:
                async with self._server(place, log) as server:
                    await server.ready(self._launched.launch.ready_s, patience.poll_s)
                    await self._same()
                    up = clock()
                    self._set([*self._urls, server.url])
                    try:
                        why = await self._watched(server)
                    finally:
                        self._set([url for url in self._urls if url != server.url])
            except NotReady as error:
                why = str(error)
            except OSError as error:  # no room for its log, no memory or file for its process
                why = f"its server can't be started: {error}"
            if up is not None and (left is None or clock() - up >= patience.steady_s):
                left = list(patience.again_s)
            if not left:
                self._tell(why)
                return why
            wait_s = left.pop(0)
            times = f"{len(patience.again_s) - len(left)} of {len(patience.again_s)}"
            self._tell(f"{why}; starting it again in {wait_s:g} s ({times})")
            await asyncio.sleep(wait_s)

    async def _same(self) -> None:
        """Looks whether what a server loaded is what was looked at. Raises NotReady where it isn't."""
        over = Event()
        try:
            if await asyncio.to_thread(changed, self._launched, over):
                raise NotReady(_OTHERS)
        except BadInput as error:
            raise NotReady(str(error)) from error
        finally:
            over.set()  # whoever leaves does not wait until hundreds of GB are read

    async def _watched(self, server: "_Server") -> str:
        """Returns why a server serves no more: it ended, or it hangs and is to be ended."""
        clock, patience = asyncio.get_running_loop().time, self._fleet.patience
        well = clock()
        async with aiohttp.ClientSession() as session:
            while not await server.ended_within(patience.look_s):
                if self._client.hangs(server.url):
                    return server.hung("it answered no call within timeout_s")
                if await server.healthy(session):
                    well = clock()
                elif clock() - well >= patience.hung_s:
                    return server.hung(f"/health was not well for {patience.hung_s:g} s")
        return server.ended()

    def _set(self, urls: list[str]) -> None:
        """The client's servers; while there is none, calls wait."""
        self._urls = urls
        self._client.set_urls(urls)
        self.endpoint.server_status = None if urls else "stopping" if self.endpoint.done.is_set() else "starting"
        if urls:
            self.endpoint.up.set()
        else:
            self.endpoint.up.clear()

    @asynccontextmanager
    async def _server(self, place: Place, log: Path) -> "AsyncIterator[_Server]":
        self.endpoint.server_status = None if self._urls else "starting"
        lock, port = _free_block()
        with closing(lock):
            words = command(self._launched, port)
            environ = self._environ(place.gpus)
            environ["VLLM_PORT"] = str(port + 1)
            with _appending(log, _header(words, self._launched, place)) as out:
                began = out.tell()
                async with _guarded(words, environ, stdout=out, stderr=out) as process:
                    yield _Server(process, port, log, began)

    def _environ(self, gpus: Sequence[str] = CPU) -> dict[str, str]:
        return environment(self._launched, self._fleet.environ, secrets(self._fleet.pipeline), gpus)

    def _tell(self, words: str) -> None:
        self._fleet.tell(f"{self.endpoint.name}: {words}")


class NotReady(Exception):
    """A server that ended before it was up, or was not up in time; the message says why, and names the log."""


@dataclass(frozen=True, slots=True)
class _Server:
    process: Process
    port: int
    log: Path
    began: int  # where this start begins in the log

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def ready(self, limit_s: float, poll_s: float) -> None:
        """Waits until the server is healthy. Raises NotReady."""
        try:
            async with asyncio.timeout(limit_s), aiohttp.ClientSession() as session:
                while not await self.healthy(session):
                    if await self.ended_within(poll_s):
                        raise NotReady(f"its server ended before it was ready: {self._why()}")
        except TimeoutError:
            raise NotReady(f"its server was not ready within launch.ready_s ({limit_s:g} s): {self._last()}") from None

    async def healthy(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(
                f"http://127.0.0.1:{self.port}/health", timeout=aiohttp.ClientTimeout(total=10)
            ) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def ended_within(self, seconds: float) -> bool:
        """Waits for the server's end, and looks at its log each second."""
        ending = asyncio.create_task(self.process.wait())
        try:
            for step in (*[1.0] * int(seconds), seconds % 1):
                ended = (await asyncio.wait({ending}, timeout=step))[0]
                _cut(self.log)
                if ended:
                    return True
            return False
        finally:
            ending.cancel()

    def ended(self) -> str:
        return f"its server ended: {self._why()}"

    def hung(self, how: str) -> str:
        return f"its server hangs, {how}: {self._last()}"

    def _why(self) -> str:
        code = self.process.returncode or 0
        number = code - 128 if code > 128 else -code  # the latter is of the guard itself
        how = f"killed by signal {number}" if number > 0 else f"exit code {code}"
        if number == signal.SIGKILL:
            how += ", by the system if memory ran out"
        return f"{how}; {self._last()}"

    def _last(self) -> str:
        try:
            with self.log.open("rb") as file:
                size = self.log.stat().st_size
                file.seek(max(self.began if self.began <= size else 0, size - LOG_END))
                said = telling(file.read().decode(errors="replace").splitlines())
        except OSError as error:
            return f"its log {self.log} can't be read: {error.strerror}"
        return f"its log {self.log} ends with: {said}" if said else f"its log is {self.log}"


def telling(lines: Sequence[str]) -> str:
    """What a log says of what went wrong: the last line that speaks of an error, with the indented ones that go on with
    it; else the last line."""
    bare = [text for line in lines if (text := _PREFIX.sub("", _COLOUR.sub("", line)).rstrip())]
    errors = [n for n, line in enumerate(bare) if _is_error(line)]
    # a source line that a traceback quotes tells less than the error's own, which begins with its name
    named = [n for n in errors if _NAMED.match(bare[n])]
    if not (found := named or errors):
        return bare[-1].strip() if bare else ""
    more = takewhile(lambda line: line.startswith(" "), bare[found[-1] + 1 :])
    return " ".join([bare[found[-1]].strip(), *(line.strip() for line in more)])[:500]


def _is_error(line: str) -> bool:
    return bool(_ERROR.search(line)) and not _CALM.match(line) and not any(words in line for words in _POINTLESS)


@asynccontextmanager
async def _guarded(
    words: Sequence[str], environ: Mapping[str, str], *, stdout: int | IO[bytes], stderr: int | IO[bytes]
) -> AsyncIterator[Process]:
    """A command under its guard, in a session of its own: Ctrl-C reaches aif alone. Nothing of it is left behind."""
    process = await asyncio.create_subprocess_exec(
        *GUARD, f"{GRACE_S}", *words, stdin=PIPE, stdout=stdout, stderr=stderr, env=environ, start_new_session=True,
        umask=USER_UMASK,  # what a server caches may be for others, too
    )  # fmt: skip
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        await process.wait()


def _appending(log: Path, header: str) -> IO[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    out = log.open("ab", buffering=0)
    try:
        out.write(f"\n=== {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {header}\n".encode())
    except OSError as full:
        out.close()
        full.filename = str(log)
        raise
    return out


def _cut(log: Path) -> None:
    """Takes the middle out of a log that is too long. Its server goes on at the new end."""
    if not log.exists() or log.stat().st_size <= 3 * LOG_KEPT:
        return
    with log.open("r+b") as file:
        file.seek(-LOG_KEPT, os.SEEK_END)
        # it grows meanwhile, and its last line may be the one that tells
        end = b"".join(islice(iter(lambda: file.read(LOG_KEPT), b""), 10))[-LOG_KEPT:]
        os.truncate(log, LOG_KEPT)
    with log.open("ab") as file:
        file.write(b"\n=== a part was left out here: the log was too long\n" + end)


def _header(words: Sequence[str], launched: Launched, place: Place) -> str:
    """The command without the values of `args`, which may be anything."""
    extra = len(launched.launch.args)
    own = words[: len(words) - extra]
    flags = [word.partition("=")[0] for word in words[len(words) - extra :] if word.startswith("-")]
    return " ".join([f"on {'+'.join(place.gpus)}:", *own, *flags])


def _free_block() -> tuple[socket.socket, int]:
    """A port for a server, with those after it for its own use, and what keeps them from others of ours, in this
    process or another: a socket bound to the port before it."""
    for first in range(FIRST_PORT, LAST_PORT, BLOCK):
        lock = socket.socket()
        try:
            lock.bind(("127.0.0.1", first))
            with socket.socket() as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(("127.0.0.1", first + 1))
        except OSError:
            lock.close()
        else:
            return lock, first + 1
    raise NotReady(f"no port is free between {FIRST_PORT} and {LAST_PORT}")


async def _some_wanted_or_all_done(endpoints: Sequence[Endpoint]) -> None:
    """A judge whose prompts all failed is done without a call, and no server is started for nothing."""

    async def done() -> None:
        for endpoint in endpoints:
            await endpoint.done.wait()

    tasks = [asyncio.create_task(done()), *(asyncio.create_task(one.wanted.wait()) for one in endpoints)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
