"""The order in which sources arrive, as numbers that a sampler can move: random keys.

Each source but the first has a key in [-1, 1], and the first has 0; sources arrive in the order of their keys. A small
step of a key changes places with a neighbour alone, which a sampler of continuous numbers can learn from, and at the
centre, where all keys are equal, the order is that of the spec. With a key for the first source, too, one direction
would change nothing; without it, orders with the first source in the middle have the larger part of the box.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from optuna.distributions import BaseDistribution, FloatDistribution

KEY = "order"
"""Last part of the params' names, such as "reverse.order"."""


def key_params(prefix: str, sources: Sequence[str]) -> dict[str, str]:
    """Source -> the param that is its key, for all sources but the first."""
    return {source: ".".join(filter(None, (prefix, source, KEY))) for source in sources[1:]}


def key_distributions(prefix: str, sources: Sequence[str]) -> Iterator[tuple[str, BaseDistribution]]:
    """(param, distribution) of the keys."""
    return ((param, FloatDistribution(-1.0, 1.0)) for param in key_params(prefix, sources).values())


def arrival_order(prefix: str, sources: Sequence[str], params: Mapping[str, float]) -> tuple[str, ...]:
    """The sources in order of arrival; equal keys leave them in the order of the spec."""
    keys = {source: params[param] for source, param in key_params(prefix, sources).items()}
    return tuple(sorted(sources, key=lambda source: keys.get(source, 0.0)))


def keys_of(prefix: str, sources: Sequence[str], order: Sequence[str]) -> dict[str, float]:
    """Params whose `arrival_order` is this one: keys at equal distances on both sides of the first source's."""
    first = order.index(sources[0])
    keys = {source: (place - first) / len(sources) for place, source in enumerate(order)}
    return {param: keys[source] for source, param in key_params(prefix, sources).items()}
