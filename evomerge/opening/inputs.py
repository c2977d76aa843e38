"""Inputs of a search: sources, space and evaluator of its spec, opened and found to fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from optuna.distributions import FloatDistribution

from evomerge.adapters import open_expert
from evomerge.adapters.core_space import core_refusal, no_adapter
from evomerge.baselines.info import BASELINES, GivenSettings
from evomerge.catalogue import TensorCatalogue
from evomerge.checkpoints import Source, check_compatible, open_source
from evomerge.checkpoints.files_beside_weights import files_beside_weights
from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.evaluation import EVALUATORS
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.factory import build_evaluator
from evomerge.fitting.fitted_source import order_of_tokens
from evomerge.jobs import WorkerSetup
from evomerge.methods import resolve_options
from evomerge.methods.table import added_methods
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.opening.own_merge import OwnMerge, read_own_merge
from evomerge.packs.split import split_from_json
from evomerge.recipe import ModelRef, Recipe
from evomerge.recipe_spaces.binding import bind_recipe_space
from evomerge.recipe_spaces.scaled_rules import check_scalable
from evomerge.spaces.bound import BoundSpace, bind
from evomerge.spaces.space import MethodSpace, SearchSpace
from evomerge.spec import SearchSpec
from evomerge.study.identity import StudyIdentity
from evomerge.study.stored_search import artifacts_folder, logs_folder
from evomerge.vllm_engine.engine_settings import VLLM


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a spec, opened and found to fit together. Nothing has been run or written."""

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
        spec, experts = self.spec, [source.ref for source in self.experts]
        space, base, catalogue = spec.search_space, self.base.ref, self.catalogue
        if space.takes_recipes:
            labels = spec.space_labels
            return bind_recipe_space(space, catalogue, base, experts, labels, dtype=spec.dtype, seed=spec.seed)
        return bind(space, catalogue, base, experts, dtype=spec.dtype, seed=spec.seed)

    @cached_property
    def evaluator(self) -> Evaluator:
        """The evaluator without a model: it knows the tasks and the items. Workers build their own."""
        setup = self.setup()
        return build_evaluator(
            setup.evaluator,
            base=setup.base,
            seed=setup.seed,
            settings=setup.settings,
            bounds=setup.bounds,
            allow=setup.allow,
        )

    @cached_property
    def beside_weights(self) -> dict[str, str]:
        """Name -> digest of the files beside the base's weights, with which all candidates are read and written, and of
        the order in which tokenizers put the rows of an expert's tokens."""
        orders = {source.name: order for source in self.experts if (order := order_of_tokens(source)) is not None}
        return files_beside_weights(self.base) | {f"tokens of {name}": order for name, order in orders.items()}

    @cached_property
    def own_merge(self) -> OwnMerge | None:
        """The merge that the user has already, among the baselines; None where the spec names none.

        Raises:
            InvalidInput: its file cannot be read, or the search cannot score it.
        """
        baseline = next((each for each in self.spec.chosen_baselines if BASELINES[each.name].from_file), None)
        if baseline is None:
            return None
        what = f"baseline {baseline.name!r}"
        file = validate(GivenSettings, baseline.settings, what).recipe
        try:
            found = read_own_merge(Path(file), (self.base, *self.experts), self.spec.dtype)
            _check_own_merge(found.recipe, self.spec)
        except InvalidInput as error:
            raise InvalidInput(f"{what}: {error}") from error
        return found

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        """Base and experts, in that order."""
        return (self.base.ref, *(source.ref for source in self.experts))

    @property
    def longest_text(self) -> int | None:
        """Tokens that the model can hold, None if its config has no limit."""
        longest = self.base.settings.get("max_position_embeddings")
        return longest if isinstance(longest, int) else None

    def setup(self, identity: StudyIdentity | None = None) -> WorkerSetup:
        """Everything that a worker is built from; with the settled values of the study once there is one."""
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
            split=split_from_json(identity.split) if identity else None,
            batch_size=identity.batch_size if identity else None,
            bounds=ranges,
            allow=spec.allow,
            artifacts=str(ArtifactFolder(artifacts_folder(spec))),
            patience=spec.storage_patience,
            logs=str(logs_folder(spec).resolve()),
            ingredients=self.space.ingredients,
            checkpoint=spec.workers.checkpoint,
            beside_weights=self.beside_weights,
            evaluators={name: code for name, code in EVALUATORS.items() if name == spec.evaluator.name},
            methods=added_methods(),
        )


def _pinned(source: Source) -> ModelRef:
    """The source for workers elsewhere: a hub model at the commit that was opened here."""
    return source.ref if source.hub_id is None else replace(source.ref, revision=source.directory.name)


def _check_core(space: SearchSpace, experts: Sequence[Source]) -> None:
    """Refuse what has no core space, as the workers would.

    Raises:
        InvalidInput: names the method or the expert.
    """
    for method in space.method_names:
        chosen = space.methods.get(method, MethodSpace())
        options = resolve_options(method, chosen.options, semantics=space.semantics)
        if reason := core_refusal(method, options):
            raise InvalidInput(f"search space {space.name!r}: in core space {reason}, or leave `space: core` out")
    for expert in experts:
        if expert.adapted is None:
            raise no_adapter(expert.name)


def _check_own_merge(recipe: Recipe, spec: SearchSpec) -> None:
    """Refuse the user's own merge where the engine or the space cannot have it.

    Raises:
        InvalidInput: names the reason.
    """
    space = spec.search_space
    if recipe.layers and spec.evaluator.settings.get("engine") == VLLM:
        raise InvalidInput(
            "engine vllm holds a model of one depth, and the file is a path of layers; write engine: transformers"
        )
    made_of_it = any(BASELINES[each.name].from_file for each in spec.space_baselines)
    if recipe.layers and made_of_it:
        raise InvalidInput(
            f"it is a path of layers, which search space {space.name!r} cannot be made of; leave it out, or choose "
            "another space"
        )
    if space.around is not None and made_of_it:
        check_scalable(recipe, f"the merge that search space {space.name!r} is around")


def open_inputs(spec: SearchSpec) -> Inputs:
    """Open and check the inputs of a spec.

    Raises:
        InvalidInput: an input is missing or does not fit; names the sources and tensors.
    """
    base = open_source(spec.base.ref, allow=spec.allow)
    experts = tuple(open_expert(ref, base=base, allow=spec.allow) for ref in spec.expert_refs)
    warnings = check_compatible(base, experts)
    if spec.search_space.space == "core":
        _check_core(spec.search_space, experts)
    if spec.search_space.layers is not None and spec.evaluator.settings.get("engine") == VLLM:
        raise InvalidInput(
            f"engine vllm holds a model of one depth, but the layer paths of space {spec.search_space.name!r} have "
            "several; write engine: transformers"
        )
    return Inputs(spec=spec, base=base, experts=experts, warnings=tuple(warnings))
