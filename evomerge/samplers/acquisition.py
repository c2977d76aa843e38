"""Expected improvement of a cost whose logarithm is modelled.

F. Hutter et al., "An experimental investigation of model-based parameter optimisation", 2009 (log EI); the
scaling of costs before their logarithm is taken is that of SMAC3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

__all__ = ["log_expected_improvement", "log_scaled"]

Vector = NDArray[np.float64]

_LEAST_VARIANCE = 1e-10
_LEAST_GAP = 0.01


def log_scaled(costs: Vector) -> Vector:
    """Logarithms of the costs after they were scaled to (0, 1], so that differences between good ones are the largest.

    The zero of the scale is as far below the least cost as that is below the 5th percentile, and at least a hundredth
    of the range, so that ties at the least cost are finite. Equal costs are all 0.
    """
    least, most = float(costs.min()), float(costs.max())
    if most == least:
        return np.zeros_like(costs)
    gap = max(float(np.percentile(costs, 5)) - least, _LEAST_GAP * (most - least))
    scaled: Vector = np.log((costs - least + gap) / (most - least + gap))
    return scaled


def log_expected_improvement(mean: Vector, variance: Vector, best: float) -> Vector:
    """E[max(0, f_min - f)] where log f is normal: f_min Phi(v) - exp(sigma^2 / 2 + mu) Phi(v - sigma).

    Args:
        mean, variance: of log f, by candidate.
        best: log f_min; v = (log f_min - mu) / sigma.
    """
    sigma = np.sqrt(np.maximum(variance, _LEAST_VARIANCE))
    v = (best - mean) / sigma
    improvement: Vector = np.exp(best) * norm.cdf(v) - np.exp(sigma**2 / 2 + mean) * norm.cdf(v - sigma)
    return improvement
