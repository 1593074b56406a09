"""An engine over real HTTP that says what a test wants it to, where a random model could not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], str | int]


@dataclass
class Scripted:
    """A server that speaks the wire dialect; ``reply`` gives a text, or a status to refuse with."""

    reply: Reply
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def scripted(reply: Reply) -> Iterator[Scripted]:
    found = Scripted(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.asked.append(body)
            said = found.reply(body)
            answer: dict[str, Any] = {"error": {"message": "too long"}}
            if isinstance(said, str):
                message = {"role": "assistant", "content": said}
                choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
                answer = {"choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
            data = json.dumps(answer).encode()
            self.send_response(said if isinstance(said, int) else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
