"""The tensors of one rule, merged in one pass over memory each, into outputs that the caller gives.

What a rule's parameters and options mean stays where it is defined, in the functions of the methods: here they become
the numbers of a formula. The bits are those of the methods' own functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evomerge.bank.fused import DTYPES, LANES, SHORTEST, Kernel, KernelKind, Kernels
from evomerge.errors import MergeError
from evomerge.merging.dare import Dropping, masked_lookup
from evomerge.merging.formulas import Factors, Formula, moved, pack
from evomerge.merging.group import Group
from evomerge.merging.slerp import cosine, slerp_shares
from evomerge.merging.task_arithmetic import task_weights
from evomerge.merging.task_vectors import TaskVectors
from evomerge.merging.ties import Trimming

# Elements per call of a kernel. Few enough that the sum of the votes is exact in float32, and that the copies of what
# is streamed to a device stay small; many enough that a call costs nothing.
CPU_CHUNK = 1 << 22
DEVICE_CHUNK = 1 << 24

# A rule with fewer elements is merged eagerly in less time than it is worth to compile for.
WORTH_COMPILING = 1 << 22

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Plan:
    """A rule as a formula.

    Attributes:
        factors: tensor name -> the numbers of each source.
        scale: lambda.
        scope_of: tensor name -> the tensors whose votes decide its zero sums; None where no votes decide them.
    """

    formula: Formula
    factors: Callable[[str], list[Factors]]
    scale: float = 1.0
    scope_of: Callable[[str], tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Span:
    """A piece `[start, stop)` of one flattened tensor.

    Attributes:
        compiled: whether a kernel takes it; what fills no vector is merged eagerly.
        models: the piece of the base, where the formula has one, and of each source; where they lie.
    """

    start: int
    stop: int
    compiled: bool
    models: tuple[Tensor, ...]


@dataclass(frozen=True)
class Kept:
    """What does not depend on the candidate, for one set of sources: found when it is first needed.

    Attributes:
        cosines: tensor name -> the cosine between two sources.
        signs: scope -> whether the majority of its elected sums was positive in the last merge. Only a guess.
        spans: (tensor name, whether the base is read) -> its pieces.
    """

    cosines: MutableMapping[str, float] = field(default_factory=dict)
    signs: MutableMapping[tuple[str, ...], bool] = field(default_factory=dict)
    spans: MutableMapping[tuple[str, bool], tuple[Span, ...]] = field(default_factory=dict)


def plan(method: str, group: Group, cosines: MutableMapping[str, float]) -> Plan | None:
    """The rule as a formula, or None where the method has none.

    Raises:
        MergeError: the parameters give no merge: weights that sum to zero are to be normalised.
    """
    match method:
        case "linear":
            return Plan(Formula("average"), _same(_linear_weights(group)))
        case "slerp":
            return Plan(Formula("average"), lambda name: _slerp_factors(group, name, cosines))
        case "task_arithmetic":
            return Plan(Formula("sum"), _same(task_weights(group)))
        case "dare_linear":
            dropping, weights = Dropping(group), task_weights(group)
            return Plan(
                Formula("sum", drops=True),
                lambda name: [Factors(weight, drop=dropping(source, name)) for source, weight in enumerate(weights)],
            )
        case "ties":
            lookup = None if group.thresholds is None else group.thresholds.kth_magnitude
            return _election(group, Trimming(group, TaskVectors(group), lookup), None)
        case "dare_ties":
            return _dare_ties(group)
        case _:
            return None


def _same(weights: Iterable[float]) -> Callable[[str], list[Factors]]:
    factors = [Factors(weight) for weight in weights]
    return lambda name: factors


def _linear_weights(group: Group) -> list[float]:
    weights = group.per_source("weight")
    total = group.normalisable(weights) if group.options["normalize"] else 1.0
    return [weight / total for weight in weights]


def _slerp_factors(group: Group, name: str, cosines: MutableMapping[str, float]) -> list[Factors]:
    if name not in cosines:
        cosines[name] = cosine(group, name)
    return [Factors(share) for share in slerp_shares(cosines[name], group.shared("t"))]


def _dare_ties(group: Group) -> Plan | None:
    dropping = Dropping(group)
    if group.options["dare_ties"] == "no_trim":
        return _election(group, None, dropping)
    provider = group.thresholds
    lookup = None if provider is None else (lambda *asked: masked_lookup(provider, group, dropping, *asked))
    return _election(group, Trimming(group, TaskVectors(group, dropping), lookup), dropping)


def _election(group: Group, trimming: Trimming | None, dropping: Dropping | None) -> Plan | None:
    """TIES. None where thresholds are counted and only some of the elements at a threshold survive (`topk`): which ones
    is known from the elements before them, not from a formula."""
    options = group.options
    counted = group.thresholds is None or dropping is not None
    if trimming is not None and options["kept_rule"] == "topk" and counted:
        return None
    weights = group.per_source("weight")
    agg, weighting = str(options["agg"]), str(options["weighting"])
    if agg == "dis-mean" and weighting == "norm":
        group.normalisable([abs(weight) for weight in weights])

    def factors(name: str) -> list[Factors]:
        cuts = [0.0] * len(weights) if trimming is None else [cut.threshold for cut in trimming.cuts(name)]
        drops = [None] * len(weights) if dropping is None else [dropping(i, name) for i in range(len(weights))]
        return [Factors(*numbers) for numbers in zip(weights, cuts, drops, strict=True)]

    formula = Formula("election", dropping is not None, str(options["elect"]), agg, weighting)
    scope_of = group.scope_of if options["zero_sign"] == "global majority" else None
    return Plan(formula, factors, group.shared("lambda"), scope_of)


class FusedRule:
    """A rule with a kernel for each of its tensors.

    The sign of an exactly zero sum is that of most elements of the tensor's scope, which is known only when all of the
    scope have been merged. So it is assumed to be what it was last time, and where that turns out wrong the scope is
    merged once more.
    """

    def __init__(
        self,
        group: Group,
        plan: Plan,
        kernels: Mapping[str, tuple[KernelKind, Kernel]],
        dtype: torch.dtype,
        device: torch.device,
        kept: Kept,
    ) -> None:
        """
        Args:
            kernels: by tensor name, for all names of the group and all scopes that they vote in.
            dtype, device: of what is merged. What of the sources lies elsewhere is streamed there.
            kept: of these sources; kept up to date.
        """
        self._group = group
        self._plan = plan
        self._kernels = kernels
        self._dtype = dtype
        self._device = device
        self._kept = kept
        self._factors: dict[str, list[Factors]] = {}
        self._packed: dict[bool, dict[str, tuple[Tensor, Tensor]]] = {}

    def write(self, outputs: Mapping[str, Tensor]) -> None:
        """Merge each tensor of the rule into the output of its name, which has the rule's device.

        The values are those of the rule's dtype also in an output of another one.

        Raises:
            MergeError: a merged tensor is not finite. Outputs are then partly written.
        """
        scopes = self._scopes()
        assumed = {scope: self._kept.signs.get(scope, True) for scope in scopes}
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
        """(name, merged tensor in memory of its own), one after another, with the same bits as `write`.

        Raises:
            MergeError: a merged tensor is not finite.
        """
        for scope, names in self._scopes().items():
            positive = self._settled(scope, {})
            for name in names:
                merged = torch.empty(self._group.like(name).shape, dtype=self._dtype, device=self._device)
                self._votes({name: self._merge(name, merged, positive=positive)})
                yield name, merged

    def _scopes(self) -> dict[tuple[str, ...], list[str]]:
        """Scope -> the rule's tensors in it, in order. Without a majority every tensor is by itself."""
        scopes: dict[tuple[str, ...], list[str]] = {}
        for name in self._group.names:
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
        self._kept.signs[scope] = positive
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
        spans = self._spans(name, kind)
        if out is None:
            longest = max((span.stop - span.start for span in spans), default=0)
            discarded = torch.empty(longest, dtype=self._dtype, device=self._device)
        numbers, words = self._numbers(name, positive)
        checks = []
        for span in spans:
            pieces = [model.to(self._device, non_blocking=True) for model in span.models]
            written = discarded[: span.stop - span.start] if out is None else out[span.start : span.stop]
            arguments = [*pieces, numbers, moved(words, self._factors[name], span.start), written]
            checks.append(kernel(arguments) if span.compiled else kind.run(*arguments))
        return checks

    def _spans(self, name: str, kind: KernelKind) -> tuple[Span, ...]:
        """The pieces of a tensor. They are kept, which takes no memory, unless flattening had to copy the tensor."""
        key = name, kind.base is not None
        if key in self._kept.spans:
            return self._kept.spans[key]
        tensors = [model[name] for model in _models(self._group, kind)]
        spans = tuple(_cut([tensor.reshape(-1) for tensor in tensors], self._device))
        if all(tensor.is_contiguous() for tensor in tensors):
            self._kept.spans[key] = spans
        return spans

    def _numbers(self, name: str, positive: bool) -> tuple[Tensor, Tensor]:
        """The numbers and words of a tensor, on the device: those of all the rule's tensors are sent there at once."""
        if not self._factors:
            self._factors = {each: self._plan.factors(each) for each in self._kernels}
        if positive not in self._packed:
            both = pack(list(self._factors.values()), self._plan.scale, 1.0 if positive else -1.0)
            numbers, words = (tensor.to(self._device).unbind() for tensor in both)
            self._packed[positive] = dict(zip(self._factors, zip(numbers, words, strict=True), strict=True))
        return self._packed[positive][name]

    def _votes(self, checks: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
        """Tensor -> the sum of what the kernels returned for its pieces, or a refusal of what is not finite."""
        every = [check for pieces in checks.values() for check in pieces]
        values = iter(torch.stack(every).tolist() if every else [])
        votes = {name: math.fsum(next(values) for _ in pieces) for name, pieces in checks.items()}
        for name, vote in votes.items():
            if not math.isfinite(vote):
                raise MergeError(f"tensor {name!r} of the merge is not finite in {_NAMES[self._dtype]}")
        return votes


def kinds(group: Group, plan: Plan, dtype: torch.dtype) -> dict[str, KernelKind] | None:
    """The kernels that a rule needs, by tensor name; None where one of its tensors is of a type that has none."""
    formula, found = plan.formula, {}
    scopes = set() if plan.scope_of is None else {other for name in group.names for other in plan.scope_of(name)}
    for name in sorted(scopes.union(group.names)):
        base = None if group.base is None or not formula.has_base else _NAMES.get(group.base[name].dtype)
        sources = [_NAMES.get(source[name].dtype) for source in group.sources]
        out = _NAMES.get(dtype)
        if None in (*sources, out) or (base is None and formula.has_base):
            return None
        found[name] = KernelKind(formula, base, tuple(map(str, sources)), str(out))
    return found


def fused_rule(
    method: str,
    group: Group,
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device,
    kept: Kept,
) -> FusedRule | None:
    """The rule ready to be merged in one pass, or None where it is to be merged eagerly: the method has no formula, a
    tensor a type without kernels, or a kernel is not there (yet).

    Raises:
        MergeError: the parameters give no merge.
    """
    made = plan(method, group, kept.cosines)
    needed = None if made is None else kinds(group, made, dtype)
    if made is None or needed is None:
        return None
    worthwhile = group.elements(group.names) >= WORTH_COMPILING
    found = {kind: kernels.find(kind, compile_missing=worthwhile) for kind in set(needed.values())}
    ready = {name: (kind, kernel) for name, kind in needed.items() if (kernel := found[kind]) is not None}
    return FusedRule(group, made, ready, dtype, device, kept) if len(ready) == len(needed) else None


def _cut(models: Sequence[Tensor], device: torch.device) -> Iterator[Span]:
    """Pieces of so many elements, and what fills no vector."""
    size, lanes = (CPU_CHUNK, LANES) if device.type == "cpu" else (DEVICE_CHUNK, 1)
    for start in range(0, models[0].numel(), size):
        stop = min(start + size, models[0].numel())
        end = stop - (stop - start) % lanes
        if end - start < SHORTEST:
            end = start
        for first, last, compiled in ((start, end, True), (end, stop, False)):
            if first < last:
                yield Span(first, last, compiled, tuple(model[first:last] for model in models))


def _models(group: Group, kind: KernelKind) -> list[Mapping[str, Tensor]]:
    return list(group.sources) if kind.base is None or group.base is None else [group.base, *group.sources]
