"""Statistics that are measured for a search or a baseline, known and checked before anything is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.bank.memory import BYTES
from evomerge.baselines.info import BASELINES
from evomerge.checkpoints import meta_model, tensors_of
from evomerge.errors import InvalidInput
from evomerge.evaluation.calibration_texts import calibration_texts
from evomerge.evaluation.evaluator import CalibrationText, Evaluator
from evomerge.jobs import Measure
from evomerge.methods import METHODS, resolve_options
from evomerge.opening.inputs import Inputs
from evomerge.recipe import ModelRef, source_role
from evomerge.spaces.space_checks import needed_statistics
from evomerge.spec import BaselineSpec, Calibration, SearchSpec
from evomerge.statistics.measured_size import MeasuredSize, measured_size
from evomerge.statistics.measurement import MeasuredModel, MeasurementSettings, find_kind, texts_digest


@dataclass(frozen=True, kw_only=True)
class PlannedMeasurement:
    """One source that is to be measured.

    Attributes:
        kind: of the statistics.
        settings: all settings of the measurement, as plain data.
    """

    kind: str
    source: ModelRef
    calibration: Calibration
    settings: Mapping[str, Any]

    @property
    def role(self) -> str:
        """The role of its file in recipes."""
        return source_role(self.kind, self.source.name)

    def job(self, owner: str) -> Measure:
        """The job that measures it; `owner` is the study, or a row of it, and begins the key."""
        return Measure(
            key=f"{owner}/{self.role}",
            kind=self.kind,
            source=self.source,
            calibration=self.calibration,
            settings=self.settings,
        )

    def texts(self, evaluator: Evaluator) -> list[CalibrationText]:
        """The texts of the source, as the measurement reads them.

        Raises:
            InvalidInput: they are missing, or nothing counts in one of them.
        """
        found = calibration_texts(evaluator, self.calibration)
        return find_kind(self.kind).usable(found, self.source.name, self.settings["max_length"])


def plan_measurements(
    needed: Mapping[str, Mapping[str, bool]],
    sources: Sequence[ModelRef],
    spec: SearchSpec,
    *,
    longest: int | None,
    owner: str,
) -> list[PlannedMeasurement]:
    """The measurement of every kind and source.

    Args:
        needed: kind -> settings.
        longest: tokens that the model can hold: longer texts are cut.
        owner: names in the error what needs them.

    Raises:
        InvalidInput: a source has no calibration texts.
    """
    calibrations = {source.name: source.calibration for source in spec.sources}
    without = [ref.name for ref in sources if calibrations[ref.name] is None]
    if needed and without:
        raise InvalidInput(
            f"{owner} needs {' and '.join(needed)} of every source, measured on text that it is good at, but "
            f"{', '.join(without)} name no calibration; write calibration: {{task: NAME, items: N}} beside them"
        )
    planned = []
    for kind, switches in needed.items():
        settings = MeasurementSettings(**switches)
        cut = settings.model_copy(update={"max_length": min(settings.max_length, longest or settings.max_length)})
        for ref in sources:
            calibration = calibrations[ref.name]
            if calibration is not None:
                plain = cut.model_dump(mode="json")
                planned.append(PlannedMeasurement(kind=kind, source=ref, calibration=calibration, settings=plain))
    return planned


def planned_measurements(inputs: Inputs) -> list[PlannedMeasurement]:
    """The measurements before the first trial, for the methods of the space.

    Raises:
        InvalidInput: a source has no calibration texts.
    """
    return plan_measurements(
        needed_statistics(inputs.spec.search_space),
        inputs.space.sources,
        inputs.spec,
        longest=inputs.longest_text,
        owner=f"search space {inputs.spec.search_space.name!r}",
    )


def baseline_measurements(
    baseline: BaselineSpec, spec: SearchSpec, experts: Sequence[ModelRef], *, longest: int | None
) -> list[PlannedMeasurement]:
    """The measurements for a baseline; none for one whose method takes no statistics.

    Raises:
        InvalidInput: an expert has no calibration texts, or an option is none of the method's.
    """
    info = BASELINES[baseline.name]
    statistics = METHODS[info.method].statistics if info.method is not None and info.measured else None
    if statistics is None or info.method is None:
        return []
    names = {"semantics", *METHODS[info.method].option_names}
    given = {name: value for name, value in baseline.settings.items() if name in names}
    options = resolve_options(info.method, given, n_sources=len(experts))
    needed = {statistics.name: statistics.settings(options)}
    return plan_measurements(needed, experts, spec, longest=longest, owner=f"baseline {baseline.name!r}")


def all_measurements(inputs: Inputs, baselines: Sequence[BaselineSpec]) -> list[PlannedMeasurement]:
    """The measurements for the space and for baselines, each once.

    Raises:
        InvalidInput: see `planned_measurements`.
    """
    experts = [expert.ref for expert in inputs.experts]
    found = planned_measurements(inputs)
    for baseline in baselines:
        further = baseline_measurements(baseline, inputs.spec, experts, longest=inputs.longest_text)
        found += [each for each in further if each not in found]
    return found


def measured_sizes(inputs: Inputs, planned: Sequence[PlannedMeasurement]) -> list[MeasuredSize]:
    """The size of each measurement, from a model without weights."""
    if not planned:
        return []
    model = meta_model(inputs.base)
    measured = MeasuredModel(model=model, live=tensors_of(inputs.base, model), catalogue=inputs.catalogue)
    return [
        measured_size(
            find_kind(each.kind),
            measured,
            MeasurementSettings.model_validate(dict(each.settings)),
            width=BYTES[inputs.spec.dtype],
        )
        for each in planned
    ]


def baseline_texts(inputs: Inputs) -> dict[str, str]:
    """Source -> digest of the texts that the baselines of the space are made from; nothing where none needs texts.

    Raises:
        InvalidInput: a source has no calibration texts, or they are missing.
    """
    if not any(BASELINES[each.name].needs_texts for each in inputs.spec.space_baselines):
        return {}
    calibrations = {each.name: each.calibration for each in inputs.spec.experts if each.calibration is not None}
    return {name: texts_digest(calibration_texts(inputs.evaluator, each)) for name, each in calibrations.items()}


def measured_texts(inputs: Inputs) -> dict[str, str]:
    """Role -> digest of the texts that are read for it: values of trials depend on them.

    Raises:
        InvalidInput: texts are missing, or nothing counts in one of them.
    """
    return {each.role: texts_digest(each.texts(inputs.evaluator)) for each in planned_measurements(inputs)}
