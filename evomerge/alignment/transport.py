"""Optimal transport between the units of two layers: costs, plans, and the maps that plans stand for; in float64.

All units of a layer have the same mass: 1 / n for n units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import eye, kron, vstack
from torch import Tensor

from evomerge.errors import InvalidInput, MergeError, unknown_name

EPSILON = 1e-7
"""Added to marginals before they are divided by."""

SINKHORN_ITERATIONS = 1000
SINKHORN_ERROR = 1e-9

# Up to so many distances a matrix of costs is computed by differences.
EXACT_DISTANCES = 1 << 22

# Up to so many units the transport between layers of different width is solved as an assignment of copies.
MOST_COPIES = 4096


class UnitMap(Protocol):
    """A map T from the n units of one layer to the m units of another."""

    def rows(self, weight: Tensor) -> Tensor:
        """T' W, of a tensor [n, …] whose rows belong to the units."""

    def columns(self, weight: Tensor) -> Tensor:
        """W T, of a matrix [k, n] whose columns belong to the units."""

    @property
    def moved(self) -> int:
        """Number of units of the second layer whose largest share is of a unit with another index."""


@dataclass(frozen=True)
class Permutation:
    """The map that takes unit `order[j]` of one layer to unit j of another."""

    order: Tensor

    def rows(self, weight: Tensor) -> Tensor:
        return weight[self.order.to(weight.device)]

    def columns(self, weight: Tensor) -> Tensor:
        return weight[:, self.order.to(weight.device)]

    @property
    def moved(self) -> int:
        return int((self.order != torch.arange(len(self.order))).sum())


@dataclass(frozen=True)
class Mixture:
    """A map given by its matrix T, [n, m] in float64."""

    matrix: Tensor

    def rows(self, weight: Tensor) -> Tensor:
        return self.matrix.mT @ weight.double()

    def columns(self, weight: Tensor) -> Tensor:
        return weight.double() @ self.matrix

    @property
    def moved(self) -> int:
        units = torch.arange(self.matrix.shape[1], device=self.matrix.device)
        return int((self.matrix.argmax(0) != units).sum())


def cost_matrix(
    x: Tensor, y: Tensor, cost: str = "euclidean", scaling: str = "none", *, unit_rows: bool = False
) -> Tensor:
    """The cost of moving each row of x [n, d] to each row of y [m, d]: [n, m].

    Args:
        cost: euclidean |x - y|, squared |x - y|^2, or cosine 1 - cos(x, y), which is 1 where a row is 0.
        scaling: none, log (log(1 + cost)), or division by the largest, median (of an even number the lower middle one)
            or mean cost.
        unit_rows: divide every row by its norm first.

    Raises:
        MergeError: a cost is not finite.
    """
    one, other = x.double(), y.to(x.device).double()
    if unit_rows or cost == "cosine":
        one, other = _unit(one), _unit(other)
    match cost:
        case "euclidean" | "squared":
            costs = torch.cdist(one, other, compute_mode=_mode(len(one) * len(other)))
            costs = costs if cost == "euclidean" else costs.square()
        case "cosine":
            costs = 1 - one @ other.mT
        case _:
            raise unknown_name("cost", cost, ("euclidean", "squared", "cosine"))
    if not bool(torch.isfinite(costs).all()):
        raise MergeError("units cannot be aligned: a distance between them is not finite")
    return _scaled(costs, scaling)


def _mode(distances: int) -> str:
    """Differences, which are exact; for very many distances products, which are right to 1e-8 of the norms."""
    return "donot_use_mm_for_euclid_dist" if distances <= EXACT_DISTANCES else "use_mm_for_euclid_dist"


def _unit(rows: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, torch.ones_like(norms))


def _scaled(costs: Tensor, scaling: str) -> Tensor:
    match scaling:
        case "none":
            return costs
        case "log":
            return torch.log1p(costs)
        case "max":
            divisor = costs.max()
        case "median":
            divisor = costs.median()
        case "mean":
            divisor = costs.mean()
        case _:
            raise unknown_name("cost scaling", scaling, ("none", "log", "max", "median", "mean"))
    return costs / divisor if float(divisor) > 0 else costs


def assignment(costs: Tensor) -> Permutation:
    """The cheapest permutation for square costs [n, n]; the identity where no other is cheaper."""
    array = costs.cpu().numpy()
    rows, columns = linear_sum_assignment(array)
    order = np.empty(len(rows), dtype=np.int64)
    order[columns] = rows
    if np.trace(array) <= array[rows, columns].sum():
        order = np.arange(len(rows))
    return Permutation(torch.from_numpy(order))


def exact_plan(costs: Tensor) -> Tensor:
    """The plan [n, m] with row sums 1 / n and column sums 1 / m that costs least.

    Raises:
        MergeError: the linear program has not been solved.
    """
    n, m = costs.shape
    copies = math.lcm(n, m)
    if n == m:
        plan = np.zeros((n, m))
        plan[assignment(costs).order.numpy(), np.arange(m)] = 1 / n
    elif copies <= MOST_COPIES:
        plan = _plan_of_copies(costs.cpu().numpy(), copies)
    else:
        plan = _linear_program(costs.cpu().numpy())
    return torch.from_numpy(plan).to(costs.device)


def _plan_of_copies(costs: np.ndarray[Any, Any], copies: int) -> np.ndarray[Any, Any]:
    """Each unit as several copies with mass 1 / copies: a transport plan between them is an assignment."""
    n, m = costs.shape
    spread = costs.repeat(copies // n, axis=0).repeat(copies // m, axis=1)
    rows, columns = linear_sum_assignment(spread)
    plan = np.zeros((n, m))
    np.add.at(plan, (rows * n // copies, columns * m // copies), 1 / copies)
    return plan


def _linear_program(costs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    n, m = costs.shape
    sums = vstack([kron(eye(n), np.ones((1, m))), kron(np.ones((1, n)), eye(m))]).tocsr()
    masses = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    solved = linprog(costs.reshape(-1), A_eq=sums, b_eq=masses, method="highs")
    if not solved.success:
        raise MergeError(f"the transport between {n} and {m} units has not been solved: {solved.message}")
    return np.asarray(solved.x, dtype=np.float64).reshape(n, m)


def sinkhorn_plan(costs: Tensor, reg: float) -> Tensor:
    """The plan [n, m] with the least cost minus `reg` times its entropy (Cuturi, arXiv 1306.0895).

    Iterations are on logarithms, so that a small `reg` underflows nowhere. They end when the column sums are right to
    1e-9, or after 1000: the row sums are then right and the column sums are nearly so.

    Args:
        reg: above 0.
    """
    n, m = costs.shape
    kernel = -costs / reg
    rows = torch.full((n,), -math.log(n), dtype=costs.dtype, device=costs.device)
    for iteration in range(SINKHORN_ITERATIONS):
        columns = -math.log(m) - torch.logsumexp(kernel + rows[:, None], 0)
        rows = -math.log(n) - torch.logsumexp(kernel + columns[None, :], 1)
        if iteration % 10 == 0:
            sums = (kernel + rows[:, None] + columns[None, :]).exp().sum(0)
            if float((sums - 1 / m).norm()) < SINKHORN_ERROR:
                break
    return (kernel + rows[:, None] + columns[None, :]).exp()


def corrected(plan: Tensor, marginals: str) -> Tensor:
    """T diag(1 / (beta + 1e-7)), with the marginals beta of a plan T [n, m].

    Args:
        marginals: column_sums, uniform (1 / m), or row_sums; the last two for equal widths only.

    Raises:
        InvalidInput: other marginals than column sums for layers of different width.
    """
    n, m = plan.shape
    if marginals == "column_sums":
        return plan / (plan.sum(0) + EPSILON)
    if marginals not in ("uniform", "row_sums"):
        raise unknown_name("marginals", marginals, ("column_sums", "uniform", "row_sums"))
    if n != m:
        raise InvalidInput(
            f"marginals: {marginals} is for layers of equal width, but they have {n} and {m} units; use column_sums"
        )
    beta = plan.sum(1) if marginals == "row_sums" else torch.full_like(plan[0], 1 / m)
    return plan / (beta + EPSILON)
