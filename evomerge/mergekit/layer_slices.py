"""Paths of layers as slices of mergekit's method passthrough.

mergekit takes what stands before the layers from the model of the first slice and what stands behind them from that of
the last, and multiplies a slice's tensors by `scale`, by parts of their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.catalogue import TensorCatalogue
from evomerge.catalogue.layer_stack import divide_name, mlp_outputs
from evomerge.recipe import PathLayer, Recipe


def slices_of(
    recipe: Recipe, catalogue: TensorCatalogue, models: Mapping[str, str]
) -> tuple[dict[str, Any] | None, str]:
    """The document of a path and an empty reason, or None and the reason why mergekit has none.

    Args:
        models: name in the recipe -> the model as mergekit names it.
    """
    for entry in catalogue.mergeable:
        end = recipe.layers[0] if entry.part == "embedding" else recipe.layers[-1]
        if entry.layer is None and _source_of(recipe, entry.name) != end.source:
            return None, f"mergekit takes {entry.name} from the model at that end of the path, and this recipe does not"
    content = {
        "merge_method": "passthrough",
        "slices": [{"sources": [_slice(run, models[run[0].source], catalogue)]} for run in _runs(recipe.layers)],
        "base_model": models[recipe.base.name],  # gives config and tokenizer; passthrough takes no tensor of it
        **dtypes_of(recipe),
    }
    return content, ""


def dtypes_of(recipe: Recipe) -> dict[str, str]:
    """The dtypes under which mergekit too computes in float32 and rounds once."""
    return {"dtype": "float32"} | ({} if recipe.dtype == "float32" else {"out_dtype": recipe.dtype})


def _source_of(recipe: Recipe, name: str) -> str | None:
    """The model whose tensor this is; None where it is a merge."""
    rule = next((rule for rule in recipe.rules if name in rule.tensors), None)
    if rule is None:
        return recipe.base.name
    copies = rule.method == "linear" and len(rule.sources) == 1 and rule.parameters["weight"] == (1.0,)
    return rule.sources[0] if copies else None


def _runs(path: Sequence[PathLayer]) -> Iterator[list[PathLayer]]:
    """Consecutive layers of one source with one scale."""
    run: list[PathLayer] = []
    for layer in path:
        if run and (layer.source, layer.layer, layer.scale) != (run[-1].source, run[-1].layer + 1, run[-1].scale):
            yield run
            run = []
        run.append(layer)
    yield run


def _slice(run: Sequence[PathLayer], model: str, catalogue: TensorCatalogue) -> dict[str, Any]:
    content: dict[str, Any] = {"model": model, "layer_range": [run[0].layer, run[-1].layer + 1]}
    if run[0].scale != 1:
        outputs = {divide_name(name)[1].rpartition(".")[0]: None for name in mlp_outputs(catalogue, run[0].layer)}
        scales = [{"filter": module, "value": run[0].scale} for module in outputs]
        content["parameters"] = {"scale": [*scales, {"value": 1.0}]}
    return content
