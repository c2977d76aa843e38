"""Checks of what a merge is given, and its defaults: parameters, options, presets and statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from evomerge.errors import InvalidInput, unknown_name
from evomerge.methods.info import Option, OptionValue, Parameter, SourceOption
from evomerge.methods.table import method_info

SEMANTICS = ("evomerge", "mergekit")

ParameterValue = float | Sequence[Any]
Resolved = float | tuple[Any, ...]  # a number, one per source, or one mapping of tensors per source


def resolve_parameters(method: str, parameters: Mapping[str, ParameterValue], n_sources: int) -> dict[str, Resolved]:
    """All parameters of the method: one float for shared ones, a tuple in source order for per-source ones.

    A missing parameter takes its default; a number given for a per-source parameter holds for all sources. Tensors have
    no default and are passed on unchanged, a tuple of mappings in source order.

    Raises:
        InvalidInput: unknown parameter, a list of the wrong length, a value that is no number, not finite, or one for
            which the method is not defined; or a number of sources that the method cannot merge.
    """
    info = method_info(method)
    if n_sources < 1:
        raise InvalidInput(f"{method} needs at least one source, but got {n_sources}")
    if info.sources is not None and n_sources != info.sources:
        raise InvalidInput(f"{method} merges exactly {info.sources} sources, but got {n_sources}")
    known = [parameter.name for parameter in info.parameters] + [each.name for each in info.tensors]
    _refuse_unknown(f"parameter of {method!r}", dict(named_values("parameters", parameters)), known)
    numbers: dict[str, Resolved] = {
        parameter.name: _resolve_parameter(
            method, parameter, parameters.get(parameter.name, parameter.default), n_sources
        )
        for parameter in info.parameters
    }
    return numbers | {each.name: _resolve_tensors(method, each.name, parameters, n_sources) for each in info.tensors}


def resolve_options(
    method: str,
    options: Mapping[str, OptionValue],
    *,
    semantics: str = "evomerge",
    scope: str | None = None,
    n_sources: int | None = None,
) -> dict[str, OptionValue]:
    """All options of the method, with their canonical values.

    A given value wins over the preset `semantics` ("evomerge" or "mergekit"; it may also be one of the options), the
    preset over `scope`, and that over the defaults. Case does not matter in values, nor whether words are joined by
    spaces, hyphens or underscores.

    Args:
        scope: the `trim_scope` of methods that have one, where neither the options nor the preset set it.
        n_sources: how many sources are merged; None where this is not known yet.

    Raises:
        InvalidInput: unknown option, value or preset, or no position of a source where one must be given.
    """
    info = method_info(method)
    known = {option.name: option for option in info.options}
    options = dict(named_values("options", options))
    preset = options.get("semantics", semantics)
    if not isinstance(preset, str) or preset not in SEMANTICS:
        raise unknown_name("semantics", str(preset), SEMANTICS)
    given = {name: value for name, value in options.items() if name != "semantics"}
    _refuse_unknown(f"option of {method!r}", given, info.option_names)
    base = {"trim_scope": scope} if scope is not None and "trim_scope" in known else {}
    theirs = info.mergekit.semantics if preset == "mergekit" and info.mergekit else {}
    chosen = {**base, **theirs, **given}
    positions = {each.name: _position(method, each, given, n_sources) for each in info.source_options}
    choices = {
        name: _resolve_option(method, option, chosen.get(name, option.default)) for name, option in known.items()
    }
    return {**positions, **choices}


def validate(
    method: str,
    parameters: Mapping[str, ParameterValue],
    options: Mapping[str, OptionValue],
    n_sources: int,
    *,
    has_base: bool = True,
) -> tuple[dict[str, Resolved], dict[str, OptionValue]]:
    """`resolve_parameters` and `resolve_options` in one, and a check that a base is there where the method needs one.

    Raises:
        InvalidInput: see there.
    """
    named_values("parameters", parameters)
    named_values("options", options)
    if "base" in method_info(method).needs and not has_base:
        raise InvalidInput(f"{method} works on task vectors (source minus base); give the base model")
    return resolve_parameters(method, parameters, n_sources), resolve_options(method, options, n_sources=n_sources)


def resolve_statistics(
    method: str, statistics: Sequence[Mapping[str, Any]] | None, n_sources: int
) -> tuple[Mapping[str, Any], ...] | None:
    """The statistics of a merge, one mapping {tensor name: tensor} per source in source order; None without any.

    Raises:
        InvalidInput: the method takes none, needs some and has none, or they are not one mapping per source.
    """
    info = method_info(method)
    if info.statistics is None:
        if statistics is not None:
            raise InvalidInput(f"{method} uses no statistics; leave them out")
        return None
    if statistics is None:
        if "statistics" in info.needs:
            wanted = _wanted(method, "statistics", n_sources)
            raise InvalidInput(f"{wanted}, and cannot be left out; give {info.statistics.description}")
        return None
    return _mappings(method, "statistics", statistics, n_sources)


def named_values(what: str, given: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """The items of a mapping that a caller has given.

    Raises:
        InvalidInput: it is no mapping.
    """
    if not isinstance(given, Mapping):
        raise InvalidInput(f"{what} must be {{name: value}}, but got {given!r}")
    return given.items()


def _refuse_unknown(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    names = list(known)
    for name in given:
        if name not in names:
            raise unknown_name(kind, str(name), names)


def _resolve_parameter(
    method: str, parameter: Parameter, value: ParameterValue, n_sources: int
) -> float | tuple[float, ...]:
    if isinstance(value, list | tuple):
        if not parameter.per_source:
            raise InvalidInput(f"{method}: {parameter.name} is one number, not one per source, but got {value!r}")
        if len(value) != n_sources:
            raise InvalidInput(
                f"{method}: {parameter.name} has {len(value)} values for {n_sources} sources; give one number per "
                "source, in source order, or one number for all"
            )
        return tuple(_number(method, parameter, item) for item in value)
    number = _number(method, parameter, value)
    return (number,) * n_sources if parameter.per_source else number


def _resolve_tensors(
    method: str, name: str, parameters: Mapping[str, ParameterValue], n_sources: int
) -> tuple[Mapping[str, Any], ...]:
    if name not in parameters:
        raise InvalidInput(f"{_wanted(method, name, n_sources)}, and has no default; give it")
    return _mappings(method, name, parameters[name], n_sources)


def _mappings(method: str, name: str, value: object, n_sources: int) -> tuple[Mapping[str, Any], ...]:
    wanted = _wanted(method, name, n_sources)
    if not isinstance(value, list | tuple) or not all(isinstance(each, Mapping) for each in value):
        raise InvalidInput(f"{wanted}, but got {_kind(value)}")
    if len(value) != n_sources:
        raise InvalidInput(f"{wanted}, but got {len(value)} mappings")
    return tuple(value)


def _wanted(method: str, name: str, n_sources: int) -> str:
    return f"{method}: {name} is a list of {n_sources} mappings of tensor names to tensors, in source order"


def _kind(value: object) -> str:
    inside = (
        f" with {', '.join(sorted({type(each).__name__ for each in value}))}" if isinstance(value, list | tuple) else ""
    )
    return f"a {type(value).__name__}{inside}"


def _number(method: str, parameter: Parameter, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidInput(f"{method}: {parameter.name} must be a number, but got {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise InvalidInput(f"{method}: {parameter.name} must be finite, but got {number}")
    if not parameter.minimum <= number <= parameter.maximum:
        raise InvalidInput(
            f"{method}: {parameter.name} = {number} is outside of what the method allows ({parameter.allowed})"
        )
    return number


def _resolve_option(method: str, option: Option, value: object) -> OptionValue:
    for choice in option.choices:
        # By type as well: 1 == True, but a number is no switch.
        if type(value) is type(choice) and _spelling(value) == _spelling(choice):
            return choice
    known = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in option.choices]
    raise unknown_name(f"value of {method!r} option {option.name!r}:", str(value), known)


def _position(method: str, option: SourceOption, given: Mapping[str, OptionValue], n_sources: int | None) -> int:
    last = "the number of sources - 1" if n_sources is None else str(n_sources - 1)
    wanted = f"{method}: option {option.name!r} is the position of a source, an integer from 0 to {last}"
    if option.name not in given:
        raise InvalidInput(f"{wanted}, and has no default; give it")
    value = given[option.name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(f"{wanted}, but got {value!r}")
    if value < 0 or (n_sources is not None and value >= n_sources):
        raise InvalidInput(f"{wanted}, but got {value}")
    return value


def _spelling(value: object) -> object:
    return value.lower().replace(" ", "_").replace("-", "_") if isinstance(value, str) else value
