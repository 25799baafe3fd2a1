"""Read datasets on the Hugging Face Hub, with a client whose errors become one-line messages.

The environment variable HF_ENDPOINT may name another Hub. The token comes from HF_TOKEN or `hf auth login`; it is
removed from all messages.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.constants import ENDPOINT as ENDPOINT
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from aif import __version__
from aif.core.errors import AifError, BadInput, ProviderRefused
from aif.core.file_permissions import user_umask
from aif.core.redaction import redact

TIMEOUT_S = 30.0  # for a dataset's metadata; huggingface_hub by itself would wait forever

RERUN = "run the same command again: it compares again, and resumes"


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset on the Hub.

    head: hash of its newest commit.
    public: whether everyone can see it.
    files: its files by path.
    """

    head: str
    public: bool
    files: Mapping[str, RepoFile]


def find_dataset(api: HfApi, repo: str) -> HubDataset | None:
    """Return the dataset `repo`; None if it doesn't exist or the token may not see it."""
    try:
        info = api.dataset_info(repo, timeout=TIMEOUT_S)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:  # the token is invalid, which says nothing about the dataset
            raise
        return None
    assert info.sha is not None
    tree = api.list_repo_tree(repo, repo_type="dataset", revision=info.sha, recursive=True)
    return HubDataset(info.sha, not info.private, {file.path: file for file in tree if isinstance(file, RepoFile)})


def download_file(api: HfApi, repo: str, dataset: HubDataset, path: str) -> bytes:
    """Return the content of the file `path` of the dataset, at the commit `dataset.head`. For small files."""
    return Path(api.hf_hub_download(repo, path, repo_type="dataset", revision=dataset.head)).read_bytes()


def has_same_content(local: Path | bytes, remote: RepoFile) -> bool:
    """Return whether a local file, given by path or content, equals one on the Hub, by size and digest. Downloads
    nothing."""
    if (len(local) if isinstance(local, bytes) else local.stat().st_size) != remote.size:
        return False
    if remote.lfs is not None:
        sha256 = hashlib.sha256(local).hexdigest() if isinstance(local, bytes) else file_sha256(local)
        return sha256 == remote.lfs.sha256
    return git_hash(local if isinstance(local, bytes) else local.read_bytes()) == remote.blob_id


def file_sha256(path: Path) -> str:
    """Return a file's sha256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def hub_client(repo: str) -> Iterator[HfApi]:
    """Yield the Hub's client, with the user's token.

    Raises BadInput if there is no token, or `repo` isn't ORG/NAME. An error in the block is raised as ProviderRefused
    if the Hub answers 401 or 403, else as BadInput; aif's own errors stay as they are.
    """
    if repo.count("/") != 1:
        raise BadInput(f"--repo {repo}: expected ORG/NAME, such as my-team/my-pairs")
    try:
        token = get_token()
    except Exception as error:  # a login that can't be renewed, a file that can't be read
        raise BadInput(f"could not get a Hub token: {_one_line(error)}; `hf auth login` makes a new one") from error
    if not token:
        raise BadInput("no token for the Hub; run `hf auth login`, or set the environment variable HF_TOKEN")
    if not token.isascii() or not token.isprintable():
        raise BadInput("the value of HF_TOKEN or `hf auth login` is no token; set it again")
    api = HfApi(token=token, library_name="aif", library_version=__version__)
    try:
        with user_umask():
            yield api
    except AifError:
        raise
    # huggingface_hub, httpx2 and hf_xet have no common base class for errors of names, rights, networks and replies
    except Exception as error:
        raise _as_aif_error(error, api, repo) from error


def _as_aif_error(error: BaseException, api: HfApi, repo: str) -> AifError:
    while isinstance(error, RuntimeError) and error.__cause__:  # "Error while uploading …" from a thread
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        return _http_error(error.response.status_code, _one_line(error.server_message or error, api), api, repo)
    message = _one_line(error, api)
    if isinstance(error, OSError) and error.filename:
        return BadInput(f"{error.filename}: can't be read: {error.strerror}. Nothing was published")
    if isinstance(error, HFValidationError):
        return BadInput(f"--repo {repo}: {message}")
    if isinstance(error, ValueError):  # the card's metadata, an object's upload
        return BadInput(f"{repo}: {message}. Nothing was published")
    return BadInput(f"{api.endpoint}: can't be reached: {message}; check the network and HF_ENDPOINT, then {RERUN}")


def _http_error(status: int, message: str, api: HfApi, repo: str) -> AifError:
    if status == 401:
        why = f"{api.endpoint}: refuses this token ({message})"
        return ProviderRefused(f"{why}; run `hf auth login`, or set HF_TOKEN again")
    if status == 403:
        fix = "use a token that may write there, or another --repo"
        return ProviderRefused(f"{repo}: refused: {message}{_token_owner(api)}; {fix}")
    if status in (409, 412):
        return BadInput(f"{repo}: has changed meanwhile ({message}); {RERUN}")
    if status == 429 or status >= 500:
        return BadInput(f"{api.endpoint}: answers {status} ({message}); later {RERUN}")
    return BadInput(f"{repo}: the Hub answers {status} ({message}). Nothing was published")


def _token_owner(api: HfApi) -> str:
    """Return the token's role, owner and organisations as text in parentheses, for an error message; empty if they are
    unknown."""
    try:
        owner = api.whoami()
        names = ", ".join(str(org["name"]) for org in owner["orgs"]) or "none"
        role = owner["auth"]["accessToken"]["role"]
        return f" (this is a {role} token of {owner['name']}, whose organisations are: {names})"
    except Exception:  # it would only have explained an error that is reported anyway
        return ""


def _one_line(error: object, api: HfApi | None = None) -> str:
    text = " ".join(str(error).split())
    return (redact(text, str(api.token)) if api else text)[:400]
