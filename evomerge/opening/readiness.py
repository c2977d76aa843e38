"""Whether a search can score its models: told by the requests and by the base itself, before a worker is started."""

from __future__ import annotations

import torch

from evomerge.bank.memory import BYTES, available_memory
from evomerge.checkpoints import check_scorable, load_skeleton, meta_model
from evomerge.checkpoints.stacked_model import check_stackable
from evomerge.evaluation.evaluator import ModelEvaluator
from evomerge.messages import in_bytes
from evomerge.opening.inputs import Inputs
from evomerge.passes.kernels import DTYPES

_SHARE = 0.5  # of the available memory that the base may take, to be run beside everything else


def check_requests(inputs: Inputs) -> list[str]:
    """Build and encode every request as workers will, without weights.

    Evaluators that need no model have nothing to check.

    Returns:
        Warnings about requests that can be scored, but may not be meant.

    Raises:
        InvalidInput: merges into the base cannot be scored, or a request cannot be run; names the source or the task
            and item. In a space of layer paths also: its layers cannot be put into another order.
    """
    if isinstance(inputs.evaluator, ModelEvaluator):
        check_scorable(inputs.base)
        if inputs.space.paths is not None:
            check_stackable(inputs.base)
        return list(inputs.evaluator.check_requests(meta_model(inputs.base)) or ())  # None: of an earlier release
    return []


def check_model(inputs: Inputs) -> str | None:
    """Run the base on made-up tokens, on the processor, as the first worker will on its device.

    Returns:
        A warning where the base is too large to be run here; None where it has been run, or need not be.

    Raises:
        InvalidInput: its scores would mean nothing, or it cannot run requests of these lengths.
    """
    spec, evaluator = inputs.spec, inputs.evaluator
    if not isinstance(evaluator, ModelEvaluator):
        return None
    needed, there = sum(entry.numel for entry in inputs.catalogue.entries) * BYTES[spec.dtype], available_memory()
    if needed > _SHARE * there:
        return (
            f"the base was not tried out: it takes {in_bytes(needed)}, and of {in_bytes(there)} of free memory "
            f"here a check uses {_SHARE:.0%}; the first worker tries it"
        )
    model, _ = load_skeleton(inputs.base, dtype=DTYPES[spec.dtype], device=torch.device("cpu"))
    evaluator.check_model(model)
    return None
