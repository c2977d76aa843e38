"""The settings of the trainings of baselines: those of the spec, and those that follow from the search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from evomerge.baselines.info import BASELINES
from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.spaces.groups import TensorGroup
from evomerge.spec import BaselineSpec, SourceSpec

FILLED_IN = ("groups", "task_weights", "fold")


@dataclass(frozen=True, kw_only=True)
class SearchFacts:
    """Facts of a search that its trainings go by.

    Attributes:
        longest: tokens that the model can hold: longer texts are cut, whatever the settings allow. None: any number.
        groups: label -> tensors of a group of the search space; nothing where one group has them all.
        task_weights: expert -> weight of its texts.
    """

    longest: int | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    task_weights: Mapping[str, float] = field(default_factory=dict)


def search_facts(
    experts: Sequence[SourceSpec],
    groups: Sequence[TensorGroup],
    *,
    longest: int | None,
    weights: Mapping[str, float],
    aggregate: str,
) -> SearchFacts:
    """The facts of a search.

    Args:
        weights: task -> weight in the objective.
        aggregate: of the objective; the worst task, or their product, does not go by weights.
    """
    by_label = {group.label: group.tensors for group in groups}
    return SearchFacts(
        longest=longest,
        groups=by_label if len(by_label) > 1 else {},
        task_weights=source_weights(experts, weights if aggregate == "weighted_mean" else dict.fromkeys(weights, 1.0)),
    )


def source_weights(experts: Sequence[SourceSpec], weights: Mapping[str, float]) -> dict[str, float]:
    """Expert -> weight of its texts: that of their task, shared by the experts that name it; of a file the mean."""
    tasks = {expert.name: expert.calibration.task for expert in experts if expert.calibration is not None}
    sharing = Counter(tasks.values())
    return {
        name: weights[task] / sharing[task] if task is not None and task in weights else fmean(weights.values())
        for name, task in tasks.items()
    }


def training_settings(baseline: BaselineSpec, facts: SearchFacts | None = None) -> dict[str, Any]:
    """The settings of a training, all of them, as plain data.

    Args:
        facts: of the search; None: only check what the spec gives.

    Raises:
        InvalidInput: a setting that does not exist, is out of its range, or is not open to choice.
    """
    from evomerge.trainers import SETTINGS
    from evomerge.training import AdaSettings

    info, facts = BASELINES[baseline.name], facts or SearchFacts()
    for name in sorted(baseline.settings.keys() & info.preset):
        plain = BASELINES.get(str(info.trainer))
        instead = "" if plain is None or name in plain.preset else f", or use {info.trainer}"
        raise InvalidInput(
            f"{name} of baseline {baseline.name!r} is always {info.preset[name]!r}; leave it out{instead}"
        )
    kind = SETTINGS[str(info.trainer)]
    filled_in = [name for name in FILLED_IN if name in kind.model_fields]
    for name in filled_in:
        if name in baseline.settings:
            raise InvalidInput(f"{name} of baseline {baseline.name!r} follows from the search; leave it out")
    given = {**info.defaults, **info.preset, **baseline.settings}
    settings = validate(kind, given, f"baseline {baseline.name!r}")
    if isinstance(settings, AdaSettings) and settings.initial is None and not info.needs_search:
        raise InvalidInput(f"baseline {baseline.name!r} starts from no other merge; give `initial` a number")
    changes: dict[str, Any] = {"max_length": min(settings.max_length, facts.longest or settings.max_length)}
    if "task_weights" in filled_in:
        changes["task_weights"] = dict(facts.task_weights)
    if getattr(settings, "granularity", None) in {"groups", "chosen"} and "groups" in filled_in:
        changes["groups"] = dict(facts.groups)
    return settings.model_copy(update=changes).model_dump(mode="json")
