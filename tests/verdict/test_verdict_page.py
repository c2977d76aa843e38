"""The page of the verdict has the numbers of items that the program prints."""

import re
from pathlib import Path

import numpy as np
import pytest
from simulated_answers import OBJECTIVE, as_scores

from evomerge.verdict import compare
from evomerge.verdict.sentences import about

PAGE = " ".join((Path(__file__).parent.parent.parent / "docs" / "verdict.md").read_text(encoding="utf-8").split())
LEAD = re.compile(r"A lead of (\d+) points that changes (\d+) % of the outcomes takes about ([\d,]+) items")


def as_printed(lead, changed, baselines, items=1000):
    """Number of items in the sentence about the first baseline: all of them are as far behind."""
    wins, losses = ((changed + sign * lead) * items // 200 for sign in (1, -1))
    rest = [True] * (items - wins - losses)
    first, second = (as_scores(np.array([ours] * wins + [not ours] * losses + rest)) for ours in (True, False))
    found = compare(OBJECTIVE, first, {str(number): second for number in range(baselines)})
    return about(max(each.items_needed for each in found))


@pytest.mark.parametrize("baselines", [1, 3, 7])
def test_the_items_that_a_lead_takes_are_those_of_the_verdict(baselines):
    lead, changed, alone = LEAD.search(PAGE).groups()
    number = alone if baselines == 1 else re.search(rf"about ([\d,]+) among {baselines}\b", PAGE).group(1)
    assert number == as_printed(int(lead), int(changed), baselines)
