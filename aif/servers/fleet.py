"""Start, watch, restart and stop the vLLM servers of a run.

A *shift* is a set of servers that run at the same time. An *endpoint* is a model or judge; it may have several servers.

- Shifts run one after the other.
- An endpoint's servers start once a call of their shift waits. They stop once the endpoint has no more calls to make.
- The endpoint's client gets the URLs of the servers that are ready.
- A server that fails affects only its own endpoint.
- Each server runs under a guard (guard.py), a process that ends the server when aif dies.
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
from aif.servers.command import (
    LaunchedEndpoint,
    available_gpus,
    download_command,
    launched_endpoints,
    secret_variables,
    server_command,
    server_environment,
    vllm_problem,
)
from aif.servers.model_identity import loads_other_files
from aif.servers.placement import CPU, EndpointKey, Placement, Shift, describe_shift, plan_shifts

GRACE_S = 10.0  # vLLM 0.32 on a CPU ends within 1 s of SIGTERM
GUARD = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))]
# Ports come in blocks below those that systems assign (from 32768 or 49152), so that no connection takes one in the
# 20 s between choosing and listening. vLLM's own processes use ports of the same block (VLLM_PORT).
FIRST_PORT, LAST_PORT, BLOCK = 17_000, 32_000, 40

# A server may log without end (328 MB in 4 s were seen), so only the first and the last bytes of a log are kept.
LOG_KEPT = 10 * 2**20
LOG_END = 2**16  # bytes at a log's end that are searched for the error; each call is a line there

_ERROR = re.compile(r"\b\w*(?:Error|Exception)\b|\berror\b")
_HARMLESS = re.compile(r"(?:DEBUG|INFO|WARNING)\b")  # a warning may name an error that could happen
_NAMED = re.compile(r"[\w.]*(?:Error|Exception)\b:? ")
_PREFIX = re.compile(r"^(?:\([^)]* pid=\d+\) )?(?:(?:ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^]]*\] ?)?")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
# errors that only refer to an earlier one
_CONSEQUENCES = ("Engine core initialization failed", "See root cause above", "WorkerProc initialization failed")
_OTHER_FILES = "its model's files have changed since the run was planned; `aif run` plans with the new files"


@dataclass(frozen=True, slots=True)
class Timings:
    """Intervals for watching and restarting servers, in seconds.

    poll_s: between two health checks of a starting server.
    check_s: between two health checks of a running server.
    hung_s: a running server that fails all health checks for this long is ended.
    restart_after_s: wait before the first, second, ... restart of a server that failed after it was ready. A server
        that fails after the last restart is given up.
    steady_s: a server that ran this long before it failed gets all restarts again.

    A running server whose calls all time out is ended as well.
    """

    poll_s: float = 0.5
    check_s: float = 10.0
    hung_s: float = 120.0  # on busy cores a healthy server answers slowly
    restart_after_s: tuple[float, ...] = (1.0, 10.0, 30.0)
    steady_s: float = 1800.0


@dataclass
class Fleet:
    """All vLLM servers of one run, for the endpoints (models and judges) that have work.

    launched: the endpoints whose servers aif starts.
    endpoints: all endpoints of the run.
    shifts: sets of servers that run at the same time, in the order to run them.
    logs: folder of the servers' logs.
    tell: prints a line for the user.
    environ: aif's environment variables. A server gets a copy without API keys.
    timings: how often to check, and when to restart.
    """

    pipeline: Pipeline
    launched: Sequence[LaunchedEndpoint]
    endpoints: Sequence[Endpoint]
    shifts: Sequence[Shift]
    logs: Path
    tell: Callable[[str], None]
    environ: Mapping[str, str]
    timings: Timings = field(default_factory=Timings)

    @classmethod
    async def plan(
        cls,
        pipeline: Pipeline,
        endpoints: Sequence[Endpoint],
        pending: Collection[EndpointKey],
        logs: Path,
        tell: Callable[[str], None],
        environ: Mapping[str, str] = ENVIRON,
    ) -> Self:
        """Plan the servers of the endpoints that have pending calls (`pending`, by stage and name), and check that they
        can start. Starts none.

        Raises BadInput if a server can't start: vLLM or the model's folder is missing, or there are too few GPUs.
        """
        launched = launched_endpoints(pipeline, pending)
        requests = [endpoint.gpu_request for endpoint in launched]
        shifts = plan_shifts(requests, available_gpus(environ)) if launched else ()
        for endpoint in launched:
            server_environ = server_environment(endpoint, environ, secret_variables(pipeline))
            if why := await vllm_problem(endpoint, server_environ):
                raise BadInput(f"{endpoint.entry.name}: {why}")
        return cls(pipeline, launched, endpoints, shifts, logs, tell, environ)

    def __post_init__(self) -> None:
        """Prepare the endpoints for calls. An endpoint's concurrency, unless the user has set it, is the default times
        the number of the endpoint's servers. An endpoint that has `launch` but no pending calls is stopped: it makes no
        calls."""
        placements = [server for shift in self.shifts for server in shift]
        servers = Counter(server.key for server in placements)
        logs = self._log_files(placements)
        launched = {endpoint.key: endpoint for endpoint in self.launched}
        self._servers: dict[EndpointKey, _EndpointServers] = {}
        for endpoint in self.endpoints:
            key = endpoint.stage, endpoint.name
            if key in launched:
                if "concurrency" not in launched[key].entry.model_fields_set:
                    endpoint.concurrency *= servers[key]
                endpoint.server_status = "waiting"
                own = [(server, log) for server, log in zip(placements, logs, strict=True) if server.key == key]
                self._servers[key] = _EndpointServers(self, launched[key], endpoint, own)
            elif not endpoint.up.is_set():
                endpoint.stop()

    def _log_files(self, placements: Sequence[Placement]) -> list[Path]:
        """Return the path of a log file for each server, in the order of `placements`: its endpoint's name, without
        special characters, and a number."""
        count: Counter[str] = Counter()
        logs = []
        for server in placements:
            name = re.sub(r"[^\w.-]+", "-", server.name)
            count[name] += 1
            logs.append(self.logs / f"{name}-{count[name]}.log")
        return logs

    async def run(self) -> None:
        """Run the shifts (sets of servers that run at the same time) one after the other. A shift starts its servers
        when a call needs them, and stops them when their endpoints are done."""
        for number, shift in enumerate(self.shifts, 1):
            all_servers = [self._servers[key] for key in dict.fromkeys(server.key for server in shift)]
            await _wait_until_needed([servers.endpoint for servers in all_servers])
            needed = [servers for servers in all_servers if not servers.endpoint.done.is_set()]
            if needed:
                where = describe_shift(tuple(server for servers in needed for server in servers.placements))
                self.tell(f"servers {number} of {len(self.shifts)}: {where}; logs in {self.logs}")
            async with asyncio.TaskGroup() as group:
                for servers in needed:
                    group.create_task(servers.serve())


class _EndpointServers:
    """The servers of one endpoint, each with its GPUs and its log file."""

    def __init__(
        self, fleet: Fleet, launched: LaunchedEndpoint, endpoint: Endpoint, servers: Sequence[tuple[Placement, Path]]
    ) -> None:
        assert isinstance(endpoint.client, VllmChat)
        self.endpoint = endpoint
        self._client = endpoint.client
        self._fleet = fleet
        self._launched = launched
        self._servers = servers
        self._urls: list[str] = []

    @property
    def placements(self) -> list[Placement]:
        return [placement for placement, _ in self._servers]

    async def serve(self) -> None:
        """Keep the servers running until the endpoint is done."""
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(self._keep_all_up())
            await self.endpoint.done.wait()
            keeping.cancel()
        self.endpoint.server_status = None

    async def _keep_all_up(self) -> None:
        """Download the model, and keep all servers of the endpoint running. Once all servers are given up, or the
        download fails, the endpoint takes no more calls."""
        try:
            why = await self._download()
        except OSError as error:
            why = f"its model's files can't be downloaded: {error}"
        if why is None:
            async with asyncio.TaskGroup() as group:
                keepers = [group.create_task(self._keep_up(placement, log)) for placement, log in self._servers]
            why = keepers[-1].result()
        self.endpoint.refuse(why)

    async def _download(self) -> str | None:
        """Download the model's files. Return an error message, None if all is well. The time doesn't count for
        `launch.ready_s`, the limit on a server's start."""
        if self._launched.is_folder:
            return None
        self.endpoint.server_status = "fetching"
        log_file, last = self._servers[0][1], ""
        with _open_log(log_file, f"the files of {self._launched.model}") as log:
            words = download_command(self._launched)
            async with _guarded(words, self._environ(), stdout=PIPE, stderr=log) as process:
                assert process.stdout is not None
                async for line in process.stdout:
                    last = line.decode(errors="replace").strip()
                    self._tell(last)
                await process.wait()
        return None if process.returncode == 0 else last or f"its model's files can't be downloaded; see {log_file}"

    async def _keep_up(self, placement: Placement, log: Path) -> str:
        """Run one server, and restart it when it fails, until it is given up. Return why it last failed. A server that
        was never ready isn't restarted."""
        clock, timings = asyncio.get_running_loop().time, self._fleet.timings
        waits: list[float] | None = None  # before the next restarts; a server that was never up gets none
        while True:
            up_since = None
            try:
                async with self._server(placement, log) as server:
                    await server.ready(self._launched.launch.ready_s, timings.poll_s)
                    await self._check_files()
                    up_since = clock()
                    self._set_urls([*self._urls, server.url])
                    try:
                        why = await self._watch(server)
                    finally:
                        self._set_urls([url for url in self._urls if url != server.url])
            except ServerNotReady as error:
                why = str(error)
            except OSError as error:  # no space for its log, no memory or file for its process
                why = f"its server can't be started: {error}"
            if up_since is not None and (waits is None or clock() - up_since >= timings.steady_s):
                waits = list(timings.restart_after_s)
            if not waits:
                self._tell(why)
                return why
            wait_s = waits.pop(0)
            times = f"{len(timings.restart_after_s) - len(waits)} of {len(timings.restart_after_s)}"
            self._tell(f"{why}; starting it again in {wait_s:g} s ({times})")
            await asyncio.sleep(wait_s)

    async def _check_files(self) -> None:
        """Raise ServerNotReady if the model's files aren't those that were identified when the run was planned, or
        can't be read."""
        cancelled = Event()
        try:
            if await asyncio.to_thread(loads_other_files, self._launched, cancelled):
                raise ServerNotReady(_OTHER_FILES)
        except BadInput as error:
            raise ServerNotReady(str(error)) from error
        finally:
            cancelled.set()  # a cancelled run must not wait until hundreds of GB are read

    async def _watch(self, server: "_Server") -> str:
        """Wait until a running server ends or hangs. Return a message that says which of the two, and the last error in
        its log."""
        clock, timings = asyncio.get_running_loop().time, self._fleet.timings
        healthy_at = clock()
        async with aiohttp.ClientSession() as session:
            while not await server.ended_within(timings.check_s):
                if self._client.hangs(server.url):
                    return server.describe_hang("it answered no call within timeout_s")
                if await server.healthy(session):
                    healthy_at = clock()
                elif clock() - healthy_at >= timings.hung_s:
                    return server.describe_hang(f"/health failed for {timings.hung_s:g} s")
        return server.describe_end()

    def _set_urls(self, urls: list[str]) -> None:
        """Set the URLs of the ready servers, to which the client sends calls. While there are none, calls wait."""
        self._urls = urls
        self._client.set_urls(urls)
        self.endpoint.server_status = None if urls else "stopping" if self.endpoint.done.is_set() else "starting"
        if urls:
            self.endpoint.up.set()
        else:
            self.endpoint.up.clear()

    @asynccontextmanager
    async def _server(self, placement: Placement, log: Path) -> "AsyncIterator[_Server]":
        """Start a server on the GPUs of `placement`, and yield it. It is ended when the block ends."""
        self.endpoint.server_status = None if self._urls else "starting"
        lock, port = _reserve_ports()
        with closing(lock):
            words = server_command(self._launched, port)
            environ = self._environ(placement.gpus)
            environ["VLLM_PORT"] = str(port + 1)
            with _open_log(log, _log_header(words, self._launched, placement)) as out:
                log_start = out.tell()
                async with _guarded(words, environ, stdout=out, stderr=out) as process:
                    yield _Server(process, port, log, log_start)

    def _environ(self, gpus: Sequence[str] = CPU) -> dict[str, str]:
        return server_environment(self._launched, self._fleet.environ, secret_variables(self._fleet.pipeline), gpus)

    def _tell(self, line: str) -> None:
        self._fleet.tell(f"{self.endpoint.name}: {line}")


class ServerNotReady(Exception):
    """Raised if a server ended before it was ready, or wasn't ready in time. The message says why and names the log."""


@dataclass(frozen=True, slots=True)
class _Server:
    """A server process.

    process: its guard, the process that runs it.
    port: where it listens, on 127.0.0.1.
    log: path of its log, which earlier servers may have written too.
    log_start: offset in the log, in bytes, at which its own output begins.
    """

    process: Process
    port: int
    log: Path
    log_start: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def ready(self, limit_s: float, poll_s: float) -> None:
        """Wait until the server is healthy. Raises ServerNotReady if it ends, or takes longer than `limit_s`."""
        try:
            async with asyncio.timeout(limit_s), aiohttp.ClientSession() as session:
                while not await self.healthy(session):
                    if await self.ended_within(poll_s):
                        raise ServerNotReady(f"its server ended before it was ready: {self._exit_status()}")
        except TimeoutError:
            why = f"its server was not ready within launch.ready_s ({limit_s:g} s): {self._last_error()}"
            raise ServerNotReady(why) from None

    async def healthy(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(
                f"http://127.0.0.1:{self.port}/health", timeout=aiohttp.ClientTimeout(total=10)
            ) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def ended_within(self, seconds: float) -> bool:
        """Wait until the server ends, at most `seconds`. Return whether it has ended. Meanwhile, truncate its log each
        second if it is too long."""
        ending = asyncio.create_task(self.process.wait())
        try:
            for step in (*[1.0] * int(seconds), seconds % 1):
                ended = (await asyncio.wait({ending}, timeout=step))[0]
                _truncate_log(self.log)
                if ended:
                    return True
            return False
        finally:
            ending.cancel()

    def describe_end(self) -> str:
        return f"its server ended: {self._exit_status()}"

    def describe_hang(self, how: str) -> str:
        return f"its server hangs, {how}: {self._last_error()}"

    def _exit_status(self) -> str:
        code = self.process.returncode or 0
        number = code - 128 if code > 128 else -code  # negative: the guard itself was killed
        how = f"killed by signal {number}" if number > 0 else f"exit code {code}"
        if number == signal.SIGKILL:
            how += ", by the system if memory ran out"
        return f"{how}; {self._last_error()}"

    def _last_error(self) -> str:
        try:
            with self.log.open("rb") as file:
                size = self.log.stat().st_size
                file.seek(max(self.log_start if self.log_start <= size else 0, size - LOG_END))
                message = error_in_log(file.read().decode(errors="replace").splitlines())
        except OSError as error:
            return f"its log {self.log} can't be read: {error.strerror}"
        return f"its log {self.log} ends with: {message}" if message else f"its log is {self.log}"


def error_in_log(lines: Sequence[str]) -> str:
    """Return the last error in a log and the indented lines that follow it, as one line of at most 500 characters.

    Errors that only refer to an earlier error are skipped. If there is no error, return the last line.
    """
    bare = [text for line in lines if (text := _PREFIX.sub("", _COLOUR.sub("", line)).rstrip())]
    errors = [n for n, line in enumerate(bare) if _is_error(line)]
    # a line that begins with an exception's name says more than source code that a traceback quotes
    named = [n for n in errors if _NAMED.match(bare[n])]
    if not (candidates := named or errors):
        return bare[-1].strip() if bare else ""
    last = candidates[-1]
    continuation = takewhile(lambda line: line.startswith(" "), bare[last + 1 :])
    return " ".join([bare[last].strip(), *(line.strip() for line in continuation)])[:500]


def _is_error(line: str) -> bool:
    return bool(_ERROR.search(line)) and not _HARMLESS.match(line) and not any(text in line for text in _CONSEQUENCES)


@asynccontextmanager
async def _guarded(
    words: Sequence[str], environ: Mapping[str, str], *, stdout: int | IO[bytes], stderr: int | IO[bytes]
) -> AsyncIterator[Process]:
    """Run a command under a guard, and yield the guard's process.

    The guard ends all processes of the command when the block ends or aif dies. It runs in its own session, so a Ctrl-C
    reaches only aif.
    """
    process = await asyncio.create_subprocess_exec(
        *GUARD, f"{GRACE_S}", *words, stdin=PIPE, stdout=stdout, stderr=stderr, env=environ, start_new_session=True,
        umask=USER_UMASK,  # what a server caches may be shared with other users
    )  # fmt: skip
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        await process.wait()


def _open_log(log: Path, header: str) -> IO[bytes]:
    """Open a log for appending, and write a line with the time and `header`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    out = log.open("ab", buffering=0)
    try:
        out.write(f"\n=== {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {header}\n".encode())
    except OSError as full:
        out.close()
        full.filename = str(log)
        raise
    return out


def _truncate_log(log: Path) -> None:
    """If a log is longer than 3 * LOG_KEPT bytes, keep only its first and its last LOG_KEPT bytes. Its server may
    append to it meanwhile."""
    if not log.exists() or log.stat().st_size <= 3 * LOG_KEPT:
        return
    with log.open("r+b") as file:
        file.seek(-LOG_KEPT, os.SEEK_END)
        # the log grows meanwhile, and its last line may be the error
        end = b"".join(islice(iter(lambda: file.read(LOG_KEPT), b""), 10))[-LOG_KEPT:]
        os.truncate(log, LOG_KEPT)
    with log.open("ab") as file:
        file.write(b"\n=== a part was left out here: the log was too long\n" + end)


def _log_header(words: Sequence[str], launched: LaunchedEndpoint, placement: Placement) -> str:
    """Return a text for the log with a server's GPUs and command line (`words`). Values of the options in `launch.args`
    are left out, since they may be secret."""
    extra = len(launched.launch.args)
    own = words[: len(words) - extra]
    flags = [word.partition("=")[0] for word in words[len(words) - extra :] if word.startswith("-")]
    return " ".join([f"on {'+'.join(placement.gpus)}:", *own, *flags])


def _reserve_ports() -> tuple[socket.socket, int]:
    """Reserve a free block of ports for a server. Return the socket that holds the reservation until it is closed, and
    the server's port.

    The socket is bound to the block's first port, so that no other aif takes the block; the server gets the next port,
    and the rest is for its own processes. Raises ServerNotReady if no block is free.
    """
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
    raise ServerNotReady(f"no port is free between {FIRST_PORT} and {LAST_PORT}")


async def _wait_until_needed(endpoints: Sequence[Endpoint]) -> None:
    """Wait until a call of any of the endpoints waits for a server, or all endpoints are done.

    Endpoints may be done without a call, such as a judge whose prompts all failed. Then no server is started for them.
    """

    async def all_done() -> None:
        for endpoint in endpoints:
            await endpoint.done.wait()

    tasks = [
        asyncio.create_task(all_done()),
        *(asyncio.create_task(endpoint.wanted.wait()) for endpoint in endpoints),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
