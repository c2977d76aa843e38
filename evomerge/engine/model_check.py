"""Refuses models whose scores would mean nothing: found out by running them on made-up tokens, before any item."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from evomerge.engine.flat import forward
from evomerge.engine.live_state import LiveState
from evomerge.engine.probe import made_up_tokens, same_numbers
from evomerge.engine.protocol import not_a_number
from evomerge.errors import InvalidInput, MergeError
from evomerge.messages import in_one_line, some

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPARED = 16  # positions at each end of a sequence whose logits are compared


def check_model(model: PreTrainedModel, state: LiveState, shortest: int, longest: int) -> None:
    """Run a model on sequences of `shortest` and `longest` tokens.

    Args:
        model: live, with weights that compute numbers, such as those of the base.
        state: of this model; what the check changes is put back.

    Raises:
        InvalidInput: the model cannot run such sequences; tokens that come later change what it says of earlier ones;
            it changes its own weights; or scores depend on what it has run before.
        MergeError: the model computes no numbers.
    """
    before = _magnitudes(model)
    tokens = made_up_tokens(model, shortest, 1)
    first = _logits(model, state, tokens, _ends_of(shortest))
    _check_weights_stay(model, before)
    _check_causal(model, state, longest)
    again = _logits(model, state, tokens, _ends_of(shortest))
    if not torch.equal(first, again):
        raise InvalidInput(
            f"{type(model).__name__} gives other logits for the same {shortest} tokens after it has run {longest} "
            "others: it keeps something between forward passes, so that no score could be repeated; such models cannot "
            "be scored"
        )


def _check_weights_stay(model: PreTrainedModel, before: Mapping[str, float]) -> None:
    changed = sorted(key for key, value in _magnitudes(model).items() if value != before[key])
    if changed:
        raise InvalidInput(
            f"{type(model).__name__} changes its own weights when it runs ({some(changed)}), so that they would not be "
            "those of the merge; such models cannot be scored"
        )


def _check_causal(model: PreTrainedModel, state: LiveState, length: int) -> None:
    """Compare what the model says of the first half of two sequences that differ in the second half."""
    half = max(1, length // 2)
    start = made_up_tokens(model, half, 2)
    one, other = (
        _logits(model, state, [*start, *made_up_tokens(model, length - half, seed)], _ends_of(half)) for seed in (3, 4)
    )
    if not same_numbers(other.double().flatten(), one.double().flatten(), model.dtype):
        raise InvalidInput(
            f"{type(model).__name__} is no causal language model: later tokens change what it says of earlier ones, so "
            "that log-likelihoods of answers mean nothing; only decoder-only models can be scored (BERT-like classes "
            "are decoders with is_decoder: true in config.json)"
        )


def _ends_of(length: int) -> list[int]:
    """The first and the last positions of so many: enough to compare, few enough for a large vocabulary."""
    return sorted({*range(min(_COMPARED, length)), *range(max(0, length - _COMPARED), length)})


def _logits(model: PreTrainedModel, state: LiveState, tokens: list[int], positions: list[int]) -> torch.Tensor:
    """Logits [positions, vocabulary], in fp32 on the CPU."""
    state.restore()
    places = torch.tensor(positions, device=model.device)
    try:
        logits = forward(model, torch.tensor([tokens], device=model.device), places)[0].float().cpu()
    except (MergeError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # whatever a model's code raises for a sequence that it cannot run
        reason = in_one_line(error, 300)
        raise InvalidInput(
            f"{type(model).__name__} cannot run a sequence of {len(tokens)} tokens: {reason}; if that is beyond what "
            "the model holds, set max_length of the evaluator lower"
        ) from error
    finally:
        state.restore()
    if bool(logits.isnan().any()):
        raise not_a_number()
    return logits


def _magnitudes(model: PreTrainedModel) -> Mapping[str, float]:
    """Tensor -> the sum of its magnitudes, in fp64: no copy of the weights is needed to see a change."""
    return {name: float(tensor.detach().abs().sum(dtype=torch.float64)) for name, tensor in model.named_parameters()}
