"""The web server between Python and a page: it serves the page, hands it messages and takes its answers.

It listens on this machine only, and whoever does not know the random part of the address gets nothing.
"""

from __future__ import annotations

import queue
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).parent / "web"
IDLE_S = 20.0
KINDS = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}
HEADERS = {
    # Threads of WebAssembly need a page that is isolated from other origins.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Nothing may come from elsewhere.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:",
    "Cache-Control": "no-store",
}


class Bridge(ThreadingHTTPServer):
    """Serves one page; `messages` go to it and `answers` come from it. A message of None sends it away."""

    daemon_threads = True

    def __init__(self, package: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.root = f"/{secrets.token_urlsafe(24)}/"
        self.url = f"http://127.0.0.1:{self.server_port}{self.root}page.html"
        self.folders = {"": PAGE, "ort/": package}
        self.messages: queue.Queue[bytes | None] = queue.Queue()
        self.answers: queue.Queue[bytes] = queue.Queue()
        self.missing: str | None = None
        self._thread = threading.Thread(target=self.serve_forever, args=(0.5,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send the page away and stop listening."""
        self.messages.put(None)
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Request(BaseHTTPRequestHandler):
    server: Bridge
    protocol_version = "HTTP/1.1"  # keeps connections, each of which would cost a run its time
    wbufsize = -1  # headers and body leave together
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path = self._path()
        if path is not None:
            self._file(path)

    def do_POST(self) -> None:
        """Take the answer to the last message, if there was one, and wait for the next."""
        if self._path() != "next":
            return
        answer = self.rfile.read(int(self.headers["Content-Length"]))
        if answer:
            self.server.answers.put(answer)
        try:
            message = self.server.messages.get(timeout=IDLE_S)
        except queue.Empty:
            self._send(204, b"")
        else:
            self._send(410 if message is None else 200, message or b"")

    def _path(self) -> str | None:
        if not self.path.startswith(self.server.root):
            self._send(404, b"")
            return None
        return self.path.removeprefix(self.server.root)

    def _file(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        kind = KINDS.get(Path(name).suffix)
        source = self.server.folders.get(f"{folder}/" if folder else "")
        if kind is None or source is None or not (source / name).is_file():
            self.server.missing = path
            self._send(404, b"")
        else:
            self._send(200, (source / name).read_bytes(), kind)

    def _send(self, status: int, body: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
