"""Names of the files beside the weights of a model that transformers reads."""

from __future__ import annotations

from typing import Final

TOKENIZER: Final = (
    "tokenizer*.json",
    "tokenizer.model*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "target_vocab.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "*.tiktoken",
    "tiktoken.model",
    "tekken*.json",
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
CHAT_TEMPLATES: Final = "additional_chat_templates"  # folder of those that have names of their own
