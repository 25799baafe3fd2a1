"""Build the command line and environment of a vLLM server, and check before its start whether it can run."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aif.config.fields import is_private_host
from aif.config.pipeline import Pipeline
from aif.config.sections import Judge, Launch, Model, matches_option, option_name
from aif.core.errors import BadInput
from aif.core.file_permissions import USER_UMASK, untrusted_writer
from aif.core.resources import expand_home
from aif.core.types import Stage
from aif.servers.placement import CPU, EndpointKey, GpuRequest

# aif sets these itself, to be able to reach the server; a file of arguments (`--config`) may hold any of them
SET_BY_AIF = (
    "--model", "--served-model-name", "--host", "--port", "--uds", "--api-key", "--root-path", "--device-ids",
    "--config",
)  # fmt: skip
NO_TELEMETRY = ("DO_NOT_TRACK", "VLLM_NO_USAGE_STATS", "HF_HUB_DISABLE_TELEMETRY")
# a namespace package, as any folder called vllm would be, has no origin
_HAS_VLLM = "import sys, importlib.util as u; s = u.find_spec('vllm'); sys.exit(s is None or s.origin is None)"
_SECRET = ("OPENAI_", "ANTHROPIC_")
_SECRET_WORD = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASS|PASSWORD|PASSWD|CREDENTIALS?|PAT)S?(_|$)", re.IGNORECASE
)
_HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")  # gated models need it


@dataclass(frozen=True, slots=True)
class LaunchedEndpoint:
    """A model or judge whose entry in the pipeline file has `launch`, so that aif starts its servers.

    stage: "completion" for a model, "judgement" for a judge.
    entry: the whole entry.
    launch: the entry's `launch`.
    model: a folder's absolute path, or a name on the Hub.
    python: path of the interpreter that runs vLLM.
    """

    stage: Stage
    entry: Model | Judge
    launch: Launch
    model: str
    python: str

    @property
    def key(self) -> EndpointKey:
        return self.stage, self.entry.name

    @property
    def gpu_request(self) -> GpuRequest:
        return GpuRequest(self.stage, self.entry.name, self.launch.gpus, self.launch.replicas)

    @property
    def is_folder(self) -> bool:
        return Path(self.model).is_absolute()

    @property
    def revision(self) -> str | None:
        """The model's revision to serve: the commit at which aif identified it, else the pipeline file's `revision`, if
        any."""
        return (self.entry.served.commit if self.entry.served else "") or self.entry.revision


def adapter_path(entry: Model | Judge) -> str | None:
    """Return the path, or the name on the Hub, of the LoRA adapter that a model's calls use.

    It is the adapter in vLLM's option `--lora-modules` that has the model's name. None if there is none: calls then use
    the base model.
    """
    assert entry.launch
    for word in parse_arguments(entry.launch.args).get("--lora-modules", "").split("\0"):
        name, _, path = word.partition("=")
        if word.startswith("{"):
            with suppress(json.JSONDecodeError):  # vLLM reports it
                name, path = (json.loads(word).get(key, "") for key in ("name", "path"))
        if name == entry.served_name:
            return str(path)
    return None


def launched_endpoints(pipeline: Pipeline, keys: Collection[EndpointKey]) -> list[LaunchedEndpoint]:
    """Return the models and judges among `keys` that have `launch`. Raises BadInput for settings that can't work."""
    entries: list[tuple[Stage, Model | Judge]] = [
        *(("completion", model) for model in pipeline.models.values()),
        *(("judgement", judge) for judge in pipeline.judges.values()),
    ]
    return [
        LaunchedEndpoint(
            stage, entry, entry.launch, _model(entry, entry.launch, pipeline), _python(entry.launch, pipeline)
        )
        for stage, entry in entries
        if entry.launch and (stage, entry.name) in keys
    ]


def parse_arguments(args: Iterable[str]) -> dict[str, str]:
    """Return the values of vLLM's options, by option name. An option without a value has an empty text; several values
    of an option are joined by NUL. If an option is repeated, the last one counts."""
    options, name = dict[str, list[str]](), ""
    for word in args:
        if re.match(r"-\D", word):
            name, equals, value = word.partition("=")
            name = option_name(name)
            options[name] = [value] if equals else []
        elif name:
            options[name].append(word)
    return {name: "\0".join(values) for name, values in options.items()}


def _model(entry: Model | Judge, launch: Launch, pipeline: Pipeline) -> str:
    for word in launch.args:
        if matches_option(word, SET_BY_AIF):
            raise BadInput(f"{entry.name}: launch.args: {option_name(word)} is set by aif; take it out")
    path = expand_home(launch.model, f"{entry.name}: launch.model")
    for base in (pipeline.folder, Path()):
        folder = (base / path).absolute()
        if folder.is_dir():
            return str(folder)
    if launch.model.startswith(("/", ".", "~")):
        raise BadInput(f"{entry.name}: launch.model: there is no folder {launch.model}")
    return launch.model


def _python(launch: Launch, pipeline: Pipeline) -> str:
    if launch.python is None:
        return sys.executable
    path = expand_home(launch.python, "launch.python")
    if path.name == launch.python:
        return launch.python  # a bare name is searched in PATH
    beside = (pipeline.folder / path).absolute()
    return str(beside if beside.exists() else path.absolute())


def server_command(endpoint: LaunchedEndpoint, port: int) -> list[str]:
    """Return the command that starts one server of `endpoint`, as a list for exec."""
    entry, launch = endpoint.entry, endpoint.launch
    name = f"{entry.served_name}.base" if adapter_path(entry) else entry.served_name
    words = [endpoint.python, "-m", "vllm.entrypoints.openai.api_server", "--model", endpoint.model]
    words += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    words += ["--generation-config", "vllm"]  # else the sampling defaults of the model's repository apply
    if launch.gpus > 1:
        words += ["--tensor-parallel-size", str(launch.gpus)]
    if entry.context_window:
        words += ["--max-model-len", str(entry.context_window)]
    if endpoint.revision and not endpoint.is_folder:
        words += ["--revision", endpoint.revision]
    return [*words, *launch.args]


def server_environment(
    endpoint: LaunchedEndpoint, environ: Mapping[str, str], secrets: Collection[str], gpus: Sequence[str] = CPU
) -> dict[str, str]:
    """Return the environment for a server: aif's, without API keys, without telemetry, and with `gpus` visible.

    environ: aif's environment variables. HF_TOKEN stays, since gated models need it.
    secrets: names of more variables to leave out.
    gpus: ids of the GPUs that the server may use.

    Values in `launch.env` win, so telemetry can be turned on there.
    """
    variables = {name: value for name, value in environ.items() if name in _HUB_TOKENS or not _is_secret(name, secrets)}
    variables["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = "60"  # the default, 5 s, closes connections in use on busy cores
    variables |= dict.fromkeys(NO_TELEMETRY, "1")
    if tuple(gpus) != CPU:
        if "CUDA_VISIBLE_DEVICES" not in environ:
            variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the GPU numbers are in nvidia-smi's order
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return variables | endpoint.launch.env


def _is_secret(name: str, secrets: Collection[str]) -> bool:
    return name in secrets or name.startswith(_SECRET) or _SECRET_WORD.search(name) is not None


def secret_variables(pipeline: Pipeline) -> set[str]:
    """Return the names of the environment variables from which the pipeline takes API keys and secret headers."""
    return {
        name for entry in (*pipeline.models.values(), *pipeline.judges.values()) for name in entry.environment_variables
    }


def programs_run(pipeline: Pipeline) -> Iterator[str]:
    """Yield a line of text for each program that the pipeline file tells a run to start (`launch.python`)."""
    launches = (entry.launch for entry in (*pipeline.models.values(), *pipeline.judges.values()) if entry.launch)
    for program in dict.fromkeys(_python(launch, pipeline) for launch in launches if launch.python):
        yield f"launch.python runs {program}"


def secret_destinations(pipeline: Pipeline, unsafe: bool = False) -> Iterator[str]:
    """Yield a line of text for each URL to which values of secret environment variables are sent. With `unsafe`, only
    URLs that are reached unencrypted over a public network have a line."""
    for entry in (*pipeline.models.values(), *pipeline.judges.values()):
        for url in entry.base_url if entry.environment_variables else ():
            host = urlsplit(url).netloc.rpartition("@")[2]
            line = f"{entry.name}: sends {', '.join(entry.environment_variables)} to {host}"
            if url.startswith("http:") and not is_private_host(url):
                yield f"{line} by http, which anybody on the way can read; give an address with https"
            elif not unsafe:
                yield line


def check_owner(pipeline: Pipeline) -> None:
    """Raise BadInput if the pipeline file starts programs or sends secrets, and another user may have written it."""
    entries = (*pipeline.models.values(), *pipeline.judges.values())
    starts = [f"{entry.name}: starts servers" for entry in entries if entry.launch]
    if (why := untrusted_writer(pipeline.path)) and (
        actions := [*programs_run(pipeline), *starts, *secret_destinations(pipeline)]
    ):
        raise BadInput(
            f"{why}, and you may not want what it does ({'; '.join(actions)}); look at it, and run a copy of it"
        )


def available_gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the ids of the GPUs in CUDA_VISIBLE_DEVICES; if it isn't set, of all that nvidia-smi lists. The constant
    `CPU` if there are none.

    Raises BadInput if nvidia-smi is there but fails.
    """
    if (visible := environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [word.strip() for word in visible.split(",")]
        usable = names[: next((n for n, name in enumerate(names) if name in ("", "-1")), len(names))]
        return tuple(dict.fromkeys(usable)) or CPU
    smi = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if smi is None:
        return CPU
    query = [smi, "--query-gpu=index", "--format=csv,noheader"]
    try:
        output = subprocess.run(  # noqa: S603
            query, env=dict(environ), capture_output=True, text=True, errors="replace", timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        words = getattr(error, "stdout", None) or getattr(error, "stderr", None) or str(error)
        raise BadInput(
            f"nvidia-smi can't list the GPUs ({_last_line(words)}); fix the driver, or set CUDA_VISIBLE_DEVICES (empty "
            "for none)"
        ) from error
    return tuple(line.strip() for line in output.splitlines() if line.strip().isdecimal()) or CPU  # others are warnings


async def vllm_problem(endpoint: LaunchedEndpoint, environ: Mapping[str, str]) -> str | None:
    """Return a message, with the fix, if the endpoint's Python can't be run or has no vLLM; None if vLLM is there.
    Doesn't import vLLM, which is slow."""
    words = [endpoint.python, "-c", _HAS_VLLM]
    try:
        result = await asyncio.to_thread(subprocess.run, words, env=dict(environ), capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = getattr(error, "strerror", None) or error
        return f"launch.python: {endpoint.python} can't be run: {why}"
    if result.returncode == 0:
        return None
    return (
        f"{endpoint.python} has no vLLM; `pip install vllm` into its environment, or name with launch.python the "
        "python of an environment that has it"
    )


async def download_problem(endpoint: LaunchedEndpoint, environ: Mapping[str, str]) -> str | None:
    """Return why a model's files can't be downloaded; None if they can, or if the model is a local folder. To find out,
    it downloads the smallest file."""
    if endpoint.is_folder:
        return None
    words = download_command(endpoint, "--check")
    result = await asyncio.to_thread(
        subprocess.run, words, env=dict(environ), capture_output=True, text=True, umask=USER_UMASK
    )
    if result.returncode == 0:
        return None
    return _last_line(result.stdout) or f"{endpoint.model}: {_last_line(result.stderr)}"


def download_command(endpoint: LaunchedEndpoint, *options: str) -> list[str]:
    """Return the command line that runs download.py for the endpoint's model, with `options` such as "--check"."""
    program = str(Path(__file__).with_name("download.py"))
    return [sys.executable, "-P", program, *options, endpoint.model, endpoint.entry.revision or ""]


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
