"""A real S3 server (moto's) on this machine, behind a proxy that counts and breaks requests."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ERROR = '<?xml version="1.0"?><Error><Code>{0}</Code><Message>{1}</Message></Error>'


@dataclass
class Fault:
    """What happens to the next requests that match.

    kind: "reset" (the connection, before an answer), "slow" (the body comes in pieces), "cut"
        (half of the body comes; half of what is put is taken), a status, such as 503, or a
        function, which is called when half of what is put was taken.
    """

    method: str
    path: str  # a regular expression
    kind: Any
    times: int = 1


@dataclass
class Server:
    """The address of the proxy, the requests that it saw, and the faults that are still to come."""

    url: str = ""
    port: int = 0  # of the server behind it
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, method: str, path: str) -> Any:
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.method == method and re.search(fault.path, path) and fault.times:
                    fault.times -= 1
                    return fault.kind
        return None

    def count(self, method: str, path: str = "") -> int:
        return sum(m == method and bool(re.search(path, p)) for m, p in self.requests)


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, *_: Any) -> None:
        pass

    def handle_request(self) -> None:
        kind = self.server_state.fault(self.command, self.path)
        length = int(self.headers.get("Content-Length") or 0)
        cut = self.command == "PUT" and (kind == "cut" or callable(kind))
        if cut:
            self.rfile.read(length // 2)
        if callable(kind):
            kind()
        if cut or kind == "reset":
            return self.drop()
        body = self.rfile.read(length)
        if isinstance(kind, int):
            code = {403: "AccessDenied", 503: "ServiceUnavailable"}[kind]
            return self.answer(kind, [], ERROR.format(code, "Injected").encode())
        inner = http.client.HTTPConnection("127.0.0.1", self.server_state.port, timeout=60)
        inner.request(self.command, self.path, body, dict(self.headers))
        answer = inner.getresponse()
        content = answer.read()
        inner.close()
        self.answer(answer.status, answer.getheaders(), content, kind)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_request

    def answer(self, status: int, headers: Any, body: bytes, kind: Any = None) -> None:
        self.send_response_only(status)
        kept = [(n, v) for n, v in headers if n.lower() not in ("connection", "transfer-encoding")]
        if not any(name.lower() == "content-length" for name, _ in kept):
            kept.append(("Content-Length", str(len(body))))
        for name, value in kept:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.drop()
        elif kind == "slow":
            for start in range(0, len(body), 1 + len(body) // 5):
                self.wfile.write(body[start : start + 1 + len(body) // 5])
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(body)

    def drop(self) -> None:
        """Reset the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        self.wfile = self.rfile = open(Path("/dev/null"), "r+b")  # noqa: SIM115 - the base class closes it


@contextmanager
def s3_server(log: Path) -> Iterator[Server]:
    """Start the server and the proxy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    state = Server(port=port)
    with log.open("wb") as printed:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=printed, stderr=printed)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Proxy,), {"server_state": state}))
    proxy.daemon_threads = True
    state.url = f"http://127.0.0.1:{proxy.server_port}"
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        _wait(port, process, log)
        yield state
    finally:
        proxy.shutdown()
        proxy.server_close()
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not start")
