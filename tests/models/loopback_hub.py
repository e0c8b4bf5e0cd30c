"""A small model hub on 127.0.0.1 that speaks the protocols of Hugging Face, ModelScope, AI Studio and BOS."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LoopbackHub:
    """Serves the files of directories as models.

    Attributes:
        models: name -> directory.
        token: when set, requests without it are refused with 401.
        cut: file name -> number of bytes after which the connection breaks, once.
        requests: (method, path with query, Range header) of every request so far.
    """

    def __init__(self, models: dict[str, Path]) -> None:
        self.models = models
        self.token: str | None = None
        self.cut: dict[str, int] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def fetched(self, name: str) -> int:
        """Count the GET requests for the content of a file."""
        return sum(method == "GET" and path.endswith(name) for method, path, _ in self.requests)

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        url = urlparse(request.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        path = unquote(url.path)
        self.requests.append((request.command, unquote(request.path), request.headers.get("Range")))
        if self.token and self.token not in request.headers.get("Authorization", ""):
            return self.reply(request, 401, b'{"error": "Invalid credentials"}', body, {})
        for model, directory in self.models.items():
            for handle in (self.hugging_face, self.modelscope, self.aistudio, self.bos):
                found = handle(model, directory, path, query)
                if isinstance(found, Path):
                    if found.is_file():
                        return self.send_file(request, found, body)
                elif found is not None:
                    return self.reply(request, 200, json.dumps(found).encode(), body, {})
        extra = {"X-Error-Code": "RepoNotFound"} if path.startswith("/api/models/") else {}
        return self.reply(request, 404, b'{"error": "not found"}', body, extra)

    def hugging_face(self, model: str, directory: Path, path: str, query: dict) -> Path | object | None:
        if path == f"/api/models/{model}/revision/main":
            names = [{"rfilename": p.name} for p in sorted(directory.iterdir())]
            return {"id": model, "modelId": model, "sha": COMMIT, "siblings": names, "tags": [], "downloads": 0}
        prefix = f"/{model}/resolve/{COMMIT}/"
        return directory / path.removeprefix(prefix) if path.startswith(prefix) else None

    def modelscope(self, model: str, directory: Path, path: str, query: dict) -> Path | object | None:
        base = f"/api/v1/models/{model}/repo"
        if path == f"{base}/files" and query.get("Revision") == "master":
            files = [
                {
                    "Path": p.name,
                    "Type": "blob",
                    "Size": p.stat().st_size,
                    "Sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
                }
                for p in sorted(directory.iterdir())
            ]
            return {"Code": 200, "Data": {"Files": [*files, {"Path": "onnx", "Type": "tree"}]}}
        return directory / query["FilePath"] if path == base and "FilePath" in query else None

    def aistudio(self, model: str, directory: Path, path: str, query: dict) -> Path | object | None:
        base = f"/api/v1/repos/{model}"
        if path == f"{base}/contents":
            return [{"path": p.name, "type": "file", "size": 130} for p in sorted(directory.iterdir())]
        return directory / path.removeprefix(f"{base}/media/") if path.startswith(f"{base}/media/") else None

    def bos(self, model: str, directory: Path, path: str, query: dict) -> Path | object | None:
        prefix = f"/models/community/{model}/"
        return directory / path.removeprefix(prefix) if path.startswith(prefix) else None

    def send_file(self, request: BaseHTTPRequestHandler, path: Path, body: bool) -> None:
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        start, status = 0, 200
        asked = request.headers.get("Range")
        if asked:
            start, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.reply(request, status, content[start:], body, headers, cut=self.cut.pop(path.name, None) if body else None)

    def reply(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        body: bool,
        headers: dict[str, str],
        cut: int | None = None,
    ) -> None:
        request.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header(key, value)
        request.end_headers()
        if body:
            request.wfile.write(content if cut is None else content[:cut])
        if cut is not None:
            request.wfile.flush()
            request.close_connection = True
            request.connection.close()
