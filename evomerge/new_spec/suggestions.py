"""Choices of a first search.yaml that nobody has made: by the number of sources, what they are, and the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from evomerge.new_spec.source_survey import SourceSurvey

TRIALS: Final = 50  # of a space with few dimensions
TRIALS_PER_DIMENSION: Final = 10
ONE_EXPERT: Final = {  # a space in its own right: the centre of those that are shipped adds one task vector twice
    "name": "one-fine-tune",
    "groups": {"depth": {"blocks": 2}},
    "methods": {"task_arithmetic": {"parameters": {"weight": {"low": 0.0, "high": 2.0}}}},
}


@dataclass(frozen=True, kw_only=True)
class SpecSuggestions:
    """The choices, each with the reason that a comment gives.

    Attributes:
        space: a name, or the content of a space.
        workers: content of the section.
        policies: `tokenizer` and `missing`, where sources need them.
    """

    space: str | Mapping[str, Any]
    why_space: str
    trials: int
    dtype: str
    why_dtype: str
    workers: dict[str, Any]
    why_workers: str
    policies: dict[str, str]


def suggestions(survey: SourceSurvey, space: str | None) -> SpecSuggestions:
    """The choices for these sources on this machine.

    Args:
        space: the one that the user has chosen.
    """
    chosen, why = (space, "your choice") if space is not None else _space(len(survey.experts))
    gpus = _gpus()
    dtype, why_dtype = _dtype(survey.dtype, gpus)
    workers, why_workers = _workers(gpus)
    return SpecSuggestions(
        space=chosen,
        why_space=why,
        trials=_trials(chosen, survey),
        dtype=dtype,
        why_dtype=why_dtype,
        workers=workers,
        why_workers=why_workers,
        policies={
            **({"tokenizer": "base"} if survey.other_vocabulary else {}),
            **({"missing": "base"} if survey.other_ties else {}),
        },
    )


def _space(experts: int) -> tuple[str | Mapping[str, Any], str]:
    if experts == 1:
        return ONE_EXPERT, "how much of the one fine-tune each block of two layers takes; 1 is the fine-tune itself"
    return "baselines-global", "weighted sums of the baselines, so that the winner is never below the best of these"


def _trials(space: str | Mapping[str, Any], survey: SourceSurvey) -> int:
    """More where each block of two layers has a weight for every expert."""
    per_block = space is ONE_EXPERT or (isinstance(space, str) and space.endswith("-per-block"))
    if not per_block or space == "baselines-per-block" or survey.depth is None:
        return TRIALS
    return max(TRIALS, TRIALS_PER_DIMENSION * len(survey.experts) * -(-survey.depth // 2))


def _dtype(stored: str | None, gpus: int) -> tuple[str, str]:
    if not gpus:
        return "float32", "exact on a CPU, and no slower there than 16 bits"
    if stored is None:
        return "bfloat16", "the usual one on a GPU"
    return stored, "that of the base's weights"


def _workers(gpus: int) -> tuple[dict[str, Any], str]:
    if gpus:
        return {"count": gpus, "gpus": 1}, f"one for each of the {gpus} GPUs" if gpus > 1 else "one, on the GPU"
    cores = os.cpu_count() or 1
    return {"count": cores, "cpus": 1}, "one for each core; fewer where memory is short, which `evomerge check` says"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
