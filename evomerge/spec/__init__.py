"""search.yaml: the whole description of one search, validated when it is loaded, and frozen."""

from evomerge.spec.reading import build_spec, load_spec, override, read_spec, resolve, spec_from_json, written_storage
from evomerge.spec.search_spec import SearchSpec
from evomerge.spec.sections import (
    BaselineSpec,
    BudgetSpec,
    Calibration,
    ConstraintSpec,
    Estimator,
    EvaluatorSpec,
    FidelitySpec,
    ObjectiveSpec,
    OtherStudy,
    SamplerSpec,
    SourceSpec,
    VerdictSpec,
    WarmStartSpec,
    WorkersSpec,
)

__all__ = [
    "BaselineSpec",
    "BudgetSpec",
    "Calibration",
    "ConstraintSpec",
    "Estimator",
    "EvaluatorSpec",
    "FidelitySpec",
    "ObjectiveSpec",
    "OtherStudy",
    "SamplerSpec",
    "SearchSpec",
    "SourceSpec",
    "VerdictSpec",
    "WarmStartSpec",
    "WorkersSpec",
    "build_spec",
    "load_spec",
    "override",
    "read_spec",
    "resolve",
    "spec_from_json",
    "written_storage",
]
