"""What a vLLM server is started with: its command, its environment, the GPUs there are; and what would keep it from
starting, told before it is tried."""

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
from aif.servers.placement import CPU, Key, Wish

# aif sets these, and would not find a server that has others; a file of arguments (`--config`) may hold any of them
OURS = (
    "--model", "--served-model-name", "--host", "--port", "--uds", "--api-key", "--root-path", "--device-ids",
    "--config",
)  # fmt: skip
UNTRACKED = ("DO_NOT_TRACK", "VLLM_NO_USAGE_STATS", "HF_HUB_DISABLE_TELEMETRY")
# a namespace, as any folder called vllm would be, has no origin
_HAS_VLLM = "import sys, importlib.util as u; s = u.find_spec('vllm'); sys.exit(s is None or s.origin is None)"
_SECRET = ("OPENAI_", "ANTHROPIC_")
_SECRET_WORD = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASS|PASSWORD|PASSWD|CREDENTIALS?|PAT)S?(_|$)", re.IGNORECASE
)
_HUBS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")  # gated models need it


@dataclass(frozen=True, slots=True)
class Launched:
    """A model or judge with `launch`, and where its model is: a folder's path, or a name on the Hub."""

    stage: Stage
    one: Model | Judge
    launch: Launch
    model: str
    python: str

    @property
    def key(self) -> Key:
        return self.stage, self.one.name

    @property
    def wish(self) -> Wish:
        return Wish(self.stage, self.one.name, self.launch.gpus, self.launch.replicas)

    @property
    def is_folder(self) -> bool:
        return Path(self.model).is_absolute()

    @property
    def revision(self) -> str | None:
        """Of a model on the Hub the commit that was looked at, so that no other is served; else what is declared."""
        return (self.one.served.commit if self.one.served else "") or self.one.revision


def adapter(one: Model | Judge) -> str | None:
    """The path of the LoRA adapter that a launched one is: that of `--lora-modules` with the name that calls go to."""
    assert one.launch
    for word in arguments(one.launch.args).get("--lora-modules", "").split("\0"):
        name, _, path = word.partition("=")
        if word.startswith("{"):
            with suppress(json.JSONDecodeError):  # vLLM tells
                name, path = (json.loads(word).get(key, "") for key in ("name", "path"))
        if name == one.served_name:
            return str(path)
    return None


def launched(pipeline: Pipeline, keys: Collection[Key]) -> list[Launched]:
    """The models and judges among `keys` that aif launches. Raises BadInput for what can't be meant."""
    declared: list[tuple[Stage, Model | Judge]] = [
        *(("completion", model) for model in pipeline.models.values()),
        *(("judgement", judge) for judge in pipeline.judges.values()),
    ]
    return [
        Launched(stage, one, one.launch, _model(one, one.launch, pipeline), _python(one.launch, pipeline))
        for stage, one in declared
        if one.launch and (stage, one.name) in keys
    ]


def arguments(args: Iterable[str]) -> dict[str, str]:
    """The options among vLLM's arguments, each with its values (of several, with NUL between them)."""
    found, name = dict[str, list[str]](), ""
    for word in args:
        if re.match(r"-\D", word):
            name, equals, value = word.partition("=")
            name = option_name(name)
            found[name] = [value] if equals else []
        elif name:
            found[name].append(word)
    return {name: "\0".join(values) for name, values in found.items()}


def _model(one: Model | Judge, launch: Launch, pipeline: Pipeline) -> str:
    for word in launch.args:
        if matches_option(word, OURS):
            raise BadInput(f"{one.name}: launch.args: {option_name(word)} is set by aif; take it out")
    path = expand_home(launch.model, f"{one.name}: launch.model")
    for base in (pipeline.folder, Path()):
        folder = (base / path).absolute()
        if folder.is_dir():
            return str(folder)
    if launch.model.startswith(("/", ".", "~")):
        raise BadInput(f"{one.name}: launch.model: there is no folder {launch.model}")
    return launch.model


def _python(launch: Launch, pipeline: Pipeline) -> str:
    if launch.python is None:
        return sys.executable
    path = expand_home(launch.python, "launch.python")
    if path.name == launch.python:
        return launch.python  # a bare name is looked for in PATH
    beside = (pipeline.folder / path).absolute()
    return str(beside if beside.exists() else path.absolute())


def command(one: Launched, port: int) -> list[str]:
    """What starts one server of `one`, as a list for exec."""
    launch = one.launch
    name = f"{one.one.served_name}.base" if adapter(one.one) else one.one.served_name
    words = [one.python, "-m", "vllm.entrypoints.openai.api_server", "--model", one.model]
    words += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    words += ["--generation-config", "vllm"]  # else a repository's own sampling defaults slip in
    if launch.gpus > 1:
        words += ["--tensor-parallel-size", str(launch.gpus)]
    if one.one.context_window:
        words += ["--max-model-len", str(one.one.context_window)]
    if one.revision and not one.is_folder:
        words += ["--revision", one.revision]
    return [*words, *launch.args]


def environment(
    one: Launched, environ: Mapping[str, str], secrets: Collection[str], gpus: Sequence[str] = CPU
) -> dict[str, str]:
    """The caller's environment without API keys (`secrets` names more of them), with the server's GPUs.

    HF_TOKEN alone of all secrets stays: gated models need it. vLLM would tell its makers of the model and the
    machine at every start; only who asks for that in `launch.env` has it so.
    """
    kept = {name: value for name, value in environ.items() if name in _HUBS or not _is_key(name, secrets)}
    kept["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = "60"  # by default 5 s: on busy cores it closes connections that are in use
    kept |= dict.fromkeys(UNTRACKED, "1")
    if tuple(gpus) != CPU:
        if "CUDA_VISIBLE_DEVICES" not in environ:
            kept["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # nvidia-smi's order, whose numbers these are
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return kept | one.launch.env


def _is_key(name: str, secrets: Collection[str]) -> bool:
    return name in secrets or name.startswith(_SECRET) or _SECRET_WORD.search(name) is not None


def secrets(pipeline: Pipeline) -> set[str]:
    """The variables that the pipeline names for keys and headers."""
    return {
        name for one in (*pipeline.models.values(), *pipeline.judges.values()) for name in one.environment_variables
    }


def runs(pipeline: Pipeline) -> Iterator[str]:
    """The programs that a pipeline names."""
    named = (one.launch for one in (*pipeline.models.values(), *pipeline.judges.values()) if one.launch)
    for program in dict.fromkeys(_python(launch, pipeline) for launch in named if launch.python):
        yield f"launch.python runs {program}"


def sends(pipeline: Pipeline, unsafe: bool = False) -> Iterator[str]:
    """Where the variables go that a pipeline names; or only where everybody between may read them."""
    for one in (*pipeline.models.values(), *pipeline.judges.values()):
        for url in one.base_url if one.environment_variables else ():
            to = (
                f"{one.name}: sends {', '.join(one.environment_variables)} to {urlsplit(url).netloc.rpartition('@')[2]}"
            )
            if url.startswith("http:") and not is_private_host(url):
                yield f"{to} by http, which anybody on the way can read; give an address with https"
            elif not unsafe:
                yield to


def check_stranger(pipeline: Pipeline) -> None:
    """Raises BadInput where somebody else wrote what a pipeline runs and which secrets it sends: who asked for that?"""
    every = (*pipeline.models.values(), *pipeline.judges.values())
    starts = [f"{one.name}: starts servers" for one in every if one.launch]
    if (why := untrusted_writer(pipeline.path)) and (does := [*runs(pipeline), *starts, *sends(pipeline)]):
        raise BadInput(
            f"{why}, and you may not want what it does ({'; '.join(does)}); look at it, and run a copy of it"
        )


def gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them: those it names, else all that nvidia-smi tells;
    `CPU` where there is none. Raises BadInput where nvidia-smi is there and fails."""
    if (named := environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        found = [word.strip() for word in named.split(",")]
        usable = found[: next((n for n, word in enumerate(found) if word in ("", "-1")), len(found))]
        return tuple(dict.fromkeys(usable)) or CPU
    smi = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if smi is None:
        return CPU
    asked = [smi, "--query-gpu=index", "--format=csv,noheader"]
    try:
        told = subprocess.run(  # noqa: S603
            asked, env=dict(environ), capture_output=True, text=True, errors="replace", timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        words = getattr(error, "stdout", None) or getattr(error, "stderr", None) or str(error)
        raise BadInput(
            f"nvidia-smi can't tell which GPUs there are ({_last(words)}); mend the driver, or set "
            "CUDA_VISIBLE_DEVICES (empty for none)"
        ) from error
    return tuple(line.strip() for line in told.splitlines() if line.strip().isdecimal()) or CPU  # it may warn as well


async def lacks_vllm(one: Launched, environ: Mapping[str, str]) -> str | None:
    """What to do where the Python of a server has no vLLM. Told without importing it, which takes tens of seconds."""
    ask = [one.python, "-c", _HAS_VLLM]
    try:
        told = await asyncio.to_thread(subprocess.run, ask, env=dict(environ), capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = getattr(error, "strerror", None) or error
        return f"launch.python: {one.python} can't be run: {why}"
    if told.returncode == 0:
        return None
    return (
        f"{one.python} has no vLLM; `pip install vllm` into its environment, or name with launch.python the python "
        "of an environment that has it"
    )


async def unreachable(one: Launched, environ: Mapping[str, str]) -> str | None:
    """Why the files of a model can't be had, found out by asking for the smallest of them."""
    if one.is_folder:
        return None
    ask = fetching(one, "--check")
    told = await asyncio.to_thread(
        subprocess.run, ask, env=dict(environ), capture_output=True, text=True, umask=USER_UMASK
    )
    return None if told.returncode == 0 else _last(told.stdout) or f"{one.model}: {_last(told.stderr)}"


def fetching(one: Launched, *options: str) -> list[str]:
    """The command that brings a model's files into the Hub's cache, or with `--check` asks whether it could."""
    program = str(Path(__file__).with_name("download.py"))
    return [sys.executable, "-P", program, *options, one.model, one.one.revision or ""]


def _last(words: str) -> str:
    return words.strip().rpartition("\n")[2]
