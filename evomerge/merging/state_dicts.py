"""Merging of whole state dicts: the reference path of every weight-space method."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from evomerge.catalogue import layer_of
from evomerge.errors import InvalidInput, MergeError
from evomerge.merging.merge import merge_rule
from evomerge.messages import some
from evomerge.methods import OptionValue, method_info, resolve_statistics, validate
from evomerge.tensors.named_tensors import check_tensors
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.tied_names import canonical_names

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def merge_state_dicts(
    method: str,
    sources: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor] | None = None,
    parameters: Mapping[str, float | Sequence[Any]] = _NOTHING,
    options: Mapping[str, OptionValue] = _NOTHING,
    statistics: Sequence[Mapping[str, Tensor]] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Merge models given as `{tensor name: tensor}`.

    Floating-point tensors are merged in float32 (float64 where one of them is) and rounded once, to the dtype of the
    base or, without a base, of the first source; all other tensors are copied from there. Names that share one tensor
    in every model (tied weights) count once, under the alphabetically first name. `trim_scope: layer_group` takes
    statistics over the tensors of one layer, and over all tensors outside the layers together.

    Args:
        method: a name from `evomerge.methods.METHODS`.
        sources: the models to merge, with the same tensor names and, unless the method aligns them, shapes.
        base: the model that task vectors are taken from, for methods that need one.
        parameters: per-source values are lists in source order, and a number stands for all sources. A parameter that
            is tensors is a list of `{tensor name: tensor}`, likewise; of tied tensors the first name counts.
        options: semantics options, or `{"semantics": "mergekit"}` for mergekit's choices.
        statistics: one `{tensor name: tensor}` per source, in source order, for methods that take them. A tied tensor
            may have its statistic under any of its names. Statistics of tensors that are not merged are ignored.
        seed: key of the random masks.

    Returns:
        New tensors by name, in the order of the base or of the first source. No memory is shared with the inputs.

    Raises:
        InvalidInput: unknown method, parameter, option or value, or models that do not fit together.
        MergeError: weights that sum to zero are to be normalised, or a merged tensor is not finite.
    """
    _refuse_other_than_models(sources, base)
    resolved, chosen = validate(method, parameters, options, len(sources), has_base=base is not None)
    measured = resolve_statistics(method, statistics, len(sources))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InvalidInput(f"seed must be an integer, but got {seed!r}")
    template = sources[0] if base is None else base
    models = {**({"base": base} if base is not None else {}), **_numbered(sources)}
    _refuse_misfits(template, models, same_shapes=method_info(method).same_shapes)

    canonical = canonical_names([template, *sources])
    names = sorted({canonical[name] for name in template if template[name].is_floating_point()})
    kind = method_info(method).statistics
    if measured is not None and kind is not None:
        measured = _by_canonical_name(measured, canonical, of_tied=kind.of_tied)
    merged: dict[str, Tensor] = {}
    for group in _groups(names, chosen):
        tensors = RuleTensors(
            names=tuple(group),
            base=base,
            sources=tuple(sources),
            parameters=resolved,
            options=chosen,
            seed=seed,
            scope_names=tuple(names),
            statistics=measured,
            once=True,
        )
        for name, tensor in merge_rule(method, tensors):
            merged[name] = tensor.to(template[name].dtype)
    for name, tensor in merged.items():
        # Not every 8-bit float type knows isfinite.
        if not bool(torch.isfinite(tensor if tensor.itemsize > 1 else tensor.float()).all()):
            raise MergeError(f"{method} gives values that are not finite in tensor {name!r} ({tensor.dtype})")
    result = {}
    for name, tensor in template.items():
        found = merged.get(canonical[name])
        result[name] = tensor.detach().clone() if found is None else found if name in merged else found.clone()
    return result


def _groups(names: list[str], options: Mapping[str, OptionValue]) -> list[list[str]]:
    if options.get("trim_scope") != "layer_group":
        return [names]
    layers = layer_of(names)
    by_layer: dict[int | None, list[str]] = defaultdict(list)
    for name in names:
        by_layer[layers[name]].append(name)
    return list(by_layer.values())


def _by_canonical_name(
    statistics: Sequence[Mapping[str, Tensor]], canonical: Mapping[str, str], *, of_tied: bool
) -> tuple[dict[str, Tensor], ...]:
    """The statistics under the names that tensors are merged by; those of other tensors are left out.

    Raises:
        InvalidInput: a source has statistics, but of no tensor of the model.
    """
    count = Counter(canonical.values())
    found = []
    for index, given in enumerate(statistics):
        known = {canonical[name]: given[name] for name in sorted(given, reverse=True) if name in canonical}
        found.append({name: known[name] for name in known if of_tied or count[name] == 1})
        if given and not known:
            raise InvalidInput(
                f"the statistics of source {index} name no tensor of the model: they are of {some(sorted(given))}, "
                f"the model has {some(sorted(canonical))}"
            )
    return tuple(found)


def _numbered(sources: Sequence[Mapping[str, Tensor]]) -> dict[str, Mapping[str, Tensor]]:
    return {f"source {index}": source for index, source in enumerate(sources)}


def _refuse_other_than_models(sources: Any, base: Any) -> None:
    if isinstance(sources, Mapping):
        raise InvalidInput("sources is a list of state dicts, but got one state dict")
    if not isinstance(sources, Sequence) or isinstance(sources, str):
        raise InvalidInput(f"sources is a list of state dicts, but got {sources!r}")
    for index, source in enumerate(sources):
        check_tensors(f"state dict of source {index}", source)
    if base is not None:
        check_tensors("state dict of the base", base)


def _refuse_misfits(
    template: Mapping[str, Tensor], models: Mapping[str, Mapping[str, Tensor]], *, same_shapes: bool
) -> None:
    whose = next(iter(models))
    for owner, model in models.items():
        if missing := sorted(template.keys() - model.keys()):
            raise InvalidInput(f"{owner} lacks tensors that {whose} has: {some(missing, 5)}")
        if extra := sorted(model.keys() - template.keys()):
            raise InvalidInput(f"{owner} has tensors that {whose} lacks: {some(extra, 5)}")
        misfits = [
            f"{name} ({_kind(model[name])}, {whose} {_kind(tensor)})"
            for name, tensor in sorted(template.items())
            if (same_shapes and model[name].shape != tensor.shape)
            or model[name].is_floating_point() != tensor.is_floating_point()
        ]
        if misfits:
            raise InvalidInput(f"{owner} does not fit {whose}: {some(misfits, 5)}")
    if complex_names := sorted(name for name, tensor in template.items() if tensor.is_complex()):
        raise InvalidInput(f"complex tensors cannot be merged: {some(complex_names, 5)}")


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
