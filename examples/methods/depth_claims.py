"""A path through the layers of two toy experts against the experts themselves."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from measurement import Row, compared, interval
from toy_models import Weights, exact_matches, load, model_of

from evomerge.spaces.depth import PathLayer, dis_distributions, dis_initial, dis_path

WRITTEN = ("shift", "reverse", "sort", "swap")
PAIRS = tuple(combinations(WRITTEN, 2))
LAYERS = 6
MAX_LAYERS = 8
CANDIDATES = 50
Genome = dict[str, float | str]


def figures(seed: int) -> dict[str, float]:
    """Accuracy on both parents' tasks, of the best path found and of the parents; the seed chooses the parents.

    From the better parent, one gene after the other is drawn anew and kept when the search items are not scored worse.
    """
    names = PAIRS[seed]
    parents = {name: load(name) for name in names}
    tasks = [f"toy_{name}" for name in names]
    rng = random.Random(seed)
    genes = [gene for gene in dis_distributions(names, LAYERS) if not gene.endswith("permutation_selection")]

    def accuracy(genome: Genome, part: str) -> float:
        path = dis_path(genome, names, LAYERS, max_layers=MAX_LAYERS, base=names[0])
        found = exact_matches(model_of(stacked(path, parents)), tasks, part)
        return sum(found) / len(found)

    starts = dis_initial(names, LAYERS)
    values = [accuracy(genome, "search") for genome in starts]
    reached, best = max(zip(values, starts, strict=True), key=lambda pair: pair[0])
    for _ in range(CANDIDATES):
        gene = rng.choice(genes)
        drawn = rng.uniform(0.5, 1.5) if gene.startswith("scale") else str(1 - int(best[gene]))
        genome = {**best, gene: drawn}
        if len(dis_path(genome, names, LAYERS, max_layers=2 * LAYERS)) > MAX_LAYERS:
            continue
        value = accuracy(genome, "search")
        if value >= reached:
            reached, best = value, genome
    return {
        "path": accuracy(best, "held_out"),
        "parent": max(accuracy(genome, "held_out") for genome in starts),
        "searched": reached,
        "layers": float(len(dis_path(best, names, LAYERS, max_layers=MAX_LAYERS))),
    }


def stacked(path: Sequence[PathLayer], sources: Mapping[str, Weights]) -> Weights:
    """The model of a path: embeddings of its first layer's source, the final norm of its last one's.

    The scale of a layer is that of its MLP's branch, folded into `down_proj`.
    """
    first, last = sources[path[0].source], sources[path[-1].source]
    weights = {name: first[name] for name in first if name.startswith("model.embed_tokens.")}
    weights["model.norm.weight"] = last["model.norm.weight"]
    for place, layer in enumerate(path):
        prefix = f"model.layers.{layer.layer}."
        for name, tensor in sources[layer.source].items():
            if name.startswith(prefix):
                scale = layer.scale if name.endswith("down_proj.weight") else 1.0
                weights[f"model.layers.{place}.{name.removeprefix(prefix)}"] = tensor * scale
    return weights


def claims(found: Sequence[dict[str, float]]) -> list[Row]:
    """Rows of the table."""
    column = {name: [each[name] for each in found] for name in found[0]}
    units = f"{len(found)} pairs of experts"
    row = compared(
        "A layer path is above both of its parents on their tasks (toy language models)",
        "2502.04030",
        ("the path", "the better parent"),
        (column["path"], column["parent"]),
        units,
    )
    layers = interval(column["layers"]).mean
    gap = interval([one - other for one, other in zip(column["searched"], column["path"], strict=True)])
    return [replace(row, measured=f"{row.measured}; {layers:.1f} layers; searched minus held-out {gap.text()}")]
