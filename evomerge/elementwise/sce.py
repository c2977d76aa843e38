"""SCE: select elements by variance, calculate weights by energy, erase minority signs. FuseChat, arXiv 2408.07990."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from evomerge.tensors.plans import Factors, Formula, Plan
from evomerge.tensors.rule_tensors import Piece, RuleTensors
from evomerge.tensors.selection import merge_selected, select, variance
from evomerge.tensors.variance_bins import Selected, VarianceBins

LEAST_ENERGY = 1e-6  # mean square of an element, over all sources


def merge_sce(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """For every tensor, in mergekit's reading of FuseChat (arXiv 2408.07990):

        v_j = population variance of tau_ij over the sources                        (1)
        x_ij = tau_ij where v_j is among the int(select_topk m) largest, else 0     (2) select; m of the v_j are not 0
        c_i = sum_j x_ij^2 / sum_k sum_j x_kj^2, or 1/n where all are 0             (3) calculate; `small_energy`
        e_ij = [x_ij has the sign of sum_k x_kj]                                    (4) erase; `zero_sum`
        theta_j = theta_0j + sum_i c_i e_ij x_ij / max(sum_i c_i e_ij, 1e-6)        (5)

    At least one element is selected, all that are tied with the last, and everything under `select_topk: 1` or where
    nothing varies. Under `kept_rule: exact` of tied ones those of lowest index are, as many as the share says: none of
    one source alone or of equal ones, but under `select_topk: 1`. Under `small_energy: equal` all c_i are 1/n where
    sum_i sum_j x_ij^2 is below 1e-6 times the elements of the tensor.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    for name in tensors.names:
        yield name, _merge_tensor(tensors, name)


def plan_sce(tensors: RuleTensors) -> Plan:
    """The formula of `merge_sce`."""
    exact, plus = _options(tensors)

    def factors(name: str) -> list[Factors]:
        found = selected_elements(tensors, name)
        return [Factors(share, found.least, ties=found.end) for share in found.shares]

    kind = "erasure" if tensors.shared("select_topk") == 1 else "selection"
    variant = "plus" if plus else "erase"
    return Plan(formula=Formula(kind=kind, ties=exact and kind == "selection", variant=variant), factors=factors)


def selected_elements(tensors: RuleTensors, name: str) -> Selected:
    """The selected elements of a tensor, and c_i: (2) and (3)."""
    found, equal = _selected(tensors, name), tensors.options.get("small_energy") == "equal"
    if equal and found.energy < LEAST_ENERGY * tensors.like(name).numel():
        return replace(found, shares=[1 / len(found.shares)] * len(found.shares))
    return found


def _selected(tensors: RuleTensors, name: str) -> Selected:
    share, (exact, _) = tensors.shared("select_topk"), _options(tensors)
    if share == 1 or not tensors.like(name).numel():
        key = "sce", name, "whole"
        return tensors.cached(key, lambda: VarianceBins(tensors, name, divided=False).everything())
    bins = tensors.kept(("sce", name), lambda: VarianceBins(tensors, name))
    if exact and share == 0:
        return bins.nothing()
    kept = int(share * bins.varied)
    return bins.largest(tensors, name, kept if exact else max(1, kept), exact=exact)


def _options(tensors: RuleTensors) -> tuple[bool, bool]:
    """Whether exactly the share is selected, and whether a sum of zero is positive. Recipes from before there were
    these options do not name them."""
    return tensors.options.get("kept_rule") == "exact", tensors.options.get("zero_sum") == "plus"


def _merge_tensor(tensors: RuleTensors, name: str) -> Tensor:
    found, (_, plus) = selected_elements(tensors, name), _options(tensors)

    def merged(piece: Piece) -> Tensor:
        vectors = piece.task_vectors()
        if found.least > 0:
            tied_out = None
            if found.end is not None:
                tied_out = torch.arange(piece.start, piece.stop, device=vectors[0].device) >= found.end
            vectors = select(vectors, variance(vectors), found.least, tied_out=tied_out)
        return merge_selected(vectors, found.shares, zero_is_positive=plus).add_(piece.the_base)

    return tensors.merge(name, merged)
