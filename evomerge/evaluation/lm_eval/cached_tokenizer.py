"""A tokenizer that encodes every text once: the candidates of a search are all asked the same questions."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lm_eval.models.utils import has_bos_prefix

from evomerge.checkpoints.chat_date import asks_for_today, on_one_date


class CachedTokenizer:
    """A tokenizer that encodes a text once. Everything else is the wrapped tokenizer's.

    Attributes:
        plain: a copy of the wrapped tokenizer, whose chats have the same date on every day.
        asks_for_today: whether the chat template asks for today's date.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.plain = copy.deepcopy(tokenizer)  # lm-eval sets the pad token and the padding side of what it is given
        self.asks_for_today = asks_for_today(getattr(self.plain, "chat_template", None))
        if self.asks_for_today:
            self.plain.chat_template = on_one_date(self.plain.chat_template)
        self.padding_side: str = self.plain.padding_side
        self._encoded: dict[tuple[Any, ...], list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def encode(self, text: str, **options: Any) -> list[int]:
        key = (text, *sorted(options.items()))
        if key not in self._encoded:
            self._encoded[key] = self.plain.encode(text, **options)
        return self._encoded[key]

    def encode_text(self, text: str) -> list[int]:
        """A text as `HFLM.tok_encode` encodes it, which needs a model: a rendered chat has its BOS text already."""
        plain = self.plain
        first = plain.eos_token_id if plain.bos_token_id is None else plain.bos_token_id
        begun = first is not None and has_bos_prefix(text, plain.decode(first))
        return list(plain.encode(text, **({"add_special_tokens": False} if begun else {})))

    def __call__(self, texts: list[str], *, truncation: bool, padding: str, return_tensors: str, **options: Any) -> Any:
        if truncation or padding != "longest" or return_tensors != "pt":
            raise NotImplementedError(f"{truncation=}, {padding=}, {return_tensors=}")
        rows = [self.encode(text, **options) for text in texts]
        width = max(map(len, rows))
        ids = [self._pad(row, [self.plain.pad_token_id] * (width - len(row))) for row in rows]
        mask = [self._pad([1] * len(row), [0] * (width - len(row))) for row in rows]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    def _pad(self, row: list[int], padding: list[int]) -> list[int]:
        return padding + row if self.padding_side == "left" else row + padding
