"""Decides whether a model can score a prefix tree, from its class, its configuration and a tree of made-up tokens."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from evomerge.engine.flat import FlatLoglikelihoods
from evomerge.engine.probe import Reset, made_up_tokens, same_numbers, values_of
from evomerge.engine.protocol import Pair
from evomerge.engine.rotary import changes_within
from evomerge.engine.tree import TreeLoglikelihoods
from evomerge.errors import MergeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Position ids, not places in the row, must say where a token is; and its ancestors, not its neighbours, what it sees.
_INPUTS = ("attention_mask", "position_ids", "past_key_values", "use_cache")
_ATTENTION = ("sdpa", "eager")  # the others take no mask of our own
_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
# Names of windows in configurations. The tree itself would show a window; but not in 16 bits, where what it hides may
# be worth less than rounding.
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")

_HEAD, _BRANCH = 4, 3  # tokens of the tree below its stem
_SHAPES = (0, 4096)  # widths of a model for which the tree is laid out in stems alone, and in a single row

_log = logging.getLogger(__name__)


def obstacle(model: PreTrainedModel, shortest: int, longest: int) -> str | None:
    """The reason in class or configuration why sequences of these lengths cannot share prefixes, or None."""
    config = model.config.get_text_config()
    accepted = inspect.signature(model.forward).parameters
    missing = [name for name in _INPUTS if name not in accepted]
    if missing:
        return f"its forward takes no {missing[0]}"
    if model.get_output_embeddings() is None:
        return "it has no output embeddings"
    if getattr(model, "_is_stateful", False) or set(getattr(config, "layer_types", None) or ()) - _LAYERS:
        return "not all of its layers are attention"
    if getattr(config, "alibi", False):
        return "ALiBi measures distances in the row"
    if config._attn_implementation not in _ATTENTION:
        return f"its attention implementation is {config._attn_implementation}"
    if any(0 < window < longest for window in _windows(config)):
        return "its attention window is shorter than a sequence"
    if changes_within(config, shortest, longest):
        return "its position embeddings depend on the longest sequence of a batch"
    return None


def shares_prefixes(model: PreTrainedModel, shortest: int, longest: int, reset: Reset) -> bool:
    """Whether requests of `shortest` to `longest` tokens are to share prefixes on this model.

    Class and configuration decide where they tell; then a tree with sequences of these lengths is scored both ways
    with the weights at hand.

    Raises:
        MergeError: the candidate at hand computes no numbers.
    """
    reason = obstacle(model, shortest, longest)
    if reason is None and not _agrees(model, shortest, longest, reset):
        reason = f"it scores a tree of {longest} tokens otherwise than its sequences"
    if reason is not None:
        _log.info("%s: every request is scored on its own: %s", type(model).__name__, reason)
    return reason is None


def _windows(config: Any) -> Iterator[int]:
    if getattr(config, "use_sliding_window", None) is not False:
        for name in _WINDOWS:
            window = getattr(config, name, None)
            if isinstance(window, int):
                yield window


def _agrees(model: PreTrainedModel, shortest: int, longest: int, reset: Reset) -> bool:
    """Whether a tree gives the log-likelihoods of its sequences, each scored alone, up to the rounding of the dtype."""
    pairs = _tree_requests(model, shortest, longest)
    limit = max(len(context) + len(rest) for context, rest in pairs)
    expected = values_of(FlatLoglikelihoods(pairs, limit, 1, model.device), model, reset)
    for hidden in _SHAPES:
        tree = TreeLoglikelihoods(pairs, limit, budget=4 * limit, hidden=hidden, device=model.device, pass_cost=0)
        try:
            found = values_of(tree, model, reset)
        except (MergeError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # whatever a model's code says to arguments that it was not written for
            _log.info("%s cannot run a tree: %s: %s", type(model).__name__, type(error).__name__, error)
            return False
        if not same_numbers(found, expected, model.dtype):
            return False
    return True


def _tree_requests(model: PreTrainedModel, shortest: int, longest: int) -> list[Pair]:
    """Requests on a tree that branches twice: its stem, two heads below that, and two branches below each of them.

    The inputs of the branches have `longest` tokens, or as many as the tree needs; one on the stem has `shortest`.
    """
    stem = made_up_tokens(model, max(1, longest - _HEAD - _BRANCH), 1)
    heads = [[*stem, *made_up_tokens(model, _HEAD, seed)] for seed in (2, 3)]
    branches = [[*head, *made_up_tokens(model, _BRANCH, seed)] for head in heads for seed in (4, 5)]
    pairs: list[Pair] = [(context, []) for context in (stem[:shortest], stem, *heads)]
    pairs += [(branch[:-2], branch[-2:]) for branch in branches]
    return [(context, [*rest, target]) for context, rest in pairs for target in made_up_tokens(model, 2, 6)]
