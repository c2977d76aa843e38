"""Faults of a written text: it repeats itself, has markers of a chat template in it, or refuses a harmless question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

GRAM: Final = 4  # tokens
TAIL: Final = 32  # tokens at the end of a continuation in which it is looked for
SHORTEST: Final = 12  # tokens: what ends earlier has not looped
REPEATED: Final = 0.5  # share of the grams of the tail that stood in it before

# Turns and roles as the chat templates of widespread models mark them.
MARKERS: Final = (
    "<|im_start|>", "<|im_end|>", "<|im_sep|>",  # ChatML
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[SYSTEM_PROMPT]",  # Llama 2, Mistral
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>",  # Llama 3
    "<|header_start|>", "<|header_end|>", "<|eot|>",  # Llama 4
    "<start_of_turn>", "<end_of_turn>",  # Gemma
    "<|user|>", "<|assistant|>", "<|system|>", "<|end|>",  # Zephyr, Phi, Granite, GLM
    "<|start_of_role|>", "<|end_of_role|>",  # Granite
    "<｜User｜>", "<｜Assistant｜>",  # DeepSeek
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",  # Command R
    "<|start|>", "<|message|>", "<|channel|>",  # Harmony
    "<|endoftext|>", "<|end_of_text|>",
    "### Instruction:", "### Response:", "### Human:", "### Assistant:",  # Alpaca, Guanaco
    "\nUSER:", "\nASSISTANT:", "\nHuman:", "\nAssistant:",  # Vicuna and others
)  # fmt: skip

# Beginnings of refusals. The list is short on purpose: counts are compared with those of the sources, never absolute.
REFUSALS: Final = (
    "i can't help", "i cannot help", "i can't assist", "i cannot assist", "i can't answer", "i cannot answer",
    "i can't provide", "i cannot provide", "i'm unable to", "i am unable to", "i'm not able to", "i am not able to",
    "i won't", "i will not", "i must decline", "i'm sorry, but", "i am sorry, but", "sorry, i can",
    "i apologize, but", "as an ai", "as a language model",
)  # fmt: skip
BEGINNING: Final = 160  # characters of an answer in which a refusal is looked for


def loops(tokens: Sequence[int]) -> bool:
    """Whether the end of a continuation repeats itself: half of the 4-grams of its last 32 tokens stood there before.

    Args:
        tokens: what was written; a text shorter than `SHORTEST` does not loop.
    """
    tail = tuple(tokens[-TAIL:])
    if len(tail) < SHORTEST:
        return False
    grams = [tail[at : at + GRAM] for at in range(len(tail) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) >= REPEATED


def strays(text: str) -> list[str]:
    """Markers of chat templates in an answer that should have ended before any of them.

    Args:
        text: the answer up to its end token, with the names of special tokens.
    """
    return [marker.strip() for marker in MARKERS if marker in text]


def refuses(text: str) -> bool:
    """Whether an answer begins as refusals do."""
    begin = " ".join(text.lower().replace("’", "'").split())[:BEGINNING]
    return any(phrase in begin for phrase in REFUSALS)
