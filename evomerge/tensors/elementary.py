"""Powers of two and the hyperbolic tangent, that have the same bits in eager operations, in any division, and compiled.

A library's vectorised loop, its remainder and the code that a compiler calls differ in the last bit. In float32 these
functions are a fixed sequence of additions, products, quotients and selections instead, each rounded once, which gives
the same bits everywhere. They are right to three units in the last place. float64 has no compiled form, and takes the
library's.
"""

from __future__ import annotations

import torch
from torch import Tensor

# 2^r for |r| <= 1/2, from the sixth power down: the polynomial whose largest relative error is the smallest, 2e-9.
_POWER = (
    0.0001534581177772691,
    0.0013399931422348312,
    0.00961848895973378,
    0.05550328776465982,
    0.24022646890593138,
    0.6931472057374946,
    1.000000000554173,
)

# Numerator and denominator, in powers of y^2, of the seventh convergent of tanh(y) = y / (1 + y^2 / (3 + y^2 / …)).
_ABOVE = (1.0, 378.0, 17325.0, 135135.0)
_BELOW = (28.0, 3150.0, 62370.0, 135135.0)
# tanh(x) / x for |x| <= 1, in powers of x^2, likewise to 5e-9.
_SMALL = (
    -0.0003533014769814242,
    0.002282086004789329,
    -0.007917261789699887,
    0.021464705616192098,
    -0.053870876143331706,
    0.13332159122116,
    -0.33333278642834263,
    0.9999999957750676,
)
_TANH_IS_ONE = 9.02  # from here on, in float32


def power_of_two(x: Tensor) -> Tensor:
    """2^x for -126 <= x <= 127. Beyond that float32 gives no power."""
    if x.dtype == torch.float64:
        return x.exp2()
    whole = torch.round(x)
    power = _polynomial(x - whole, _POWER)
    return power.mul_((whole.to(torch.int32).add_(127) << 23).view(torch.float32))


def hyperbolic_tangent(x: Tensor) -> Tensor:
    """tanh(x), an odd function to the bit; its relative error is small for small x, too."""
    if x.dtype == torch.float64:
        return x.tanh()
    half = x.clamp(-_TANH_IS_ONE, _TANH_IS_ONE).mul_(0.5)
    squared = half * half
    above, below = _polynomial(squared, _ABOVE).mul_(half), _polynomial(squared, _BELOW)
    # tanh(2 y) = 2 tanh(y) / (1 + tanh(y)^2), with one division.
    return (above * below).mul_(2.0).div_(above.square_().add_(below.square_()))


def tangent_up_to_one(x: Tensor) -> Tensor:
    """tanh(x) for |x| <= 1, without a division; otherwise as `hyperbolic_tangent`."""
    return x.tanh() if x.dtype == torch.float64 else _polynomial(x * x, _SMALL).mul_(x)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Horner's scheme, from the coefficient of the highest power on; in place, which a compiler does not notice."""
    total = (x * coefficients[0]).add_(coefficients[1])
    for coefficient in coefficients[2:]:
        total.mul_(x).add_(coefficient)
    return total
