"""The files of a model on the Hub, brought into the cache before a server is started.

`python -P download.py MODEL REVISION`; no revision is an empty word.

A process of its own, so that it has the server's environment (HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE), and can
be ended at any moment; the next one goes on with what is there. What it prints is for a person: what is downloaded,
or in the last line why the files can't be had. Exit code 0 or 1.

`--check` before MODEL asks for the model's configuration alone; `--files` for its commit and its files' digests, and
prints them as JSON.
"""

import json
import sys
from pathlib import Path

from huggingface_hub import HfApi, get_token, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

COPIES = ["original/*", "*.gguf"]
DUPLICATES = ["*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx"]  # of *.safetensors, where these are there


def fetch(model: str, revision: str | None) -> None:
    """Brings what vLLM reads of a repository into the cache. Raises the Hub's errors and OSError."""
    skipped = [*COPIES, *DUPLICATES]
    try:
        files = snapshot_download(model, revision=revision, dry_run=True)
    except DryRunError:  # the Hub can't be asked, or won't answer: what is in the cache has to do
        snapshot_download(model, revision=revision, ignore_patterns=skipped)
        return
    assert isinstance(files, list)
    if not any(file.filename.endswith(".safetensors") for file in files):
        skipped = COPIES
    wanted = snapshot_download(model, revision=revision, ignore_patterns=skipped, dry_run=True)
    assert isinstance(wanted, list)
    if size := sum(file.file_size or 0 for file in wanted if file.will_download):
        say(f"downloading {model}, {size / 1e9:.1f} GB")
    snapshot_download(model, revision=revision, ignore_patterns=skipped)


def check(model: str, revision: str | None) -> None:
    """Whether the files can be had, by the smallest of them. Raises the Hub's errors and OSError."""
    try:
        hf_hub_download(model, "config.json", revision=revision)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:  # the repository was reached, and keeps its configuration elsewhere
        pass


def files(model: str, revision: str | None) -> None:
    """Tells the commit and each file's digest: sha256, or git's of what is not in LFS, as the cache names blobs. Of a
    Hub that can't be asked, the folder that is in the cache. Raises the Hub's errors and OSError.

    Not by a dry run: it has the cache name the newest commit, which is not there, and who is offline then has none.
    """
    try:
        commit = HfApi().model_info(model, revision=revision or "main").sha
        rows = HfApi().list_repo_tree(model, revision=commit, recursive=True)
        found = {row.path: row.lfs.sha256 if row.lfs else row.blob_id for row in rows if isinstance(row, RepoFile)}
        say(json.dumps({"commit": commit, "files": found}))
    except Exception:  # whatever it is: what is in the cache has to do, and else its error is the one to tell
        skipped = [*COPIES, *DUPLICATES]
        folder = snapshot_download(model, revision=revision, ignore_patterns=skipped, local_files_only=True)
        say(json.dumps({"commit": Path(folder).name, "folder": folder}))


def reason(error: Exception, model: str, revision: str | None) -> str:
    """Why the files can't be had, and the mend."""
    match error:
        case GatedRepoError():
            return (
                f"{model} is gated: accept its licence at https://huggingface.co/{model}, and set HF_TOKEN to a token "
                "of that account"
            )
        case RevisionNotFoundError():
            return f"{model} has no revision {revision!r} on the Hub"
        case RepositoryNotFoundError() | HFValidationError():
            return f"{model} is no folder here and no model on the Hub, or a private one: see launch.model and HF_TOKEN"
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            return f"{model} is not whole in the Hub's cache, and the Hub can't be asked: HF_HUB_OFFLINE, the network?"
        case HfHubHTTPError():
            return f"{model}: the Hub answers {str(error).splitlines()[0]}"
    return f"{model}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def say(words: str) -> None:
    print(words, flush=True)  # noqa: T201 - what this process is asked for


def main(words: list[str]) -> int:
    does = {"--check": check, "--files": files}.get(words[0], fetch)
    model, revision = words[-2], words[-1] or None
    try:
        does(model, revision)
    except Exception as error:  # whatever it is, it is told: the line is all that aif sees of this process
        say(reason(error, model, revision).replace(get_token() or "\0", "[token]"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
