"""The tokenizer files of a model directory, by the names under which transformers looks for them."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

PATTERNS = (
    "tokenizer*.json",
    "tokenizer.model*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "*.tiktoken",
    "spiece.model",
    "spm*.model",
    "sentencepiece*.model",
    "prophetnet.tokenizer",
    "byte_maps.json",
    "emoji.json",
    "entity_vocab.json",
    "normalizer.json",
    "word_*.json",
    "chat_template*",
    "*processor_config.json",
)


def tokenizer_files(directory: Path) -> tuple[str, ...]:
    """Names of the tokenizer's files, sorted. Chat templates and processor settings count as its files."""
    names = (path.name for path in directory.iterdir() if path.is_file())
    return tuple(sorted(name for name in names if any(fnmatch(name, pattern) for pattern in PATTERNS)))
