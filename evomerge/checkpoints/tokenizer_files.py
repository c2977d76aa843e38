"""The tokenizer files of a model directory: which there are, and the vocabulary that they define."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from evomerge.checkpoints.json_files import read_object_if_there

PATTERNS = (
    "tokenizer*.json",
    "tokenizer.model*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
    "spiece.model",
    "sentencepiece*.model",
    "chat_template*",
    "*processor_config.json",
)


def tokenizer_files(directory: Path) -> tuple[str, ...]:
    """Names of the tokenizer's files, sorted. Chat templates and processor settings count as its files."""
    names = (path.name for path in directory.iterdir() if path.is_file())
    return tuple(sorted(name for name in names if any(fnmatch(name, pattern) for pattern in PATTERNS)))


def vocabulary(directory: Path) -> dict[str, int] | None:
    """Token -> id with the added tokens, from tokenizer.json or vocab.json; None where neither tells."""
    content = read_object_if_there(directory / "tokenizer.json")
    if content is None:
        return read_object_if_there(directory / "vocab.json")
    model = content.get("model")
    tokens = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(tokens, list):  # Unigram: [token, score] pairs, the position is the id
        tokens = {token: number for number, (token, _) in enumerate(tokens)}
    if not isinstance(tokens, dict):
        return None
    return tokens | {token["content"]: token["id"] for token in _added(content)}


def special_tokens(directory: Path) -> frozenset[str]:
    """The added tokens of tokenizer.json that are marked as special."""
    content = read_object_if_there(directory / "tokenizer.json") or {}
    return frozenset(token["content"] for token in _added(content) if token.get("special"))


def _added(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [token for token in content.get("added_tokens") or () if "content" in token and "id" in token]
