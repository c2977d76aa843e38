"""The pair of sources that a method for two merges where the space has more.

Every source has a score, which is searched as the parameter `score`. The two with the largest scores are merged, and
the share of the second is the softmax of the two (LFS, arXiv 2502.04030).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.errors import InvalidInput
from evomerge.genomes.layer_group import slerp_pair, slerp_share
from evomerge.methods import MethodInfo

__all__ = ["SCORE", "chosen_pair", "score_of", "takes_scores"]

SCORE = "score"

_SMALLEST = 1e-6  # share of a source that has none: its score would be infinitely far below the other's
_ABOVE_LOWEST = 1e-6  # of the range: keeps the second source of a pair ahead of those outside of it


def takes_scores(info: MethodInfo) -> bool:
    """Whether a method merges two sources by one share, so that a pair can stand for more."""
    shares = [each for each in info.shared if each.name == "t" and each.maximum == 1]  # other methods' t is no share
    return info.sources == 2 and info.same_shapes and bool(shares)


def chosen_pair(scores: Sequence[Sequence[float]], own: Sequence[float]) -> tuple[tuple[int, int], float]:
    """Positions of the two sources, the one with the larger score first, and the share of the second.

    Args:
        scores: of all groups that have one pair, each in source order; the pair is that of their sums.
        own: scores of the group that is merged, which decide the share.
    """
    first, second = slerp_pair([math.fsum(values) for values in zip(*scores, strict=True)])
    return (first, second), slerp_share(own[first], own[second])


def score_of(source: str, pair: Sequence[str], t: float, *, low: float, high: float) -> float:
    """A score of `source` in [low, high] under which `pair` is merged with the share t of its second.

    Where the range is too short for the share, it is the smallest or largest that the range has.

    Raises:
        InvalidInput: the pair is not two sources.
    """
    if len(pair) != 2:
        raise InvalidInput(f"a pair has two sources, but got {len(pair)}")
    if source not in pair:
        return low
    share = min(max(t, _SMALLEST), 1 - _SMALLEST)
    lead = math.log((1 - share) / share)  # of the first over the second
    behind = lead < 0 if source == pair[0] else lead > 0
    return max(high - abs(lead), low + _ABOVE_LOWEST * (high - low)) if behind else high
