"""A Hub on loopback for models, with the parts that a download needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40
FILES = {
    "org/small": {
        "config.json": b"{}", "model.safetensors": b"weights" * 9, "pytorch_model.bin": b"again", "m.gguf": b"again",
        "original/consolidated.pth": b"again",
    },
    "org/old": {"config.json": b"{}", "pytorch_model.bin": b"weights"},
    "org/mistral": {"params.json": b"{}", "consolidated.safetensors": b"weights"},
}  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """The parts of the Hub that a download needs."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/api/models")
        _, owner, name, what, *rest = f"{path}/".split("/")
        files = FILES.get(f"{owner}/{name}")
        if name == "gated":
            self._refuse(403, "GatedRepo")
        elif files is None:
            self._refuse(404, "RepoNotFound")
        elif rest and rest[0] not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif what == "revision":
            self._send(json.dumps({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": []}).encode())
        elif what == "tree":
            self._send(json.dumps([_row(at, content) for at, content in files.items()]).encode())
        elif (at := "/".join(rest[1:]).rstrip("/")) in files:
            self._send(files[at], ETag=f'"{_row(at, files[at])["oid"]}"')
        else:
            self._refuse(404, "EntryNotFound")

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, **headers: str) -> None:
        self.send_response(200)
        for key, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _row(at: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": at, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


@contextmanager
def serving_hub() -> Iterator[str]:
    """Run the Hub until the block ends; yield its address, for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
