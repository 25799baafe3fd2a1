"""`aif rebuild` and `aif reparse`: rebuild the store from the journal and report which ratings changed."""

from aif.cli.common import File, Sets, load_unlocked
from aif.cli.console import out, print_message


def rebuild(pipeline: File, sets: Sets = None) -> None:
    """Rebuild the store from the journal. The old store is deleted once the new one has all that it held."""
    _rebuild(pipeline, sets, "rebuilt the store from {} stored calls")


def reparse(pipeline: File, sets: Sets = None) -> None:
    """Re-parse all stored judge replies with the current parser. Calls no model."""
    _rebuild(pipeline, sets, "re-parsed {} stored calls with the current parser")


def _rebuild(file: File, sets: Sets, done: str) -> None:
    pipeline = load_unlocked(file, sets)
    from aif.cli.views.rebuild import print_rebuilt
    from aif.engine.rebuild import rebuild

    print_rebuilt(out, rebuild(pipeline, print_message), done)
