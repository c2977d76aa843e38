"""Asks a language model behind an OpenAI-compatible server for marks, and takes no answer for a mark that is none."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from evomerge.errors import EvomergeError, InvalidInput, ServiceAway

INSTRUCTION = (
    "You grade answers. Compare the answer with the reference and say in a sentence what is right and what is wrong. "
    "End with a line 'SCORE: N', where N is 1 (wrong), 2, 3, 4 or 5 (as good as the reference)."
)
LOWEST, HIGHEST = 1, 5
KEY = "JUDGE_API_KEY"  # a variable of the environment: settings are stored in the study, keys must not be

_MARK = re.compile(r"SCORE:\s*\**\s*(-?\d+(?:\.\d+)?)(?:\s*/\s*5)?", re.IGNORECASE)
_LATER = {408, 409, 425, 429, *range(500, 600)}  # the server may answer another time
_WRONG = {401, 403, 404, 405, *range(300, 400)}  # the settings are wrong, whatever the candidate
_QUOTED = 80  # characters of a reply in messages


class UnreadableReply(EvomergeError):
    """A reply of the judge without a mark, or with several."""


def read_mark(reply: str) -> int:
    """The mark in a reply.

    Raises:
        UnreadableReply: there is none, there are several that differ, or it is not one of 1 to 5.
    """
    marks = set(_MARK.findall(reply))
    allowed = [number for number in range(LOWEST, HIGHEST + 1) if marks == {str(number)}]
    if not allowed:
        reason = "no mark" if not marks else "no mark from 1 to 5" if len(marks) == 1 else "several marks"
        raise UnreadableReply(f"{reason} in the judge's reply {' '.join(reply.split())[-_QUOTED:]!r}")
    return allowed[0]


@dataclass(frozen=True, kw_only=True)
class JudgeClient:
    """A judge at a server.

    Attributes:
        url: of the API, such as http://127.0.0.1:8000/v1. Proxies are not used, and redirections not followed.
        model: the name by which the server knows the judge.
        timeout: seconds for one reply.
        patience: seconds that a server is waited for that is away or busy.
        replies: number of replies that are read for one answer before it is given up.
        sleep, clock: of the system; tests have their own.
    """

    url: str
    model: str
    timeout: float = 60.0
    patience: float = 600.0
    replies: int = 3
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def mark(self, question: str, reference: str, answer: str) -> int:
        """The judge's mark for an answer, 1 to 5. The first reply with a mark counts; each has a seed of its own.

        Raises:
            UnreadableReply: none of the replies has a mark.
            ServiceAway: the server was away or busy for longer than `patience`.
            InvalidInput: the server refuses the request whatever the candidate: address, model or key are wrong.
        """
        text = f"Question:\n{question}\n\nReference:\n{reference}\n\nAnswer:\n{answer}"
        for attempt in range(self.replies):
            try:
                return read_mark(self._reply(text, seed=attempt))
            except UnreadableReply as error:
                unreadable = error
        raise UnreadableReply(f"{self.replies} replies, in the last one {unreadable}; the question was {question!r}")

    def _reply(self, text: str, seed: int) -> str:
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]
        content = {"model": self.model, "messages": messages, "temperature": 0, "seed": seed, "max_tokens": 512}
        end, wait = self.clock() + self.patience, 1.0
        while True:
            try:
                return _text(self._post(json.dumps(content).encode()))
            except _Away as error:
                if self.clock() + wait > end:
                    raise ServiceAway(f"the judge at {self.url} is away: {error}; start it, and go on") from None
            self.sleep(wait)
            wait = min(2 * wait, 30.0)

    def _post(self, content: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = Request(f"{self.url.rstrip('/')}/chat/completions", data=content, headers=headers, method="POST")
        try:
            with build_opener(ProxyHandler({}), _NoRedirect).open(request, timeout=self.timeout) as answer:
                body: bytes = answer.read()
                return body
        except HTTPError as error:
            with error:
                raise self._refused(error.code, error.read(2000).decode(errors="replace")) from None
        except (OSError, HTTPException) as error:  # refused, reset, timed out, cut short
            raise _Away(f"{type(error).__name__}: {error}") from None

    def _refused(self, status: int, body: str) -> Exception:
        said = f"status {status}: {' '.join(body.split())[:200]}"
        if status in _LATER:
            return _Away(said)
        if status in _WRONG:
            return InvalidInput(f"the judge at {self.url} refuses, {said}; check url, model and the variable {KEY}")
        return EvomergeError(f"the judge does not take this answer, {said}")  # too long, or not to its liking


class _Away(Exception):
    """The server does not answer now."""


class _NoRedirect(HTTPRedirectHandler):
    """A redirected POST would become a GET without the question."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _text(body: bytes) -> str:
    """The text in a reply. One that was cut off is not read: its mark may be missing, or one of several.

    Raises:
        UnreadableReply: it is no reply of such a server, or has no text.
    """
    try:
        choice: dict[str, Any] = json.loads(body)["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise UnreadableReply(f"no chat completion in {body[:_QUOTED]!r}") from None
    if not isinstance(text, str) or choice.get("finish_reason") == "length":
        raise UnreadableReply(f"the judge's reply was cut off or has no text: {str(text)[-_QUOTED:]!r}")
    return text
