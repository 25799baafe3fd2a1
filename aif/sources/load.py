"""Read a source (a file or a Hub dataset) as `Prompt`s, row by row, in order.

Repeated prompts are yielded each time; the caller removes duplicates.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

from aif.config.sections import Source
from aif.core import resources
from aif.core.errors import BadInput
from aif.core.file_permissions import user_umask
from aif.core.redaction import redact
from aif.core.types import Prompt, digest
from aif.sources import data_files
from aif.sources.prompt_rows import Skipped, read_row


def read_prompts(source: Source, *, base: Path | None) -> Iterator[Prompt | Skipped]:
    """Yield the prompts of a source up to its `limit`, and a `Skipped` for each row or completion that is left out.

    - The limit counts prompts, not skipped rows.
    - Consecutive rows with the same prompt, each with another completion, count as one prompt.

    `base` is the folder where relative paths are searched first. Raises BadInput with the row's place if a row or the
    source can't be read.
    """
    rows = data_files.read_rows(_file(source.file, base)) if source.file else _hub_rows(source, base)
    count, last = 0, None
    for where, row in rows:
        items = read_row(row, source, where)
        if isinstance(prompt := items[-1], Prompt) and prompt.prompt_id != last:
            if count == source.limit:
                return
            count, last = count + 1, prompt.prompt_id
        yield from items
        if count == source.limit and not source.completions:
            return


def source_fingerprint(source: Source, *, base: Path | None) -> str:
    """Return a digest (64 hex digits) that changes when the content of a source or the settings for reading it change.

    Files and local folders are hashed as a whole; for a Hub dataset the commit of its revision counts. Raises BadInput
    if the source can't be read or reached.
    """
    settings = source.model_dump(exclude={"file", "hub"})
    if source.file:
        return digest([settings, data_files.file_sha256(_file(source.file, base))])
    name = source.hub or ""
    if folder := local_folder(name, base):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder)))
        return digest(
            [settings, [[path.relative_to(folder).as_posix(), data_files.file_sha256(path)] for path in files]]
        )
    return digest([settings, name, _commit(name, source.revision)])


def _file(name: str, base: Path | None) -> Path:
    path = resources.find_resource(name, base, "", "prompt file")
    if not path.is_file():
        raise BadInput(
            f"{path}: is a folder; file: takes a .jsonl, .parquet or .csv file, and hub: the folder of a dataset"
        )
    return path


# the Hub


def local_folder(name: str, base: Path | None) -> Path | None:
    """Return the local folder of this name, searched in `base` and then in the working directory; None if there is
    none, so that the name is a dataset on the Hub. Raises BadInput if it is the name of a file."""
    places = ([] if base is None else [base]) + [Path.cwd()]
    with _hub_errors(name):
        candidates = [place.absolute() / Path(name).expanduser() for place in places]
        path = next((path for is_kind in (Path.is_dir, Path.is_file) for path in candidates if is_kind(path)), None)
        if path is not None and not path.is_dir():
            raise BadInput(f"{path}: is a file; give it as file:, not as hub:")
        return path


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _hub_rows(source: Source, base: Path | None) -> Iterator[tuple[str, Any]]:
    name = source.hub or ""
    folder = local_folder(name, base)
    label = f"{folder or name} {source.split}"
    # datasets treats a path with these as a pattern: for `x*` it also reads the folder `x1`, for `x[1]` nothing
    is_pattern = any(sign in str(folder) for sign in ("*", "?", "[", "::"))
    alternative = "each of its files as file:" if folder else "a folder with its files as hub:"
    with ExitStack() as stack:
        with _hub_errors(label, alternative):
            path = stack.enter_context(_folder_of_links(folder)) if folder and is_pattern else folder
            # as Arrow tables: no image is decoded, and a date that Python can't represent raises nothing
            iterator = enumerate(_dataset(source, path, label).with_format("arrow"))
        while True:
            with _hub_errors(label, alternative):
                item = next(iterator, None)
            if item is None:
                return
            yield f"{label} row {item[0]}", data_files.arrow_row(item[1])


@contextmanager
def _folder_of_links(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder of links to the files in `folder`, for a folder whose name `datasets` would take for a
    pattern. (A link to the folder itself would not help: `datasets` resolves it.)"""
    with TemporaryDirectory() as parent:
        yield Path(copytree(folder, Path(parent) / "data", copy_function=os.symlink))


def _dataset(source: Source, folder: Path | None, label: str) -> Any:
    import datasets  # takes a second or two

    if folder is None or not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        name = str(folder or source.hub)
        return datasets.load_dataset(
            name, name=source.config, split=source.split, revision=source.revision, streaming=True
        )
    saved = datasets.load_from_disk(str(folder))  # by `save_to_disk`
    splits = saved if isinstance(saved, dict) else {str(saved.split or source.split): saved}
    if source.split not in splits:
        raise BadInput(f"hub dataset {label}: no such split; it has {', '.join(splits)}: correct split:")
    return splits[source.split]


def _commit(name: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    with _hub_errors(name):
        return str(HfApi().dataset_info(name, revision=revision).sha)


def _token() -> str | None:
    """Return the token that is sent to the Hub, so that it can be removed from messages."""
    from huggingface_hub import get_token

    with suppress(Exception):  # the login can't be read or renewed: then no token was sent
        return get_token()
    return None


@contextmanager
def _hub_errors(label: str, alternative: str = "a folder with its files as hub:") -> Iterator[None]:
    """Turn every error raised inside this context into BadInput that names the dataset `label` and advises to give
    `alternative` in its place.

    The errors that datasets, huggingface_hub, httpx2 and pyarrow raise for names, networks, permissions and broken
    files have no common base class.
    """
    try:
        with user_umask():
            yield
    except BadInput:
        raise
    except Exception as error:
        reason = redact(" ".join(str(error).split()), _token() or "")[:300]
        fix = f"check hub:, config:, split: and revision:, the network and HF_TOKEN, or give {alternative}"
        if isinstance(error, OSError) and str(error.filename).startswith(_cache()):
            fix = "the Hub's cache is there: set HF_HOME to a folder that you may write to"
        raise BadInput(f"hub dataset {label}: can't be read: {reason}; {fix}") from error


def _cache() -> str:
    from huggingface_hub.constants import HF_HOME

    return HF_HOME
