"""The study of a search, created or resumed by its only writer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from evomerge.errors import first_reason
from evomerge.leases.lock import hold
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.opening.inputs import Inputs
from evomerge.opening.measurements import baseline_texts, measured_texts
from evomerge.packs.split import split_to_json
from evomerge.recipe_spaces.recipe_space import RecipeSpace
from evomerge.samplers import build_sampler
from evomerge.samplers.base import SearchSampler
from evomerge.spaces.bound import BoundSpace
from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release
from evomerge.storage.patience import IMPATIENT, StoragePatience
from evomerge.storage.url import resolve_url
from evomerge.study.beginning import read_beginning
from evomerge.study.identity import StudyIdentity, create_or_verify
from evomerge.study.race_defaults import CURRENT
from evomerge.study.rows import Records
from evomerge.study.search_study import SearchStudy
from evomerge.study.stored_search import BASELINES, HELD_OUT, artifacts_folder, from_anywhere
from evomerge.study.study_ingredients import StudyIngredients, read_ingredients
from evomerge.study.study_statistics import StudyStatistics, read_statistics

FROM_A_MERGE = 0.3  # first steps from a merge that is good already, as a share of those from the centre


@dataclass(frozen=True, kw_only=True)
class OpenSearch:
    """A study that this process may write to, with its siblings.

    Attributes:
        space: that of the inputs, with what the study has measured and made for it.
        workers: number of workers, which only defaults depend on.
        patience: with which storage and artifacts are waited for.
    """

    inputs: Inputs
    space: BoundSpace
    search: SearchStudy
    identity: StudyIdentity
    baselines: Records
    held_out: Records
    artifacts: Path
    storage: BaseStorage
    check_hold: Callable[[], None]
    workers: int = 1
    patience: StoragePatience = IMPATIENT

    @property
    def artifact_folder(self) -> ArtifactFolder:
        """The folder of the artifacts, with its origin."""
        return ArtifactFolder(self.artifacts, self.patience)

    def sibling(self, name: str, sampler: optuna.samplers.BaseSampler) -> SearchStudy:
        """Another search of the same space, in the study `NAME/name` of the same storage."""
        study = optuna.create_study(
            storage=self.storage,
            study_name=f"{self.inputs.spec.name}/{name}",
            direction="maximize",
            sampler=sampler,
            load_if_exists=True,
        )
        return self._search(study, self.space)

    def with_statistics(self, measured: StudyStatistics) -> OpenSearch:
        """Store the files that every recipe of the search takes from now on."""
        self.search.set_text(attributes.STATISTICS, measured.to_json())
        return self._with_space(replace(self.space, files=measured.files))

    def with_ingredients(self, made: StudyIngredients) -> OpenSearch:
        """Store the merges that every recipe of the search is made of from now on, and begin at the best of them.

        Raises:
            InvalidInput: a merge that the space cannot be made of.
        """
        assert isinstance(self.space, RecipeSpace)  # no other space is made of merges
        space = self.space.with_recipes(made.recipes)
        self.search.set_text(attributes.INGREDIENTS, made.to_json())
        sampler = build_search_sampler(self.inputs, self.workers, self.identity.popsize, space)
        self.search.study.sampler = sampler
        return self._with_space(space)

    def renew_sampler(self) -> None:
        """Let the sampler begin at the merge that the study has stored in the meantime."""
        study = self.search.study
        study.sampler = build_search_sampler(self.inputs, self.workers, self.identity.popsize, self.space, study)

    def _with_space(self, space: BoundSpace) -> OpenSearch:
        return replace(self, space=space, search=self._search(self.search.study, space))

    def _search(self, study: optuna.Study, space: BoundSpace) -> SearchStudy:
        return SearchStudy(
            study,
            self.storage,
            space,
            artifacts=self.artifacts,
            check_hold=self.check_hold,
            patience=self.patience,
        )


@contextmanager
def open_search(inputs: Inputs, *, workers: int, patience: StoragePatience | None = None) -> Iterator[OpenSearch]:
    """Create or resume the study of a spec, as its only writer.

    Args:
        patience: with which the storage is waited for once it is open; that of the spec without it.

    Raises:
        StorageAway: the storage cannot be reached now.
        StudyHeld: another controller writes to it.
        OtherSpec: it was made with another identity.
        InvalidInput: the storage cannot be opened, or the sampler cannot search the space.
    """
    spec = inputs.spec
    url = resolve_url(spec.storage_url)
    wanted = _identity(inputs, workers)
    patience = patience or StoragePatience(seconds=spec.storage_patience)
    holding = hold(url, spec.name, directions=["maximize"] * directions_of(inputs), patience=patience)
    with (
        first_reason(holding, "while the study was let go") as held,
        first_reason(_opened(url, patience), "while the storage was closed") as storage,
    ):
        held.guard(storage)
        yield _open(inputs, storage, wanted, workers=workers, check_hold=held.check, patience=patience)


@contextmanager
def _opened(url: str, patience: StoragePatience) -> Iterator[BaseStorage]:
    storage = open_storage(url, single_writer=True, patience=patience)
    try:
        yield storage
    finally:
        release(storage)


def _open(
    inputs: Inputs,
    storage: BaseStorage,
    wanted: StudyIdentity,
    *,
    workers: int,
    check_hold: Callable[[], None],
    patience: StoragePatience,
) -> OpenSearch:
    spec, folder = inputs.spec, artifacts_folder(inputs.spec)
    ArtifactFolder(folder).check()
    study = optuna.create_study(
        storage=storage,
        study_name=spec.name,
        directions=["maximize"] * directions_of(inputs),
        load_if_exists=True,
    )
    identity = create_or_verify(study, wanted)
    if len(study.directions) > 1 and study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(inputs.evaluator.weights))  # what Optuna Dashboard calls the objectives
    space = stored_space(inputs, study)
    study.sampler = build_search_sampler(inputs, workers, identity.popsize, space, study)
    writing: Any = {"artifacts": folder, "check_hold": check_hold, "patience": patience}
    return OpenSearch(
        inputs=inputs,
        space=space,
        search=SearchStudy(study, storage, space, **writing),
        identity=identity,
        baselines=Records(storage, f"{spec.name}/{BASELINES}", **writing),
        held_out=Records(storage, f"{spec.name}/{HELD_OUT}", **writing),
        artifacts=folder,
        storage=storage,
        check_hold=check_hold,
        workers=workers,
        patience=patience,
    )


def stored_space(inputs: Inputs, study: optuna.Study) -> BoundSpace:
    """The space of the inputs with all that the study has measured and made for it.

    Raises:
        InvalidInput: what is stored is torn.
    """
    space, made = replace(inputs.space, files=read_statistics(study).files), read_ingredients(study)
    return space.with_recipes(made.recipes) if made is not None and isinstance(space, RecipeSpace) else space


def _identity(inputs: Inputs, workers: int) -> StudyIdentity:
    spec = inputs.spec
    sampler = build_search_sampler(inputs, workers)
    fingerprints = {source.ref.name: str(source.ref.fingerprint) for source in (inputs.base, *inputs.experts)}
    return StudyIdentity(
        spec=from_anywhere(spec).to_json(),
        identity=spec.identity(
            fingerprints,
            inputs.evaluator.fingerprint,
            {name: repr(distribution) for name, distribution in inputs.space.distributions.items()},
            measured_texts(inputs),
            baseline_texts(inputs),
            inputs.beside_weights,
        ),
        split=split_to_json(inputs.evaluator.split),
        batch_size=None,
        popsize=sampler.popsize,
        race=CURRENT,
    )


def build_search_sampler(
    inputs: Inputs,
    workers: int,
    popsize: int | None = None,
    space: BoundSpace | None = None,
    study: optuna.Study | None = None,
) -> SearchSampler:
    """The spec's sampler; with the population size, the space and the beginning of the study once there is one.

    Raises:
        InvalidInput: unknown sampler or setting, or one that cannot search the space.
    """
    spec, space = inputs.spec, inputs.space if space is None else space
    settings = dict(spec.sampler.settings) | ({} if popsize is None else {"popsize": popsize})
    beginning = None if study is None else read_beginning(study)
    return build_sampler(
        spec.sampler.name,
        settings,
        seed=spec.seed,
        space=space,
        workers=workers,
        directions=directions_of(inputs),
        constraints=_violations if spec.objective.constraints else None,
        tie_breaker=attributes.COMPANION,
        first_step=space.first_step if beginning is None else min(space.first_step, FROM_A_MERGE),
        begin=None if beginning is None else beginning.params,
    )


def directions_of(inputs: Inputs) -> int:
    """Number of objectives."""
    return len(inputs.evaluator.weights) if inputs.spec.objective.aggregate == "pareto" else 1


def _violations(trial: FrozenTrial) -> list[float]:
    return list(trial.user_attrs.get(attributes.VIOLATIONS, ()))
