"""The tensors of one rule, merged in one pass over memory each, into outputs that the caller gives.

Each method turns parameters and options into a `Plan` beside its arithmetic; here the numbers of the plan meet the
kernels. The bits are those of the methods' functions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import MergeError
from evomerge.passes.kernels import DTYPES, LANES, SHORTEST, STATISTIC_DTYPES, Kernel, KernelKind, Kernels
from evomerge.tensors.computed_tensors import dtype_of, is_computed, row_blocks, rows_of
from evomerge.tensors.packed_factors import offset_words, pack
from evomerge.tensors.plans import Factors, Plan, plan_rule
from evomerge.tensors.rule_tensors import RuleTensors

# Elements per call of a kernel. Few enough that the sum of the votes is exact in float32, and that the copies of what
# is streamed to a device stay small; many enough that a call costs nothing.
CPU_CHUNK = 1 << 22
DEVICE_CHUNK = 1 << 24

# A rule with fewer elements is merged eagerly in less time than it is worth to compile for.
WORTH_COMPILING = 1 << 22

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_STATISTIC_NAMES = {dtype: name for name, dtype in STATISTIC_DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Span:
    """A piece `[start, stop)` of one flattened tensor.

    Attributes:
        compiled: whether a kernel takes it; a piece shorter than a vector is merged eagerly.
        models: the pieces of base, sources and statistics, as far as the formula has them, where they are held.
    """

    start: int
    stop: int
    compiled: bool
    models: tuple[Tensor, ...]


@dataclass(frozen=True)
class SourceCache:
    """Cache of values that no candidate changes, for one set of sources; filled on first use.

    Attributes:
        signs: scope -> whether the majority of its elected sums was positive in the last merge. Only a guess.
        spans: (tensor name, whether the base is read) -> its pieces.
        values: the cache of `RuleTensors`.
    """

    signs: MutableMapping[tuple[str, ...], bool] = field(default_factory=dict)
    spans: MutableMapping[tuple[str, bool], tuple[Span, ...]] = field(default_factory=dict)
    values: MutableMapping[Hashable, Any] = field(default_factory=dict)


class FusedRule:
    """A rule with a kernel for each of its tensors.

    The sign of an exactly zero sum is that of most elements of the tensor's scope, which is known only when all of the
    scope have been merged. So it is assumed to be what it was last time, and where that turns out wrong the scope is
    merged once more.
    """

    def __init__(
        self,
        tensors: RuleTensors,
        plan: Plan,
        *,
        kernels: Mapping[str, tuple[KernelKind, Kernel]],
        dtype: torch.dtype,
        device: torch.device,
        cache: SourceCache,
    ) -> None:
        """
        Args:
            kernels: by tensor name, for all names of the rule and all scopes that they vote in.
            dtype, device: of the merged tensors. Sources on another device are streamed to this one.
            cache: of these sources; updated by every merge.
        """
        self._tensors = tensors
        self._plan = plan
        self._kernels = kernels
        self._dtype = dtype
        self._device = device
        self._cache = cache
        self._factors: dict[str, list[Factors]] = {}
        self._packed: dict[bool, dict[str, tuple[Tensor, Tensor]]] = {}

    def write(self, outputs: Mapping[str, Tensor]) -> None:
        """Merge each tensor of the rule into the output of its name, which has the rule's device.

        The values are those of the rule's dtype also in an output of another one.

        Raises:
            MergeError: a merged tensor is not finite. Outputs are then partly written.
        """
        scopes = self._scopes()
        assumed = {scope: self._cache.signs.get(scope, True) for scope in scopes}
        # A device works through all of the rule before it is asked for a result.
        votes = self._votes(
            {
                name: self._merge(name, outputs[name], positive=assumed[scope])
                for scope, names in scopes.items()
                for name in names
            }
        )
        for scope, names in scopes.items():
            if self._settled(scope, {name: votes[name] for name in names}) != assumed[scope]:
                self._votes({name: self._merge(name, outputs[name], positive=not assumed[scope]) for name in names})

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, merged tensor in new memory), one after another, with the same bits as `write`.

        Raises:
            MergeError: a merged tensor is not finite.
        """
        for scope, names in self._scopes().items():
            positive = self._settled(scope, {})
            for name in names:
                merged = torch.empty(self._tensors.like(name).shape, dtype=self._dtype, device=self._device)
                self._votes({name: self._merge(name, merged, positive=positive)})
                yield name, merged
                del merged  # taken: gone before the next is made

    def _scopes(self) -> dict[tuple[str, ...], list[str]]:
        """Scope -> the rule's tensors in it, in order. Without a majority every tensor is by itself."""
        scopes: dict[tuple[str, ...], list[str]] = {}
        for name in self._tensors.names:
            scope = (name,) if self._plan.scope_of is None else self._plan.scope_of(name)
            scopes.setdefault(scope, []).append(name)
        return scopes

    def _settled(self, scope: tuple[str, ...], counted: Mapping[str, float]) -> bool:
        """Whether the majority of the scope is positive, given the votes of some of its tensors. A balance is not."""
        if self._plan.scope_of is None:
            return True
        missing = sorted(set(scope).difference(counted))
        votes = self._votes({name: self._merge(name, None, positive=True) for name in missing})
        positive = math.fsum((*counted.values(), *votes.values())) > 0
        self._cache.signs[scope] = positive
        return positive

    def _merge(self, name: str, out: Tensor | None, *, positive: bool) -> list[Tensor]:
        """One pass over one tensor; without an output it only votes. Returns what the kernels do, piece by piece."""
        if out is None or (out.dtype == self._dtype and out.is_contiguous()):
            return self._pass(name, None if out is None else out.detach().view(-1), positive=positive)
        merged = torch.empty(out.shape, dtype=self._dtype, device=out.device)
        checks = self._pass(name, merged.view(-1), positive=positive)
        out.copy_(merged)
        return checks

    def _pass(self, name: str, out: Tensor | None, *, positive: bool) -> list[Tensor]:
        kind, kernel = self._kernels[name]
        discarded = torch.empty(0, dtype=self._dtype, device=self._device)
        numbers, words = self._numbers(name, positive)
        checks = []
        for span in self._spans(name, kind):
            pieces = [model.to(self._device, non_blocking=True) for model in span.models]
            length = span.stop - span.start
            if out is None and len(discarded) < length:
                discarded = torch.empty(length, dtype=self._dtype, device=self._device)
            written = discarded[:length] if out is None else out[span.start : span.stop]
            arguments = [*pieces, numbers, offset_words(words, self._factors[name], span.start), written]
            checks.append(kernel(arguments) if span.compiled else kind.run(*arguments))
        return checks

    def _spans(self, name: str, kind: KernelKind) -> Iterable[Span]:
        """The pieces of a tensor. They are cached, which takes no memory, unless the tensor was copied or computed.

        Of a computed tensor only one block of rows is there at a time, where the models can make it in blocks.
        """
        key: Hashable = name, kind.base is not None
        # Statistics change with the files of a recipe.
        cached: MutableMapping[Any, tuple[Span, ...]] = (
            self._tensors.cache.setdefault("spans", {}) if kind.statistics else self._cache.spans
        )
        if key in cached:
            return cached[key]
        models = _models(self._tensors, kind)
        if not kind.statistics and (blocks := row_blocks(models, name)) is not None:
            return _cut_blocks(models, name, blocks, self._device)
        tensors = [model[name] for model in models]
        if self._plan.statistics is not None and kind.statistics:
            tensors += self._plan.statistics(name)
        spans = tuple(_cut([tensor.reshape(-1) for tensor in tensors], self._device))
        if all(tensor.is_contiguous() for tensor in tensors) and not any(is_computed(model, name) for model in models):
            cached[key] = spans
        return spans

    def _numbers(self, name: str, positive: bool) -> tuple[Tensor, Tensor]:
        """The numbers and words of a tensor, on the device: those of all the rule's tensors are sent there at once."""
        if not self._factors:
            self._factors = {each: self._plan.factors(each) for each in self._kernels}
        if positive not in self._packed:
            self._packed[positive] = {
                name: packed for wide in (False, True) for name, packed in self._pack(1.0 if positive else -1.0, wide)
            }
        return self._packed[positive][name]

    def _pack(self, zero_sign: float, wide: bool) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        factors = {
            name: each for name, each in self._factors.items() if self._plan.formula_of(name).has_statistics == wide
        }
        if factors:
            both = pack(list(factors.values()), self._plan.scale, zero_sign, wide=wide)
            numbers, words = (tensor.to(self._device).unbind() for tensor in both)
            yield from zip(factors, zip(numbers, words, strict=True), strict=True)

    def _votes(self, checks: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
        """Tensor -> the sum of what the kernels returned for its pieces, or a refusal of what is not finite."""
        every = [check for pieces in checks.values() for check in pieces]
        values = iter(torch.stack(every).tolist() if every else [])
        votes = {name: math.fsum(next(values) for _ in pieces) for name, pieces in checks.items()}
        for name, vote in votes.items():
            if not math.isfinite(vote):
                raise MergeError(f"tensor {name!r} of the merge is not finite in {_NAMES[self._dtype]}")
        return votes


def kinds(tensors: RuleTensors, plan: Plan, dtype: torch.dtype) -> dict[str, KernelKind] | None:
    """The kernels that a rule needs, by tensor name; None where one of its tensors is of a type that has none."""
    found = {}
    scopes = set() if plan.scope_of is None else {other for name in tensors.names for other in plan.scope_of(name)}
    for name in sorted(scopes.union(tensors.names)):
        formula = plan.formula_of(name)
        base = None if tensors.base is None or not formula.has_base else _NAMES.get(dtype_of(tensors.base, name))
        sources = [_NAMES.get(dtype_of(source, name)) for source in tensors.sources]
        given = plan.statistics(name) if plan.statistics is not None and formula.has_statistics else ()
        statistics = [_STATISTIC_NAMES.get(statistic.dtype) for statistic in given]
        out = _NAMES.get(dtype)
        if None in (*sources, *statistics, out) or (base is None and formula.has_base):
            return None
        found[name] = KernelKind(
            formula=formula,
            base=base,
            sources=tuple(map(str, sources)),
            out=str(out),
            statistics=tuple(map(str, statistics)),
        )
    return found


def fuse_rule(
    method: str,
    tensors: RuleTensors,
    *,
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device,
    cache: SourceCache,
) -> FusedRule | None:
    """The rule with its kernels, or None where it has to be merged eagerly: the method has no formula, a tensor has a
    type without kernels, or a kernel is not compiled (yet).

    Raises:
        MergeError: the parameters give no merge.
    """
    plan = plan_rule(method, tensors)
    needed = None if plan is None else kinds(tensors, plan, dtype)
    if plan is None or needed is None:
        return None
    worthwhile = tensors.elements(tensors.names) >= WORTH_COMPILING
    found = {kind: kernels.find(kind, compile_missing=worthwhile) for kind in set(needed.values())}
    ready = {name: (kind, kernel) for name, kind in needed.items() if (kernel := found[kind]) is not None}
    if len(ready) < len(needed):
        return None
    return FusedRule(tensors, plan, kernels=ready, dtype=dtype, device=device, cache=cache)


def _cut(models: Sequence[Tensor], device: torch.device) -> Iterator[Span]:
    """Pieces of bounded size, and for each the rest that fills no vector."""
    size, lanes = (CPU_CHUNK, LANES) if device.type == "cpu" else (DEVICE_CHUNK, 1)
    for start in range(0, models[0].numel(), size):
        stop = min(start + size, models[0].numel())
        end = stop - (stop - start) % lanes
        if end - start < SHORTEST:
            end = start
        for first, last, compiled in ((start, end, True), (end, stop, False)):
            if first < last:
                pieces = tuple(model[first:last] for model in models)
                yield Span(start=first, stop=last, compiled=compiled, models=pieces)


def _cut_blocks(
    models: Sequence[Mapping[str, Tensor]], name: str, blocks: range, device: torch.device
) -> Iterator[Span]:
    """Pieces of a tensor of which one block of rows is made after the other."""
    begun = 0
    for start in blocks:
        made = [rows_of(model, name, start, min(start + blocks.step, blocks.stop)).reshape(-1) for model in models]
        for span in _cut(made, device):
            yield replace(span, start=begun + span.start, stop=begun + span.stop)
        begun += made[0].numel()


def _models(tensors: RuleTensors, kind: KernelKind) -> list[Mapping[str, Tensor]]:
    return list(tensors.sources) if kind.base is None or tensors.base is None else [tensors.base, *tensors.sources]
