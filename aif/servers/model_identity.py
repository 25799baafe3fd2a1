"""Give each launched model an identity that depends on its content, so that another checkpoint is another model.

A model's *content* is the files and arguments that affect its output. A model's *identity* is its declared name and
revision, with or without a digest of the content:

- The first content seen under a name has no digest in its identity.
- Any other content has a digest in its identity.
- If earlier content comes back, its identity comes back too.

Each change is recorded in the journal (a record of kind `model`). So commands that call no model don't need the files.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import orjson

from aif.config.pipeline import Pipeline
from aif.config.sections import Judge, Model, ServedContent
from aif.core.environment import ENVIRON
from aif.core.errors import BadInput
from aif.core.types import Stage, digest
from aif.servers.command import (
    LaunchedEndpoint,
    adapter_path,
    download_command,
    launched_endpoints,
    parse_arguments,
    secret_variables,
    server_environment,
)
from aif.servers.model_files import DIGEST, TEMPLATES, file_digests, loaded_files
from aif.store import records
from aif.store.records import Record

Content = Mapping[str, str]  # what a server loads: files with their digests, and arguments with their values

# Arguments that change a model's text: its numbers, tokenization, sampling, and which part of the reply is the answer.
# A file or folder in one of them counts by its content.
_OUTPUT_OPTIONS = re.compile(
    r"-q|--(quantization(-config)?|dtype|kv-cache-dtype(-skip-layers)?|load-format|lora-(dtype|target-modules)"
    r"|mamba-.*dtype|enable-mamba-cache-stochastic-rounding|model-(impl|class-overrides|loader-extra-config)"
    r"|hf-(overrides|config-path)|config-format|rope-(scaling|theta)|disable-sliding-window|use-fp64-gumbel"
    r"|(code-|tokenizer-)?revision|tokenizer(-mode)?|trust-remote-code"
    r"|chat-template(-content-format)?|default-chat-template-kwargs|response-role"
    r"|(override-)?generation-config|logits-processors|watermark(-config)?"
    r"|reasoning-(parser(-plugin)?|config)|structured-outputs-config)"
)
# Arguments that change where and how fast it runs: parallelism, memory, batches, speculative decoding (which accepts
# only what the model itself would write), kernels, logs, the HTTP server. Length, seed and images are in each request.
# `lora-modules` counts by the adapter that is called.
_RUNTIME_OPTIONS = re.compile(
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


@dataclass(frozen=True, slots=True)
class ModelChange:
    """A launched model or judge whose content has changed, or that has no record in the journal yet.

    stage: "completion" for a model, "judgement" for a judge.
    entry: its entry in the pipeline file.
    record: the new content (digests of files, values of arguments), to be written to the journal before the model is
        called.
    changes: the differences from the last record, as text; empty if there is no record yet.
    """

    stage: Stage
    entry: Model | Judge
    record: Record
    changes: str


def identify_models(
    pipeline: Pipeline, past: Iterable[Any], tell: Callable[[str], None] | None = None
) -> list[ModelChange]:
    """Set the identity (`served`) of each launched model and judge. Return the changes to write to the journal before
    any call.

    past: the journal's records of kind `model`.
    tell: prints a line for the user; None in commands that call no model.

    The identity comes from the first of these that is available:

    - with `tell`: the current files;
    - the last record with the same declared model and arguments;
    - if the model has records, but no such record: the current files of a local folder.

    If none is available, the identity is unknown.
    """
    rows = sorted(past, key=lambda row: row["n"])
    entries: list[tuple[Stage, Model | Judge]] = [
        *(("completion", model) for model in pipeline.models.values()),
        *(("judgement", judge) for judge in pipeline.judges.values()),
    ]
    changes = []
    for stage, entry in entries:
        if entry.launch:
            same_name = [row for row in rows if (row["stage"], row["identity"]) == (stage, entry.declared_identity)]
            changes.append(_identify(pipeline, stage, entry, same_name, tell))
    return [change for change in changes if change]


def _identify(
    pipeline: Pipeline, stage: Stage, entry: Model | Judge, rows: list[Any], tell: Callable[[str], None] | None
) -> ModelChange | None:
    """Set the identity of one model or judge, and return the change, if any, for the journal. `rows` are the records
    under its declared identity (the name and revision in the pipeline file), oldest first."""
    assert entry.launch
    own = [row for row in rows if row["endpoint"] == entry.name] or rows
    declared = [entry.launch.model, adapter_path(entry), identity_arguments(entry.launch.args)]
    recorded = next((row for row in reversed(own) if row["declared"] == declared), None)
    now = _current_content(pipeline, stage, entry, recorded, tell) if tell or (rows and not recorded) else None
    content, commit = now or ((recorded["parts"], recorded["commit"]) if recorded else ({}, ""))
    first = [row["parts"] for row in rows if row["n"] == 0]
    known = digest(content) if now or recorded else ""
    entry._served = ServedContent(known, bool(rows) and content not in first, commit)
    if not (now and tell) or (own and own[-1]["parts"] == content):
        return None
    before = own[-1]["parts"] if own else {}
    for name in content.keys() - before.keys():
        if name.startswith("-") and " " not in name and not _OUTPUT_OPTIONS.fullmatch(base_option(name)):
            tell(
                f"{entry.name}: launch.args: aif doesn't know whether {name} changes the text; it counts as if it did, "
                "so another value makes another model"
            )
    row = {
        "stage": stage, "identity": entry.declared_identity, "endpoint": entry.name,
        "n": rows[-1]["n"] + 1 if rows else 0, "declared": declared, "commit": commit, "parts": content,
    }  # fmt: skip
    record = records.text(digest(row), "model", row)
    return ModelChange(stage, entry, record, _describe_changes(before, content) if own else "")


def loads_other_files(endpoint: LaunchedEndpoint, cancelled: Event) -> bool:
    """Return whether a model's server may load other files than those that were identified when the run was planned.

    True also if they could not be identified then. Only local folders are read again, since a commit on the Hub never
    changes. Set `cancelled` in another thread to stop the reading.
    """
    served = endpoint.entry.served
    if served is None or (served.digest and not endpoint.is_folder):
        return False
    if not served.digest:
        return True
    now = _content(endpoint, {}, None, lambda line: None, cancelled)
    return now is not None and digest(now[0]) != served.digest


def _current_content(
    pipeline: Pipeline, stage: Stage, entry: Model | Judge, recorded: Any, tell: Callable[[str], None] | None
) -> tuple[dict[str, str], str] | None:
    """Return the content of a model or judge (digests by file, values by argument), and its commit on the Hub. None if
    its files aren't available or its settings can't work.

    `recorded` is the last record of the same model and arguments, or None. The Hub is asked only if `tell` is given.
    """
    try:
        (endpoint,) = launched_endpoints(pipeline, [(stage, entry.name)])
    except BadInput:  # reported when a server is to be started, which may never be
        return None
    if not endpoint.is_folder and not tell:  # without calls to come, the Hub isn't asked
        return None
    environ = server_environment(endpoint, ENVIRON, secret_variables(pipeline))
    return _content(endpoint, environ, recorded, tell or (lambda line: None), Event())


def _content(
    endpoint: LaunchedEndpoint, environ: Mapping[str, str], recorded: Any, tell: Callable[[str], None], cancelled: Event
) -> tuple[dict[str, str], str] | None:
    """Return the content that identifies a model (digests by file, values by argument), and its commit on the Hub. None
    if neither the Hub nor its cache has the model.

    environ: environment variables for the program that asks the Hub.
    recorded: the last record of the same model and arguments, or None. If the model's commit is still the recorded one,
        the recorded digests are used. The cache may have fewer files than the Hub lists.
    tell: prints a line for the user.
    cancelled: set it in another thread to stop the reading of files.

    The commit is empty for a local folder.
    """
    args, commit, digests = identity_arguments(endpoint.launch.args), "", dict[str, str]()
    named = [name for name, value in args.items() if os.path.isdir(value)]  # noqa: PTH112 - the value may be too long
    folders = {f"{name} ": args.pop(name) for name in named}
    if path := adapter_path(endpoint.entry):
        if os.path.isdir(os.path.expanduser(path)):  # noqa: PTH111, PTH112 - Path.expanduser raises for unknown users
            folders["adapter "] = os.path.expanduser(path)  # noqa: PTH111
        else:  # a name on the Hub
            args["adapter"] = path
    if endpoint.is_folder:
        folders[""] = endpoint.model
    elif listing := _hub_listing(endpoint, environ):
        commit = listing["commit"]
        if recorded and recorded["commit"] == commit:
            digests = {name: value for name, value in recorded["parts"].items() if not re.match("-|adapter ", name)}
        elif "files" in listing:
            digests = {name: listing["files"][name] for name in loaded_files(listing["files"], args)}
        else:
            folders[""] = listing["folder"]
    else:
        return None
    paths = {name: Path(value) for name, value in args.items() if os.path.isfile(value)}  # noqa: PTH113 - likewise
    for prefix, folder in folders.items():
        files = (path for pattern in ("*", f"{TEMPLATES}*") for path in Path(folder).glob(pattern))
        by_name = {path.relative_to(folder).as_posix(): path for path in files if path.is_file()}
        paths |= {prefix + name: by_name[name] for name in loaded_files(by_name, args)}
    return args | digests | file_digests(paths, endpoint.entry.name, tell, cancelled), commit


def _hub_listing(endpoint: LaunchedEndpoint, environ: Mapping[str, str]) -> Any:
    """Return the JSON object that `download.py --files` prints: `commit` and `files` (digest by name); or `commit` and
    `folder` if only the Hub's cache has the model. None if neither has it."""
    words = download_command(endpoint, "--files")
    result = subprocess.run(words, env=dict(environ), capture_output=True, check=False)  # noqa: S603
    return orjson.loads(result.stdout.rsplit(b"\n", 2)[-2]) if result.returncode == 0 else None


def identity_arguments(args: Iterable[str]) -> dict[str, str]:
    """Return the arguments that are part of a model's identity, values by name: all but those known not to affect its
    output.

    The value of an argument that aif doesn't know, which may be secret, is replaced by its digest. If an argument is
    repeated, its last value counts.
    """
    given = {
        name: _normalize_json(value)
        for name, value in parse_arguments(args).items()
        if not _RUNTIME_OPTIONS.fullmatch(base_option(name))
    }
    return {
        name: value if _OUTPUT_OPTIONS.fullmatch(base_option(name)) else digest(value) for name, value in given.items()
    }


def _normalize_json(value: str) -> str:
    """Return a JSON object or list with sorted keys and without spaces; any other value as it is."""
    try:
        return orjson.dumps(orjson.loads(value), option=orjson.OPT_SORT_KEYS).decode() if value[:1] in "{[" else value
    except orjson.JSONDecodeError:
        return value


def base_option(name: str) -> str:
    """Return an option's name without a leading `no-` and without a JSON key: `--hf-overrides` for
    `--hf-overrides.key`."""
    return name.partition(".")[0].replace("--no-", "--", 1)


def _describe_changes(before: Content, now: Content) -> str:
    """Return a text with the first three differences in order of name, each with its value before and now, and the
    number of further ones."""
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    changes = [f"{name} ({_shorten(name, before)} → {_shorten(name, now)})" for name in names[:3]]
    return ", ".join(changes) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shorten(name: str, content: Content) -> str:
    value = content.get(name)
    if value is None:
        return "none"
    return value[:8] if DIGEST.fullmatch(value) else repr(value[:40]) if value else "set"
