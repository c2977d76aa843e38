"""Opening a search: what its spec names is opened and checked, and its study is created or gone on with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from evomerge.bank.memory import MemoryNeed, memory_need
from evomerge.bank.placement import Placement, place_sources, this_machine
from evomerge.catalogue import TensorCatalogue
from evomerge.checkpoints import Source, check_compatible, open_source
from evomerge.errors import InvalidInput
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.split import split_from_json, split_to_json
from evomerge.recipe import ModelRef
from evomerge.samplers import CatCmaSampler, CmaSampler, GoalsSampler, build_sampler
from evomerge.spaces.bound import BoundSpace, bind
from evomerge.spec import SearchSpec
from evomerge.storage import attributes
from evomerge.storage.lock import hold
from evomerge.storage.opening import open_storage, release, with_retries
from evomerge.storage.url import local_file, redact, resolve_url, run_directory
from evomerge.study.foundation import Foundation, lay_foundation
from evomerge.study.records import Records
from evomerge.study.search_study import SearchStudy
from evomerge.study.stored_spec import differences, relocated, stored_spec, with_own_baselines
from evomerge.worker import WorkerSetup, build_evaluator

BASELINES = "baselines"
HELD_OUT = "held-out"


@dataclass(frozen=True)
class Inputs:
    """What a spec names, opened and found to fit together. Nothing has been run or written."""

    spec: SearchSpec
    base: Source
    experts: tuple[Source, ...]
    warnings: tuple[str, ...]

    @cached_property
    def catalogue(self) -> TensorCatalogue:
        """The base's tensors, divided into parts by the patterns of the space."""
        return self.base.divided(self.spec.search_space.patterns)

    @cached_property
    def space(self) -> BoundSpace:
        """The search space over these tensors and sources."""
        experts = [source.ref for source in self.experts]
        return bind(
            self.spec.search_space, self.catalogue, self.base.ref, experts, dtype=self.spec.dtype, seed=self.spec.seed
        )

    @cached_property
    def evaluator(self) -> Evaluator:
        """The evaluator without a model: it knows the tasks and the items. Workers build their own."""
        return build_evaluator(self.setup())

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        """Base and experts, in that order."""
        return (self.base.ref, *(source.ref for source in self.experts))

    def setup(self, foundation: Foundation | None = None) -> WorkerSetup:
        """What workers are built from; with the foundation of the study once there is one."""
        spec = self.spec
        ranges = {
            name: (distribution.low, distribution.high)
            for name, distribution in self.space.distributions.items()
            if isinstance(distribution, FloatDistribution)
        }
        return WorkerSetup(
            base=_pinned(self.base),
            experts=tuple(_pinned(source) for source in self.experts),
            dtype=spec.dtype,
            seed=spec.seed,
            evaluator=spec.evaluator.name,
            settings=spec.evaluator.settings,
            split=split_from_json(foundation.split) if foundation else None,
            batch_size=foundation.batch_size if foundation else None,
            bounds=ranges,
            allow=spec.allow,
            artifacts=str(artifacts_folder(spec).resolve()),
        )


def _pinned(source: Source) -> ModelRef:
    """The source for workers elsewhere: a hub model at the commit that was opened here, whatever is pushed since."""
    return source.ref if source.hub_id is None else replace(source.ref, revision=source.directory.name)


@dataclass(frozen=True)
class OpenSearch:
    """A study that this process may write to, with its siblings."""

    inputs: Inputs
    search: SearchStudy
    foundation: Foundation
    baselines: Records
    held_out: Records
    artifacts: Path
    storage: BaseStorage
    check_hold: Callable[[], None]

    def sibling(self, name: str, sampler: optuna.samplers.BaseSampler) -> SearchStudy:
        """Another search of the same space, in the study `NAME/name` of the same storage."""
        study = with_retries(
            lambda: optuna.create_study(
                storage=self.storage,
                study_name=f"{self.inputs.spec.name}/{name}",
                direction="maximize",
                sampler=sampler,
                load_if_exists=True,
            )
        )
        return SearchStudy(study, self.storage, self.inputs.space, self.artifacts, self.check_hold)


def open_inputs(spec: SearchSpec) -> Inputs:
    """Open and check what a spec names.

    Raises:
        InvalidInput: whatever is missing or does not fit, naming the sources and tensors.
    """
    base = open_source(spec.base.ref, allow=spec.allow)
    experts = tuple(open_source(expert.ref, allow=spec.allow, like=base) for expert in spec.experts)
    warnings = check_compatible(base, experts)
    return Inputs(spec, base, experts, tuple(warnings))


def memory_of(inputs: Inputs) -> MemoryNeed:
    """What the search holds. A method with densities sorts magnitudes of one group after the other, once; so do the
    baselines that have them, over the whole model."""
    spec = inputs.spec
    searched = any("density" in method.parameters for method in spec.search_space.methods.values())
    groups = [sum(inputs.catalogue[name].numel for name in group.tensors) for group in inputs.space.groups]
    if any(baseline.name in ("ties", "dare-ties") for baseline in spec.chosen_baselines):
        largest_scope = sum(entry.numel for entry in inputs.catalogue.mergeable)
    else:
        largest_scope = max(groups) if searched else 0
    return memory_need(inputs.catalogue, len(inputs.refs), spec.dtype, largest_scope=largest_scope)


def placement_of(inputs: Inputs, workers: int) -> Placement:
    """Where the sources will live on this machine.

    Raises:
        InvalidInput: the search cannot fit; says what is needed and what there is.
    """
    return place_sources(memory_of(inputs), this_machine(), workers=workers)


@contextmanager
def open_search(inputs: Inputs, *, workers: int) -> Iterator[OpenSearch]:
    """Create the spec's study or go on with it, as its only writer.

    Raises:
        StudyHeld: another controller writes to it.
        OtherSpec: it was made with another identity.
        InvalidInput: the storage cannot be opened, or the sampler cannot search the space.
    """
    spec = inputs.spec
    url = resolve_url(spec.storage_url)
    wanted = _foundation(inputs, workers)
    with hold(url, spec.name, directions=["maximize"] * directions_of(inputs)) as held:
        storage = open_storage(url, owned=True)
        try:
            yield _open(inputs, storage, wanted, workers, held.check)
        finally:
            release(storage)


def _open(
    inputs: Inputs, storage: BaseStorage, wanted: Foundation, workers: int, check_hold: Callable[[], None]
) -> OpenSearch:
    spec, folder = inputs.spec, artifacts_folder(inputs.spec)
    study = with_retries(
        lambda: optuna.create_study(
            storage=storage,
            study_name=spec.name,
            directions=["maximize"] * directions_of(inputs),
            load_if_exists=True,
        )
    )
    foundation = lay_foundation(study, wanted)
    if len(study.directions) > 1 and study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(inputs.evaluator.weights))  # what Optuna Dashboard calls the objectives
    study.sampler = sampler_of(inputs, foundation.popsize, workers)
    return OpenSearch(
        inputs,
        SearchStudy(study, storage, inputs.space, folder, check_hold),
        foundation,
        Records(storage, f"{spec.name}/{BASELINES}", folder, check_hold),
        Records(storage, f"{spec.name}/{HELD_OUT}", folder, check_hold),
        folder,
        storage,
        check_hold,
    )


@dataclass(frozen=True)
class StoredSearch:
    """A study that this process only reads.

    Attributes:
        spec: what the study was last run with, as it stores it, in the storage where it was found.
        differences: what the spec that it was found by says otherwise, in one line; empty where that says the same.
    """

    spec: SearchSpec
    storage: BaseStorage
    study: optuna.Study
    baselines: optuna.Study | None
    held_out: optuna.Study | None
    artifacts: Path
    differences: str = ""


def read_search(spec: SearchSpec) -> StoredSearch:
    """The study of a spec, for reading. It is found by name and storage; all else is as the study stores it.

    Raises:
        InvalidInput: there is no such study; `evomerge run` makes it.
    """
    storage, study = find_study(spec)
    stored = relocated(stored_spec(study, spec.storage_url), spec)
    baselines, held_out = (_load(storage, f"{spec.name}/{sibling}") for sibling in (BASELINES, HELD_OUT))
    given = spec if spec.artifacts is None else _from_anywhere(spec)
    return StoredSearch(
        stored, storage, study, baselines, held_out, artifacts_folder(stored), differences(stored, given)
    )


def read_stored_spec(url: str, name: str) -> SearchSpec:
    """The spec that a study was last run with, for commands that are given a storage and a study, not a file."""
    file = local_file(url)
    study = _load(open_storage(url), name) if file is None or file.exists() else None
    if study is None:
        raise InvalidInput(f"there is no study {name!r} in the storage {redact(resolve_url(url))}")
    return stored_spec(study, url)


def continued(spec: SearchSpec) -> tuple[SearchSpec, str]:
    """The spec that baselines are made by beside a search: that of the study where there is one.

    Workers, baselines, calibration texts and verdict are the given spec's: they may change while a study goes on.

    Returns:
        The spec, and what the given one says otherwise, in one line.
    """
    try:
        _, study = find_study(spec)
        stored = relocated(stored_spec(study, spec.storage_url), spec)
    except InvalidInput:  # the study is not there yet, or not complete: it is made by this spec
        return spec, ""
    given = spec if spec.artifacts is None else _from_anywhere(spec)
    chosen = with_own_baselines(stored, given)
    return chosen, differences(chosen, given)


def artifacts_folder(spec: SearchSpec) -> Path:
    """Where per-item outcomes are kept: the spec's `artifacts`, else beside the study."""
    if spec.artifacts is None:
        return run_directory(resolve_url(spec.storage_url), spec.name) / "artifacts"
    parts = urlsplit(spec.artifacts)
    if parts.scheme not in ("", "file"):
        raise InvalidInput(f"artifacts {spec.artifacts!r}: only a folder or a file:// URL can be used")
    return Path(unquote(parts.path))


def find_study(spec: SearchSpec) -> tuple[BaseStorage, optuna.Study]:
    """The study of a spec's name in its storage.

    Raises:
        InvalidInput: there is none.
    """
    resolved, name = resolve_url(spec.storage_url), spec.name
    file = local_file(resolved)
    if file is not None and not file.exists():
        raise InvalidInput(f"there is no study {name!r} yet: {file} does not exist; `evomerge run` makes it")
    storage = open_storage(resolved)
    study = _load(storage, name)
    if study is None:
        raise InvalidInput(f"there is no study {name!r} in this storage yet; `evomerge run` makes it")
    return storage, study


def _load(storage: BaseStorage, name: str) -> optuna.Study | None:
    try:
        return optuna.load_study(storage=storage, study_name=name)
    except KeyError:
        return None


def _foundation(inputs: Inputs, workers: int) -> Foundation:
    spec = inputs.spec
    sampler = sampler_of(inputs, workers=workers)
    fingerprints = {source.ref.name: str(source.ref.fingerprint) for source in (inputs.base, *inputs.experts)}
    return Foundation(
        spec=_from_anywhere(spec).to_json(),
        identity=spec.identity(
            fingerprints,
            inputs.evaluator.fingerprint,
            {name: repr(distribution) for name, distribution in inputs.space.distributions.items()},
        ),
        split=split_to_json(inputs.evaluator.split),
        batch_size=None,
        popsize=sampler.popsize if isinstance(sampler, CmaSampler | CatCmaSampler | GoalsSampler) else None,
    )


def _from_anywhere(spec: SearchSpec) -> SearchSpec:
    """The spec with the folder of artifacts as an absolute URL, where it is not beside the study's file."""
    if spec.artifacts is None and local_file(spec.storage_url) is not None:
        return spec  # they move with the file
    return spec.model_copy(update={"artifacts": artifacts_folder(spec).resolve().as_uri()})


def sampler_of(inputs: Inputs, popsize: int | None = None, workers: int = 1) -> optuna.samplers.BaseSampler:
    """The spec's sampler; with the population size of the study once there is one.

    Raises:
        InvalidInput: unknown sampler or setting, or one that cannot search the space.
    """
    spec = inputs.spec
    settings = dict(spec.sampler.settings) | ({} if popsize is None else {"popsize": popsize})
    return build_sampler(
        spec.sampler.name,
        settings,
        seed=spec.seed,
        space=inputs.space,
        workers=workers,
        directions=directions_of(inputs),
        constraints=_violations if spec.objective.constraints else None,
        tie_breaker=attributes.COMPANION,
    )


def directions_of(inputs: Inputs) -> int:
    """How many objectives are maximised."""
    return len(inputs.evaluator.weights) if inputs.spec.objective.aggregate == "pareto" else 1


def _violations(trial: FrozenTrial) -> list[float]:
    return list(trial.user_attrs.get(attributes.VIOLATIONS, ()))
