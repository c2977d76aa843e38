"""OPCM: models arrive one after the other and are merged by orthogonal projection. arXiv 2501.09522.

    t = 1    M = tau_1;  lambda = 1;  N_1 = |tau_1|
    t >= 2   avg = mean(N_1 .. N_t)
             each linear weight:  U, s, V = SVD(M);  r = 0-based index of the first cumsum(s) / sum(s) > alpha
                                  P = U' tau_t V;  diagonal of P := 0 where s > 0;  P[:r, :r] := 0;  T = U P V'
             every other tensor:  T = tau_t
             M' = lambda M + T;  lambda = |M'| / avg;  M = M' avg / |M'|;  theta = theta_0 + M

Norms are over the whole model, so that |M| is always the running mean of the norms of the task vectors. Linear weights
are the two-dimensional tensors that are neither embeddings nor heads. Projections and norms are in float64.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from evomerge.catalogue import part_of
from evomerge.errors import InvalidInput, MergeError
from evomerge.methods import OptionValue, validate
from evomerge.tensors.named_tensors import common_names
from evomerge.tensors.one_thread import one_thread
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.sums import ordered_sum
from evomerge.tensors.tied_names import canonical_names

Tensors = Mapping[str, Tensor]

# Floating-point tensors of a state dict that no optimiser trains: batch norm, rotary positions, masks of attention.
_BUFFER = re.compile(r"(^|\.)(running_mean|running_var|(\w+_)?inv_freq|masked_bias)$")

_PIECE = 1 << 17

# Decompositions of first models that a worker keeps for other candidates, in bytes; those beyond are made again.
KEPT_BYTES = 2 << 30


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

    @property
    def nbytes(self) -> int:
        return self.left.nbytes + self.values.nbytes + self.right.nbytes


def merge_opcm(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + M_n, with the sources in order of arrival: OPCM, arXiv 2501.09522; see the head of this file.

    Norms are over the whole model, whatever the names of the rule.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        MergeError: a task vector is not finite.
    """
    task_vector = _last_state(tensors).task_vector
    for name in tensors.names:
        dtype = tensors.dtype([name])
        yield name, tensors.like(name).detach().to(dtype) + task_vector[name].to(dtype)


def _last_state(tensors: RuleTensors) -> OpcmState:
    """The state after all sources; kept for the rules with the other parts of the model, where this rule is a part."""
    alpha = tensors.shared("alpha")
    question = alpha, tuple(sorted(tensors.options.items())), tensors.whole_model
    shared = tensors.cache_of_first(0)  # by all orders: a state has the size of the model
    kept: tuple[object, object, OpcmState] | None = shared.get(("opcm", "state"))
    if kept is not None and kept[0] == question and kept[1] is tensors.cache:
        return kept[2]
    shared.pop(("opcm", "state"), None)
    del kept
    state = _merge_all(tensors, alpha)
    if set(tensors.names) != set(tensors.whole_model):
        shared["opcm", "state"] = question, tensors.cache, state
    return state


def _merge_all(tensors: RuleTensors, alpha: float) -> OpcmState:
    if tensors.base is None:
        raise InvalidInput("opcm works on task vectors (source minus base); give the base model")
    base, names = tensors.base, {*tensors.whole_model, *tensors.names}
    canonical = canonical_names([base, *tensors.sources])
    linear = linear_names(base, canonical, heads=tensors.options["lm_head"] == "projected")
    merged = {name: base[name] for name in sorted(names)}
    state = _first_state(_task_vector(merged, tensors.sources[0]))

    def kept(name: str, matrix: Tensor) -> Decomposition:
        """That of the first model depends on no parameter."""
        return _kept(tensors, name, matrix) if state.arrived == 1 else decompose(matrix)

    for source in tensors.sources[1:]:
        vector = _task_vector(merged, source)
        state = arrive(state, vector, alpha=alpha, options=tensors.options, linear=linear, decomposed=kept)
    return state


def _first_state(task_vector: dict[str, Tensor]) -> OpcmState:
    norm = _norm(task_vector, task_vector)
    return OpcmState(task_vector=task_vector, factor=1.0, mean_norm=norm, arrived=1)


def _kept(tensors: RuleTensors, name: str, matrix: Tensor) -> Decomposition:
    """The decomposition of the first model's tensor, for every order that begins with this model."""
    kept, budget = tensors.cache_of_first(1), tensors.cache_of_first(0)
    key, spent = ("opcm", "first", name), budget.setdefault(("opcm", "bytes"), 0)
    found: Decomposition | None = kept.get(key)
    if found is None:
        found = decompose(matrix)
        if spent + found.nbytes <= KEPT_BYTES:
            kept[key] = found
            budget["opcm", "bytes"] = spent + found.nbytes
    return found


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
    state = _first_state(_task_vector(_once(base, canonical), source))
    return replace(state, task_vector=_with_tied(state.task_vector, base, canonical))


def opcm_next(
    state: OpcmState,
    base: Tensors,
    source: Tensors,
    alpha: float = 0.5,
    options: Mapping[str, OptionValue] = MappingProxyType({}),
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
    _, chosen = validate("opcm", {"alpha": alpha}, options, 1)
    _refuse_misfits(base, source)
    _refuse_misfits({name: tensor for name, tensor in base.items() if tensor.is_floating_point()}, state.task_vector)
    canonical = canonical_names([base, source])
    vector = _task_vector(_once(base, canonical), source)
    before = replace(state, task_vector={name: state.task_vector[name] for name in vector})
    linear = linear_names(base, canonical, heads=chosen["lm_head"] == "projected")
    after = arrive(before, vector, alpha=alpha, options=chosen, linear=linear)
    return replace(after, task_vector=_with_tied(after.task_vector, base, canonical))


def arrive(
    state: OpcmState,
    task_vector: Tensors,
    *,
    alpha: float,
    options: Mapping[str, OptionValue],
    linear: frozenset[str],
    decomposed: Callable[[str, Tensor], Decomposition] = lambda name, matrix: decompose(matrix),
) -> OpcmState:
    """The state after one more task vector, with each tied tensor once.

    Args:
        task_vector: tau_t, with the names of the state's.
        options: all of them.
        linear: names of the tensors that are projected if they are two-dimensional.
        decomposed: the decomposition of a tensor of the state.
    """
    counted = [name for name in task_vector if options["norm_tensors"] == "all" or not _BUFFER.search(name)]
    # The first state was made without options; its task vector is still tau_1.
    before = _norm(state.task_vector, counted) if state.arrived == 1 else state.mean_norm
    arrived = state.arrived + 1
    mean_norm = before + (_norm(task_vector, counted) - before) / arrived
    combined = {}
    for name, tau in task_vector.items():
        old = state.task_vector[name]
        new = tau
        # A vector that is 0 has no directions.
        if name in linear and tau.dim() == 2 and bool(old.any()):
            decomposition = decomposed(name, old)
            rank = split_rank(decomposition.values, alpha, str(options["split_rank"]))
            new = project(tau, decomposition, rank, zero_diagonal=bool(options["zero_diagonal"]))
        combined[name] = _in_pieces(lambda x, y: x.double() * state.factor + y.double(), old, new, dtype=tau.dtype)
    norm = _norm(combined, counted)
    if norm > 0:
        for name, tensor in combined.items():  # one after the other: a second copy of the model would not always fit
            combined[name] = _in_pieces(lambda x: x.double() * (mean_norm / norm), tensor, dtype=tensor.dtype)
    factor = norm / mean_norm if mean_norm > 0 else 1.0
    return OpcmState(task_vector=combined, factor=factor, mean_norm=mean_norm, arrived=arrived)


def decompose(matrix: Tensor) -> Decomposition:
    """The decomposition of a finite matrix.

    Raises:
        MergeError: the algorithm does not converge.
    """
    try:
        with one_thread():
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
    stay as they are. So do those where M has no direction but rounding of the arithmetic, of which the vectors are
    arbitrary: the reference sets the diagonal to 0 there too. Rounding of stored weights counts as a direction, as it
    does in the reference; the diagonal that is removed there is a small part of tau.
    """
    tau, values = task_vector.double(), decomposition.values
    there = int((values > values[:1] * (max(tau.shape) * torch.finfo(task_vector.dtype).eps)).sum())
    rank = min(rank, there)
    with one_thread():
        inner = decomposition.left.mT @ tau @ decomposition.right
        removed = torch.zeros_like(inner)
        removed[:rank, :rank] = inner[:rank, :rank]
        if zero_diagonal:
            removed.diagonal()[:there] = inner.diagonal()[:there]
        return tau - decomposition.left @ removed @ decomposition.right.mT


def linear_names(names: Iterable[str], canonical: Mapping[str, str], *, heads: bool) -> frozenset[str]:
    """Canonical names of tensors that by all their names are neither embeddings nor, unless `heads`, heads."""
    listed = list(names)
    other = {canonical[name] for name in listed if not is_linear(name, heads=heads)}
    return frozenset(canonical[name] for name in listed) - other


def is_linear(name: str, *, heads: bool) -> bool:
    """Whether a two-dimensional tensor of this name is projected."""
    return part_of(name) not in ({"embedding"} if heads else {"embedding", "head"})


def _once(base: Tensors, canonical: Mapping[str, str]) -> dict[str, Tensor]:
    """The floating-point tensors, tied tensors once."""
    return {name: base[name] for name in sorted(base) if base[name].is_floating_point() and canonical[name] == name}


def _task_vector(base: Tensors, source: Tensors) -> dict[str, Tensor]:
    """tau of each tensor of the base, in float32 or float64 and in memory of its own."""
    vector = {}
    for name, tensor in base.items():
        wide = torch.float64 in (tensor.dtype, source[name].dtype)
        dtype = torch.float64 if wide else torch.float32
        tau = source[name].detach().to(tensor.device, dtype) - tensor.detach().to(dtype)
        # Bits of products depend on strides.
        vector[name] = tau.contiguous()
        if not bool(torch.isfinite(tau).all()):
            raise MergeError(f"the task vector has values that are not finite in tensor {name!r}")
    return vector


def _with_tied(vector: Tensors, base: Tensors, canonical: Mapping[str, str]) -> dict[str, Tensor]:
    return {name: vector[canonical[name]] for name, tensor in base.items() if tensor.is_floating_point()}


def _in_pieces(function: Callable[..., Tensor], *tensors: Tensor, dtype: torch.dtype) -> Tensor:
    """An element-wise function of contiguous tensors, without temporaries in float64 of their size."""
    result = torch.empty(tensors[0].shape, dtype=dtype, device=tensors[0].device)
    for piece, *pieces in zip(_pieces(result), *(_pieces(tensor) for tensor in tensors), strict=True):
        piece.copy_(function(*pieces))
    return result


def _norm(vector: Tensors, names: Iterable[str]) -> float:
    return math.sqrt(ordered_sum(piece.double().square() for name in sorted(names) for piece in _pieces(vector[name])))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.reshape(-1)
    return (flat[start : start + _PIECE] for start in range(0, flat.numel(), _PIECE))


def _refuse_misfits(expected: Tensors, given: Tensors) -> None:
    for name in common_names([expected, given]):
        if expected[name].is_floating_point() != given[name].is_floating_point():
            raise InvalidInput(
                f"tensor {name!r} must be floating-point in base and source or in neither, but is "
                f"{expected[name].dtype} and {given[name].dtype}"
            )
