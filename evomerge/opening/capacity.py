"""Memory that a search needs, and the placement of its sources on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.adapters.adapter_bytes import adapter_bytes
from evomerge.adapters.core_space import core_bytes
from evomerge.bank.memory import (
    BYTES,
    MemoryNeed,
    ProjectionSizes,
    alignment_bytes,
    kept_rank_bytes,
    memory_need,
    projection_sizes,
    vector_sizes,
)
from evomerge.bank.placement import Placement, place_sources, this_machine
from evomerge.baselines.info import BASELINES
from evomerge.errors import InvalidInput
from evomerge.evaluation import known_evaluators
from evomerge.fitting.fitted_source import fitted_bytes
from evomerge.merging.regmean import KEPT_BYTES
from evomerge.methods import METHODS
from evomerge.opening.inputs import Inputs
from evomerge.opening.measurements import all_measurements, measured_sizes
from evomerge.recipe import all_ingredients
from evomerge.vllm_engine.engine_settings import gpu_share


@dataclass(frozen=True)
class TrainedWeights:
    """Bytes that a baseline takes whose weights are all trained; 0 where the search has none.

    Attributes:
        file: of the weights in the dtype of the merge.
        training: of weights, gradients and two moments in float32, and of the best weights so far.
        checkpoint: on the disk while it is trained: the same without the gradients.
    """

    file: int
    training: int
    checkpoint: int


def trained_weights(inputs: Inputs) -> TrainedWeights:
    """Bytes for the weights of a baseline that are trained."""
    if not any(BASELINES[baseline.name].trains_weights for baseline in inputs.spec.chosen_baselines):
        return TrainedWeights(0, 0, 0)
    elements = sum(entry.numel for entry in inputs.catalogue.mergeable)
    wide, file = elements * BYTES["float32"], elements * BYTES[inputs.spec.dtype]
    return TrainedWeights(file=file, training=4 * wide + file, checkpoint=3 * wide + file)


def memory_of(inputs: Inputs) -> MemoryNeed:
    """Memory that the search needs.

    A method that sorts magnitudes does so for one group after the other, once; baselines, over the whole model. One
    source is measured at a time in a worker, before it merges. Paths are counted with every layer of every source, and
    the longest one that the space allows. Merges that are sources of others are counted in the dtype of the search.
    """
    spec = inputs.spec
    searched = any(METHODS[method].sorts_magnitudes for method in spec.search_space.method_names)
    groups = [sum(inputs.catalogue[name].numel for name in group.tensors) for group in inputs.space.groups]
    if any(METHODS[method].sorts_magnitudes for method in _merged_by(inputs)):
        largest_scope = sum(entry.numel for entry in inputs.catalogue.mergeable)
    else:
        largest_scope = max(groups) if searched else 0
    measured = measured_sizes(inputs, all_measurements(inputs, spec.chosen_baselines))
    paths, own = inputs.space.paths, inputs.own_merge
    projections, weights, vectors = _projections(inputs), trained_weights(inputs), _kept_vectors(inputs)
    return memory_need(
        inputs.catalogue,
        len(inputs.refs),
        spec.dtype,
        largest_scope=largest_scope,
        statistics=sum(each.file for each in measured) + weights.file,
        measuring=max([weights.training, *(each.measuring for each in measured)]),
        solving=max(
            (*(each.solving for each in measured), *(each.merging for each in (*projections, *vectors))), default=0
        ),
        kept=min(KEPT_BYTES, sum(each.products for each in measured))
        + max((each.kept for each in projections), default=0)
        + sum(each.kept for each in vectors)
        + _aligned(inputs)
        + _ranked(inputs)
        + _binned(inputs)
        + _cores(inputs)
        + fitted_bytes(inputs.experts),
        longest_path=max(0 if paths is None else paths.max_layers, 0 if own is None else len(own.recipe.layers)),
        ingredients=max(inputs.space.ingredients, 0 if own is None else len([*all_ingredients(own.recipe)])),
        adapters=adapter_bytes(inputs.experts),
    )


def _of_own_merge(inputs: Inputs) -> set[str]:
    """The methods of the user's own merge among the baselines, those of its ingredients included."""
    if inputs.own_merge is None:
        return set()
    recipe = inputs.own_merge.recipe
    return {rule.method for each in (recipe, *dict(all_ingredients(recipe)).values()) for rule in each.rules}


def _merged_by(inputs: Inputs) -> set[str]:
    """The methods of baselines, which merge the whole model at once."""
    methods = {BASELINES[baseline.name].method for baseline in inputs.spec.chosen_baselines}
    return {method for method in methods if method is not None} | _of_own_merge(inputs)


def _searched_or_own(inputs: Inputs) -> set[str]:
    return {*inputs.space.space.method_names, *_of_own_merge(inputs)}


def _projections(inputs: Inputs) -> list[ProjectionSizes]:
    """Of the methods, searched or a baseline's, whose sources arrive one after the other."""
    space = inputs.space
    sizes = [
        projection_sizes(
            inputs.catalogue,
            first_models=len(space.sources) if chosen.order == "searched" else 1,
            heads=chosen.options.get("lm_head") == "projected",
        )
        for method, chosen in space.space.methods.items()
        if METHODS[method].arrival
    ]
    if any(METHODS[method].arrival for method in _merged_by(inputs)):
        sizes.append(projection_sizes(inputs.catalogue, first_models=1))
    return sizes


def _cores(inputs: Inputs) -> int:
    """Of the core space of all adapters."""
    own = inputs.own_merge
    if inputs.spec.search_space.space == "full" and (own is None or own.recipe.space == "full"):
        return 0
    return core_bytes([expert.tensors for expert in inputs.experts], inputs.catalogue)


def _kept_vectors(inputs: Inputs) -> list[ProjectionSizes]:
    """Of the methods, searched or a baseline's, whose merged task vector a worker keeps."""
    scaled = {BASELINES[baseline.name].scales for baseline in inputs.spec.chosen_baselines}
    kept = {*inputs.space.space.method_names, *filter(None, scaled), *_of_own_merge(inputs)}
    experts = len(inputs.space.sources)
    return [vector_sizes(inputs.catalogue, experts) for method in kept if METHODS[method].keeps_vector]


def _ranked(inputs: Inputs) -> int:
    ranked = any(METHODS[method].keeps_ranks for method in _searched_or_own(inputs))
    return kept_rank_bytes(inputs.catalogue, len(inputs.space.sources)) if ranked else 0


def _binned(inputs: Inputs) -> int:
    binned = any(METHODS[method].keeps_bins for method in _searched_or_own(inputs))
    return sum(entry.numel for entry in inputs.catalogue.mergeable) if binned else 0


def _aligned(inputs: Inputs) -> int:
    chosen = inputs.space.space.methods.get("ot_fusion")
    if chosen is None:
        return 0
    mixed = chosen.options.get("solver") == "sinkhorn" or chosen.options.get("correction") is False
    return alignment_bytes(inputs.catalogue, mixed=mixed)


def placement_of(inputs: Inputs, workers: int, *, gpus: float = 1.0, shared: bool = False) -> Placement:
    """Placement of the sources in the memory of this machine.

    Args:
        workers: on this machine.
        gpus: of each worker, or its share of one.
        shared: whether the workers share what is made of the sources, see `place_sources`.

    Raises:
        InvalidInput: the search cannot fit; the message has the memory that is needed and that is free. Or a worker
            gets GPUs that nothing would use.
    """
    if gpus > 1 and inputs.spec.evaluator.name not in known_evaluators():
        raise InvalidInput(
            f"workers.gpus is {gpus:g}, but a worker holds its model on one GPU; set workers.gpus to 1, and "
            "workers.count to the number of GPUs"
        )
    machine = this_machine(gpus, workers, engine=gpu_share(inputs.spec.evaluator.settings))
    return place_sources(memory_of(inputs), machine, workers=workers, shared=shared)
