"""Mutations of valid documents: what is found by them lies deeper than what random bytes reach."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

import yaml

NAMES = (
    "name",
    "base",
    "location",
    "tensors",
    "chunks",
    "../../etc/passwd",
    "/etc/passwd",
    "__class__",
    "é\ud800",
    "",
    "x" * 300,
)
NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**64),
    10**400,
    1e308,
    -1e308,
    5e-324,
    float("inf"),
    float("-inf"),
    float("nan"),
    True,
)
TEXTS = (
    *NAMES,
    "1e400",
    "\x00",
    "!!python/object/apply:os.system [touch broken]",
    "{{ cycler.__init__ }}",
    "%s%n{0}",
    "(a+)+$",
    "9" * 5000,
    "sqlite:////etc/nowhere/x.db",
    "file:///etc/passwd",
)


def junk(random: Random, depth: int = 0) -> Any:
    """Any plain value."""
    kind = random.randrange(7 if depth < 3 else 4)
    if kind == 0:
        return random.choice(NUMBERS)
    if kind == 1:
        return random.choice(TEXTS)
    if kind == 2:
        return None
    if kind == 3:
        return random.choice([True, False, [], {}, "", 0])
    if kind == 4:
        return [junk(random, depth + 1) for _ in range(random.randrange(4))]
    if kind == 5:
        return {random.choice(NAMES): junk(random, depth + 1) for _ in range(random.randrange(4))}
    return nested(random)


def nested(random: Random) -> Any:
    """A value in many lists or mappings."""
    value: Any = 0
    for _ in range(random.choice([5, 50, 300])):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value


def mutated(document: Any, random: Random) -> Any:
    """A copy with one to four changes anywhere."""
    changed = {"": copy.deepcopy(document)}
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        _change(changed, random)
    return changed.get("")


def _change(document: dict[str, Any], random: Random) -> None:
    places = list(_places(document))
    if not places:
        document[""] = junk(random)
        return
    owner, key = random.choice(places)
    kind = random.randrange(8)
    value = owner[key]
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, dict) and key != "":
        owner[random.choice(NAMES)] = owner.pop(key)
    elif kind == 2:
        other, there = random.choice(places)
        if there in other if isinstance(other, dict) else there < len(other):
            owner[key] = copy.deepcopy(other[there])
    elif kind == 3:
        owner[key] = [value]
    elif kind == 4 and isinstance(value, str):
        owner[key] = value[: len(value) // 2] + random.choice(TEXTS)
    elif kind == 5 and isinstance(value, int | float):
        owner[key] = random.choice(NUMBERS)
    elif kind == 6 and isinstance(value, dict):
        value[random.choice(NAMES)] = junk(random)
    elif kind == 7 and isinstance(value, list):
        value.append(copy.deepcopy(random.choice(value)) if value else junk(random))
    else:
        owner[key] = junk(random)


def _places(node: Any) -> Any:
    keys = node if isinstance(node, dict) else range(len(node))
    for key in keys:
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def damaged(content: bytes, random: Random) -> bytes:
    """A copy with bytes changed, cut out or doubled."""
    changed = bytearray(content)
    for _ in range(random.randrange(4)):
        if not changed:
            break
        start = random.randrange(len(changed))
        stop = min(len(changed), start + random.choice([1, 1, 8, 100]))
        changed[start:stop] = random.choice(
            [
                b"",
                bytes(changed[start:stop]) * 2,
                random.randbytes(stop - start),
                b"\x00",
                b"\xff",
                b"{",
                b"&a *a",
                b"[",
            ]
        )
    return bytes(changed)


def as_json(document: Any, random: Random) -> bytes:
    text = json.dumps(document).encode()
    return damaged(text, random) if random.random() < 0.15 else text


def as_yaml(document: Any, random: Random) -> bytes:
    try:
        text = yaml.safe_dump(document, sort_keys=False).encode("utf-8", "surrogatepass")
    except RecursionError:
        text = json.dumps(document).encode()
    if random.random() < 0.02:
        lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 30))]
        text += ("\n" + "\n".join(lines)).encode()
    return damaged(text, random) if random.random() < 0.15 else text
