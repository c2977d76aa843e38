"""Experts whose task does not show that they have learned it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.spec import SourceSpec


def unlearned_skills(sources: Sequence[SourceSpec], scores: Mapping[str, Scores]) -> Iterator[str]:
    """A warning for each expert that is no better than the base on the task of its calibration.

    An expert is seldom that bad; more often the task asks otherwise than the expert was trained, by a space or a
    template, and then every merge is measured by the wrong thing.

    Args:
        sources: of the spec, the base first.
        scores: source name -> its scores.
    """
    base, *experts = sources
    for expert in experts:
        task = expert.calibration.task if expert.calibration is not None else None
        if task is None or task not in scores[expert.name].tasks:
            continue
        own, before = scores[expert.name].tasks[task], scores[base.name].tasks[task]
        if not _is_better(own, before):
            yield (
                f"source {expert.name!r} scores {own.value:.3f} on {task}, the task of its calibration, and the base "
                f"{before.value:.3f}: compare an item as lm-eval asks it (`lm_eval --write_out`), spaces included, "
                "with what the expert was trained on"
            )


def _is_better(one: TaskScores, other: TaskScores) -> bool:
    return one.value > other.value if one.higher_is_better else one.value < other.value
