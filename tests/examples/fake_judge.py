"""A tiny OpenAI-compatible server, with a rule in the place of a language model."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Request = dict[str, Any]
Answer = tuple[int, bytes]  # status and body

_TEXT = re.compile(r"Reference:\n(.*?)\n\nAnswer:\n(.*)", re.DOTALL)


def completion(text: object, finish_reason: str = "stop") -> Answer:
    """A reply as such servers give it."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return 200, json.dumps({"choices": [choice]}).encode()


def by_letters(request: Request) -> Answer:
    """A mark from 1 to 5 by the share of letters that stand where the reference has them."""
    found = _TEXT.search(request["messages"][-1]["content"])
    assert found is not None
    reference, answer = found.groups()
    right = sum(one == other for one, other in zip(reference, answer, strict=False))
    return completion(f"{right} letters are right.\nSCORE: {1 + 4 * right // len(reference)}")


@dataclass
class FakeJudge:
    """The requests that the server has had, and the way in which it answers.

    Attributes:
        answer: request -> status and body; None ends the connection without an answer.
    """

    url: str
    answer: Callable[[Request], Answer | None] = by_letters
    requests: list[Request] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def answering(self, *answers: Answer | None) -> None:
        """Give these answers in turn, the last one again and again."""
        left = list(answers)
        self.answer = lambda request: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def fake_judge() -> Iterator[FakeJudge]:
    """A judge on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.requests.append(request)
            judge.headers.append(dict(self.headers))
            answer = judge.answer(request) if self.path == "/v1/chat/completions" else (404, b"no such path")
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(answer[1])))
            self.send_header("Location", "/v1/elsewhere")
            self.end_headers()
            self.wfile.write(answer[1])

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the screen."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    judge = FakeJudge(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
