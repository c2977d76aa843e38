"""Gradients of every row of an embedding, that of the padding token among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn import Embedding, Module


@contextmanager
def whole_embeddings(model: Module) -> Iterator[None]:
    """Let forward passes inside record the gradients of all rows of the model's embeddings.

    torch leaves out the row of an embedding's `padding_idx`, which models of transformers set to `pad_token_id`. Where
    that token is an end of text or of a turn as well, it stands in real texts: the model reads its row there, and the
    loss depends on it. Padding itself needs no such rule here, since nothing that is counted attends to it.
    """
    found = {m: m.padding_idx for m in model.modules() if isinstance(m, Embedding) and m.padding_idx is not None}
    for module in found:
        module.padding_idx = None
    try:
        yield
    finally:
        for module, index in found.items():
            module.padding_idx = index
