"""The sections of a search.yaml, each validated by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from evomerge.documents import Frozen, Positive
from evomerge.recipe import ModelRef
from evomerge.samplers import SAMPLERS, SamplerInfo

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
Estimator = Literal["paired", "difference"]
Allowed = Literal["pickle_weights", "remote_code", "task_code", "benchmark_test_sets"]


class Calibration(Frozen):
    """Text that a source is good at, from a task or from a file.

    Attributes:
        task: a task of the evaluator's pack, whose calibration items are taken.
        file: a text file, relative to the spec.
        items: number of items that are taken.
    """

    task: str | None = None
    file: str | None = None
    items: Positive

    @model_validator(mode="after")
    def _exactly_one_origin(self) -> Calibration:
        if (self.task is None) == (self.file is None):
            raise ValueError("give either task or file")
        return self


class SourceSpec(Frozen):
    """A model that goes into the merges: the base, a fine-tune of it, or a LoRA adapter.

    Attributes:
        name: of the source in rows, recipes and params.
        location: a directory (relative to the spec) or a hub id.
        revision: commit, tag or branch of a hub id, its main branch where none is given; a directory has none. With
            `allow: [remote_code]` a full commit hash.
        calibration: text that the source is good at, for baselines and methods that learn or measure.
    """

    name: Name
    location: str
    revision: str | None = None
    calibration: Calibration | None = None

    @property
    def ref(self) -> ModelRef:
        return ModelRef(self.name, self.location, revision=self.revision)


class ConstraintSpec(Frozen):
    """A condition that the best candidate has to meet: a task's score is not worse than something.

    Attributes:
        task: its name, or `all`, which means every task by itself.
        at_least: a score; `best-source`, the best score of base and experts on that task; or `base`, that of the base.
            For metrics that should be low it is the largest value that is allowed.
        tolerance: how much worse than that is still allowed, in the units of the score: 0.02 are two points.
    """

    task: str = "all"
    at_least: float | Literal["best-source", "base"]
    tolerance: Annotated[float, Field(ge=0)] = 0.0


class ObjectiveSpec(Frozen):
    """Rule that turns the scores of the tasks into the one number that is maximised.

    Attributes:
        aggregate: weighted_mean, min (the worst task counts), geometric_mean, or pareto: each task is an objective.
        reference: with pareto, the aggregate that ranks candidates, and so defines the best one.
        normalise: `sources` maps each task to 0 at the sources' worst score and 1 at their best.
        weights: task -> weight; tasks that are not named keep the weight of the evaluator's pack.
        constraints: conditions; a candidate that misses one is the best only where all miss some.
    """

    aggregate: Literal["weighted_mean", "min", "geometric_mean", "pareto"] = "weighted_mean"
    reference: Literal["weighted_mean", "min", "geometric_mean"] = "weighted_mean"
    normalise: Literal["none", "sources"] = "none"
    weights: Mapping[str, Annotated[float, Field(gt=0)]] = {}
    constraints: tuple[ConstraintSpec, ...] = ()

    @property
    def ranking(self) -> str:
        """The aggregate that candidates are ranked by."""
        return self.reference if self.aggregate == "pareto" else self.aggregate

    @model_validator(mode="after")
    def _settings_matter(self) -> ObjectiveSpec:
        if self.ranking == "min" and self.weights:
            raise ValueError("aggregate min is the worst task, whatever the weights; leave weights out")
        if self.aggregate != "pareto" and "reference" in self.model_fields_set and self.reference != "weighted_mean":
            raise ValueError(f"reference belongs to aggregate pareto; with {self.aggregate} leave it out")
        return self


class _Named(BaseModel):
    """A thing by name; every other key is a setting of that thing."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _finite(self) -> Self:
        for name, value in self.settings.items():
            if not _is_finite(value):
                raise ValueError(f"{name} has a number that is not finite; leave it out, or give one that is")
        return self


def _is_finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


class SamplerSpec(_Named):
    """A sampler by name; every other key is a setting of that sampler.

    Attributes:
        name: of the sampler.
    """

    name: str = "cma"

    @property
    def info(self) -> SamplerInfo | None:
        """The abilities of the sampler; None for a name that does not exist, which is refused when it is built."""
        return SAMPLERS.get(self.name)


class EvaluatorSpec(_Named):
    """An evaluator by the name or path of its pack.

    Every other key is a setting of an evaluator class; `engine` and `engine_args` are those of a pack.

    Attributes:
        name: of a shipped pack or an evaluator class, or the folder of a pack, relative to the spec.
    """


class BaselineSpec(_Named):
    """A baseline by name; every other key is a setting of that baseline.

    Attributes:
        name: of the baseline.
    """


class VerdictSpec(Frozen):
    """The comparison on the held-out items.

    Attributes:
        best: number of the best trials that are scored there, the winner among them.
        margin: difference of the objective below which two merges are equivalent; without one that is not tested.
    """

    best: Positive = 5
    margin: Annotated[float, Field(gt=0)] | None = None


class BudgetSpec(Frozen):
    """The limits of a search, which ends as soon as one of them is reached. All are counted over all runs of the study.

    Attributes:
        trials: finished trials.
        hours: of running time.
        items: items scored by trials; a candidate that is dropped early costs few of them.
        tokens: that models read for trials.
        patience: trials with a score since the best value was found.
        target: a value of the objective that is good enough.
        futility: a chance to pass the best baseline that is too small to go on; without one it is only shown.
    """

    trials: Positive = 100
    hours: Annotated[float, Field(gt=0)] | None = None
    items: Positive | None = None
    tokens: Positive | None = None
    patience: Positive | None = None
    target: float | None = None
    futility: Annotated[float, Field(gt=0, lt=1)] | None = None


class FidelitySpec(Frozen):
    """On how many items a candidate is scored.

    Attributes:
        name: `full`, all of them; `race`, until it is clear that it is worse than the best one; `successive_halving`
            and `hyperband`, as long as it is among the best at certain numbers of items.
        block: items that are scored between two looks, over all tasks together.
        minimum: items before the first look.
        alpha: of a race, the largest share of equally good candidates that may be dropped as worse.
        estimator: of a race, `paired`: all candidates take the items in one order, and are compared with the best one
            on those seen; `difference`: items are drawn for each candidate, those in doubt sooner, and what earlier
            candidates say of the others is taken into account. Left open, that of the study.
        futility: of a race by difference, the largest share that may be dropped of the candidates that would take the
            lead on all search items; 0: nobody is dropped for having no prospect of it. Left open, that of the study.
        eta: of the brackets, one of `eta` candidates continues, on `eta` times as many items.
    """

    name: Literal["full", "race", "successive_halving", "hyperband"] = "full"
    block: Positive = 64
    minimum: Positive = 64
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    eta: Annotated[int, Field(ge=2)] = 3
    estimator: Estimator | None = None
    futility: Annotated[float, Field(ge=0, lt=0.5)] | None = None

    @model_validator(mode="after")
    def _settings_belong(self) -> FidelitySpec:
        race = ("block", "minimum", "alpha", "estimator", "futility")
        used = {"full": (), "race": race}.get(self.name, ("minimum", "eta"))
        for name in self.model_fields_set - {"name", *used}:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"fidelity {self.name} has no setting {name!r}; it has {', '.join(used) or 'none'}")
        if self.estimator == "paired" and self.futility:
            raise ValueError("futility needs the estimator difference; leave futility out, or the estimator")
        return self


class OtherStudy(Frozen):
    """The best trials of another study of the same space.

    Attributes:
        name: of the study.
        storage: URL of its storage; without it this search's, and then `runs/NAME/study.db` beside this search's own.
        trials: number of its best trials.
    """

    name: str
    storage: str | None = Field(default=None, repr=False)  # may hold a password
    trials: Positive = 1


class WarmStartSpec(Frozen):
    """Merges that are scored right after the centre, and that the sampler learns from: the nearest points of the space.

    Attributes:
        baselines: number of best baselines, which are then built before the search. Of a trained one (`dam`), the
            mean weight of each source in each group.
        recipes: files, relative to the spec: recipe.json of an export, or a recipe as YAML or a mergekit YAML whose
            models are sources of the search.
        studies: best trials of other studies of the same space; without a storage they are looked for in this search's,
            and then in the folder beside this search's own, `runs/NAME/study.db`.
        begin: baseline whose nearest point is scored before the centre, and where `cma` begins in its place, with
            short first steps.
    """

    baselines: Annotated[int, Field(ge=0)] = 0
    recipes: tuple[str, ...] = ()
    studies: tuple[OtherStudy, ...] = ()
    begin: str | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Studies of earlier releases store warm starts without a beginning."""
        content: dict[str, Any] = dump(self)
        if self.begin is None:
            content.pop("begin", None)
        return content


LEAST_SHARE: Final = 0.0001  # of a resource; Ray counts in such steps


class WorkersSpec(Frozen):
    """The workers: how many, what each one gets, and after how many seconds a candidate is given up.

    Attributes:
        count: as many as find a place on the cluster, up to this number. Without it one per GPU of this machine, or as
            many as its cores allow; on a cluster that is joined the number is needed.
        min: fewer than these do not go on: the run waits, and ends after a while so that it can be resumed.
        cpus: processor cores for each worker.
        gpus: of one node, for each worker; below 1 the share of one GPU. Without it an equal
            share of those that there are, one at most.
        resources: of Ray's nodes, for each worker, by name.
        allow_open_cluster: join a Ray cluster that takes jobs from anyone who reaches it.
        timeout: seconds after which a candidate is given up.
        checkpoint: seconds after which what a long evaluation has found so far is kept for an attempt that follows.
    """

    count: Positive | None = None
    min: Positive = 1
    cpus: Positive = 1
    gpus: Annotated[float, Field(ge=0)] | None = None
    resources: Mapping[str, Annotated[float, Field(ge=LEAST_SHARE)]] = {}
    allow_open_cluster: bool = False
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    checkpoint: Annotated[float, Field(gt=0)] = 60.0

    @model_validator(mode="after")
    def _min_is_reached(self) -> WorkersSpec:
        if self.count is not None and self.min > self.count:
            raise ValueError(f"workers.min is {self.min}, but there are at most {self.count} (workers.count)")
        return self

    @model_validator(mode="after")
    def _gpus_can_be_given(self) -> WorkersSpec:
        gpus = self.gpus or 0.0
        if 0 < gpus < LEAST_SHARE or (gpus > 1 and not gpus.is_integer()):
            raise ValueError(
                f"workers.gpus is {gpus:g}: write a whole number of GPUs, or the share of one, {LEAST_SHARE:g} or more"
            )
        return self
