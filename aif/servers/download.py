"""Download a model's files from the Hub into the cache, before its server starts. Run as a program:

    python -P download.py [--check | --files] MODEL REVISION

- REVISION may be empty, for the default revision.
- `--check` only tries to download the model's configuration.
- `--files` prints the commit and the files' digests as JSON.

Other lines of output are for the user: what is downloaded. If the program fails, the last line says why, and the exit
code is 1, else 0.

It is a program of its own for two reasons. It gets the server's environment (HF_TOKEN, HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE). And it can be killed at any moment; the next download continues with the files that are there.
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
DUPLICATES = ["*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx"]  # of *.safetensors, if the repository has any


def download(model: str, revision: str | None) -> None:
    """Download the files that vLLM reads into the Hub's cache. Raises huggingface_hub's errors and OSError."""
    skipped = [*COPIES, *DUPLICATES]
    try:
        files = snapshot_download(model, revision=revision, dry_run=True)
    except DryRunError:  # the Hub can't be reached: use what is in the cache
        snapshot_download(model, revision=revision, ignore_patterns=skipped)
        return
    assert isinstance(files, list)
    if not any(file.filename.endswith(".safetensors") for file in files):
        skipped = COPIES
    wanted = snapshot_download(model, revision=revision, ignore_patterns=skipped, dry_run=True)
    assert isinstance(wanted, list)
    if size := sum(file.file_size or 0 for file in wanted if file.will_download):
        _print(f"downloading {model}, {size / 1e9:.1f} GB")
    snapshot_download(model, revision=revision, ignore_patterns=skipped)


def check_access(model: str, revision: str | None) -> None:
    """Check that the model can be downloaded, by downloading its smallest file, the configuration. Raises
    huggingface_hub's errors and OSError if not."""
    try:
        hf_hub_download(model, "config.json", revision=revision)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:  # the repository was reached; its configuration is in another file
        pass


def print_files(model: str, revision: str | None) -> None:
    """Print a JSON object: the model's `commit` and its `files` on the Hub, with the digest of each. If the Hub can't
    be reached: the `commit` and the `folder` of the copy in the Hub's cache.

    A digest is sha256 for files in LFS and git's blob id for others, as in the cache's file names. Raises
    huggingface_hub's errors and OSError if the model is in neither.
    """
    # a dry run would do, but it makes the cache point to the newest commit, which is missing there when offline
    try:
        commit = HfApi().model_info(model, revision=revision or "main").sha
        rows = HfApi().list_repo_tree(model, revision=commit, recursive=True)
        digests = {row.path: row.lfs.sha256 if row.lfs else row.blob_id for row in rows if isinstance(row, RepoFile)}
        _print(json.dumps({"commit": commit, "files": digests}))
    except Exception:  # whatever it is, try the cache; if that fails, its error is reported
        skipped = [*COPIES, *DUPLICATES]
        folder = snapshot_download(model, revision=revision, ignore_patterns=skipped, local_files_only=True)
        _print(json.dumps({"commit": Path(folder).name, "folder": folder}))


def explain(error: Exception, model: str, revision: str | None) -> str:
    """Return one line that says why the model's files are not available and, where it is known, how to fix it."""
    match error:
        case GatedRepoError():
            return (
                f"{model} is gated: accept its licence at https://huggingface.co/{model}, and set HF_TOKEN to a token "
                "of that account"
            )
        case RevisionNotFoundError():
            return f"{model} has no revision {revision!r} on the Hub"
        case RepositoryNotFoundError() | HFValidationError():
            return (
                f"{model} is neither a folder here nor a model on the Hub that this token can see; check launch.model "
                "and HF_TOKEN"
            )
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            return (
                f"{model} is not complete in the Hub's cache, and the Hub can't be reached; check HF_HUB_OFFLINE and "
                "the network"
            )
        case HfHubHTTPError():
            return f"{model}: the Hub answers {str(error).splitlines()[0]}"
    return f"{model}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the output of this program


def main(words: list[str]) -> int:
    """Run the program with these command-line arguments and return its exit code."""
    action = {"--check": check_access, "--files": print_files}.get(words[0], download)
    model, revision = words[-2], words[-1] or None
    try:
        action(model, revision)
    except Exception as error:  # whatever it is, report it: aif sees nothing but this line
        _print(explain(error, model, revision).replace(get_token() or "\0", "[token]"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
