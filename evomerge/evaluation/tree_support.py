"""Which models can score a prefix tree: told from their class and configuration, so that every worker says the same."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import torch

from evomerge.errors import MergeError
from evomerge.evaluation.engine import FlatLoglikelihoods, Loglikelihoods, Pair
from evomerge.evaluation.tree_engine import TreeLoglikelihoods

# Position ids, not places in the row, must say where a token is; and its ancestors, not its neighbours, what it sees.
_INPUTS = ("attention_mask", "position_ids", "past_key_values", "use_cache")
_ATTENTION = ("sdpa", "eager")  # the others take no mask of our own
_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
_ROTATIONS = ("dynamic", "longrope")  # change with the longest sequence of a batch

_SHAPES = (0, 4096)  # widths of a model for which the probe is laid out in stems alone, and in a single row

_log = logging.getLogger(__name__)


def obstacle(model: Any, longest: int) -> str | None:
    """Why sequences of up to `longest` tokens cannot share prefixes on this model; None if they can."""
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
    if any(kind in _ROTATIONS for kind in _rotations(config)):
        return "its position embeddings depend on the longest sequence of a batch"
    return None


def shares_prefixes(model: Any, longest: int) -> bool:
    """Whether requests of up to `longest` tokens are to share prefixes on this model.

    The configuration decides. A model that it does not tell the truth about is found out by scoring a small tree both
    ways with the weights at hand.

    Raises:
        MergeError: the candidate at hand computes no numbers.
    """
    reason = obstacle(model, longest)
    if reason is None and not _agrees(model):
        reason = "it scores a small tree otherwise than its sequences"
    if reason is not None:
        _log.info("%s: every request is scored on its own: %s", type(model).__name__, reason)
    return reason is None


def _windows(config: Any) -> Iterator[int]:
    if getattr(config, "use_sliding_window", None) is not False:
        for name in _WINDOWS:
            window = getattr(config, name, None)
            if isinstance(window, int):
                yield window


def _rotations(config: Any) -> Iterator[str]:
    """The kinds of rotary embeddings; a configuration has one, or one per kind of layer."""
    rotary = getattr(config, "rope_parameters", None) or {}
    for settings in (rotary, *(value for value in rotary.values() if isinstance(value, dict))):
        yield str(settings.get("rope_type", "default"))


def _agrees(model: Any) -> bool:
    """Whether small trees give the log-probabilities of their sequences, up to the rounding of the dtype."""
    pairs = _probe(model.config.get_text_config().vocab_size)
    expected = _values(FlatLoglikelihoods(pairs, 64, 8, model.device), model)
    rounding = torch.finfo(model.dtype).eps ** 0.5 * (expected - expected.mean()).norm()
    for hidden in _SHAPES:
        tree = TreeLoglikelihoods(pairs, 64, 64, hidden, model.device, pass_cost=0)
        try:
            found = _values(tree, model)
        except (MergeError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # whatever a model's code says to arguments that it was not written for
            _log.info("%s cannot run a tree: %s: %s", type(model).__name__, type(error).__name__, error)
            return False
        if (found - expected).norm() > rounding:
            return False
    return True


def _values(requests: Loglikelihoods, model: Any) -> torch.Tensor:
    """[requests], fp64."""
    return torch.tensor([value for value, _ in requests.run(model)], dtype=torch.float64)


def _probe(vocabulary: int) -> list[Pair]:
    """Single tokens after the nodes of a tree that branches twice."""

    def token(number: int) -> int:
        return number * 7919 % vocabulary

    stem = [token(number) for number in range(1, 9)]
    heads = [[*stem, *(token(100 * row + number) for number in range(4))] for row in (1, 2)]
    branches = [[*head, *(token(1000 * branch + number) for number in range(3))] for head in heads for branch in (1, 2)]
    contexts = [stem, *heads, *(branch[:length] for branch in branches for length in (13, 14, 15))]
    return [(context, [token(target)]) for context in contexts for target in (11, 12, 13)]
