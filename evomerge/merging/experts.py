"""Experts inside one checkpoint become one shared tower: vision, language and cross-modal copies of the same modules.

An empirical study of multimodal model merging, arXiv 2304.14933. Patterns say which tensors are experts; everything
else is kept as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from evomerge.catalogue.expert_names import find_experts
from evomerge.errors import InvalidInput, MergeError, unknown_name
from evomerge.merging.regmean import check_gram, regmean_weight
from evomerge.methods.resolve import named_values
from evomerge.tensors.named_tensors import check_tensors

__all__ = ["merge_experts"]

Tensors = Mapping[str, Tensor]

PARAMETERS: Mapping[str, float] = MappingProxyType({"a": 0.5, "lambda": 0.75, "scaling": 1.0})
OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType({"arithmetic": ("sum", "sequential_legacy")})

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class SharedTensor:
    """The copies of one tensor, and what they are merged with.

    Attributes:
        name: the shared name.
        names: the full names of the copies that are there, in the order of the experts.
        copies: their tensors in the dtype of the arithmetic; two or more.
        parameters, options: complete.
        seed: the common initial value of all copies, where the method needs one.
        grams: X'X of each copy's inputs, or None where one of them has none.
    """

    name: str
    names: tuple[str, ...]
    copies: tuple[Tensor, ...]
    parameters: Mapping[str, float]
    options: Mapping[str, str]
    seed: Tensor | None
    grams: tuple[Tensor, ...] | None


def merge_experts(
    tensors: Tensors,
    patterns: Sequence[str],
    experts: Sequence[str],
    method: str,
    parameters: Mapping[str, float] = _NOTHING,
    options: Mapping[str, str] = _NOTHING,
    seed: Tensors | None = None,
    statistics: Tensors | None = None,
) -> dict[str, Tensor]:
    """Replace the experts of a checkpoint by shared tensors.

    A tensor of an expert that is missing for a shared name is left out; a copy that is alone becomes the shared tensor.
    Integer tensors are not merged: the copies must be equal. Arithmetic is in float32 (float64 where a copy is, and for
    Grams) and the result is rounded once, to the dtype of the first copy.

    Args:
        tensors: the checkpoint, `{tensor name: tensor}`.
        patterns, experts: name patterns and the names of the experts in order, see `find_experts`.
        method: `interpolation`, a W_1 + (1-a) W_2, or with three copies 2/3 of that and 1/3 of the third;
            `arithmetic`, W_seed + lambda sum_m (W_m - W_seed); `regmean`, (sum_m W_m G_m) (sum_m G_m)^-1 with Grams
            whose elements off the diagonal are multiplied by `scaling`.
        parameters: `a`, `lambda` and `scaling`; each method reads its own.
        options: `arithmetic: sequential_legacy` moves the seed towards one copy after the other, so that their order
            matters.
        seed: for `arithmetic`, `{shared name: tensor}`, the weights from which all experts were trained.
        statistics: for `regmean`, `{full name of an expert's tensor: Gram [in, in]}`. A shared name for which one of
            its copies has none becomes their mean.

    Returns:
        New tensors by name; a shared tensor is at the position of its first copy.

    Raises:
        InvalidInput: a pattern matches nothing, or one tensor in two ways; copies of different shapes; a shared name
            that another tensor has; an unknown method, parameter or option; no seed or Gram where one is needed, or one
            of another shape; a singular sum of Grams.
        MergeError: a merged tensor is not finite.
    """
    merge = ExpertMerge.of(method, parameters, options, seed=seed, statistics=statistics)
    check_tensors("checkpoint", tensors)
    return dict(merge.tensors(tensors, find_experts(tensors, patterns, experts)))


@dataclass(frozen=True, kw_only=True)
class ExpertMerge:
    """Method and arguments of a merge of experts, checked and with all defaults.

    Attributes:
        seed, statistics: see `merge_experts`; they may read a tensor whenever it is asked for.
    """

    merge: Callable[[SharedTensor], Tensor]
    parameters: Mapping[str, float]
    options: Mapping[str, str]
    seed: Tensors
    statistics: Tensors

    @classmethod
    def of(
        cls,
        method: str,
        parameters: Mapping[str, float],
        options: Mapping[str, str],
        *,
        seed: Tensors | None,
        statistics: Tensors | None,
    ) -> ExpertMerge:
        """As the arguments of `merge_experts`, whose errors it raises."""
        if not isinstance(method, str) or method not in METHODS:
            raise unknown_name("method for experts", str(method), METHODS)
        if method == "arithmetic" and seed is None:
            raise InvalidInput(
                "arithmetic starts from the common initial weights of all experts; give them as `seed` (--seed-model)"
            )
        if method == "regmean" and statistics is None:
            raise InvalidInput(
                "regmean needs the Grams of the experts' inputs; give them as `statistics` (--statistics)"
            )
        check_tensors("seed", seed or {})
        check_tensors("statistics", statistics or {})
        return cls(
            merge=METHODS[method],
            parameters=_parameters(parameters),
            options=_options(options),
            seed=seed or {},
            statistics=statistics or {},
        )

    def tensors(self, tensors: Tensors, shared: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the merged checkpoint, one after the other, each in new memory.

        Args:
            tensors: the checkpoint.
            shared: shared name -> the names of its copies, from `find_experts`.
        """
        owner = {name: key for key, copies in shared.items() for name in copies}
        merged: set[str] = set()
        for name in tensors:
            key = owner.get(name)
            if key is None:
                yield name, tensors[name].detach().clone()
            elif key not in merged:
                merged.add(key)
                yield key, _merged(key, {each: tensors[each].detach() for each in shared[key]}, self)


def _merged(key: str, copies: Mapping[str, Tensor], request: ExpertMerge) -> Tensor:
    names, first = tuple(copies), next(iter(copies.values()))
    for name, copy in copies.items():
        if copy.shape != first.shape or copy.is_floating_point() != first.is_floating_point() or copy.is_complex():
            kinds = f"{_kind(copy)} and {_kind(first)}"
            raise InvalidInput(f"experts of one shape are merged, but {name!r} and {names[0]!r} are {kinds}")
    if len(copies) == 1:
        return first.clone()
    if not first.is_floating_point():
        if not all(torch.equal(copy, first) for copy in copies.values()):
            raise InvalidInput(f"{', '.join(map(repr, names))} are {first.dtype} and differ: integers cannot be merged")
        return first.clone()
    wide = any(copy.dtype == torch.float64 for copy in copies.values())
    merged = request.merge(
        SharedTensor(
            name=key,
            names=names,
            copies=tuple(copy.to(torch.float64 if wide else torch.float32) for copy in copies.values()),
            parameters=request.parameters,
            options=request.options,
            seed=request.seed.get(key),
            grams=_grams(names, request.statistics),
        )
    ).to(first.dtype)
    if not bool(torch.isfinite(merged.float()).all()):
        raise MergeError(f"the experts merge to values that are not finite in tensor {key!r} ({merged.dtype})")
    return merged


def _interpolated(shared: SharedTensor) -> Tensor:
    a, copies = shared.parameters["a"], shared.copies
    if len(copies) > 3:
        raise InvalidInput(f"interpolation takes two or three experts, but {shared.name!r} has {len(copies)}")
    merged = a * copies[0] + (1 - a) * copies[1]
    return merged if len(copies) == 2 else merged * (2 / 3) + copies[2] * (1 / 3)


def _sum_of_differences(shared: SharedTensor) -> Tensor:
    if shared.seed is None:
        raise InvalidInput(f"the seed has no tensor {shared.name!r}; give the common initial value of its experts")
    first, factor = shared.copies[0], shared.parameters["lambda"]
    if shared.seed.shape != first.shape or not shared.seed.is_floating_point():
        raise InvalidInput(f"{shared.name!r} is {_kind(shared.seed)} in the seed, and its experts are {_kind(first)}")
    seed = shared.seed.detach().to(first.device, first.dtype)
    merged = seed
    for copy in shared.copies:
        start = merged if shared.options["arithmetic"] == "sequential_legacy" else seed
        merged = merged + factor * (copy - start)
    return merged


def _regression_mean(shared: SharedTensor) -> Tensor:
    if shared.grams is None:
        return torch.stack(shared.copies).mean(0)
    size = shared.copies[0].shape[-1] if shared.copies[0].dim() == 2 else None
    for name, gram in zip(shared.names, shared.grams, strict=True):
        check_gram(gram, f"the Gram of {name!r}")
        if size is None or gram.shape != (size, size):
            raise InvalidInput(
                f"the Gram of {name!r} is {_kind(gram)}; a weight [out, in] needs one of shape [in, in], and the "
                f"weight is {_kind(shared.copies[0])}"
            )
    return regmean_weight(
        shared.name,
        shared.copies,
        shared.grams,
        shares=(1.0,) * len(shared.copies),
        scaling=shared.parameters["scaling"],
        ridge=0.0,
    )


METHODS: Mapping[str, Callable[[SharedTensor], Tensor]] = MappingProxyType(
    {"interpolation": _interpolated, "arithmetic": _sum_of_differences, "regmean": _regression_mean}
)


def _grams(names: Sequence[str], statistics: Tensors) -> tuple[Tensor, ...] | None:
    if not all(name in statistics for name in names):
        return None
    return tuple(statistics[name].detach() for name in names)


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _parameters(given: Mapping[str, float]) -> dict[str, float]:
    for name, value in named_values("parameters", given):
        if name not in PARAMETERS:
            raise unknown_name("parameter for experts", str(name), PARAMETERS)
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise InvalidInput(f"{name} must be a finite number, but got {value!r}")
    return {name: float(given.get(name, default)) for name, default in PARAMETERS.items()}


def _options(given: Mapping[str, str]) -> dict[str, str]:
    for name, value in named_values("options", given):
        if name not in OPTIONS:
            raise unknown_name("option for experts", str(name), OPTIONS)
        if value not in OPTIONS[name]:
            raise unknown_name(f"value of option {name!r}:", str(value), OPTIONS[name])
    return {name: given.get(name, choices[0]) for name, choices in OPTIONS.items()}
