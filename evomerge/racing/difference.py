"""The difference estimator: predictions for all items, corrected by the errors found on the items that were drawn.

    D̂ = Σ_i c_i (f_i − b_i)  +  Σ_{i drawn} c_i (y_i − f_i) / π_i

with the incumbent's outcomes b, which are all known, the candidate's predicted and real outcomes f and y, and the share
c of an item in the objective. D̂ is unbiased for D = Σ c_i (y_i − b_i), the difference on all items of the search,
whatever the prediction (Särndal, Swensson & Wretman, 1992, section 6.3); a good one makes it precise:

    V̂ = Σ c_i² v_i (1 − π_i) / π_i,    v_i = the variance of y_i − f_i

A candidate is dropped for one of two reasons, each tested again after every block:

- *worse*: it is worse than the incumbent beyond these items. The test of `evomerge.racing.race`, with the variance
  Σ c_i² (y_i − b_i)² + V̂ and, as there, one more square as large as the largest of the drawn. Of candidates that are
  as good as the incumbent, at most `alpha` end so.
- *futile*: the rest of its items can hardly make it the best. The same test with the variance V̂, which ends at zero. Of
  candidates that would score above the incumbent on all items of the search, at most `futility` end so: what they are
  worth beyond these items does not matter, as the best candidate is named on them.

Both hold for the draw of the items, and as far as sums of many items are normal. For a variance the mean of the
predicted one and of the one that is found in the items drawn is taken: the first would believe a bad prediction, the
second knows nothing of rare items before one is drawn. Both variances decrease with every item, independently of the
differences found, so that the estimates at the looks have independent increments, as `boundary` asks for.

`D̂` is unbiased after a fixed number of blocks. Where it decides when to stop, it is a little low for those that stop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from evomerge.evaluation.scores import Scores
from evomerge.racing.boundary import Spending, boundary
from evomerge.racing.draw import Draw


@dataclass(frozen=True, kw_only=True)
class DifferenceSettings:
    """Error rates of a race on drawn items.

    Attributes:
        alpha: the largest share of equally good candidates that may be dropped as worse, over all looks together.
        futility: the largest share of the candidates that would take the lead that may be dropped as futile, over all
            looks together; 0 drops none as futile.
        spending: function by which they are used up, see `evomerge.racing.boundary`.
    """

    alpha: float = 0.02
    futility: float = 0.02
    spending: Spending = "pocock"

    def __post_init__(self) -> None:
        boundary([1.0], self.alpha, self.spending)
        if self.futility:
            boundary([1.0], self.futility, self.spending)


@dataclass(frozen=True, kw_only=True)
class DifferenceDecision:
    """Decision of an interim look on drawn items.

    Attributes:
        drop: whether the rest of the items is not worth scoring.
        estimate: of its objective on all items of the search; the sampler learns from it if it is dropped.
        difference: D̂, candidate − incumbent.
        stderr: of the difference, for the draw of the items: the root of V̂.
        items: scored so far.
    """

    drop: bool
    estimate: float
    difference: float
    stderr: float
    items: int


def decide_by_difference(settings: DifferenceSettings, draw: Draw, seen: Scores, block: int) -> DifferenceDecision:
    """Estimate the objective of a candidate from the items that have been drawn, and decide whether to drop it.

    Args:
        seen: its scores on all blocks up to `block`.
        block: position of the latest block, from 0.
    """
    mask, outcomes = draw.outcomes(seen)
    chances = draw.probabilities(block)
    with np.errstate(invalid="ignore"):  # of infinite outcomes, which decide nothing
        errors = np.where(mask, draw.shares * (outcomes - draw.predicted), 0.0)
        apart = np.where(mask, draw.shares * (outcomes - draw.incumbent), 0.0)
    difference = float(np.sum(draw.shares * (draw.predicted - draw.incumbent)) + np.sum(errors / chances))
    of_draw = (draw.information[block][1] + float(np.sum(errors**2 * (1 - chances) / chances**2))) / 2
    of_items = (_of_items(draw) + float(np.sum(apart**2 / chances))) / 2
    largest = float(np.max(np.abs(errors / chances)))
    is_last = block + 1 >= len(draw.blocks)
    return DifferenceDecision(
        drop=not is_last
        and (
            _is_futile(settings, draw, block, _ratio(difference, of_draw))
            or _is_worse(settings, draw, block, _ratio(difference, of_items + of_draw + largest**2))
        ),
        estimate=draw.incumbent_value + difference,
        difference=difference,
        stderr=math.sqrt(of_draw),
        items=int(mask.sum()),
    )


def _ratio(difference: float, variance: float) -> float:
    return difference / math.sqrt(variance) if variance > 0 else 0.0


def _of_items(draw: Draw) -> float:
    """The predicted variance of the difference on all items, as of one that is zero beyond them."""
    return float(np.sum(draw.shares**2 * ((draw.predicted - draw.incumbent) ** 2 + draw.variances)))


def _is_worse(settings: DifferenceSettings, draw: Draw, block: int, statistic: float) -> bool:
    of_items = _of_items(draw)
    if not of_items or not _may_cross(statistic, settings.alpha):
        return False
    shares = [of_items / (of_items + variance) for _, variance in draw.information[: block + 1]]
    return statistic <= -boundary(shares, settings.alpha, settings.spending)


def _is_futile(settings: DifferenceSettings, draw: Draw, block: int, statistic: float) -> bool:
    looks = draw.information[: block + 1]
    if not settings.futility or not looks[-1][1] or not _may_cross(statistic, settings.futility):
        return False
    information = [1 / variance for _, variance in looks]
    return statistic <= -boundary([share for share, _ in looks], settings.futility, settings.spending, information)


def _may_cross(statistic: float, rate: float) -> bool:
    """Whether a statistic is beyond the boundary of a single look, which is never farther out than that of several.

    The boundary costs more than all the rest.
    """
    return statistic <= float(ndtri(rate))
