"""Prompts in: the rows of a file or a Hub dataset become `Prompt`s, one at a time, in their order.

The same prompt twice is the caller's to notice.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aif import datafiles, resources
from aif.chat.redaction import redact
from aif.entries import Source
from aif.errors import BadInput
from aif.prompt_row import Skipped, read_row
from aif.records import Prompt, digest


def read(source: Source, *, beside: Path | None) -> Iterator[Prompt | Skipped]:
    """The prompts of one entry of a pipeline's `prompts`, up to its `limit`, and what is left out.

    The limit counts prompts, not rows left out; rows of one prompt that follow each other, each with a completion,
    count once. `beside` is the folder where relative paths are looked for first. Raises BadInput, naming the row, where
    a row or the whole source can't be read.
    """
    rows = datafiles.rows(_file(source.file, beside)) if source.file else _hub_rows(source, beside)
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
        return digest([settings, datafiles.sha256(_file(source.file, beside))])
    name = source.hub or ""
    if folder := _folder(name, beside):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder)))
        return digest([settings, [[path.relative_to(folder).as_posix(), datafiles.sha256(path)] for path in files]])
    return digest([settings, name, _commit(name, source.revision)])


def _file(name: str, beside: Path | None) -> Path:
    path = resources.find(name, beside, "", "prompt file")
    if not path.is_file():
        raise BadInput(
            f"{path}: is a folder; file: takes a .jsonl, .parquet or .csv file, and hub: the folder of a dataset"
        )
    return path


# the Hub


def _folder(name: str, beside: Path | None) -> Path | None:
    """A local folder of data files that goes by this name, which comes before a dataset of the Hub."""
    places = ([] if beside is None else [beside]) + [Path.cwd()]
    with _reachable(name):
        candidates = [place.absolute() / Path(name).expanduser() for place in places]
        return next((folder for folder in candidates if folder.is_dir()), None)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _hub_rows(source: Source, beside: Path | None) -> Iterator[tuple[str, Any]]:
    import datasets  # takes a second or two

    name = source.hub or ""
    folder = _folder(name, beside)
    called = f"{folder or name} {source.split}"
    with _reachable(called):
        rows = datasets.load_dataset(
            str(folder or name), name=source.config, split=source.split, revision=source.revision, streaming=True
        )
        iterator = enumerate(rows)
    while True:
        with _reachable(called):
            item = next(iterator, None)
        if item is None:
            return
        yield f"{called} row {item[0]}", item[1]


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
def _reachable(called: str) -> Iterator[None]:
    # what datasets, huggingface_hub, httpx2 and pyarrow raise for names, networks, rights and broken files has no
    # common base; their words go on in ours
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        said = redact(" ".join(str(error).split()), _token() or "")[:300]
        raise BadInput(
            f"hub dataset {called}: can't be read: {said}; check hub:, config:, split: and revision:, the network and "
            "HF_TOKEN, or give a folder with its files as hub:"
        ) from error
