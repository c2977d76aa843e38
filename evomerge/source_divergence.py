"""Divergence of the sources for `evomerge check`: how far each speaks from the mean of the experts' weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from evomerge.bank.memory import BYTES, available_memory
from evomerge.checkpoints import Source, load_skeleton
from evomerge.checkpoints.vocabulary import embedding_rows
from evomerge.errors import InvalidInput
from evomerge.evaluation.calibration_texts import calibration_texts
from evomerge.evaluation.evaluator import CalibrationText, ModelEvaluator
from evomerge.messages import in_bytes
from evomerge.opening.inputs import Inputs
from evomerge.passes.kernels import DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXTS: Final = 4  # calibration texts per source
LENGTH: Final = 128  # last tokens of a text that are read
POSITIONS: Final = 16  # last positions of an answer that are compared
SHARE: Final = 0.5  # of the available memory that the model and its log-probabilities may take


def source_divergence(inputs: Inputs) -> dict[str, Any]:
    """Mean KL(source || mean) per token of the answers of calibration items, in nats.

    The mean is the model with the mean of the experts' weights (the uniform soup), in the search's dtype on the
    processor. Only calibration items are read.

    Returns:
        `nats` (source -> KL; None where it is not finite) and `texts`, or `left_out`, the reason; and `says`.
    """
    reason = _reason(inputs)
    texts = [] if reason else _texts(inputs)
    if reason or not texts:
        reason = reason or "the calibration items have no answers"
        return {"left_out": reason, "says": [f"Divergence of the sources is left out: {reason}."]}
    found = _divergences(inputs, texts)
    return {"nats": found, "texts": len(texts), "says": _sentences(found, len(texts))}


def _reason(inputs: Inputs) -> str:
    """The reason why it is left out; empty where it can be measured."""
    if not isinstance(inputs.evaluator, ModelEvaluator):
        return "the evaluator runs no model that could be asked"
    if not any(source.calibration for source in inputs.spec.sources):
        return "no source has calibration items"
    sizes = sum(entry.numel for entry in inputs.catalogue.entries) * BYTES[inputs.spec.dtype]
    positions = TEXTS * POSITIONS * len(inputs.spec.sources)
    vocabulary = embedding_rows(inputs.base)
    needed, there = sizes + 2 * 4 * positions * vocabulary, available_memory()
    return "" if needed <= SHARE * there else f"it takes {in_bytes(needed)}, and {in_bytes(there)} are free here"


def _texts(inputs: Inputs) -> list[CalibrationText]:
    found: list[CalibrationText] = []
    for source in inputs.spec.sources:
        if source.calibration is not None:
            given = calibration_texts(inputs.evaluator, source.calibration)[:TEXTS]
            found += [text.cut(LENGTH) for text in given]
    return [text for text in found if len(text.counted("answer"))]


def _divergences(inputs: Inputs, texts: Sequence[CalibrationText]) -> dict[str, float | None]:
    names = [entry.name for entry in inputs.catalogue.mergeable]
    model, live = load_skeleton(inputs.base, dtype=DTYPES[inputs.spec.dtype], device=torch.device("cpu"))
    _write(live, names, lambda name: _mean(inputs.experts, name))
    mean = _log_probabilities(model, texts)
    found: dict[str, float | None] = {}
    for source in (inputs.base, *inputs.experts):
        _write(live, names, lambda name, source=source: source.tensors[name])  # type: ignore[misc]
        own = _log_probabilities(model, texts)
        terms = [float((p.exp() * (p - q)).sum(-1).mean()) for p, q in zip(own, mean, strict=True)]
        value = math.fsum(terms) / len(terms)
        found[source.ref.name] = max(0.0, value) if math.isfinite(value) else None
    return found


def _write(live: Mapping[str, Tensor], names: Sequence[str], tensor_of: Callable[[str], Tensor]) -> None:
    with torch.no_grad():
        for name in names:
            live[name].copy_(tensor_of(name))


def _mean(experts: Sequence[Source], name: str) -> Tensor:
    total = experts[0].tensors[name].float().clone()
    for expert in experts[1:]:
        total += expert.tensors[name].float()
    return total / len(experts)


def _log_probabilities(model: PreTrainedModel, texts: Sequence[CalibrationText]) -> list[Tensor]:
    """Of each text [positions, vocabulary] in fp32, at the last positions that predict a token of the answer."""
    found = []
    for text in texts:
        places = list(text.counted("answer"))[-POSITIONS:]
        try:
            with torch.no_grad():
                logits = model(torch.tensor([list(text.tokens)]), use_cache=False).logits[0, places]
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise InvalidInput(f"the model cannot be run on a calibration item: {error}") from error
        found.append(logits.float().log_softmax(-1))
    return found


def _sentences(found: Mapping[str, float | None], texts: int) -> list[str]:
    known = {name: value for name, value in found.items() if value is not None}
    if not known:
        return [f"On {texts} calibration items no source computes finite probabilities with the mean of the experts."]
    far, near = max(known, key=lambda name: known[name]), min(known, key=lambda name: known[name])
    return [
        f"On {texts} calibration items {far} is the farthest from the mean of the experts' weights ({known[far]:.2g} "
        f"nats per token), {near} the nearest ({known[near]:.2g}): the farther a source, the more of what it answers "
        "the uniform soup gives up, and the more its weight is worth searching."
    ]
