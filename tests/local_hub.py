"""A local server with the part of the Hub's interface that uploads use; it keeps every file that it receives."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class LocalHub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repositories: What was asked for when each repository was created.
        commits: The files of each commit by path, with its message and branch.
        tokens: The values of the header `authorization`.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict] = {}
        self.commits: list[tuple[str, str, dict[str, bytes]]] = []
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        """Return the address, for the environment variable `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of `create_repo` and `upload_folder`."""

    server: LocalHub

    def do_POST(self) -> None:
        """Create a repository, say how to upload files (inside the commit), or take a commit."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.tokens.add(self.headers.get("authorization"))
        if self.path == "/api/repos/create":
            settings = json.loads(body)
            name = f"{settings.get('organization') or 'someone'}/{settings['name']}"
            self.server.repositories[name] = settings
            self._answer({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            message = next(line["value"]["summary"] for line in lines if line["key"] == "header")
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            self.server.commits.append((message, self.path.rpartition("/")[2], files))
            self._answer({"commitUrl": f"{self.server.url}/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self._answer({})

    def do_GET(self) -> None:
        """Answer any question about a repository: it is empty."""
        self._answer({"id": "someone/model", "sha": "0" * 40, "siblings": []})

    def _answer(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Run the server inside this context."""
    with LocalHub() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
