"""A Hub on loopback for datasets: users, organisations, repositories with commits and large files, as huggingface_hub
and datasets speak to it (HF_ENDPOINT), without Xet (HF_HUB_DISABLE_XET=1)."""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[2]
ATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"
LICENSES = ("mit", "apache-2.0", "cc-by-4.0", "other")


@dataclass(frozen=True)
class User:
    """The owner of a token, and the namespaces it may write to."""

    name: str
    writes: tuple[str, ...] = ()
    orgs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Commit:
    """A commit: its summary, and all files as of it."""

    oid: str
    summary: str
    files: Mapping[str, bytes]


@dataclass
class Repo:
    """A dataset repository."""

    private: bool
    gated: bool | str = False
    commits: list[Commit] = field(default_factory=list)

    def commit(self, summary: str, files: Mapping[str, bytes]) -> Commit:
        """Add a commit with a complete set of files."""
        told = repr((summary, len(self.commits), sorted(files.items())))
        self.commits.append(Commit(hashlib.sha1(told.encode()).hexdigest(), summary, dict(files)))
        return self.commits[-1]

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        """Return the commit of a revision, which is `main` or a hash."""
        if revision == "main":
            return self.head
        return next((commit for commit in self.commits if commit.oid == revision), None)


@dataclass
class Hub:
    """The state of the Hub.

    `requests` are method and path of all requests; `fail` returns the status to refuse a request with, or None;
    `on_upload` is called before a large file is stored.
    """

    url: str = ""
    users: dict[str, User] = field(default_factory=dict)
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    fail: Callable[[str, str], int | None] = lambda method, path: None
    on_upload: Callable[[], object] = lambda: None

    def make(self, name: str, private: bool = True, **files: bytes) -> Repo:
        """Create a repository with its first commit, and a second one with these files, if any."""
        self.repos[name] = repo = Repo(private)
        repo.commit("initial commit", {".gitattributes": ATTRIBUTES})
        if files:
            repo.commit("files", {**repo.head.files, **files})
        return repo

    def writes(self) -> list[str]:
        """Return the requests that may change something."""
        return [path for method, path in self.requests if method not in ("GET", "HEAD") and "paths-info" not in path]

    def environ(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Return the environment of a process that uses this Hub: huggingface_hub reads it when it is imported."""
        return {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
            **({"HF_TOKEN": token} if token else {}),
        }


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """Run a Hub until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Answers,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Refusal(Exception):
    """An error response: status, the Hub's error code, its message."""

    def __init__(self, status: int, code: str = "", words: str = "") -> None:
        super().__init__(words)
        self.status, self.code, self.words = status, code, words


NO_REPO = Refusal(404, "RepoNotFound", "Repository not found")


class _Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        body = self._body()
        try:
            if status := self.hub.fail(self.command, path):
                raise Refusal(status, words=f"refused with {status}")
            for method, pattern, answer in ROUTES:
                if method in (self.command, "GET" if self.command == "HEAD" else "") and (
                    found := re.fullmatch(pattern, path)
                ):
                    return answer(self, *found.groups(), body)
            raise Refusal(404, words=f"no such address: {path}")
        except Refusal as error:
            self._send(error.status, {"error": error.words}, error.code, error.words)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: Any, code: str = "", words: str = "", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        more = {"X-Error-Code": code, "X-Error-Message": words, "Content-Length": str(len(data))}
        for name, value in {**more, **{name.replace("_", "-"): value for name, value in headers.items()}}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    # --- authentication -----------------------------------------------------------------------------------------------

    def _user(self) -> User | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refusal(401, words="Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def _repo(self, name: str) -> Repo:
        user, repo = self._user(), self.hub.repos.get(name)
        if repo and (not repo.private or (user and name.split("/")[0] in (user.name, *user.orgs))):
            return repo
        raise NO_REPO if user else Refusal(401, "RepoNotFound", "Repository not found")

    def _at(self, name: str, revision: str) -> Commit:
        commit = self._repo(name).at(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", "no such revision")
        return commit

    def _writable(self, name: str) -> Repo:
        self._may_write(name.split("/")[0])
        return self._repo(name)

    def _may_write(self, namespace: str) -> None:
        user = self._user()
        if not user:
            raise Refusal(401, words="Invalid username or password.")
        if namespace not in user.writes:
            raise Refusal(403, words=f'You don\'t have the rights to write under the namespace "{namespace}"')

    # --- requests -----------------------------------------------------------------------------------------------------

    def whoami(self, body: bytes) -> None:
        user = self._user()
        if not user:
            raise Refusal(401, words="Invalid username or password.")
        role = "write" if user.writes else "read"
        orgs = [{"name": org} for org in user.orgs]
        self._send(200, {"name": user.name, "orgs": orgs, "auth": {"accessToken": {"role": role}}})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        assert asked["type"] == "dataset"
        self._may_write(asked["organization"])
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            raise Refusal(409, words="You already created this dataset repo")
        self.hub.make(name, private=asked["visibility"] == "private")
        self._send(200, {"url": f"{self.hub.url}/datasets/{name}"})

    def info(self, name: str, revision: str | None, body: bytes) -> None:
        commit = self._at(name, revision or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        repo = self.hub.repos[name]
        seen = {"private": repo.private, "gated": repo.gated}
        self._send(200, {"id": name, "sha": commit.oid, **seen, "siblings": siblings, "tags": []})

    def tree(self, name: str, revision: str, under: str | None, body: bytes) -> None:
        files = self._at(name, revision).files
        prefix = f"{under}/" if under else ""
        recursive = "recursive=true" in self.path.lower()
        found = {_first(path, prefix, recursive) for path in files if path.startswith(prefix)}
        if under and not found:
            raise Refusal(404, "EntryNotFound", "no such folder")
        self._send(200, [_entry(path, files) for path in sorted(found)])

    def paths_info(self, name: str, revision: str, body: bytes) -> None:
        files = self._at(name, revision).files
        asked = json.loads(body)["paths"]
        folders = {str(parent) for path in files for parent in Path(path).parents}
        self._send(200, [_entry(path, files) for path in asked if path in files or path in folders])

    def preupload(self, name: str, revision: str, body: bytes) -> None:
        files = self._writable(name).head.files
        self._send(
            200,
            {
                "files": [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if _is_large(one["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": _oid(one["path"], files[one["path"]]) if one["path"] in files else None,
                    }
                    for one in json.loads(body)["files"]
                ]
            },
        )

    def batch(self, name: str, body: bytes) -> None:
        self._writable(name)
        objects = []
        for one in json.loads(body)["objects"]:
            action = {"actions": {"upload": {"href": f"{self.hub.url}/objects/{one['oid']}"}}}
            objects.append({**one, **({} if one["oid"] in self.hub.objects else action)})
        self._send(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str, body: bytes) -> None:
        self.hub.on_upload()
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self._send(200, {})

    def commit(self, name: str, revision: str, body: bytes) -> None:
        repo = self._writable(name)
        (header, *operations) = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit", repo.head.oid) != repo.head.oid:
            raise Refusal(412, words="A commit has happened since. Please refresh and try again.")
        files = dict(repo.head.files)
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        raise Refusal(400, words=f"Your push was rejected because LFS objects are missing: {value}")
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        made = repo.commit(header["value"]["summary"], files)
        self._send(200, {"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{made.oid}", "commitOid": made.oid})

    def resolve(self, name: str, revision: str, path: str, body: bytes) -> None:
        commit = self._at(name, revision)
        if path not in commit.files:
            raise Refusal(404, "EntryNotFound", "no such file")
        data = commit.files[path]
        first, last = 0, len(data) - 1
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or last), last)
        headers = {"ETag": f'"{_oid(path, data)}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(206 if wanted else 200, data[first : last + 1], **headers)

    def validate(self, body: bytes) -> None:
        card = json.loads(body)["content"]
        license = re.search(r"^license: *(.+)$", card.split("---")[1], re.MULTILINE)
        if license and license[1] not in LICENSES:
            message = f'"license" must be one of [{", ".join(LICENSES)}]'
            return self._send(400, {"errors": [{"message": message}], "warnings": []})
        warned = [] if license else [{"message": "empty or missing license in card"}]
        return self._send(200, {"errors": [], "warnings": warned})


def _is_large(path: str) -> bool:
    return path.endswith(".parquet")


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _oid(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if _is_large(path) else _blob(data)


def _first(path: str, prefix: str, recursive: bool) -> str:
    return path if recursive else prefix + path.removeprefix(prefix).split("/")[0]


def _entry(path: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    if path not in files:
        return {"type": "directory", "oid": _blob(path.encode()), "size": 0, "path": path}
    data = files[path]
    entry = {"type": "file", "oid": _blob(data), "size": len(data), "path": path}
    if _is_large(path):
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{_oid(path, data)}\nsize {len(data)}\n".encode()
        )
        entry |= {
            "oid": _blob(pointer),
            "lfs": {"oid": _oid(path, data), "size": len(data), "pointerSize": len(pointer)},
        }
    return entry


NAME = r"([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", _Answers.whoami),
    ("POST", "/api/repos/create", _Answers.create),
    ("POST", "/api/validate-yaml", _Answers.validate),
    ("GET", f"/api/datasets/{NAME}(?:/revision/([^/]+))?", _Answers.info),
    ("GET", f"/api/datasets/{NAME}/tree/([^/]+)(?:/(.+))?", _Answers.tree),
    ("POST", f"/api/datasets/{NAME}/paths-info/([^/]+)", _Answers.paths_info),
    ("POST", f"/api/datasets/{NAME}/preupload/([^/]+)", _Answers.preupload),
    ("POST", f"/api/datasets/{NAME}/commit/([^/]+)", _Answers.commit),
    ("POST", rf"/datasets/{NAME}\.git/info/lfs/objects/batch", _Answers.batch),
    ("PUT", "/objects/([0-9a-f]{64})", _Answers.upload),
    ("GET", f"/datasets/{NAME}/resolve/([^/]+)/(.+)", _Answers.resolve),
]


@contextmanager
def echoing(status: int = 403, location: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Run a server that refuses every request, echoing its Authorization header, or redirects it to `location`.

    Yield its address and the list of Authorization headers that it has seen.
    """
    seen: list[str] = []

    class Echo(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.headers.get("Authorization", "")
            seen.append(sent)
            said = json.dumps({"error": f"You sent {sent}"}).encode()
            self.send_response(status)
            for name, value in {
                "Location": location,
                "Content-Length": str(len(said)),
                "X-Error-Message": sent,
            }.items():
                if value:
                    self.send_header(name, value + self.path if name == "Location" else value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(said)

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
