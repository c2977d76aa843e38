"""Forward passes of a source while it is measured: in evaluation mode, with errors that name what was run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import InvalidInput
from evomerge.messages import first_line

Inputs = Tensor | Mapping[str, Any]


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Inside, no module drops units or learns averages; afterwards each has the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def run(model: torch.nn.Module, inputs: Inputs, what: str, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """The model's output; `tensors` stand in for its parameters.

    Raises:
        InvalidInput: the model cannot be run on such inputs.
    """
    arguments, named = ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})
    try:
        if tensors is None:
            return model(*arguments, **named)
        return torch.func.functional_call(model, dict(tensors), arguments, named)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise InvalidInput(f"the model cannot be run on {what}: {first_line(error)}") from error


def logits_of(output: Any, what: str) -> Tensor:
    """The logits of a model's output, which is a tensor or has the attribute `logits`.

    Raises:
        InvalidInput: there are none, or they are not finite.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise InvalidInput(f"the model gives {type(logits).__name__} for {what}; it must give logits")
    if not bool(torch.isfinite(logits).all()):
        raise InvalidInput(f"the logits of the model for {what} are not finite; measure it in a wider dtype")
    return logits
