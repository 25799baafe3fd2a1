"""Prompts in: the rows of a file or a Hub dataset become `Prompt`s, one at a time, in their order.

The same prompt twice is the caller's to notice.
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
from aif.core.file_permissions import shared
from aif.core.redaction import redact
from aif.core.types import Prompt, digest
from aif.sources import data_files
from aif.sources.prompt_rows import Skipped, read_row


def read(source: Source, *, beside: Path | None) -> Iterator[Prompt | Skipped]:
    """The prompts of one entry of a pipeline's `prompts`, up to its `limit`, and what is left out.

    The limit counts prompts, not rows left out; rows of one prompt that follow each other, each with a completion,
    count once. `beside` is the folder where relative paths are looked for first. Raises BadInput, naming the row, where
    a row or the whole source can't be read.
    """
    rows = data_files.rows(_file(source.file, beside)) if source.file else _hub_rows(source, beside)
    taken, last = 0, None
    for where, row in rows:
        items = read_row(row, source, where)
        if isinstance(prompt := items[-1], Prompt) and prompt.prompt_id != last:
            if taken == source.limit:
                return
            taken, last = taken + 1, prompt.prompt_id
        yield from items
        if taken == source.limit and not source.completions:
            return


def fingerprint(source: Source, *, beside: Path | None) -> str:
    """64 hex digits that stay the same while the content of a source and how it is read do.

    A file or a local folder is hashed whole; a Hub dataset is asked for the commit of its revision. Raises BadInput
    where it can't be read or reached.
    """
    settings = source.model_dump(exclude={"file", "hub"})
    if source.file:
        return digest([settings, data_files.sha256(_file(source.file, beside))])
    name = source.hub or ""
    if folder := local_folder(name, beside):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder)))
        return digest([settings, [[path.relative_to(folder).as_posix(), data_files.sha256(path)] for path in files]])
    return digest([settings, name, _commit(name, source.revision)])


def _file(name: str, beside: Path | None) -> Path:
    path = resources.find(name, beside, "", "prompt file")
    if not path.is_file():
        raise BadInput(
            f"{path}: is a folder; file: takes a .jsonl, .parquet or .csv file, and hub: the folder of a dataset"
        )
    return path


# the Hub


def local_folder(name: str, beside: Path | None) -> Path | None:
    """A local folder of data files that goes by this name, which comes before a dataset of the Hub."""
    places = ([] if beside is None else [beside]) + [Path.cwd()]
    with _reachable(name):
        candidates = [place.absolute() / Path(name).expanduser() for place in places]
        found = next((one for is_it in (Path.is_dir, Path.is_file) for one in candidates if is_it(one)), None)
        if found is not None and not found.is_dir():
            raise BadInput(f"{found}: is a file; give it as file:, not as hub:")
        return found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _hub_rows(source: Source, beside: Path | None) -> Iterator[tuple[str, Any]]:
    name = source.hub or ""
    folder = local_folder(name, beside)
    called = f"{folder or name} {source.split}"
    # datasets takes a path with these for a pattern: of `x*` it read the folder `x1` as well, of `x[1]` nothing
    is_pattern = any(sign in str(folder) for sign in ("*", "?", "[", "::"))
    otherwise = "each of its files as file:" if folder else "a folder with its files as hub:"
    with ExitStack() as stack:
        with _reachable(called, otherwise):
            place = stack.enter_context(_linked(folder)) if folder and is_pattern else folder
            # as Arrow has them: no picture is decoded, and a date that Python can't hold ends nothing
            iterator = enumerate(_dataset(source, place, called).with_format("arrow"))
        while True:
            with _reachable(called, otherwise):
                item = next(iterator, None)
            if item is None:
                return
            yield f"{called} row {item[0]}", data_files.record(item[1])


@contextmanager
def _linked(folder: Path) -> Iterator[Path]:
    """A folder of links to its files: datasets would see through a link to the folder."""
    with TemporaryDirectory() as place:
        yield Path(copytree(folder, Path(place) / "data", copy_function=os.symlink))


def _dataset(source: Source, folder: Path | None, called: str) -> Any:
    import datasets  # takes a second or two

    if folder is None or not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        name = str(folder or source.hub)
        return datasets.load_dataset(
            name, name=source.config, split=source.split, revision=source.revision, streaming=True
        )
    saved = datasets.load_from_disk(str(folder))  # by `save_to_disk`
    splits = saved if isinstance(saved, dict) else {str(saved.split or source.split): saved}
    if source.split not in splits:
        raise BadInput(f"hub dataset {called}: no such split; it has {', '.join(splits)}: correct split:")
    return splits[source.split]


def _commit(name: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    with _reachable(name):
        return str(HfApi().dataset_info(name, revision=revision).sha)


def _token() -> str | None:
    """The token that the Hub was sent, so that no message holds it."""
    from huggingface_hub import get_token

    with suppress(Exception):  # a login that can't be read or renewed: then none was sent
        return get_token()
    return None


@contextmanager
def _reachable(called: str, otherwise: str = "a folder with its files as hub:") -> Iterator[None]:
    # what datasets, huggingface_hub, httpx2 and pyarrow raise for names, networks, rights and broken files has no
    # common base; their words go on in ours
    try:
        with shared():
            yield
    except BadInput:
        raise
    except Exception as error:
        said = redact(" ".join(str(error).split()), _token() or "")[:300]
        mend = f"check hub:, config:, split: and revision:, the network and HF_TOKEN, or give {otherwise}"
        if isinstance(error, OSError) and str(error.filename).startswith(_cache()):
            mend = "its cache is there: set HF_HOME to a folder that can be written to"
        raise BadInput(f"hub dataset {called}: can't be read: {said}; {mend}") from error


def _cache() -> str:
    from huggingface_hub.constants import HF_HOME

    return HF_HOME
