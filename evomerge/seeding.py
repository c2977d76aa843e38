"""Keyed randomness: every draw is keyed by its purpose, and nothing draws from a global generator."""

from __future__ import annotations

import hashlib

__all__ = ["derive"]


def derive(seed: int, *keys: int | str) -> int:
    """A number in `[0, 2**64)` that depends on `seed` and `keys`, their types and their order, and on nothing else.

    The encoding is unambiguous (each part carries its type and its length), so that `("ab", "c")` and `("a", "bc")`, or
    `1` and `"1"`, give unrelated numbers; it does not depend on the process, the machine or PYTHONHASHSEED.

    Raises:
        TypeError: a part is neither an integer nor a string.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *keys):
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise TypeError(f"seeds and keys are integers or strings, but got {part!r}")
        kind = b"s" if isinstance(part, str) else b"i"
        # Tensor names come from files and may hold lone surrogates, which plain UTF-8 refuses.
        text = str(part).encode("utf-8", "surrogatepass")
        digest.update(kind + len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little")
