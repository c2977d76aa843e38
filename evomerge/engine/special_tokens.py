"""Special tokens of a tokenizer, and the stop strings that their names may give to a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the tokens that decoding with `skip_special_tokens` drops.

    These are the tokens with a role, such as the end token, and the added ones that are marked as special, such as
    "<|eot_id|>": `all_special_ids` has the former alone.
    """
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids).union(number for number, token in added if token.special)


def touches(stop: str, name: str) -> bool:
    """Whether a stop string may be found in or across the name of a special token in a text."""
    if stop in name or name in stop:
        return True
    return any(name.endswith(stop[:size]) or name.startswith(stop[-size:]) for size in range(1, len(stop)))
