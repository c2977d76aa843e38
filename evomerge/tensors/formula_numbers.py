"""Rows of the tensors in which a formula is given the numbers that change between candidates."""

from __future__ import annotations

from enum import IntEnum


class Numbers(IntEnum):
    """Rows of the tensor `numbers` of shape (13, sources). A value that all sources share is in each column."""

    WEIGHT = 0
    THRESHOLD = 1  # smaller magnitudes are trimmed, or of a consensus do not matter
    DIVISOR = 2  # of what DARE leaves
    FACTOR = 3  # of what DARE leaves, after the division
    LAMBDA = 4
    ZERO_SIGN = 5  # the sign of an exactly zero sum
    ZERO = 6  # 0: a compiler that does not know this selects in one instruction where it otherwise takes two
    LEAST = 7  # of the magnitudes, which are clipped to this range and scaled by 1 / its length
    MOST = 8  # of a band: larger magnitudes are dropped
    SCALE = 9
    LEAST_SCORE = 10  # likewise of the scores; the most is their largest
    SCORE_SCALE = 11
    ABOVE = 12  # the next number above the threshold


class Words(IntEnum):
    """Rows of the int32 tensor `words` of shape (6, sources): for the masks of DARE (see `masks`), and for ties."""

    LIMIT = 0  # random bits below it mean dropped
    KEY_LOW = 1
    KEY_HIGH = 2
    START = 3  # low word of the index of the first element
    TIES = 4  # what is tied at the threshold survives in this many of the first elements of the piece
    TIES_OF_MOST = 5  # likewise of MOST
