"""Genes of a genome with given distributions: checked once, then read by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from evomerge.errors import InvalidInput, unknown_name

__all__ = ["Genome", "groups_of", "parts_of", "require_count", "require_names"]


class Genome:
    """The values of a genome, each inside its distribution. A gene that is never read may be absent.

    Args:
        params: gene -> value.
        distributions: gene -> FloatDistribution or CategoricalDistribution of strings.

    Raises:
        InvalidInput: a gene that has no distribution, or a value outside of its distribution.
    """

    def __init__(self, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> None:
        for gene, value in params.items():
            if gene not in distributions:
                raise unknown_name("gene", str(gene), distributions)
            _refuse_outside(gene, value, distributions[gene])
        self._params = params

    def number(self, gene: str) -> float:
        return float(self._read(gene))

    def choice(self, gene: str) -> str:
        return str(self._read(gene))

    def _read(self, gene: str) -> Any:
        if gene not in self._params:
            raise InvalidInput(f"the genome lacks the gene {gene!r}; give it a value")
        return self._params[gene]


def _refuse_outside(gene: str, value: object, distribution: BaseDistribution) -> None:
    if isinstance(distribution, CategoricalDistribution):
        if not isinstance(value, str) or value not in distribution.choices:
            first, last = distribution.choices[0], distribution.choices[-1]
            few = len(distribution.choices) <= 8
            allowed = ", ".join(map(repr, distribution.choices)) if few else f"{first!r} to {last!r}"
            raise InvalidInput(f"gene {gene!r} is one of {allowed} (a string), but got {value!r}")
        return
    assert isinstance(distribution, FloatDistribution)  # the spaces of this package make no other kind
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput(f"gene {gene!r} is a finite number, but got {value!r}")
    if not distribution.low <= value <= distribution.high:
        raise InvalidInput(f"gene {gene!r} is in [{distribution.low}, {distribution.high}], but got {value!r}")


def require_names(kind: str, names: Sequence[str], minimum: int = 0) -> list[str]:
    """The names as a list.

    Raises:
        InvalidInput: not a list of different, non-empty strings, or fewer than `minimum`.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) and n for n in names):
        raise InvalidInput(f"{kind} is a list of names, but got {names!r}")
    if len(set(names)) < len(names):
        raise InvalidInput(f"the names in {kind} must differ, but got {list(names)!r}")
    if len(names) < minimum:
        raise InvalidInput(f"{kind} needs {minimum} or more names, but got {list(names)!r}")
    return list(names)


def parts_of(filters: Sequence[str]) -> list[str]:
    """The filters and then "base".

    Raises:
        InvalidInput: not a list of different names, or one of them is "base".
    """
    names = require_names("filters", filters)
    if "base" in names:
        raise InvalidInput('"base" is the part that no filter matches; give the filter another name')
    return [*names, "base"]


def require_count(name: str, value: int, minimum: int) -> int:
    """The value.

    Raises:
        InvalidInput: not an integer, or less than `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InvalidInput(f"{name} is an integer of {minimum} or more, but got {value!r}")
    return value


def groups_of(layers: int, granularity: int) -> int:
    """Number of groups of `granularity` consecutive layers.

    Raises:
        InvalidInput: the granularity does not divide the number of layers.
    """
    if layers % granularity:
        fitting = [size for size in range(1, layers + 1) if layers % size == 0]
        raise InvalidInput(
            f"{layers} layers cannot be divided into groups of {granularity}; use one of {', '.join(map(str, fitting))}"
        )
    return layers // granularity
