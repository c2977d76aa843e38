"""OPCM: models arrive one after the other and are merged by orthogonal projection. arXiv 2501.09522.

    t = 1    M = tau_1;  lambda = 1;  N_1 = |tau_1|
    t >= 2   avg = mean(N_1 .. N_t)
             each linear weight:  U, s, V = SVD(M);  r = 0-based index of the first cumsum(s) / sum(s) > alpha
                                  P = U' tau_t V;  diagonal of P := 0;  P[:r, :r] := 0;  T = U P V'
             every other tensor:  T = tau_t
             M' = lambda M + T;  lambda = |M'| / avg;  M = M' avg / |M'|;  theta = theta_0 + M

Norms are over the whole model, so that |M| is always the running mean of the norms of the task vectors. Linear weights
are the two-dimensional tensors that are neither embeddings nor heads. Projections and norms are in float64.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from evomerge.catalogue import part_of
from evomerge.errors import InvalidInput, MergeError, unknown_name
from evomerge.merging.sums import ordered_sum
from evomerge.merging.tied_names import canonical_names
from evomerge.messages import some

Tensors = Mapping[str, Tensor]

CHOICES: Mapping[str, tuple[str | bool, ...]] = MappingProxyType(
    {
        "zero_diagonal": (True, False),
        "split_rank": ("zero_based", "doc"),
        "lm_head": ("other", "projected"),
        "norm_tensors": ("all", "parameters"),
    }
)

# Floating-point tensors of a state dict that no optimiser trains: batch norm, rotary positions, masks of attention.
_BUFFER = re.compile(r"(^|\.)(running_mean|running_var|(\w+_)?inv_freq|masked_bias)$")

_PIECE = 1 << 17


@dataclass(frozen=True, kw_only=True)
class OpcmState:
    """The merge of the models that have arrived; it is all that the next arrival needs.

    Attributes:
        task_vector: M_t by name, in float32 (float64 where the models are); the merged model is base + task_vector.
            Tied tensors share memory.
        factor: lambda_t.
        mean_norm: running mean of |tau|.
        arrived: number of models, t.
    """

    task_vector: dict[str, Tensor]
    factor: float
    mean_norm: float
    arrived: int


@dataclass(frozen=True)
class Decomposition:
    """The reduced singular value decomposition U diag(s) V' of a matrix [m, n], in float64, with k = min(m, n).

    Attributes:
        left: U, [m, k].
        values: s, [k], largest first.
        right: V, [n, k].
    """

    left: Tensor
    values: Tensor
    right: Tensor


def opcm_first(base: Tensors, source: Tensors) -> OpcmState:
    """The state after the first model: its task vector.

    Args:
        base, source: `{tensor name: tensor}`; tensors that are not floating-point are left out.

    Raises:
        InvalidInput: other names or shapes in the source than in the base.
        MergeError: a task vector that is not finite.
    """
    _refuse_misfits(base, source)
    canonical = canonical_names([base, source])
    vector = _task_vector(base, source, canonical)
    norm = _norm(vector, vector)
    return OpcmState(task_vector=_with_tied(vector, base, canonical), factor=1.0, mean_norm=norm, arrived=1)


def opcm_next(
    state: OpcmState,
    base: Tensors,
    source: Tensors,
    alpha: float = 0.5,
    options: Mapping[str, str | bool] = MappingProxyType({}),
) -> OpcmState:
    """The state after one more model; the given one is not changed.

    Args:
        state: of the models that arrived before, on the same base.
        alpha: share of the singular values whose subspace is closed to the new model, 0 <= alpha < 1.
        options: zero_diagonal (True), split_rank (zero_based, or doc: one direction more), lm_head (other, or
            projected), norm_tensors (all, or parameters: without floating-point buffers).

    Raises:
        InvalidInput: alpha or an option out of range, or a state, base and source that do not fit together.
        MergeError: a task vector that is not finite.
    """
    chosen = _resolve(alpha, options)
    _refuse_misfits(base, source)
    _refuse_misfits({name: tensor for name, tensor in base.items() if tensor.is_floating_point()}, state.task_vector)
    canonical = canonical_names([base, source])
    tau = _task_vector(base, source, canonical)
    linear = linear_names(base, canonical, heads=chosen["lm_head"] == "projected")
    merged = {name: state.task_vector[name] for name in tau}
    following = arrive(
        OpcmState(task_vector=merged, factor=state.factor, mean_norm=state.mean_norm, arrived=state.arrived),
        tau,
        alpha=alpha,
        options=chosen,
        linear=linear,
    )
    return OpcmState(
        task_vector=_with_tied(following.task_vector, base, canonical),
        factor=following.factor,
        mean_norm=following.mean_norm,
        arrived=following.arrived,
    )


def arrive(
    state: OpcmState,
    task_vector: Tensors,
    *,
    alpha: float,
    options: Mapping[str, str | bool],
    linear: frozenset[str],
) -> OpcmState:
    """The state after one more task vector, with each tied tensor once.

    Args:
        task_vector: tau_t, with the names of the state's.
        options: all of them.
        linear: names of the tensors that are projected.
    """
    counted = [name for name in task_vector if options["norm_tensors"] == "all" or not _BUFFER.search(name)]
    # The first state was made without options; its task vector is still tau_1.
    before = _norm(state.task_vector, counted) if state.arrived == 1 else state.mean_norm
    arrived = state.arrived + 1
    mean_norm = before + (_norm(task_vector, counted) - before) / arrived
    combined = {}
    for name, tau in task_vector.items():
        old = state.task_vector[name]
        new = _projected(tau, old, alpha, options) if name in linear else tau
        combined[name] = (old.double() * state.factor + new.double()).to(tau.dtype)
    norm = _norm(combined, counted)
    if norm > 0:
        combined = {name: (tensor.double() * (mean_norm / norm)).to(tensor.dtype) for name, tensor in combined.items()}
    factor = norm / mean_norm if mean_norm > 0 else 1.0
    return OpcmState(task_vector=combined, factor=factor, mean_norm=mean_norm, arrived=arrived)


def decompose(matrix: Tensor) -> Decomposition:
    """The decomposition of a finite matrix.

    Raises:
        MergeError: the algorithm does not converge.
    """
    try:
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise MergeError(
            f"a matrix of shape {tuple(matrix.shape)} has no singular value decomposition: {error}"
        ) from None
    return Decomposition(left, values, right.mT)


def split_rank(values: Tensor, alpha: float, rule: str = "zero_based") -> int:
    """r, the number of leading directions in which the block is removed; values are the singular values, not all 0."""
    cumulated = values.cumsum(0)
    # Divided by the last entry, which is the sum, so that rounding cannot keep every entry below alpha.
    above = cumulated / cumulated[-1] > alpha
    return int(above.to(torch.int8).argmax()) + (1 if rule == "doc" else 0)


def project(task_vector: Tensor, decomposition: Decomposition, rank: int, *, zero_diagonal: bool = True) -> Tensor:
    """T = U P V' with P = U' tau V, the diagonal and the leading block [:r, :r] of P set to 0; in float64.

    Computed as tau minus what is removed, for which the reduced decomposition is enough: rows and columns of P beyond k
    stay as they are.
    """
    tau = task_vector.double()
    inner = decomposition.left.mT @ tau @ decomposition.right
    removed = torch.zeros_like(inner)
    removed[:rank, :rank] = inner[:rank, :rank]
    if zero_diagonal:
        removed.diagonal().copy_(inner.diagonal())
    return tau - decomposition.left @ removed @ decomposition.right.mT


def linear_names(names: Iterable[str], canonical: Mapping[str, str], *, heads: bool) -> frozenset[str]:
    """Canonical names of tensors that by all their names are neither embeddings nor, unless `heads`, heads."""
    refused = {"embedding"} if heads else {"embedding", "head"}
    listed = list(names)
    other = {canonical[name] for name in listed if part_of(name) in refused}
    return frozenset(canonical[name] for name in listed) - other


def _projected(tau: Tensor, merged: Tensor, alpha: float, options: Mapping[str, str | bool]) -> Tensor:
    """T of a two-dimensional tensor; tau itself where the merged vector is 0 and has no directions."""
    if tau.dim() != 2 or not bool(merged.any()):
        return tau
    decomposition = decompose(merged)
    rank = split_rank(decomposition.values, alpha, str(options["split_rank"]))
    return project(tau, decomposition, rank, zero_diagonal=bool(options["zero_diagonal"]))


def _task_vector(base: Tensors, source: Tensors, canonical: Mapping[str, str]) -> dict[str, Tensor]:
    """tau of each floating-point tensor, tied tensors once, in float32 or float64 and in memory of its own."""
    vector = {}
    for name, tensor in base.items():
        if not tensor.is_floating_point() or canonical[name] != name:
            continue
        wide = torch.float64 in (tensor.dtype, source[name].dtype)
        dtype = torch.float64 if wide else torch.float32
        vector[name] = source[name].detach().to(tensor.device, dtype) - tensor.detach().to(dtype)
        if not bool(torch.isfinite(vector[name]).all()):
            raise MergeError(f"the task vector has values that are not finite in tensor {name!r}")
    return vector


def _with_tied(vector: Tensors, base: Tensors, canonical: Mapping[str, str]) -> dict[str, Tensor]:
    return {name: vector[canonical[name]] for name, tensor in base.items() if tensor.is_floating_point()}


def _norm(vector: Tensors, names: Iterable[str]) -> float:
    return math.sqrt(ordered_sum(piece.double().square() for name in names for piece in _pieces(vector[name])))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.reshape(-1)
    return (flat[start : start + _PIECE] for start in range(0, flat.numel(), _PIECE))


def _resolve(alpha: float, options: Mapping[str, str | bool]) -> dict[str, str | bool]:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha < 1:
        raise InvalidInput(f"alpha is a number with 0 <= alpha < 1, but got {alpha!r}")
    chosen = {name: choices[0] for name, choices in CHOICES.items()}
    for name, value in options.items():
        if name not in CHOICES:
            raise unknown_name("option of 'opcm'", name, CHOICES)
        if not any(type(value) is type(choice) and value == choice for choice in CHOICES[name]):
            raise unknown_name(f"value of 'opcm' option {name!r}:", str(value), [str(each) for each in CHOICES[name]])
        chosen[name] = value
    return chosen


def _refuse_misfits(expected: Tensors, given: Tensors) -> None:
    if alone := sorted(expected.keys() ^ given.keys()):
        raise InvalidInput(f"base, source and state need the same tensor names; only some have {some(alone, 5)}")
    for name, tensor in expected.items():
        for each in (tensor, given[name]):
            if not isinstance(each, Tensor):
                raise InvalidInput(f"tensor {name!r} must be a torch tensor, but is {type(each).__name__}")
        if tensor.is_complex():
            raise InvalidInput(f"tensor {name!r} is complex and cannot be merged")
        if tensor.shape != given[name].shape or tensor.is_floating_point() != given[name].is_floating_point():
            kinds = " and ".join(f"{each.dtype} of shape {tuple(each.shape)}" for each in (tensor, given[name]))
            raise InvalidInput(
                f"tensor {name!r} must have one shape and kind in base, source and state, but has {kinds}"
            )
