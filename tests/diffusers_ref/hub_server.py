"""A loopback server that speaks as much of the Hub's protocol as downloads need, and remembers the downloads."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


def read_files(folder: Path) -> Files:
    """The files of a folder, as a repository."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def commit_of(files: Files) -> str:
    """A commit hash that belongs to these files."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class HubServer:
    """Repositories, id -> revision -> files, served at `endpoint` while the `with` block runs.

    log: the files that were downloaded, in order, and the texts that `GET /mark/<text>` put between them.
    """

    def __init__(self, repositories: dict[str, dict[str, Files]]) -> None:
        self.repositories = repositories
        self.log: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1  # Head and body in one packet.

            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def downloads_after(self, mark: str) -> list[str]:
        """The files downloaded between this mark and the next, sorted."""
        begin = self.log.index(f"mark {mark}") + 1
        rest = self.log[begin:]
        end = next((i for i, entry in enumerate(rest) if entry.startswith("mark ")), len(rest))
        return sorted(rest[:end])

    def answer(self, request: BaseHTTPRequestHandler, with_body: bool) -> None:
        parts = [unquote(part) for part in urlsplit(request.path).path.strip("/").split("/")]
        if parts[0] == "mark":
            self.log.append(f"mark {parts[1]}")
            return self.send(request, 200, b"ok", {}, with_body)
        is_api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if is_api else parts[:2]), parts[4:] if is_api else parts[2:]
        if name not in self.repositories:
            return self.send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        action, revision = (rest[0], rest[1]) if rest else ("revision", "main")
        revisions = self.repositories[name]
        files = revisions.get(revision) or next((f for f in revisions.values() if commit_of(f) == revision), None)
        if files is None:
            return self.send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
        commit = commit_of(files)
        if action == "resolve":
            file = "/".join(rest[2:])
            if file not in files:
                return self.send(
                    request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, with_body
                )
            if with_body:
                self.log.append(file)
            etag = hashlib.sha1(files[file]).hexdigest()
            return self.send(request, 200, files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, with_body)
        if action == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in sorted(files.items())
            ]
            return self.send(
                request, 200, json.dumps(entries).encode(), {"Content-Type": "application/json"}, with_body
            )
        info = {"id": name, "modelId": name, "sha": commit, "siblings": [{"rfilename": path} for path in sorted(files)]}
        return self.send(request, 200, json.dumps(info).encode(), {"Content-Type": "application/json"}, with_body)

    @staticmethod
    def send(
        request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], with_body: bool
    ) -> None:
        request.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(key, value)
        request.end_headers()
        if with_body:
            request.wfile.write(body)
