"""Fisher-weighted averaging: each element of each source counts as much as its Fisher information."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from evomerge.elementwise.linear import relative_weights, weighted_sum
from evomerge.errors import InvalidInput
from evomerge.tensors.plans import Factors, Formula, Plan
from evomerge.tensors.rule_tensors import Piece, RuleTensors
from evomerge.tensors.sums import ordered_sum

_NORM_PIECE = 1 << 20  # elements that are squared at once; a constant, as it decides the order of the sum


def merge_fisher(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = sum_i a_i Ft_i theta_i / sum_i a_i Ft_i, with a_i = w_i / |F_i| and Ft_i = max(F_i ** power, floor).

    Merging models with Fisher-weighted averaging, arXiv 2111.09832. The statistics are F_i. The first source is the
    target: its Fisher alone has the floor, unless `floor_on: all`, and its values remain where the denominator is 0.
    Under `normalize_fisher: model` the norm |F_i| is that of all tensors of the model, before the floor. A tensor for
    which no source has a Fisher is the weighted mean.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        InvalidInput: only some sources have a Fisher of a tensor, or one does not fit.
        MergeError: all weights are 0.
    """
    power = tensors.shared("power")
    weighing = Weighing(tensors)
    for name in tensors.names:
        fishers = _fishers(tensors, name)
        if fishers is None:
            yield name, tensors.merge(name, lambda piece: weighted_sum(piece.sources, weighing.shares))
            continue
        flat, factors = [fisher.reshape(-1) for fisher in fishers], weighing.factors(name)

        def kernel(piece: Piece, flat: list[Tensor] = flat, factors: list[float] = factors) -> Tensor:
            parts = [powered(fisher[piece.start : piece.stop], power) for fisher in flat]
            return fisher_mean(piece.sources, parts, factors, weighing.floors)

        yield name, tensors.merge(name, kernel)


def plan_fisher(tensors: RuleTensors) -> Plan | None:
    """The formula of `merge_fisher`; None under a power, which libraries and compilers round differently.

    Raises:
        InvalidInput, MergeError: see `merge_fisher`.
    """
    if tensors.shared("power") != 1:
        return None
    weighing = Weighing(tensors)
    known = {name: _fishers(tensors, name) for name in tensors.names}

    def factors(name: str) -> list[Factors]:
        if known[name] is None:
            return [Factors(share) for share in weighing.shares]
        return [Factors(*each) for each in zip(weighing.factors(name), weighing.floors, strict=True)]

    return Plan(
        formula=Formula(kind="information"),
        factors=factors,
        others={name: Formula(kind="average") for name, fishers in known.items() if fishers is None},
        statistics=lambda name: [fisher.reshape(-1) for fisher in known[name] or ()],
    )


class Weighing:
    """The numbers of a Fisher-weighted average.

    Attributes:
        shares: w_i, divided by their sum.
        floors: floor_i of each source.
    """

    def __init__(self, tensors: RuleTensors) -> None:
        self.shares = relative_weights(tensors.per_source("weight"))
        self.floors = [tensors.shared("floor")] * len(self.shares)
        if tensors.options["floor_on"] == "target":
            self.floors[1:] = [0.0] * (len(self.shares) - 1)
        self._tensors = tensors
        self._power = tensors.shared("power")
        self._scope = tensors.options["normalize_fisher"]
        self._of_model = self._norms(tensors.whole_model) if self._scope == "model" else [1.0] * len(self.shares)

    def factors(self, name: str) -> list[float]:
        """a_i of a tensor that has Fishers."""
        norms = self._norms([name]) if self._scope == "tensor" else self._of_model
        return [share / norm for share, norm in zip(self.shares, norms, strict=True)]

    def _norms(self, scope: Sequence[str]) -> list[float]:
        return _norms(self._tensors, scope, self._power)


def fisher_mean(
    tensors: Sequence[Tensor], fishers: Sequence[Tensor], factors: Sequence[float], floors: Sequence[float]
) -> Tensor:
    """sum_i a_i Ft_i theta_i / sum_i a_i Ft_i, with Ft_i = max(F_i, floor_i); theta_1 where the denominator is 0.

    Args:
        tensors, fishers: theta_i and F_i of each source, all of one shape.
        factors: a_i >= 0.
        floors: floor_i; 0 leaves F_i as it is.

    Returns:
        The merged tensor in float64, in new memory.
    """
    numerator = torch.zeros(tensors[0].shape, dtype=torch.float64, device=tensors[0].device)
    denominator = torch.zeros_like(numerator)
    for tensor, fisher, factor, floor in zip(tensors, fishers, factors, floors, strict=True):
        share = fisher.to(numerator.device, torch.float64).clamp(min=floor) * factor
        denominator += share
        numerator += share * tensor
    return torch.where(denominator > 0, numerator / denominator, tensors[0].to(torch.float64))


def powered(fisher: Tensor, power: float) -> Tensor:
    """F ** power in float64; 1 everywhere, where F is 0 too, for power 0."""
    return fisher.double() if power == 1 else fisher.double().pow(power)


def fisher_norm(fishers: Iterable[Tensor]) -> float:
    """The L2 norm of several tensors together; 1 where all are 0, so that it can always be divided by."""
    pieces = (piece for fisher in fishers for piece in torch.split(fisher.reshape(-1), _NORM_PIECE))
    return math.sqrt(ordered_sum(piece.double().square() for piece in pieces)) or 1.0


def check_fisher(fisher: Tensor, tensor: Tensor, source: int, name: str) -> None:
    """Refuse what cannot be the diagonal Fisher of a tensor.

    Raises:
        InvalidInput: no floating-point tensor, another shape, or an entry that is negative or not finite.
    """
    where = f"the Fisher of source {source} for tensor {name!r}"
    if not isinstance(fisher, Tensor) or not fisher.is_floating_point():
        kind = str(fisher.dtype) if isinstance(fisher, Tensor) else type(fisher).__name__
        raise InvalidInput(f"{where} is {kind}; give a floating-point tensor")
    if fisher.shape != tensor.shape:
        raise InvalidInput(
            f"{where} has the shape {list(fisher.shape)}; give one number per element, {list(tensor.shape)}"
        )
    wide = fisher.float() if fisher.itemsize == 1 else fisher  # not every 8-bit float type can be compared
    if not bool(((wide >= 0) & torch.isfinite(wide)).all()):
        raise InvalidInput(f"{where} has an entry that is negative or not finite; it is a mean of squares")


def _fishers(tensors: RuleTensors, name: str) -> list[Tensor] | None:
    """The Fisher of one tensor in each source; None where no source has one."""
    return tensors.cached(("fisher", name), lambda: _checked(tensors, name))


def _checked(tensors: RuleTensors, name: str) -> list[Tensor] | None:
    given = tensors.statistic(name)
    found = [fisher for fisher in given if fisher is not None]
    if not found:
        return None
    if lacking := [source for source, fisher in enumerate(given) if fisher is None]:
        raise InvalidInput(
            f"source {lacking[0]} has no Fisher of tensor {name!r}, but another source has; give it for all or for none"
        )
    for source, fisher in enumerate(found):
        check_fisher(fisher, tensors.like(name), source, name)
    return [fisher.detach() for fisher in found]


def _norms(tensors: RuleTensors, scope: Sequence[str], power: float) -> list[float]:
    """The norm of each source's Fisher over several tensors, those without a Fisher left out."""

    def norms() -> list[float]:
        by_tensor = [fishers for name in scope if (fishers := _fishers(tensors, name)) is not None]
        return [
            fisher_norm(powered(fishers[source], power) for fishers in by_tensor)
            for source in range(len(tensors.sources))
        ]

    # A search over powers would fill the cache with values that never come back.
    return tensors.cached(("fisher", "norm", tuple(scope)), norms) if power == 1 else norms()
