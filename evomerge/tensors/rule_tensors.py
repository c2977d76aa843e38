"""The tensors of one rule, with resolved parameters and options: the argument of every method function.

Every method goes through the tensors in pieces of bounded size, so that its temporaries stay small (on a CPU: in cache)
for tensors of any size. The arithmetic on a piece is element-wise and uses no fused multiply-add, which the
vectorised loops and their remainders would not use alike: any division into pieces and any number of threads gives the
same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from evomerge.catalogue.attention_heads import AttentionHeads
from evomerge.errors import InvalidInput, MergeError
from evomerge.methods import OptionValue
from evomerge.tensors.computed_tensors import dtype_of
from evomerge.tensors.order_statistics import Thresholds

Tensors = Mapping[str, Tensor]
Value = TypeVar("Value")

# Elements per piece. CPU: a few fp32 temporaries fit the second-level cache. Elsewhere: enough to hide kernel launches.
CPU_PIECE = 1 << 17
DEVICE_PIECE = 1 << 24


@dataclass(frozen=True)
class Piece:
    """A slice `[start, stop)` of one flattened tensor, in the dtype of the arithmetic.

    The tensors may share memory with the sources: never write into them.
    """

    start: int
    base: Tensor | None
    sources: list[Tensor]

    @property
    def stop(self) -> int:
        return self.start + self.sources[0].numel()

    def task_vectors(self) -> list[Tensor]:
        """tau_i = theta_i - theta_0, in new memory."""
        return [source - self.the_base for source in self.sources]

    @property
    def the_base(self) -> Tensor:
        if self.base is None:
            raise InvalidInput("this method works on task vectors (source minus base); give the base model")
        return self.base


@dataclass(frozen=True, kw_only=True)
class RuleTensors:
    """The tensors of one recipe rule, in all that a method may read.

    Attributes:
        names: the floating-point tensors to merge.
        base, sources: name -> tensor of any float dtype and possibly read-only, for all of `names` and `scope_names`;
            never written into. A result is computed on the device of the base's tensor, without a base on that of the
            first source's.
        parameters, options: all of them, as resolved by `evomerge.methods.validate`.
        seed: key of the random masks.
        thresholds: order statistics of the task vectors from a table; None counts them exactly. With a table, TIES
            keeps all elements tied at a threshold, and `dare_ties` infers the thresholds of masked vectors.
        scope_names: the tensors that `trim_scope: global` and other statistics of the whole model extend over, each
            tied tensor once; None: `names`. Under `trim_scope: layer_group` the scope is `names`.
        statistics: for each source, in source order, name -> statistic of that tensor, for methods that take some. It
            may name other tensors than `names`; None where none were given.
        attention_heads: those of the models by their config; None where it does not tell them.
        rounded: dtype that `merge` rounds to, piece by piece; None: that of the arithmetic.
        cache: values that depend on base, sources and statistics alone, see `cached`. It may outlive the rule, as long
            as these are the same.
        once: the rule is merged once, so that nothing of the size of a tensor is kept for other candidates.
        prefix_cache: for a number n, the cache of what depends on base and the first n sources alone. It is shared by
            rules whose sources begin alike; None: such values live as long as the rule.
    """

    names: tuple[str, ...]
    base: Tensors | None
    sources: Sequence[Tensors]
    parameters: Mapping[str, float | Sequence[Any]]
    options: Mapping[str, OptionValue]
    seed: int = 0
    thresholds: Thresholds | None = None
    scope_names: tuple[str, ...] | None = None
    statistics: Sequence[Tensors] | None = None
    attention_heads: AttentionHeads | None = None
    rounded: torch.dtype | None = None
    cache: MutableMapping[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)
    once: bool = False
    prefix_cache: Callable[[int], MutableMapping[Hashable, Any]] | None = field(default=None, repr=False, compare=False)

    def shared(self, name: str) -> float:
        value = self.parameters[name]
        if isinstance(value, Sequence):
            raise InvalidInput(f"parameter {name!r} is one number, not one per source, but got {value!r}")
        return float(value)

    def per_source(self, name: str) -> tuple[float, ...]:
        value = self.parameters[name]
        if not isinstance(value, Sequence) or len(value) != len(self.sources):
            raise InvalidInput(
                f"parameter {name!r} has one number for each of {len(self.sources)} sources, but got {value!r}"
            )
        return tuple(float(item) for item in value)

    def per_source_tensors(self, name: str) -> Sequence[Tensors]:
        value = self.parameters.get(name)
        if not isinstance(value, Sequence) or len(value) != len(self.sources):
            raise InvalidInput(f"parameter {name!r} has one mapping for each of {len(self.sources)} sources")
        return value

    def statistic(self, name: str) -> list[Tensor | None]:
        """The statistic of one tensor in each source, in source order; None for a source that has none for it.

        Raises:
            InvalidInput: the rule has no statistics.
        """
        if self.statistics is None:
            raise InvalidInput("this method works on statistics of the sources; give `statistics`, one per source")
        return [statistics.get(name) for statistics in self.statistics]

    def cached(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """A value over the whole model, computed at its first use.

        Args:
            key: everything that decides the value, beside base, sources, statistics and the tensors of the whole model.
        """
        values: MutableMapping[Hashable, Value] = self.cache.setdefault(self.whole_model, {})
        if key not in values:
            values[key] = compute()
        return values[key]

    def kept(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """`cached` for a value of the size of a tensor, which is made again where no other candidate will want it."""
        return compute() if self.once else self.cached(key, compute)

    def cache_of_first(self, sources: int) -> MutableMapping[Hashable, Any]:
        """The cache of what depends on base and the first sources alone."""
        if self.prefix_cache is not None:
            return self.prefix_cache(sources)
        found: MutableMapping[Hashable, Any] = self.cache.setdefault(("first sources", sources), {})
        return found

    def normalisable(self, weights: Sequence[float]) -> float:
        """The sum of the weights, which a normalised method divides by.

        Raises:
            MergeError: the sum is zero, or so small that dividing by it would turn rounding errors into weights.
        """
        total = sum(weights)
        if abs(total) < 1e-8:
            raise MergeError(f"the weights {list(weights)} sum to {total}: they cannot be divided by their sum")
        return total

    def scope_of(self, name: str) -> tuple[str, ...]:
        """The tensors over which statistics of this tensor are taken, in alphabetical order (option `trim_scope`)."""
        match self.options["trim_scope"]:
            case "tensor":
                return (name,)
            case "layer_group":
                return self._layer_group
            case _:
                return self.whole_model

    @cached_property
    def _layer_group(self) -> tuple[str, ...]:
        return tuple(sorted(self.names))

    @cached_property
    def whole_model(self) -> tuple[str, ...]:
        """The tensors that statistics of the whole model extend over, in alphabetical order."""
        return tuple(sorted(self.names if self.scope_names is None else self.scope_names))

    def elements(self, scope: Sequence[str]) -> int:
        return sum(self.like(name).numel() for name in scope)

    def like(self, name: str) -> Tensor:
        """The tensor whose shape and device the result has."""
        return self.sources[0][name] if self.base is None else self.base[name]

    def dtype(self, names: Sequence[str]) -> torch.dtype:
        """float32, or float64 where one of the tensors is; float64 would otherwise lose what its owner cared about."""
        models = self.sources if self.base is None else (self.base, *self.sources)
        wide = any(dtype_of(model, name) == torch.float64 for model in models for name in names)
        return torch.float64 if wide else torch.float32

    def pieces(self, name: str, sources: Sequence[int] | None = None) -> Iterator[Piece]:
        """The pieces of one tensor in element order, with the base and all or only the given sources."""
        like, dtype = self.like(name), self.dtype([name])
        chosen = self.sources if sources is None else [self.sources[index] for index in sources]
        flat_base = None if self.base is None else _flat(self.base, name)
        flat_sources = [_flat(source, name) for source in chosen]
        size = self.piece_size(name)

        def widened(flat: Tensor, start: int) -> Tensor:
            return flat[start : start + size].to(like.device, dtype)

        for start in range(0, like.numel(), size):
            base = None if flat_base is None else widened(flat_base, start)
            yield Piece(start, base, [widened(flat, start) for flat in flat_sources])

    def piece_size(self, name: str) -> int:
        """Elements of each piece of a tensor but the last."""
        return CPU_PIECE if self.like(name).device.type == "cpu" else DEVICE_PIECE

    def pair(self, source: int, name: str) -> tuple[Tensor, Tensor] | None:
        """A tensor of the base and of a source, for loops over both; None where float32 does not hold them."""
        if self.base is None or self.dtype([name]) != torch.float32:
            return None
        base, other = self.base[name].detach(), self.sources[source][name].detach()
        return base, other

    def merge(self, name: str, kernel: Callable[[Piece], Tensor]) -> Tensor:
        """The merged tensor, in the dtype `rounded` and in new memory."""
        like = self.like(name)
        merged = torch.empty(like.shape, dtype=self.rounded or self.dtype([name]), device=like.device)
        flat = merged.view(-1)
        for piece in self.pieces(name):
            flat[piece.start : piece.stop] = kernel(piece)
        return merged


def _flat(model: Tensors, name: str) -> Tensor:
    tensor = model[name]
    if not tensor.is_floating_point():
        raise InvalidInput(f"tensor {name!r} is {tensor.dtype}: only floating-point tensors can be merged; copy it")
    return tensor.detach().reshape(-1)
