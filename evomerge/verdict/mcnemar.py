"""McNemar's test of right and wrong answers: conditional, and unconditional on the number of discordant items.

Given the number of discordant items, wins are fair coins where two models are equally good, and the test is the
binomial one. Its p-values are coarse, so that it rejects less often than its level allows. The unconditional test
(Boschloo 1970; of pairs: Suissa & Shuster 1991) takes the conditional p-value as its statistic and asks how often it
is as small as here when the number of discordant items varies too. It is exact as well, and never less powerful.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv, gammaln, ndtri, xlog1py, xlogy
from scipy.stats import binom

from evomerge.evaluation.aggregates import FloatArray

DOUBT: Final = 1e-6  # chance that the share of discordant items lies outside the range that is maximised over
_SHARES: Final = 101  # of discordant items, from one end of the range to the other
_NEVER: Final = 1e-12  # chance of numbers of discordant items that are left out
_ROUNDING: Final = 1e-9  # p-values that differ by less, relatively, are ties


def conditional(wins: int, losses: int) -> float:
    """Two-sided p-value that wins and losses are fair coins (McNemar 1947; exact form: the binomial test)."""
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5))) if wins + losses else 1.0


@lru_cache(maxsize=4096)
def unconditional(wins: int, losses: int, items: int) -> float:
    """Two-sided p-value of Boschloo's test for pairs.

    The largest chance, over the shares of discordant items that are not excluded with confidence 1 − `DOUBT`, of a
    conditional p-value as small as this one; plus `DOUBT` (Berger & Boos 1994), which keeps it exact.
    """
    discordant = wins + losses
    p = conditional(wins, losses)
    if p == 1.0:
        return 1.0
    low, high = _interval(discordant, items)
    first, last = binom.ppf(_NEVER, items, low), binom.isf(_NEVER, items, high)
    counts = np.arange(max(0, int(first)), int(last) + 1)
    shares = np.linspace(low, high, _SHARES)[:, None]
    ways = gammaln(items + 1) - gammaln(counts + 1) - gammaln(items - counts + 1)
    chances = np.exp(ways + xlogy(counts, shares) + xlog1py(items - counts, -shares))  # of so many discordant items
    return min(1.0, float((chances @ _attained(p, counts)).max()) + DOUBT, p + DOUBT)


def _interval(count: int, items: int) -> tuple[float, float]:
    """The interval of a share by Clopper & Pearson (1934), at confidence 1 − `DOUBT`."""
    low = float(betaincinv(count, items - count + 1, DOUBT / 2)) if count else 0.0
    high = float(betaincinv(count + 1, items - count, 1 - DOUBT / 2)) if count < items else 1.0
    return low, high


def _attained(p: float, counts: NDArray[np.int64]) -> FloatArray:
    """The largest conditional p-value up to p that each number of discordant items can give; 0 where none is so small.

    Args:
        counts: numbers of discordant items, an array [counts].
    """
    # Begins a little above the quantile of a normal distribution, and comes down from there.
    fewer = np.minimum(counts, np.floor(counts / 2 + ndtri(p / 2) * np.sqrt(counts) / 2) + 3)
    while True:
        values: FloatArray = np.where(fewer >= 0, 2 * bdtr(np.maximum(fewer, 0), counts, 0.5), 0.0)
        above = values > p * (1 + _ROUNDING)
        if not above.any():
            return values
        fewer = np.where(above, fewer - 1, fewer)
