"""What a launched server loads, told by its content: another checkpoint under the same name is another model.

Of a model the first content that was served under its name keeps the name for its identity, so that what was asked
before anybody looked is not asked again. Any other is another model, whose identity has the content's digest, and
which comes to be what it was when its files do. What was served when is on record (`events.text`, kind `model`), so
that what only reads the answers needs no file of the model.
"""

import errno
import hashlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import repeat
from pathlib import Path
from threading import Event
from typing import Any

import orjson

from aif.config.pipeline import Pipeline
from aif.config.sections import Judge, Model, ServedContent
from aif.core.environment import ENVIRON
from aif.core.errors import BadInput
from aif.core.types import Stage, digest
from aif.servers.command import Launched, adapter, arguments, environment, fetching, launched, secrets
from aif.store import records
from aif.store.records import Record

Parts = Mapping[str, str]  # files by their digests, and arguments by their values

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
# Of these vLLM loads what is not *.safetensors only where there are no such, and never what a trainer keeps for itself.
_TRAINERS = ("training_args.*", "optimizer*", "scheduler*", "scaler*")
_TEMPLATES = "additional_chat_templates/"
_BESIDE = (
    "config*.json", "generation_config.json", "*processor_config.json", "*quant*_config.json", "adapter_config.json",
    "params.json", "*.index.json", "tokenizer*", "tekken.json", "special_tokens_map.json", "added_tokens.json",
    "vocab*", "merges.txt", "*.model", "*.tiktoken", "*.jinja", "chat_template*", f"{_TEMPLATES}*",
)  # fmt: skip

# Arguments that change what a model says: its numbers, what its text is turned into, how it is sampled, what of its
# reply is the answer. A file or folder that one names is meant by its content.
_WORDS = re.compile(
    r"-q|--(quantization(-config)?|dtype|kv-cache-dtype(-skip-layers)?|load-format|lora-(dtype|target-modules)"
    r"|mamba-.*dtype|enable-mamba-cache-stochastic-rounding|model-(impl|class-overrides|loader-extra-config)"
    r"|hf-(overrides|config-path)|config-format|rope-(scaling|theta)|disable-sliding-window|use-fp64-gumbel"
    r"|(code-|tokenizer-)?revision|tokenizer(-mode)?|trust-remote-code"
    r"|chat-template(-content-format)?|default-chat-template-kwargs|response-role"
    r"|(override-)?generation-config|logits-processors|watermark(-config)?"
    r"|reasoning-(parser(-plugin)?|config)|structured-outputs-config)"
)
# Arguments that say where and how fast: spread over machines and GPUs, memory, batches, drafts (which are accepted as
# the model itself would have said them), kernels, logs, the HTTP server. What length, seed and images they allow stands
# in each request, or in none. `lora-modules` counts by the adapter that is asked for.
_ELSE = re.compile(
    r"-(h|n|r|asc|tp|pp|dp.*|dcp|pcp|ep|sc|cc|ac|O.*)|--((tensor|pipeline|data|decode-context|prefill-context)-parallel.*"
    r"|(max|gpu|device|cpu|num|numa|node|nnodes|master|distributed|download|swap|offload|block|scheduling|scheduler"
    r"|kv-(cache-memory|cache-metrics|offloading|events|transfer)|cudagraph|compilation|optimization|performance"
    r"|prefi(x|ll)|(long|partial)-prefill|async|stream|spec|speculative|attention|moe|linear|kernel|worker|expert|eplb"
    r"|all2all|ubatch|dbo|api-server|log|uvicorn|otlp|collect|show|allow(ed)?|middleware|ssl|h11|mm|limit-mm|media|video"
    r"|safetensors|use-tqdm|shutdown|profiler|tool-call|seed)(-.*)?"
    r"|enforce-eager|(disable|enable)-(log|uvicorn|access|fastapi|custom-all|hybrid|cascade|chunked|prefix|expert|eplb"
    r"|dbo|lora|prompt-tokens|request-id|server-load|auto-tool|sleep|async|nccl|flashinfer|cumem)(-.*)?"
    r"|lora-modules|fully-sharded-loras|language-model-only|skip-mm-profiling|specialize-active-lora)"
)
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BLOCK = 2**22  # bytes
_MUCH = 2 * 10**9  # bytes, from which on it is said that they are read: some 3 s on two cores
_SETTLED_S = 2.0  # of a file younger than this, a further change may bear the same time


@dataclass(frozen=True, slots=True)
class Seen:
    """A launched model that is not what is on record as the last of it, or on none: the record to be kept before it is
    asked, and how it differs (empty for what was on none)."""

    stage: Stage
    one: Model | Judge
    record: Record
    changes: str


def known(pipeline: Pipeline, past: Iterable[Any], tell: Callable[[str], None] | None = None) -> list[Seen]:
    """Fills in what each launched model and judge is (`Endpoint.served`), by the records there are, in whatever order.

    With `tell`, which is for who is going to ask, by what its server would load now, where that can be looked at; else
    as it was last asked. Where the file names other files or arguments since, and these can't be looked at, it is a
    model that nothing is known of. Returns what is to be put on record before anything is asked.
    """
    rows = sorted(past, key=lambda row: row["n"])
    every: list[tuple[Stage, Model | Judge]] = [
        *(("completion", model) for model in pipeline.models.values()),
        *(("judgement", judge) for judge in pipeline.judges.values()),
    ]
    found = []
    for stage, one in every:
        if one.launch:
            of = [row for row in rows if (row["stage"], row["identity"]) == (stage, one.declared_identity)]
            found.append(_known(pipeline, stage, one, of, tell))
    return [one for one in found if one]


def _known(
    pipeline: Pipeline, stage: Stage, one: Model | Judge, rows: list[Any], tell: Callable[[str], None] | None
) -> Seen | None:
    assert one.launch
    own = [row for row in rows if row["endpoint"] == one.name] or rows
    declared = [one.launch.model, adapter(one), counted(one.launch.args)]
    same = next((row for row in reversed(own) if row["declared"] == declared), None)
    now = _at_hand(pipeline, stage, one, same, tell) if tell or (rows and not same) else None
    parts, commit = now or ((same["parts"], same["commit"]) if same else ({}, ""))
    first = [row["parts"] for row in rows if row["n"] == 0]
    one._served = ServedContent(digest(parts) if now or same else "", bool(rows) and parts not in first, commit)
    if not (now and tell) or (own and own[-1]["parts"] == parts):
        return None
    before = own[-1]["parts"] if own else {}
    for name in parts.keys() - before.keys():
        if name.startswith("-") and " " not in name and not _WORDS.fullmatch(bare(name)):
            why = "is in no list here of what changes a model's words or does not; it counts as if it did"
            tell(f"{one.name}: launch.args: {name} {why}, so another value asks anew")
    content = {
        "stage": stage, "identity": one.declared_identity, "endpoint": one.name, "n": rows[-1]["n"] + 1 if rows else 0,
        "declared": declared, "commit": commit, "parts": parts,
    }  # fmt: skip
    return Seen(stage, one, records.text(digest(content), "model", content), _changes(before, parts) if own else "")


def changed(one: Launched, over: Event) -> bool:
    """Whether the files of a server that is up are others than those it was to load, or were not known then. A commit
    on the Hub stays. `over` ends the reading of them."""
    served = one.one.served
    if served is None or (served.digest and not one.is_folder):
        return False
    if not served.digest:
        return True
    now = _parts(one, {}, None, lambda words: None, over)
    return now is not None and digest(now[0]) != served.digest


def _at_hand(
    pipeline: Pipeline, stage: Stage, one: Model | Judge, same: Any, tell: Callable[[str], None] | None
) -> tuple[dict[str, str], str] | None:
    """What a server would load now, and its commit on the Hub; None where that is not to be had here."""
    try:
        (found,) = launched(pipeline, [(stage, one.name)])
    except BadInput:  # told where a server is to be started: nothing may be left to ask
        return None
    if not found.is_folder and not tell:  # who only reads asks no Hub
        return None
    return _parts(found, environment(found, ENVIRON, secrets(pipeline)), same, tell or (lambda words: None), Event())


def _parts(
    one: Launched, environ: Mapping[str, str], same: Any, tell: Callable[[str], None], over: Event
) -> tuple[dict[str, str], str] | None:
    """Files by their digests, and arguments by their values. `same` is a record of what was declared alike: a commit
    that it knows holds what it held then, also in a cache without links, which tells less than the Hub."""
    args, commit, held = counted(one.launch.args), "", dict[str, str]()
    named = [name for name, value in args.items() if os.path.isdir(value)]  # noqa: PTH112 - of any length
    folders = {f"{name} ": args.pop(name) for name in named}
    if path := adapter(one.one):
        if os.path.isdir(os.path.expanduser(path)):  # noqa: PTH111, PTH112 - `~` may be nobody's
            folders["adapter "] = os.path.expanduser(path)  # noqa: PTH111
        else:  # a name on the Hub
            args["adapter"] = path
    if one.is_folder:
        folders[""] = one.model
    elif told := _on_the_hub(one, environ):
        commit = told["commit"]
        if same and same["commit"] == commit:
            held = {name: value for name, value in same["parts"].items() if not re.match("-|adapter ", name)}
        elif "files" in told:
            held = {name: told["files"][name] for name in loaded(told["files"], args)}
        else:
            folders[""] = told["folder"]
    else:
        return None
    paths = {name: Path(value) for name, value in args.items() if os.path.isfile(value)}  # noqa: PTH113 - likewise
    for before, folder in folders.items():
        every = (path for some in ("*", f"{_TEMPLATES}*") for path in Path(folder).glob(some))
        there = {path.relative_to(folder).as_posix(): path for path in every if path.is_file()}
        paths |= {before + name: there[name] for name in loaded(there, args)}
    return args | held | _digests(paths, one.one.name, tell, over), commit


def _on_the_hub(one: Launched, environ: Mapping[str, str]) -> Any:
    """The commit of a model on the Hub and its files' digests, which need no download; of one that is in the cache, and
    can't be asked about, its folder. None where it can't be had."""
    told = subprocess.run(fetching(one, "--files"), env=dict(environ), capture_output=True, check=False)  # noqa: S603
    return orjson.loads(told.stdout.rsplit(b"\n", 2)[-2]) if told.returncode == 0 else None


def counted(args: Iterable[str]) -> dict[str, str]:
    """The arguments that may change what a model says, each with its value; of one that is given twice the last. What
    is in no list may be anything, also a secret: its value's digest stands for it."""
    given = {name: _json(value) for name, value in arguments(args).items() if not _ELSE.fullmatch(bare(name))}
    return {name: value if _WORDS.fullmatch(bare(name)) else digest(value) for name, value in given.items()}


def _json(value: str) -> str:
    """JSON however it was written; else the value."""
    try:
        return orjson.dumps(orjson.loads(value), option=orjson.OPT_SORT_KEYS).decode() if value[:1] in "{[" else value
    except orjson.JSONDecodeError:
        return value


def bare(name: str) -> str:
    """An option without `no-` and what of a JSON value it sets (`--hf-overrides.key`)."""
    return name.partition(".")[0].replace("--no-", "--", 1)


def loaded(names: Collection[str], args: Collection[str]) -> list[str]:
    """Of a folder's files those that a server loads."""

    def are(*patterns: str) -> list[str]:
        return [name for name in names if any(fnmatch(name, one) for one in patterns)]

    flat = {name for name in names if "/" not in name}
    weights = flat & ({*are(*_WEIGHTS)} - {*are(*_TRAINERS)})
    safe = weights & {*are("*.safetensors")}
    code = flat & {*are("*.py")} if "--trust-remote-code" in args else set()
    beside = {name for name in are(*_BESIDE) if name in flat or name.startswith(_TEMPLATES)}
    return sorted((safe if safe and "--load-format" not in args else weights) | beside | code)


def _changes(before: Parts, now: Parts) -> str:
    """How two differ: the first three, each with what it was and is."""
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    said = [f"{name} ({_short(name, before)} → {_short(name, now)})" for name in names[:3]]
    return ", ".join(said) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _short(name: str, parts: Parts) -> str:
    value = parts.get(name)
    if value is None:
        return "none"
    return value[:8] if _BLOB.fullmatch(value) else repr(value[:40]) if value else "set"


def _digests(paths: Mapping[str, Path], name: str, tell: Callable[[str], None], over: Event) -> dict[str, str]:
    """Digests of files, each of which is read once as long as it stays as it is. Raises BadInput where one can't be."""
    try:
        real = {part: path.resolve() for part, path in paths.items()}
        stamps = {path: _stamp(path) for path in real.values() if not _is_blob(path)}
        had = _kept()
        new = [path for path, stamp in stamps.items() if had.get(str(path), [])[:-1] != stamp]
        if (size := sum(stamps[path][0] for path in new)) > _MUCH:
            tell(f"{name}: reading {size / 1e9:.1f} GB of files, to know the model by them")
        read = dict(zip(new, _read(new, over), strict=True))
        lasting = {
            str(path): [*stamps[path], said]
            for path, said in read.items()
            if _stamp(path) == stamps[path] and time.time() - stamps[path][2] / 1e9 > _SETTLED_S
        }
    except OSError as error:
        raise BadInput(f"{name}: {error.filename}: can't be read: {error.strerror}; mend that") from error
    if lasting:
        _keep(lasting)
    of = {path: had[str(path)][-1] for path in stamps if path not in read} | read
    return {part: of.get(path) or path.name for part, path in real.items()}


def _is_blob(path: Path) -> bool:
    """Whether a file lies in the Hub's cache, which names it by its digest."""
    return path.parent.name == "blobs" and (path.parents[1] / "snapshots").is_dir() and bool(_BLOB.fullmatch(path.name))


def _stamp(path: Path) -> list[int]:
    """What changes with a file. Two checkpoints of a model are of one size, and copies may be of one mtime: nobody sets
    a ctime."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read(paths: Sequence[Path], over: Event) -> list[str]:
    """The sha256 of each file. A Ctrl-C ends the reading of all, and so does `over`, which raises OSError."""
    with ThreadPoolExecutor() as pool:
        try:
            return list(pool.map(_sha256, paths, repeat(over)))
        finally:
            over.set()


def _sha256(path: Path, over: Event) -> str:
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            found.update(block)
            if over.is_set():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED), str(path))
    return found.hexdigest()


def _place() -> Path:
    cache = ENVIRON.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - raises without a home
    return Path(cache, "aif", "files.json")


def _kept() -> dict[str, list[Any]]:
    """What was kept of files; nothing where that is not there or not whole: they are read again then."""
    try:
        held = orjson.loads(_place().read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    rows = held.items() if isinstance(held, dict) else ()
    return {path: row for path, row in rows if isinstance(row, list) and len(row) == 4 and isinstance(row[3], str)}


def _keep(new: Mapping[str, list[Any]]) -> None:
    """Of two processes the later may drop what the former kept, and where nothing can be written nothing is: what is
    lost is read again."""
    if not (place := _place()).is_absolute():
        return
    held = {path: row for path, row in _kept().items() if os.path.exists(path)} | dict(new)  # noqa: PTH110 - may be forbidden
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_name(f"{place.name}.{os.getpid()}")
        aside.write_bytes(orjson.dumps(held))
        aside.rename(place)
