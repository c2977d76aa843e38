"""The part of a value that some columns of a table explain and the others cannot: leave-one-covariate-out.

A ridge regression on all columns and one without those in question each predict every row from the others. The two
squared errors of a row are compared, so that the mean difference has a standard error (LOCO, Lei et al. 2018, arXiv
1604.04173). Columns that go along with others explain little alone: nothing that is said here of them says that they
have no effect.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Floats = NDArray[np.float64]

_PENALTIES = 10.0 ** np.arange(-4, 2.5, 0.5)  # of the squared coefficients, per row


@dataclass(frozen=True, kw_only=True)
class Share:
    """Share of the squared error of the plain mean that only some columns save, in rows that were not fitted.

    It may be negative: predictions are worse with columns that say nothing.
    """

    share: float
    low: float
    high: float


def shares_of(table: Floats, values: Floats, owners: Sequence[Collection[int]], *, alpha: float) -> list[Share] | None:
    """The share of each set of columns.

    Args:
        table: [rows, columns].
        values: [rows].
        owners: sets of columns.
        alpha: the chance that any of the intervals misses its share, Bonferroni over the sets.

    Returns:
        None where all values are the same.
    """
    if float(values.var()) <= 1e-18 * max(1.0, float(np.abs(values).max()) ** 2):
        return None
    whole, spread = _squared_errors(table, values), float(_squared_errors(table[:, :0], values).mean())
    quantile = float(student.ppf(1 - alpha / len(owners) / 2, len(values) - 1))
    found = []
    for columns in owners:
        kept = [column for column in range(table.shape[1]) if column not in columns]
        gain = (_squared_errors(table[:, kept], values) - whole) / spread
        half = quantile * float(gain.std(ddof=1)) / math.sqrt(len(values))
        found.append(Share(share=float(gain.mean()), low=float(gain.mean()) - half, high=float(gain.mean()) + half))
    return found


def _squared_errors(table: Floats, values: Floats) -> Floats:
    """Of each row, predicted by ridge regression on the other rows, with the penalty that predicts best.

    With H(p) = 1/n + U s^2 / (s^2 + n p) U' the prediction of row i without itself errs by (y - H y)_i / (1 - H_ii).
    """
    rows = len(values)
    centred = table - table.mean(axis=0)
    spread = centred.std(axis=0)
    columns = centred[:, spread > 1e-12] / spread[spread > 1e-12]
    rest = values - values.mean()
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    best: Floats = (rest / (1 - 1 / rows)) ** 2
    for penalty in _PENALTIES:
        kept = singular**2 / (singular**2 + rows * penalty)
        own = 1 / rows + (left**2 * kept).sum(axis=1)
        errors = (rest - left @ (kept * (left.T @ rest))) / np.maximum(1 - own, 1e-12)
        if (errors**2).mean() < best.mean():
            best = errors**2
    return best
