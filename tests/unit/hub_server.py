"""A small server on the loopback that speaks the hub's protocol, with faults on request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["FakeHub", "serve"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """One repository and what goes wrong with it.

    Attributes:
        files: name -> content. Names with a weight's suffix are announced with their sha256, as the hub does.
        cuts: numbers of bytes after which the next answers to a GET are cut off, in order.
        silences: numbers of bytes after which the next answers to a GET stop, the line staying open, in order.
        silent: accepts everything and answers nothing.
        piece_bytes: bytes of a file that are sent at a time, `piece_s` apart; 0 = all at once.
        statuses: status codes that the next requests of a file get instead of it.
        status: a code that everything gets.
        error_code: what the hub says beside it (X-Error-Code).
        wrong: names whose content arrives altered.
        ignores_ranges: whoever asks for the rest gets the whole.
        excess: bytes that come after the end of each file.
        gated: files are refused as the hub does for a gated model, unless the token "good" is sent.
        purpose: the repository's pipeline tag.
        ranges: the Range headers that were seen, to show that a download went on where it stopped.
    """

    files: dict[str, bytes]
    cuts: list[int] = field(default_factory=list)
    silences: list[int] = field(default_factory=list)
    silent: bool = False
    piece_bytes: int = 0
    piece_s: float = 0.0
    statuses: list[int] = field(default_factory=list)
    status: int = 0
    error_code: str = ""
    ignores_ranges: bool = False
    excess: int = 0
    wrong: set[str] = field(default_factory=set)
    gated: bool = False
    purpose: str = ""
    ranges: list[str] = field(default_factory=list)
    gets: int = 0
    requests: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def info(self) -> bytes:
        rows = []
        for name, content in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            row: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
            if name.endswith((".safetensors", ".gguf", ".bin")):
                digest = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            rows.append(row)
        gated = "manual" if self.gated else False
        said = {"id": "some/net", "sha": COMMIT, "tags": ["license:mit"], "private": False, "gated": gated}
        said.update({"pipeline_tag": self.purpose} if self.purpose else {})
        return json.dumps({**said, "siblings": rows}).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.hub.requests += 1
        if self.hub.silent:
            self.hub.over.wait(60)
            self.close_connection = True
        elif self.hub.status:
            self._send(self.hub.status, b"", {"X-Error-Code": self.hub.error_code} if self.hub.error_code else {})
        elif self.hub.gated and "/resolve/" in self.path and self.headers.get("Authorization") != "Bearer good":
            self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif re.match(r"/api/models/some/net(/revision/[^/?]+)?(\?|$)", self.path):
            self._send(200, self.hub.info(), {"Content-Type": "application/json"})
        elif (match := re.match(r"/some/net/resolve/[^/]+/([^?]+)", self.path)) and match[1] in self.hub.files:
            self._file(match[1], with_body)
        else:
            code = "EntryNotFound" if self.path.startswith("/some/net/") else "RepoNotFound"
            self._send(404, b"", {"X-Error-Code": code})

    def _file(self, name: str, with_body: bool) -> None:
        content = self.hub.files[name]
        if with_body and self.hub.statuses:
            self._send(self.hub.statuses.pop(0), b"", {})
            return
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not with_body:
            self._send(200, content, headers, body=False)
            return
        self.hub.gets += 1
        start = 0
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and not self.hub.ignores_ranges:
            start = int(wanted[1])
            self.hub.ranges.append(wanted[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        piece = content[start:]
        if name in self.hub.wrong:
            piece = bytes(reversed(piece))
        piece += bytes(self.hub.excess)
        cut = self.hub.cuts.pop(0) if self.hub.cuts else None
        silence = self.hub.silences.pop(0) if self.hub.silences else None
        self._send(206 if start else 200, piece, headers, cut=cut, silence=silence)

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str],
        body: bool = True,
        cut: int | None = None,
        silence: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body and self.command != "HEAD":
            self._write(content[: min(at for at in (len(content), cut, silence) if at is not None)])
        if silence is not None and silence < len(content):
            self.wfile.flush()
            self.hub.over.wait(60)
        if cut is not None or silence is not None:
            self.wfile.flush()
            self.close_connection = True

    def _write(self, content: bytes) -> None:
        step = self.hub.piece_bytes if "/resolve/" in self.path else 0
        for start in range(0, len(content), step or len(content) or 1):
            self.wfile.write(content[start : start + (step or len(content))])
            if step:
                self.wfile.flush()
                self.hub.over.wait(self.hub.piece_s)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is what the tests are about."""


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Run the server; `hub.address` is its address."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
