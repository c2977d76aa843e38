"""search.yaml: the whole description of one search, validated when it is loaded, and frozen."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from evomerge.baselines.info import BASELINES
from evomerge.documents import Frozen, Positive, read_document, validate
from evomerge.errors import InvalidInput, unknown_name
from evomerge.forms import expanded, is_file, is_folder, parse_json, reading
from evomerge.observers import MetricsSpec, NotifySpec, located
from evomerge.recipe import ModelRef
from evomerge.recipe_spaces.checks import check_recipe_space, is_recipe_file
from evomerge.recipe_spaces.scaled_rules import LINEAR_IN_WEIGHT
from evomerge.samplers import SAMPLERS, SamplerInfo
from evomerge.spaces.space import SearchSpace, check_space, load_space
from evomerge.storage.url import placed_folder, placed_url

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
Estimator = Literal["paired", "difference"]
Allowed = Literal["pickle_weights", "remote_code", "task_code", "benchmark_test_sets"]


class Calibration(Frozen):
    """Text that a source is good at: a task of the evaluator's pack, or a text file; and how many items of it."""

    task: str | None = None
    file: str | None = None
    items: Positive

    @model_validator(mode="after")
    def _exactly_one_origin(self) -> Calibration:
        if (self.task is None) == (self.file is None):
            raise ValueError("give either task or file")
        return self


class SourceSpec(Frozen):
    """A model that goes in. `location` is a directory (relative to the spec) or a hub id."""

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
    """A sampler by name; every other key is a setting of that sampler."""

    name: str = "cma"

    @property
    def info(self) -> SamplerInfo | None:
        """The abilities of the sampler; None for a name that does not exist, which is refused when it is built."""
        return SAMPLERS.get(self.name)


class EvaluatorSpec(_Named):
    """An evaluator by the name or path of its pack; every other key is a setting of an evaluator class."""


class BaselineSpec(_Named):
    """A baseline by name; every other key is a setting of that baseline."""


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
    """The best trials of another study of the same space."""

    name: str
    storage: str | None = Field(default=None, repr=False)  # may hold a password
    trials: Positive = 1


class WarmStartSpec(Frozen):
    """Merges that are scored right after the centre, and that the sampler learns from: the nearest points of the space.

    Attributes:
        baselines: number of best baselines, which are then built before the search. Of a trained one (`dam`), the
            mean weight of each source in each group.
        recipes: files as `evomerge export` writes them (recipe.json), relative to the spec.
        studies: best trials of other studies; without a storage, of this one's.
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


class WorkersSpec(Frozen):
    """The workers: how many, what each one gets, and after how many seconds a candidate is given up.

    Attributes:
        count: as many as find a place on the cluster, up to this number.
        min: fewer than these do not go on: the run waits, and ends after a while so that it can be resumed.
        allow_open_cluster: join a Ray cluster that takes jobs from anyone who reaches it.
    """

    count: Positive | None = None
    min: Positive = 1
    cpus: Positive = 1
    gpus: Annotated[float, Field(ge=0)] | None = None
    resources: Mapping[str, Annotated[float, Field(gt=0)]] = {}
    allow_open_cluster: bool = False
    timeout: Annotated[float, Field(gt=0)] = 3600.0

    @model_validator(mode="after")
    def _min_is_reached(self) -> WorkersSpec:
        if self.count is not None and self.min > self.count:
            raise ValueError(f"workers.min is {self.min}, but there are at most {self.count} (workers.count)")
        return self


def _is_reference_point(baseline: BaselineSpec) -> bool:
    """Whether a baseline is one model that is there before the search. `resolve` refuses an unknown name later."""
    info = BASELINES.get(baseline.name)
    return info is None or info.one_model_before


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _each_named(value: object) -> object:
    return [_named(each) for each in value] if isinstance(value, list | tuple) else value


def _sources(value: object) -> object:
    """Base first, as a list; or by key: {base: {...}, reverse: {...}}."""
    if isinstance(value, dict):
        return [{"name": name, **_located(content)} for name, content in value.items()]
    return value


def _located(content: object) -> dict[str, Any]:
    return {"location": content} if isinstance(content, str) else dict(content) if isinstance(content, dict) else {}


class SearchSpec(Frozen):
    """One search. The first source is the base (or the one named `base`), the others are the experts."""

    name: Name
    sources: Annotated[tuple[SourceSpec, ...], BeforeValidator(_sources)]
    space: str | SearchSpace
    evaluator: Annotated[EvaluatorSpec, BeforeValidator(_named)]
    objective: ObjectiveSpec = ObjectiveSpec()
    sampler: Annotated[SamplerSpec, BeforeValidator(_named)] = SamplerSpec()
    fidelity: Annotated[FidelitySpec, BeforeValidator(_named)] = FidelitySpec()
    warm_start: WarmStartSpec = WarmStartSpec()
    budget: BudgetSpec = BudgetSpec()
    workers: WorkersSpec = WorkersSpec()
    baselines: Annotated[tuple[BaselineSpec, ...], BeforeValidator(_each_named)] | None = None
    verdict: VerdictSpec = VerdictSpec()
    notify: NotifySpec | None = None
    metrics: MetricsSpec | None = None
    storage: str | None = Field(default=None, repr=False)  # may hold a password
    storage_patience: Annotated[float, Field(ge=0)] = 600.0  # seconds that a storage which is away is waited for
    artifacts: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    allow: tuple[Allowed, ...] = ()

    @model_validator(mode="after")
    def _parts_fit(self) -> SearchSpec:
        built_before = [each for each in self.chosen_baselines if _is_reference_point(each)]
        if self.needs_reference_points and not built_before:
            raise ValueError(
                "the sampler cma with several objectives searches for what is better than the baselines; name some, or "
                "use nsgaii, nsgaiii, tpe or gp"
            )
        begin = self.warm_start.begin
        if begin is not None and begin not in {each.name for each in built_before}:
            raise ValueError(
                f"warm_start: begin: {begin} is none of the search's baselines that are one model and made before it "
                f"({', '.join(each.name for each in built_before) or 'there are none'}); name it among them"
            )
        if begin is not None and self.objective.aggregate == "pareto":
            raise ValueError("warm_start: begin is for one objective; with several, cma begins at every baseline")
        if self.objective.aggregate == "pareto" and self.fidelity.name != "full":
            raise ValueError(f"fidelity {self.fidelity.name} compares one value, but pareto has several; write full")
        if self.fidelity.name != "full" and self.sampler.info is not None and self.sampler.info.complete_only:
            raise ValueError(
                f"fidelity {self.fidelity.name} ends most trials early, and sampler {self.sampler.name} learns from "
                "complete ones only; write fidelity: full, or use cma, catcma, forest or tpe"
            )
        if self.objective.constraints and self.fidelity.name != "full":
            raise ValueError(
                f"constraints are known when all items are scored; fidelity must be full, not {self.fidelity.name}"
            )
        return self

    @field_validator("sources")
    @classmethod
    def _base_first(cls, sources: tuple[SourceSpec, ...]) -> tuple[SourceSpec, ...]:
        if len(sources) < 2:
            raise ValueError(f"name the base and at least one fine-tune of it, but got {len(sources)}")
        names = [source.name for source in sources]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"source name {min(twice)!r} is used twice")
        reserved = set(names) & {"best", *BASELINES}  # rows of the leaderboard that are not sources
        if reserved:
            raise ValueError(f"source name {min(reserved)!r} is a row of the leaderboard; choose another")
        return tuple(sorted(sources, key=lambda source: source.name != "base"))

    @property
    def base(self) -> SourceSpec:
        return self.sources[0]

    @property
    def experts(self) -> tuple[SourceSpec, ...]:
        return self.sources[1:]

    @property
    def chosen_baselines(self) -> tuple[BaselineSpec, ...]:
        """The baselines that the spec names, else all that are not made on request only: training needs texts."""
        if self.baselines is not None:
            return self.baselines
        unasked = [info for info in BASELINES.values() if not info.on_request]
        return tuple(
            BaselineSpec(name=info.name) for info in unasked if not info.trained or self.has_texts(info.least_texts)
        )

    @property
    def needs_reference_points(self) -> bool:
        """Whether the sampler searches for what is better than the baselines on every task."""
        info = self.sampler.info
        return self.objective.aggregate == "pareto" and info is not None and info.needs_reference_points

    @property
    def has_calibration(self) -> bool:
        """Whether every expert names text that it is good at."""
        return self.has_texts(1)

    def has_texts(self, least: int) -> bool:
        """Whether every expert names so many texts that it is good at, or more."""
        return all(expert.calibration is not None and expert.calibration.items >= least for expert in self.experts)

    @property
    def search_space(self) -> SearchSpace:
        if isinstance(self.space, str):
            raise TypeError("the spec was not made by load_spec or resolve, its space is still a name")
        return self.space

    @property
    def space_baselines(self) -> tuple[BaselineSpec, ...]:
        """The baselines whose merges the search space is made of."""
        space = self.search_space
        if space.origin == "baselines":
            return tuple(each for each in self.chosen_baselines if _is_reference_point(each))
        return tuple(each for each in self.chosen_baselines if each.name == space.around)

    @property
    def space_labels(self) -> tuple[str, ...]:
        """The merges that the search space is made of, by their labels: baselines, or the name of a recipe's file."""
        around = self.search_space.around
        if around is not None and is_recipe_file(around):
            return (Path(around).name,)
        return tuple(each.name for each in self.space_baselines)

    @property
    def storage_url(self) -> str:
        return self.storage or f"sqlite:///runs/{self.name}/study.db"

    def to_json(self) -> str:
        """JSON that the study stores: the whole spec without the storage URLs, which may hold passwords, and without
        those who are told of a run: their URLs may hold passwords too, and their files are those of a machine."""
        whole = dict.fromkeys(("storage", "notify", "metrics"), True)
        exclude: Any = {**whole, "warm_start": {"studies": {"__all__": {"storage"}}}}
        # The order of keys carries meaning: methods and parameters of the space are searched in it.
        return json.dumps(self.model_dump(mode="json", by_alias=True, exclude=exclude))

    def identity(
        self,
        fingerprints: Mapping[str, str],
        evaluator: str,
        params: Mapping[str, str],
        measured: Mapping[str, str] | None = None,
        made_of: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Everything that the value of a trial, or the next proposal, depends on. Runs of a study must agree in it.

        Budget, workers, storage, artifacts, notify, metrics, baselines that the space is not made of, verdict, and
        calibration that no statistics of the space are measured on, may change when a study is resumed.

        Args:
            fingerprints: source name -> content hash of its files.
            evaluator: fingerprint of the evaluator, data included.
            params: param -> its distribution, in the order in which samplers see them.
            measured: role of a file of statistics -> digest of the texts that they are measured on.
            made_of: source -> digest of the texts that the baselines of the space are made from, where they need texts.
        """
        return {
            "base": self.base.name,
            "sources": {source.name: fingerprints[source.name] for source in self.sources},
            "order of sources": [source.name for source in self.sources],
            "space": self._space_identity(),
            "params and their order": digest(list(params.items())),
            "evaluator": evaluator,
            "objective": self.objective.model_dump(mode="json"),
            "sampler": {"name": self.sampler.name, **self.sampler.settings},
            "fidelity": self.fidelity.model_dump(mode="json", exclude_none=True),
            "warm start": {
                "baselines": self.warm_start.baselines,
                "recipes": [Path(name).name for name in self.warm_start.recipes],
                "studies": [[study.name, study.trials] for study in self.warm_start.studies],
                **({} if self.warm_start.begin is None else {"begin": self.warm_start.begin}),
            },
            "dtype": self.dtype,
            "seed": self.seed,
            **({"texts of statistics": dict(measured)} if measured else {}),
            **self._merges_identity(made_of),
        }

    def _space_identity(self) -> dict[str, Any]:
        content = self.search_space.model_dump(mode="json", by_alias=True, exclude={"description"})
        if (around := self.search_space.around) is not None:
            content["around"] = Path(around).name  # the recipe in a file is compared by its digest
        return content

    def _merges_identity(self, texts: Mapping[str, str] | None) -> dict[str, Any]:
        if not self.search_space.takes_recipes:
            return {}
        settings = {each.name: each.settings for each in self.space_baselines}
        return {"baselines of the space": settings, **({"texts of these baselines": dict(texts)} if texts else {})}


def digest(content: object) -> str:
    """SHA-256 of plain data, by its canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_spec(path: str | Path) -> SearchSpec:
    """Read a search.yaml. All its relative paths begin at its folder, those of the storage and the artifacts too.

    Raises:
        InvalidInput: missing or malformed file, a key that does not exist, or an unknown name (nearest names offered).
    """
    path = Path(path)
    return resolve(_as_written(path), path.resolve().parent)


def read_spec(path: Path) -> SearchSpec:
    """A search.yaml with its space a name and relative locations of what goes in: enough to find its study.

    Raises:
        InvalidInput: missing or malformed file, or a key that does not exist.
    """
    return _placed(_as_written(path), path.resolve().parent)


def written_storage(path: Path) -> str:
    """The storage URL of a search.yaml as it is written there, or the default one: relative paths are left as they are.

    Raises:
        InvalidInput: see `read_spec`.
    """
    return _as_written(path).storage_url


def _as_written(path: Path) -> SearchSpec:
    return validate(SearchSpec, read_document(path, "search spec"), f"search spec {str(path)!r}")


def spec_from_json(text: str) -> SearchSpec:
    """The spec that a study stores."""
    with reading("the spec in the study"):
        content = parse_json(text)
    return validate(SearchSpec, content, "stored spec")


def resolve(spec: SearchSpec, directory: Path) -> SearchSpec:
    """The spec with its space loaded and its relative paths made absolute, so that it holds from anywhere.

    Args:
        directory: where relative paths begin.
    """
    spec = _placed(spec, directory)
    names = [baseline.name for baseline in spec.chosen_baselines]
    for name in names:
        if name not in BASELINES:
            raise unknown_name("baseline", name, BASELINES)
        if names.count(name) > 1:
            raise InvalidInput(f"baseline {name!r} is named {names.count(name)} times; once is enough")
    sources = tuple(_resolved(source, directory) for source in spec.sources)
    if isinstance(spec.space, str):
        space = load_space(spec.space, directory)
    else:
        space = spec.space
        check_space(space)
    space = _with_merges(space, names, directory)
    evaluator = spec.evaluator
    if is_file(directory / evaluator.name / "evaluator.yaml"):
        evaluator = evaluator.model_copy(update={"name": str((directory / evaluator.name).resolve())})
    recipes = tuple(str((directory / expanded(name)).resolve()) for name in spec.warm_start.recipes)
    warm_start = spec.warm_start.model_copy(update={"recipes": recipes})
    update = {"sources": sources, "space": space, "evaluator": evaluator, "warm_start": warm_start}
    observers = {"notify": located(spec.notify, directory), "metrics": located(spec.metrics, directory)}
    return spec.model_copy(update={**update, **observers})


def _placed(spec: SearchSpec, directory: Path) -> SearchSpec:
    """The spec with absolute places of its studies and artifacts."""
    studies = tuple(
        study if study.storage is None else study.model_copy(update={"storage": placed_url(study.storage, directory)})
        for study in spec.warm_start.studies
    )
    return spec.model_copy(
        update={
            "storage": placed_url(spec.storage_url, directory),
            "artifacts": None if spec.artifacts is None else placed_folder(spec.artifacts, directory),
            "warm_start": spec.warm_start.model_copy(update={"studies": studies}),
        }
    )


def _with_merges(space: SearchSpace, baselines: Sequence[str], directory: Path) -> SearchSpace:
    """The space with the recipe that it is around found: a baseline of the spec, or a file."""
    check_recipe_space(space)
    around, where = space.around, f"search space {space.name!r}"
    if around is None:
        return space
    if is_recipe_file(around):
        return space.model_copy(update={"around": str((directory / expanded(around)).resolve())})
    if around not in BASELINES:
        raise unknown_name(f"baseline that {where} is around:", around, BASELINES)
    info = BASELINES[around]
    if not info.one_model_before or (info.method is not None and info.method not in LINEAR_IN_WEIGHT):
        raise InvalidInput(
            f"{where} is around {around!r}, which is no weighted sum of the sources that is there before the search; "
            "name another baseline, or a recipe.json"
        )
    if around not in baselines:
        raise InvalidInput(f"{where} is around {around!r}; name it among the baselines of the search")
    return space


def override(
    spec: SearchSpec,
    *,
    trials: int | None = None,
    hours: float | None = None,
    workers: int | None = None,
    seed: int | None = None,
) -> SearchSpec:
    """The spec with the values of the command line in place of its own.

    Raises:
        InvalidInput: a value that the spec would not take either.
    """
    content = spec.model_dump(mode="json", by_alias=True)
    for path, value in ((("budget", "trials"), trials), (("budget", "hours"), hours), (("workers", "count"), workers)):
        if value is not None:
            content[path[0]][path[1]] = value
    if seed is not None:
        content["seed"] = seed
    return validate(SearchSpec, content, "command line")


def _resolved(source: SourceSpec, directory: Path) -> SourceSpec:
    calibration = source.calibration
    if calibration is not None and calibration.file is not None:
        path = directory / expanded(calibration.file)
        if not is_file(path):
            raise InvalidInput(f"source {source.name!r}: calibration file {str(path)!r} does not exist")
        calibration = calibration.model_copy(update={"file": str(path.resolve())})
    return source.model_copy(update={"location": _absolute(source, directory), "calibration": calibration})


def _absolute(source: SourceSpec, directory: Path) -> str:
    """A directory as an absolute path; anything that can only be a hub id, unchanged."""
    location = expanded(source.location)
    if is_folder(directory / location):
        return str((directory / location).resolve())
    parent_exists = len(location.parts) > 1 and is_folder(directory / location.parts[0])
    if parent_exists or source.location.startswith((".", "~", "/")) or len(location.parts) != 2:
        raise InvalidInput(
            f"source {source.name!r}: directory {str(directory / location)!r} does not exist; "
            "give a model directory (relative to the spec) or a hub id such as 'org/model'"
        )
    return source.location
