"""The files that belong to a store, and a check for a store where earlier versions put it."""

import re
import shlex
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from aif.core.errors import BadInput, StoreLocked
from aif.store.lock import busy_message, folder_error, holder_text, is_held


@dataclass(frozen=True, slots=True)
class StorePaths:
    """The paths of a store's files, which are all in the store's folder."""

    store: Path

    @property
    def journal(self) -> Path:
        """The folder of the journal's segments."""
        return self.store.with_suffix(".journal")

    @property
    def any(self) -> bool:
        """Whether there is a store, a journal to rebuild it from, or a store that was set aside."""
        aside = f"{escape(self.store.name)}.aside*"
        return self.store.exists() or self.journal.exists() or any(self.store.parent.glob(aside))

    @property
    def lock(self) -> Path:
        """The file that the writing process locks."""
        return self.store.with_suffix(".lock")

    @property
    def progress(self) -> Path:
        """The running command's progress, as JSON."""
        return self.store.with_suffix(".progress.json")

    @property
    def logs(self) -> Path:
        """The folder of logs of the servers that aif starts."""
        return self.store.with_suffix(".logs")


def check_old_location(store: Path, named: Path) -> None:
    """Raise BadInput if there is no store at `store` but one where earlier versions put it. The message has the command
    that moves the old store. If that store were overlooked, everything would be paid for again.

    `named` is the path in the pipeline file. If it is relative, `store` is that path from the pipeline file's folder;
    earlier versions took it from the working directory. Raises StoreLocked if a process writes to the old store.
    """
    old = StorePaths(Path.cwd() / named)
    try:
        if StorePaths(store).any or named.is_absolute() or not old.any:
            return
    except OSError as error:
        raise folder_error(store.parent, error, "read") from error
    if is_held(old.lock):
        raise StoreLocked(busy_message(old.store, holder_text(old.lock)))
    raise BadInput(_how_to_move(old, store.absolute()))


def _how_to_move(old: StorePaths, store: Path) -> str:
    """Return a message with the commands that move a store's files to `store`. The commands overwrite no file."""
    to = shlex.quote(str(store.parent))
    return (
        f"{store}: no store here yet, but there is one at {old.store}. A relative `store` is now relative to the "
        f"pipeline file, not to the working directory. To keep what was paid for, move it:\n"
        f"  mkdir -p {to} && mv -n {' '.join(shlex.quote(str(path)) for path in _files(old))} {to}/\n"
        f"or, if it belongs to another pipeline, start a new store once with\n"
        f"  --set {shlex.quote(f'store={store}')}"
    )


def _files(paths: StorePaths) -> list[Path]:
    """Return the store's existing files, with the dataset exported beside it."""
    folder, store = paths.store.parent, paths.store.name
    own = re.compile(re.escape(store) + r"(\.wal|\.(aside|unreadable).*)?", re.DOTALL)
    files = [path for path in folder.iterdir() if own.fullmatch(path.name)]
    files += filter(Path.exists, (paths.journal, paths.lock, paths.logs, paths.progress))
    return sorted(files) + [path.parent for path in [folder / "dataset" / "run.json"] if path.exists()]
