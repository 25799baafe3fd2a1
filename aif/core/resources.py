"""Find files: those that aif ships (prompts/, pipelines/, data/) and those that a pipeline file names.

In a checkout the three folders are beside the package; in an installed wheel they are in `aif/_resources/`.
"""

import re
from pathlib import Path

from aif.core.errors import BadInput

FOLDERS = ("prompts", "pipelines", "data")

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(*parts: str) -> Path:
    """Return the path of something that aif ships, such as `shipped("prompts", "rubrics")`. It need not exist."""
    inside = _PACKAGE / "_resources"
    return (inside if inside.is_dir() else _PACKAGE.parent).joinpath(*parts)


def is_shipped(name: str, path: Path) -> bool:
    """Return whether aif ships the file at `path`, which `find_resource` found for `name`. In a checkout, a file found
    relative to the working directory is the user's; a file found only relative to the checkout's root is shipped."""
    by_name = not Path(name).is_absolute() and path == shipped() / name and path != Path.cwd() / name
    return by_name or path.is_relative_to(_PACKAGE / "_resources")


def find_resource(name: str, base: Path | None, shipped_under: str | None, kind: str) -> Path:
    """Return the file or folder that a pipeline file means by `name`. Raises BadInput with every searched path.

    A name of letters, digits, `_` and `-` alone is first looked up in the folder `shipped_under`. Any other relative
    name, or a name that is not there, is searched in `base`, in the working directory, and in `shipped_under`.

    base: the pipeline file's folder; None to skip it.
    shipped_under: a folder that aif ships, such as "prompts/rubrics". None: no shipped folder is searched. "": a name
        that begins with a shipped folder ("prompts/…") is searched among the shipped files.
    kind: what the name stands for in error messages, such as "rubric".
    """
    if not name or "\0" in name:
        raise BadInput(f"{kind}: {name!r} is no path; give the name of a file or folder")
    if (
        shipped_under
        and re.fullmatch(r"[\w-]+", name)
        and (by_name := shipped(*Path(shipped_under).parts) / name).exists()
    ):
        return by_name  # a folder of the user's with the same name is `./NAME`
    candidates = _candidates(name, base, shipped_under, kind)
    for path in candidates:
        if _exists(path, kind):
            return path
    searched = ", ".join(map(str, candidates))
    raise BadInput(
        f"{kind} {name!r} not found; searched {searched}; correct the path or move the file to one of these places"
    )


def _candidates(name: str, base: Path | None, shipped_under: str | None, kind: str) -> list[Path]:
    path = expand_home(name, kind) if name.startswith("~") else Path(name)
    if path.is_absolute():
        return [path]
    candidates = [] if base is None else [base.absolute() / path]
    candidates.append(Path.cwd() / path)
    if shipped_under:
        candidates.append(shipped(*Path(shipped_under).parts) / path)
    elif shipped_under == "" and path.parts[:1] and path.parts[0] in FOLDERS:
        candidates.append(shipped() / path)
    return list(dict.fromkeys(candidates))


def expand_home(name: str, kind: str) -> Path:
    """Return the path with `~` or `~user` replaced by the home folder. Raises BadInput if there is no such folder;
    `kind` begins the message."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{kind}: {name!r}: no such home folder; write the path in full") from error


def _exists(path: Path, kind: str) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise BadInput(
            f"{kind}: {path} can't be accessed: {error.strerror}; correct the path or its permissions"
        ) from error
