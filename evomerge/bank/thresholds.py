"""Magnitude tables: any density becomes a threshold without sorting anything per candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

MAX_KNOTS = 100_001  # neighbouring knots are then less than one element in 10⁵ apart


class ThresholdTables:
    """Order statistics of |source − base| over any scope of tensors, for one fixed list of sources.

    A table holds up to 10⁵ + 1 order statistics, equally spaced by rank, and is made when its scope is first asked for:
    once per worker, since the groups of a search do not change. A scope of at most that many elements is exact; in a
    larger one a threshold is off by less than one element in 10⁵.
    """

    def __init__(self, base: Mapping[str, torch.Tensor], sources: Sequence[Mapping[str, torch.Tensor]]) -> None:
        self._base = base
        self._sources = sources
        self._tables: dict[tuple[int, tuple[str, ...]], tuple[torch.Tensor, int]] = {}

    def kth_magnitude(self, source: int, scope: tuple[str, ...], k: int) -> float:
        """The k-th smallest (k from 1) of |source − base| over the elements of the scope's tensors."""
        key = (source, scope)
        if key not in self._tables:
            self._tables[key] = self._build(source, scope)
        knots, count = self._tables[key]
        place = (k - 1) * (len(knots) - 1) / max(count - 1, 1)
        left = min(int(place), len(knots) - 1)
        right = min(left + 1, len(knots) - 1)
        low, high = float(knots[left]), float(knots[right])
        return low if place == left else low + (place - left) * (high - low)

    def _build(self, source: int, scope: tuple[str, ...]) -> tuple[torch.Tensor, int]:
        weights = self._sources[source]
        magnitudes = torch.cat([(weights[name].float() - self._base[name].float()).abs().flatten() for name in scope])
        ordered = magnitudes.sort().values
        count = len(ordered)
        if count <= MAX_KNOTS:
            return ordered.cpu(), count
        ranks = torch.linspace(0, count - 1, MAX_KNOTS, dtype=torch.float64).round().long()
        return ordered[ranks.to(ordered.device)].cpu(), count
