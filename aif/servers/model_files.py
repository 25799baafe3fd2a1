"""Digests of the files that a launched server loads.

Digests are cached, so that an unchanged file isn't read again. The cache is `aif/files.json` in the user's cache
folder. If the cache is lost or damaged, all files are read again.
"""

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatch
from itertools import repeat
from pathlib import Path
from threading import Event
from typing import Any

import orjson

from aif.core.environment import ENVIRON
from aif.core.errors import BadInput

TEMPLATES = "additional_chat_templates/"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
# vLLM loads other weights only if there are no *.safetensors, and never a trainer's own state
_TRAINER_STATE = ("training_args.*", "optimizer*", "scheduler*", "scaler*")
_CONFIG_AND_TOKENIZER = (
    "config*.json", "generation_config.json", "*processor_config.json", "*quant*_config.json", "adapter_config.json",
    "params.json", "*.index.json", "tokenizer*", "tekken.json", "special_tokens_map.json", "added_tokens.json",
    "vocab*", "merges.txt", "*.model", "*.tiktoken", "*.jinja", "chat_template*", f"{TEMPLATES}*",
)  # fmt: skip

DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's blob id or sha256
_BLOCK = 2**22  # bytes
_SLOW = 2 * 10**9  # bytes: reading more than this is announced, since it takes 3 s or more on two cores
_SETTLED_S = 2.0  # a file younger than this may still change within the same timestamp, so it isn't cached


def loaded_files(names: Collection[str], args: Collection[str]) -> list[str]:
    """Return the files that vLLM loads when it is started with the options `args`, sorted by name. `names` are the
    files to choose from, as paths in the model's folder."""

    def match(*patterns: str) -> list[str]:
        return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]

    top = {name for name in names if "/" not in name}
    weights = top & ({*match(*_WEIGHTS)} - {*match(*_TRAINER_STATE)})
    safetensors = weights & {*match("*.safetensors")}
    code = top & {*match("*.py")} if "--trust-remote-code" in args else set()
    others = {name for name in match(*_CONFIG_AND_TOKENIZER) if name in top or name.startswith(TEMPLATES)}
    return sorted((safetensors if safetensors and "--load-format" not in args else weights) | others | code)


def file_digests(
    paths: Mapping[str, Path], model: str, tell: Callable[[str], None], cancelled: Event
) -> dict[str, str]:
    """Return the digest of each file, by the keys of `paths`. A file that hasn't changed since an earlier call isn't
    read again.

    model: name of the model, for messages.
    tell: prints a line for the user.
    cancelled: set it in another thread to stop the reading.

    A digest is a file's sha256 or, if it is in the Hub's cache, its name there. Raises BadInput if stopped, or if a
    file can't be read.
    """
    try:
        resolved = {key: path.resolve() for key, path in paths.items()}
        stamps = {path: _stamp(path) for path in resolved.values() if not _is_hub_blob(path)}
        cached = _read_cache()
        new = [path for path, stamp in stamps.items() if cached.get(str(path), [])[:-1] != stamp]
        if (size := sum(stamps[path][0] for path in new)) > _SLOW:
            tell(f"{model}: reading {size / 1e9:.1f} GB of files, to identify the model by their content")
        read = dict(zip(new, _read_all(new, cancelled), strict=True))
        settled = {
            str(path): [*stamps[path], sha256]
            for path, sha256 in read.items()
            if _stamp(path) == stamps[path] and time.time() - stamps[path][2] / 1e9 > _SETTLED_S
        }
    except OSError as error:
        raise BadInput(f"{model}: {error.filename}: can't be read: {error.strerror}; fix that") from error
    if settled:
        _write_cache(settled)
    digests = {path: cached[str(path)][-1] for path in stamps if path not in read} | read
    return {key: digests.get(path) or path.name for key, path in resolved.items()}


def _is_hub_blob(path: Path) -> bool:
    """Return whether a file is in the Hub's cache. Its name is then its digest, so it need not be read."""
    return (
        path.parent.name == "blobs" and (path.parents[1] / "snapshots").is_dir() and bool(DIGEST.fullmatch(path.name))
    )


def _stamp(path: Path) -> list[int]:
    """Return a file's size, mtime and ctime (times in ns). As long as they are the same, its content is taken as
    unchanged.

    Checkpoints of one model have the same size, and copies may have the same mtime; the ctime can't be set.
    """
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read_all(paths: Sequence[Path], cancelled: Event) -> list[str]:
    """Return the sha256 of each file, in the order of `paths`; files are read in parallel. Raises OSError if
    `cancelled` is set, or a file can't be read. Ctrl-C stops the threads."""
    with ThreadPoolExecutor() as pool:
        try:
            return list(pool.map(_sha256, paths, repeat(cancelled)))
        finally:
            cancelled.set()


def _sha256(path: Path, cancelled: Event) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
            if cancelled.is_set():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED), str(path))
    return sha256.hexdigest()


def _cache_file() -> Path:
    folder = ENVIRON.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - raises without a home
    return Path(folder, "aif", "files.json")


def _read_cache() -> dict[str, list[Any]]:
    """Return the cached rows by path: the file's size, mtime and ctime, then its sha256. Empty if the cache is missing
    or damaged."""
    try:
        content = orjson.loads(_cache_file().read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    rows = content.items() if isinstance(content, dict) else ()
    return {path: row for path, row in rows if isinstance(row, list) and len(row) == 4 and isinstance(row[3], str)}


def _write_cache(new: Mapping[str, list[Any]]) -> None:
    """Add rows (a file's size, mtime, ctime and sha256, by path) to the cache, and remove those of deleted files. Does
    nothing if the cache can't be written.

    If two processes write at the same time, the rows of one may be lost; their files are then read again.
    """
    if not (file := _cache_file()).is_absolute():
        return
    rows = {path: row for path, row in _read_cache().items() if os.path.exists(path)} | dict(new)  # noqa: PTH110 - may be forbidden
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f"{file.name}.{os.getpid()}")
        aside.write_bytes(orjson.dumps(rows))
        aside.rename(file)
