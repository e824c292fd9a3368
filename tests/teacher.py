"""A real HTTP server on this machine that answers chat completions as its script says, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[int, dict[str, Any]], "tuple[int, Any] | str"]


class Teacher(ThreadingHTTPServer):
    """`script(number, body)` gives the reply's text, or a status and the whole answer (a text is sent as it is)."""

    daemon_threads = True

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.retry_after = "0"

    @property
    def spec(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1#teacher"


class Handler(BaseHTTPRequestHandler):
    server: Teacher

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        number = len(self.server.asked)
        self.server.asked.append(body)
        self.server.keys.append(self.headers.get("authorization"))
        answer = self.server.script(number, body)
        status, document = answer if isinstance(answer, tuple) else (200, completion(answer))
        content = (document if isinstance(document, str) else json.dumps(document)).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("retry-after", self.server.retry_after)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def completion(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return {"choices": [{"message": message, "finish_reason": finish_reason}], "usage": usage}


@contextmanager
def teacher(script: Script) -> Iterator[Teacher]:
    server = Teacher(script)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
