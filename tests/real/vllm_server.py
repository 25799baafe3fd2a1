"""A vLLM server of this environment on a loopback port, for as long as a `with` block lasts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

START_S = 300.0  # measured: 30 s on 2 idle cores, 110 s on busy ones that compile every import afresh
STOP_S = 15.0
TAIL = 60  # lines of the log shown when something fails
LEASH = 'read -r _; kill -s KILL -- "-$1"'
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # a proxy has no business on the loopback


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it answers, the names it answers to, its process group and its log."""

    url: str
    names: tuple[str, ...]
    group: int
    log: Path

    @property
    def base_url(self) -> str:
        """What a pipeline file takes."""
        return f"{self.url}/v1"

    def get(self, path: str) -> str:
        """The body of a GET. Raises urllib.error.HTTPError unless it is a 200."""
        with _open(f"{self.url}{path}", timeout=30) as answer:
            return str(answer.read(), "utf-8")

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON of the answer, whatever the status."""
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with _open(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        """A chat completion by the first of its names, unless the body has another."""
        return self.post("/v1/chat/completions", {"model": self.names[0]} | body)

    def count(self, metric: str, **labels: str) -> int:
        """Sum of a Prometheus counter over all samples that have these labels. A name that isn't there is an error.

        `http_requests_total` counts answers by handler (the path), method and status (2xx, …);
        `vllm:request_success_total` what the engine finished, by finished_reason (stop, length, abort, …);
        `vllm:prompt_tokens_total` and `vllm:generation_tokens_total` tokens. The label model_name is always the first
        of the served names.
        """
        samples = [
            sample
            for family in text_string_to_metric_families(self.get("/metrics"))
            for sample in family.samples
            if sample.name == metric
        ]
        if not samples:
            raise KeyError(metric)
        return int(sum(sample.value for sample in samples if labels.items() <= sample.labels.items()))

    def calls(self, status: str = "2xx") -> int:
        """Chat completions answered so far with this class of status."""
        try:
            return self.count("http_requests_total", handler="/v1/chat/completions", method="POST", status=status)
        except KeyError:  # there is no sample before the first answer
            return 0

    def tail(self) -> str:
        """The end of the log, without the list of routes that every start writes."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if "] Route: " not in line][-TAIL:])


@contextmanager
def vllm(
    model: Path,
    log: Path,
    names: Sequence[str] = ("tiny",),
    *,
    max_model_len: int = 8192,
    max_num_seqs: int = 32,
    flags: Sequence[str] = (),
) -> Iterator[Server]:
    """Serve `model` under all of `names` and wait until it is healthy. Raises RuntimeError with the log's end."""
    port = _free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", *names, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", str(max_model_len), "--max-num-seqs", str(max_num_seqs)]
    command += ["--enforce-eager"]  # nothing to compile: 1 s instead of 9 to 33, and no C++ compiler needed
    # A prompt whose prefill is split makes vLLM wind back the request's seeded generator, which a CPU one refuses:
    # "CPU Generator does not use offset" ends the engine. So every prompt is prefilled in one step.
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(4 * max_model_len)]
    command += ["--generation-config", "vllm", "--enable-prompt-tokens-details"]
    command += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    command += flags
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CACHE_ROOT": str(log.parent / "vllm-cache"),
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",  # 5 s by default: on busy cores it closes connections that are in use
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with running(command, log, environment) as process:
        server = Server(f"http://127.0.0.1:{port}", tuple(names), process.pid, log)
        _await_health(server, process)
        yield server


@contextmanager
def running(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process group of its own, of which nothing is left after the block.

    Not after an exception, and not after a `kill -9` of this process either: a shell in yet another group waits at a
    pipe that closes then. (vLLM's engine and worker live on when only the server they belong to is killed.)
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
        )
    try:
        with _leashed(process.pid):
            yield process
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _leashed(group: int) -> Iterator[None]:
    """Kill the process group should this process die within the block: the pipe to the shell then closes."""
    shell = subprocess.Popen(["sh", "-c", LEASH, "leash", str(group)], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        shell.kill()
        shell.communicate()


def _await_health(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"vLLM ended with {process.returncode} before it was up:\n{server.tail()}")
        with suppress(OSError):  # not listening yet, or a 503
            server.get("/health")
            return
        time.sleep(0.25)
    raise RuntimeError(f"vLLM was not up after {START_S:g} s:\n{server.tail()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: asked first, then killed."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
            deadline = time.monotonic() + STOP_S
            while time.monotonic() < deadline:
                process.poll()  # reaps the leader, without which the group would never be empty
                os.killpg(process.pid, 0)
                time.sleep(0.05)
    process.wait(STOP_S)
