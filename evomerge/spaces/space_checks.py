"""Checks of a search space against what its methods allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import InvalidInput, unknown_name
from evomerge.genomes.pairs import SCORE, takes_scores
from evomerge.methods import METHODS, method_info, resolve_options
from evomerge.spaces.space import Depth, MethodSpace, Range, SearchSpace

__all__ = ["check_space", "needed_statistics", "weights_are_ratios"]


def check_space(space: SearchSpace) -> None:
    """Check methods, their parameters and options, or the genome.

    Raises:
        InvalidInput: as `load_space` does.
    """
    for method, methods_space in space.methods.items():
        _check_method(space, method, methods_space)
    if space.genome is not None:
        space.genome.chosen.check(f"search space {space.name!r}", space.semantics)
    if len(space.methods) > 1 and space.groups.depth.smooth:
        raise InvalidInput(
            f"search space {space.name!r}: a choice of methods cannot be interpolated over depth; use blocks"
        )
    needed_statistics(space)


def needed_statistics(space: SearchSpace) -> dict[str, dict[str, bool]]:
    """The statistics that a search of the space measures before its first trial: kind -> settings of the measurement.

    Raises:
        InvalidInput: two methods want one kind with different settings.
    """
    found: dict[str, dict[str, bool]] = {}
    for method, chosen in space.methods.items():
        kind = method_info(method).statistics
        if kind is None or not kind.measured:
            continue
        settings = kind.settings(resolve_options(method, chosen.options, semantics=space.semantics))
        if found.setdefault(kind.name, settings) != settings:
            raise InvalidInput(
                f"search space {space.name!r}: its methods need {kind.name} that are measured in different ways "
                f"({found[kind.name]} and, for {method!r}, {settings}); give them the same options"
            )
    return found


def weights_are_ratios(method: str, options: Mapping[str, Any]) -> bool:
    """Whether only the ratios of the sources' weights matter, so that a search chooses their logarithms."""
    info = method_info(method)
    return info.relative_weights or (info.weighted_sum and options.get("normalize") is True)


def _check_method(space: SearchSpace, method: str, chosen: MethodSpace) -> None:
    info = method_info(method)
    where = f"search space {space.name!r}, method {method!r}"
    if info.tensors:
        raise InvalidInput(
            f"{where}: its {info.tensors[0].name} are tensors, which a search cannot choose; use linear or "
            "task_arithmetic here, and train the coefficients as the baseline dam"
        )
    if "statistics" in info.needs and not (info.statistics and info.statistics.measured):
        raise InvalidInput(
            f"{where}: it needs statistics of every source, which a search does not measure; use another"
        )
    if info.source_options:
        raise InvalidInput(
            f"{where}: it makes a model for one task, the option {info.source_options[0].name!r}, and none for all; "
            f"compare with it as the baseline {method}"
        )
    if chosen.order == "searched" and not info.arrival:
        known_for = ", ".join(name for name, each in METHODS.items() if each.arrival)
        raise InvalidInput(f"{where}: its sources do not arrive in an order; order: searched is for {known_for}")
    options = resolve_options(method, chosen.options, semantics=space.semantics)
    needed_under = None if info.statistics is None else info.statistics.needed_under
    if needed_under is not None and options[needed_under[0]] == needed_under[1]:
        raise InvalidInput(
            f"{where}: under {needed_under[0]}: {needed_under[1]} it needs statistics of every source, which a search "
            "does not measure; choose another value"
        )
    known = {parameter.name: parameter for parameter in info.parameters}
    for name, value in chosen.parameters.items():
        if name == SCORE and takes_scores(info):
            _check_scores(where, value, chosen)
            continue
        if name not in known:
            raise unknown_name(f"parameter of {method!r}", name, known)
        parameter = known[name]
        if isinstance(value, Range):
            _check_range(
                where, name, value, per_source=parameter.per_source, normalised=weights_are_ratios(method, options)
            )
            _check_choices(where, name, value, space.groups.depth)
        for end in (value,) if isinstance(value, float) else (value.low, value.high, *(value.choices or ())):
            if isinstance(end, str):
                raise InvalidInput(f"{where}: {name} is a number ({parameter.allowed}), but got {end!r}")
            if end is not None and not parameter.minimum <= end <= parameter.maximum:
                raise InvalidInput(
                    f"{where}: {name} = {end} is outside of what the method allows ({parameter.allowed})"
                )


def _check_scores(where: str, value: Range | float, chosen: MethodSpace) -> None:
    if not isinstance(value, Range) or value.low is None or value.shared in {"sources", "all"}:
        raise InvalidInput(f"{where}: {SCORE} is searched, one per source; write {SCORE}: {{low: 0.0, high: 1.0}}")
    if value.log or value.divided_by_sources:
        raise InvalidInput(f"{where}: only differences of scores matter; give {SCORE} low and high alone")
    if "t" in chosen.parameters:
        raise InvalidInput(f"{where}: t follows from the scores; give either t or {SCORE}")


def _check_choices(where: str, name: str, value: Range, depth: Depth) -> None:
    if value.divided_by_sources and value.low is None:
        raise InvalidInput(f"{where}: divided_by_sources is for low and high of {name}; leave it out")
    if value.choices is not None and depth.smooth and value.shared not in {"groups", "all"}:
        raise InvalidInput(
            f"{where}: choices of {name} cannot be interpolated over depth; give low and high, or shared: groups"
        )


def _check_range(where: str, name: str, value: Range, *, per_source: bool, normalised: bool) -> None:
    if (value.log_ratio or value.divided_by_sources or value.shared in {"sources", "all"}) and not per_source:
        raise InvalidInput(f"{where}: {name} is one number, not one per source; give low and high")
    if value.log_ratio and not normalised:
        raise InvalidInput(f"{where}: log_ratio is for weights that are divided by their sum; give low and high")
    if normalised and name == "weight" and not value.log_ratio:
        raise InvalidInput(
            f"{where}: normalised weights have a direction that changes nothing; write weight: {{log_ratio: 3}}"
        )
