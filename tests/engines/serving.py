"""A server of OpenAI's protocol on loopback, whose answers and faults a test writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the server's script."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.guard:
            self.server.seen.append((self.path, body, self.headers.get("authorization")))
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
        try:
            self.server.script(self, body)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self.server.guard:
                self.server.under_way -= 1

    def send(self, status: int, text: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def complete(self, text: str, **fields: Any) -> None:
        """An answer of the endpoint that was asked."""
        said = {"message": {"content": text}} if "chat" in self.path else {"text": text}
        choice = {"index": 0, "finish_reason": "stop", **said, **fields}
        self.send(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": len(text.split()) + 1}}))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


class Server(ThreadingHTTPServer):
    """Answers by `script` until it is left; `seen` holds every request: path, body, authorization."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, script: Script, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script = script
        self.seen: list[tuple[str, dict[str, Any], str | None]] = []
        self.guard = threading.Lock()
        self.under_way = self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def echo(handler: Handler, body: dict[str, Any]) -> None:
    """Says the prompt and the seed back."""
    prompt = body.get("prompt", body.get("messages"))
    handler.complete(f"{json.dumps(prompt)} {body['seed']}")
