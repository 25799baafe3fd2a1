"""A dataset as it stands on the Hub, and the Hub's client with whatever it raises told in a line.

The Hub is the one of HF_ENDPOINT, if that is set, and the token is huggingface_hub's: of HF_TOKEN or `hf auth login`.
It stands in no message.
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

WAIT_S = 30.0  # for the answer to what stands there; huggingface_hub itself would wait for ever

AGAIN = "give the same command again: it compares anew, and goes on"


@dataclass(frozen=True, slots=True)
class There:
    """A dataset on the Hub: its newest commit, whether everyone sees it, its files by path."""

    head: str
    public: bool
    files: Mapping[str, RepoFile]


def look(api: HfApi, repo: str) -> There | None:
    """What stands on the Hub; None where nothing does that this token may see."""
    try:
        info = api.dataset_info(repo, timeout=WAIT_S)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:  # says nothing of the dataset: the token is no good
            raise
        return None
    assert info.sha is not None
    tree = api.list_repo_tree(repo, repo_type="dataset", revision=info.sha, recursive=True)
    return There(info.sha, not info.private, {file.path: file for file in tree if isinstance(file, RepoFile)})


def content(api: HfApi, repo: str, there: There, path: str) -> bytes:
    """A small file of the dataset."""
    return Path(api.hf_hub_download(repo, path, repo_type="dataset", revision=there.head)).read_bytes()


def same(local: Path | bytes, there: RepoFile) -> bool:
    """Whether a file has the content of the one on the Hub, of which only the digest is known."""
    if (len(local) if isinstance(local, bytes) else local.stat().st_size) != there.size:
        return False
    if there.lfs is not None:
        found = hashlib.sha256(local).hexdigest() if isinstance(local, bytes) else sha256(local)
        return found == there.lfs.sha256
    return git_hash(local if isinstance(local, bytes) else local.read_bytes()) == there.blob_id


def sha256(path: Path) -> str:
    """64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def opened(repo: str) -> Iterator[HfApi]:
    """The Hub's client, with the token that may write there.

    What it raises within becomes ProviderRefused where the Hub refuses the token, else BadInput.
    """
    if repo.count("/") != 1:
        raise BadInput(f"--repo {repo}: expected ORG/NAME, such as my-team/my-pairs")
    try:
        token = get_token()
    except Exception as error:  # a login that can't be renewed, a file that can't be read
        raise BadInput(f"the token for the Hub can't be had: {_line(error)}; `hf auth login` makes another") from error
    if not token:
        raise BadInput("no token for the Hub; `hf auth login` keeps one, or set the environment variable HF_TOKEN")
    if not token.isascii() or not token.isprintable():
        raise BadInput("what HF_TOKEN or `hf auth login` holds is no token; set it again")
    api = HfApi(token=token, library_name="aif", library_version=__version__)
    try:
        with user_umask():
            yield api
    except AifError:
        raise
    # huggingface_hub, httpx2 and hf_xet raise for names, rights, networks and broken replies what has no common base
    except Exception as error:
        raise _told(error, api, repo) from error


def _told(error: BaseException, api: HfApi, repo: str) -> AifError:
    while isinstance(error, RuntimeError) and error.__cause__:  # "Error while uploading …", of a thread
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        return _refused(error.response.status_code, _line(error.server_message or error, api), api, repo)
    said = _line(error, api)
    if isinstance(error, OSError) and error.filename:
        return BadInput(f"{error.filename}: can't be read: {error.strerror}. Nothing was published")
    if isinstance(error, HFValidationError):
        return BadInput(f"--repo {repo}: {said}")
    if isinstance(error, ValueError):  # the card's metadata, an object's upload
        return BadInput(f"{repo}: {said}. Nothing was published")
    return BadInput(f"{api.endpoint}: can't be reached: {said}; check the network and HF_ENDPOINT, then {AGAIN}")


def _refused(status: int, said: str, api: HfApi, repo: str) -> AifError:
    if status == 401:
        return ProviderRefused(f"{api.endpoint}: takes no such token ({said}); `hf auth login`, or set HF_TOKEN again")
    if status == 403:
        mend = "use a token that may write there, or another --repo"
        return ProviderRefused(f"{repo}: refused: {said}{_whose(api)}; {mend}")
    if status in (409, 412):
        return BadInput(f"{repo}: has changed meanwhile ({said}); {AGAIN}")
    if status == 429 or status >= 500:
        return BadInput(f"{api.endpoint}: answers {status} ({said}); later {AGAIN}")
    return BadInput(f"{repo}: the Hub answers {status} ({said}). Nothing was published")


def _whose(api: HfApi) -> str:
    """The token's owner and organisations, so far as the Hub tells."""
    try:
        found = api.whoami()
        names = ", ".join(str(org["name"]) for org in found["orgs"]) or "none"
        role = found["auth"]["accessToken"]["role"]
        return f" (this is a {role} token of {found['name']}, whose organisations are: {names})"
    except Exception:  # it would only have explained the error that is told anyway
        return ""


def _line(error: object, api: HfApi | None = None) -> str:
    text = " ".join(str(error).split())
    return (redact(text, str(api.token)) if api else text)[:400]
