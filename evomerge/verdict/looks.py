"""Looks at the held-out items: the share of the error that each one may spend, so that all together keep the level.

Each look compares a winner that was chosen on the search items with baselines on the same held-out items. In look k a
false statement is made with a chance of at most `share(k)` times the level. These shares are fixed beforehand and add
up to 1, so that by the union bound the chance of a false statement in any look is at most the level, however many looks
there are and whenever the user stops, and whatever the dependence between looks that share their items (alpha-spending
of Foster & Stine 2008; it controls the familywise error of hypotheses that arrive one by one, see Tian & Ramdas 2021,
section 3). A word that was said in one look therefore remains true in later ones: it is not tested again.

The bound needs winners that do not depend on the held-out items. Here nothing but the user's stopping does. It does not
cover a user who changes the space or the sources in answer to scores of single held-out items.
"""

from __future__ import annotations

from typing import Final

FIRST: Final = 0.9


def share(look: int) -> float:
    """The share of the level that a look spends: 0.9 for the first, then 0.1 / 2, 0.1 / 6, 0.1 / 12, …

    Args:
        look: counted from 1.
    """
    return FIRST if look <= 1 else (1 - FIRST) / ((look - 1) * look)  # the sum of 1 / (k (k + 1)) is 1
