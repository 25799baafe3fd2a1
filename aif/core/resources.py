"""Where files are found: what aif ships (prompts/, pipelines/, data/) and what a pipeline file names.

In a checkout the three folders stand beside the package; an installed wheel carries them in `aif/_resources/`.
"""

import re
from pathlib import Path

from aif.core.errors import BadInput

FOLDERS = ("prompts", "pipelines", "data")

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(*parts: str) -> Path:
    """The path of something aif ships, such as `shipped("prompts", "rubrics")`. It need not exist."""
    inside = _PACKAGE / "_resources"
    return (inside if inside.is_dir() else _PACKAGE.parent).joinpath(*parts)


def is_shipped(name: str, found: Path) -> bool:
    """Whether `find` had a name from what aif ships, and not from a folder of the caller's. In a checkout these folders
    are the caller's as well: there it goes by the name."""
    by_name = not Path(name).is_absolute() and found == shipped() / name and found != Path.cwd() / name
    return by_name or found.is_relative_to(_PACKAGE / "_resources")


def find(name: str, beside: Path | None, shipped_under: str | None, what: str) -> Path:
    """The file or folder a pipeline file means by `name`.

    A bare name is what aif ships under `shipped_under` ("prompts/rubrics"), where it ships one. Any other relative name
    is looked for in `beside` (the pipeline file's folder), then in the working directory, then in what aif ships: under
    `shipped_under`, under any of its folders when that is "" (`name` then begins with one), nowhere when None. `what`
    says in the error what was wanted. Raises BadInput, naming every place looked in.
    """
    if not name or "\0" in name:
        raise BadInput(f"{what}: {name!r} is no path; give the name of a file or folder")
    if (
        shipped_under
        and re.fullmatch(r"[\w-]+", name)
        and (named := shipped(*Path(shipped_under).parts) / name).exists()
    ):
        return named  # a folder of the caller's that happens to be called so is `./NAME`
    places = _places(name, beside, shipped_under, what)
    for place in places:
        if _exists(place, what):
            return place
    looked = ", ".join(map(str, places))
    raise BadInput(f"{what} {name!r} not found; looked for {looked}; correct the path or put it in one of these places")


def _places(name: str, beside: Path | None, shipped_under: str | None, what: str) -> list[Path]:
    path = at_home(name, what) if name.startswith("~") else Path(name)
    if path.is_absolute():
        return [path]
    places = [] if beside is None else [beside.absolute() / path]
    places.append(Path.cwd() / path)
    if shipped_under:
        places.append(shipped(*Path(shipped_under).parts) / path)
    elif shipped_under == "" and path.parts[:1] and path.parts[0] in FOLDERS:
        places.append(shipped() / path)
    return list(dict.fromkeys(places))


def at_home(name: str, what: str) -> Path:
    """A path, where `~` is somebody's home folder. Raises BadInput where it is nobody's."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{what}: {name!r} names nobody's home folder; write the path in full") from error


def _exists(place: Path, what: str) -> bool:
    try:
        return place.exists()
    except OSError as error:
        raise BadInput(
            f"{what}: {place} can't be looked at: {error.strerror}; correct the path or its rights"
        ) from error
