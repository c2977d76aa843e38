"""A Redis server in memory that runs the scripts of evomerge's journals and leases, as far as they use Lua."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from types import CodeType
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from simulation.doubles import world

from evomerge.storage.journals import RedisJournal


def away() -> Exception:
    return RedisConnectionError("connection refused")


class RedisServer:
    """Keys and hashes."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.hashes: dict[str, dict[str, str]] = {}

    def call(self, command: str, *arguments: Any) -> Any:
        if command == "get":
            return self.keys.get(arguments[0])
        if command == "set":
            self.keys[arguments[0]] = str(arguments[1])
            return True
        if command == "hget":
            return self.hashes.get(arguments[0], {}).get(arguments[1])
        assert command == "hset", command
        names = arguments[1:]
        self.hashes.setdefault(arguments[0], {}).update(zip(names[::2], map(str, names[1::2]), strict=True))
        return True


class RedisClient:
    """A connection to the server."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    def get(self, key: str) -> bytes | None:
        return _encoded(world().call(lambda: self._server.call("get", key), away, writes=False))

    def mget(self, keys: list[str]) -> list[bytes | None]:
        texts = world().call(lambda: [self._server.call("get", key) for key in keys], away, writes=False)
        return [_encoded(text) for text in texts]

    def hget(self, key: str, name: str) -> bytes | None:
        return _encoded(self._server.call("hget", key, name))

    def eval(self, script: str, count: int, *keys_and_arguments: Any) -> Any:
        keys, arguments = keys_and_arguments[:count], tuple(map(str, keys_and_arguments[count:]))

        def run() -> Any:
            scope: dict[str, Any] = {
                "call": self._server.call,
                "KEYS": (None, *keys),
                "ARGV": (None, *arguments),
                "tonumber": int,
                "tostring": str,
            }
            exec(_compiled(script), scope)
            return scope["script"]()

        return world().call(run, away) if "log" in script else run()


class SimulatedRedisJournal(RedisJournal):
    """The journal of evomerge over the simulated server."""

    def __init__(self, server: RedisServer, name: str) -> None:
        self._redis = RedisClient(server)
        self._awaited = "the storage redis://***"
        self._counter = f":appended:{name}"
        self._appended = 0
        self._known = -1


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


@cache
def _compiled(script: str) -> CodeType:
    """A script of conditions, loops, calls and returns as Python, with a line for each."""
    lines = ["def script():"]
    for line in script.strip().splitlines():
        lines.append("    " + _translated(line.removeprefix("local ")))
    return compile("\n".join(lines), "script", "exec")


def _translated(line: str) -> str:
    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
        (r"redis\.call", "call"),
        (r"~=", "!="),
        (r"\.\.\s*(\([^)]*\))", r"+ tostring\1"),
        (r"^if (.*) then (.*) end$", r"if \1: \2"),
        (r"^for (\w+) = (\d+), #(\w+) do (.*) end$", r"for \1 in range(\2, len(\3)): \4"),
        (r"#(\w+)", r"(len(\1) - 1)"),  # without the place before the first
    )
    for pattern, replacement in rules:
        line = re.sub(pattern, replacement, line)
    return line
