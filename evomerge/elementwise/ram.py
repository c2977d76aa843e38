"""RAM and RAM+: merges of sparse task vectors by how many sources have changed an element. arXiv 2601.13572."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from evomerge.tensors.plans import Factors, Formula, Plan
from evomerge.tensors.rule_tensors import Piece, RuleTensors

Scales = Sequence[float]
"""For each source the factor of what it alone has changed."""


def merge_ram(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + sum_i a_i tau_i / max(c, 1), with a_i = [|tau_i| > epsilon] and c = sum_i a_i by element.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    scales = [1.0] * len(tensors.sources)
    for name in tensors.names:
        yield name, tensors.merge(name, _kernel(tensors.shared("epsilon"), scales))


def merge_ram_plus(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """RAM, where an element that source i alone has changed moves by 1 + r min(rho_i, alpha) times tau_i.

    rho_i is the number of elements that source i and others have changed, divided by the number that it alone has
    changed (or by epsilon, where there is none): over the whole model, or by tensor under `overlap: tensor`, as in
    mergekit.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    for name in tensors.names:
        yield name, tensors.merge(name, _kernel(tensors.shared("epsilon"), _scales(tensors, name)))


def plan_ram(tensors: RuleTensors) -> Plan:
    """The formula of `merge_ram`."""
    factors = [Factors(1.0, tensors.shared("epsilon")) for _ in tensors.sources]
    return Plan(formula=Formula(kind="changes"), factors=lambda name: factors)


def plan_ram_plus(tensors: RuleTensors) -> Plan:
    """The formula of `merge_ram_plus`."""
    epsilon = tensors.shared("epsilon")
    return Plan(
        formula=Formula(kind="changes"),
        factors=lambda name: [Factors(scale, epsilon) for scale in _scales(tensors, name)],
    )


def _scales(tensors: RuleTensors, name: str) -> list[float]:
    scope = (name,) if tensors.options["overlap"] == "tensor" else tensors.whole_model
    epsilon, r, alpha = (tensors.shared(name) for name in ("epsilon", "r", "alpha"))
    counts = tensors.cached(("ram", scope, epsilon), lambda: change_counts(tensors, scope, epsilon))
    # Without a unique change and with epsilon 0 the overlap is as large as any: alpha.
    overlaps = [shared / (unique or epsilon) if unique or epsilon else alpha for shared, unique in counts]
    return [1 + r * min(overlap, alpha) for overlap in overlaps]


def change_counts(tensors: RuleTensors, scope: Sequence[str], epsilon: float) -> list[tuple[int, int]]:
    """For each source the numbers of elements that it has changed with others, and alone."""
    shared, unique = [0] * len(tensors.sources), [0] * len(tensors.sources)
    for name in scope:
        for piece in tensors.pieces(name):
            changed = [_changed(vector, epsilon) for vector in piece.task_vectors()]
            alone = _count(changed) == 1
            for place, each in enumerate(changed):
                own = int((each & alone).count_nonzero())
                unique[place] += own
                shared[place] += int(each.count_nonzero()) - own
    return list(zip(shared, unique, strict=True))


def _kernel(epsilon: float, scales: Scales) -> Callable[[Piece], Tensor]:
    def merged(piece: Piece) -> Tensor:
        vectors = piece.task_vectors()
        changed = [_changed(vector, epsilon) for vector in vectors]
        count = _count(changed)
        alone = count == 1
        total = vectors[0].new_zeros(vectors[0].shape)
        for vector, each, scale in zip(vectors, changed, scales, strict=True):
            kept = vector.mul_(each)
            total += kept if scale == 1 else kept.where(~alone, kept * scale)
        return total.div_(count.clamp_(min=1)).add_(piece.the_base)

    return merged


def _changed(vector: Tensor, epsilon: float) -> Tensor:
    """a_i; NaN counts as changed, so that it is seen in the result."""
    return (vector.abs() <= epsilon).logical_not_()


def _count(changed: Sequence[Tensor]) -> Tensor:
    total = changed[0].int()
    for each in changed[1:]:
        total += each
    return total
