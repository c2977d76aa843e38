"""Spaces of other merges that are refused before anything is made."""

import pytest

from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.recipe_spaces.checks import check_recipe_space
from evomerge.spaces.space import SearchSpace

WEIGHT = {"low": -0.25, "high": 1.25}
GROUPS = {"depth": "global"}


def mixture(method="task_arithmetic", **weight):
    methods = {method: {"parameters": {"weight": weight or WEIGHT}}}
    return {"name": "mix", "from": "baselines", "groups": GROUPS, "methods": methods}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (mixture("ties"), "weighted sums"),
        (mixture(log_ratio=3), "needs plain ends"),
        (mixture(low=-0.25, high=0.9), "has to reach 0 and 1"),
        (mixture(low=0.1, high=1.5), "has to reach 0 and 1"),
        (mixture(low=0, high=1, shared="sources"), "weights of their own"),
        ({**mixture(), "methods": {"task_arithmetic": {"parameters": {"weight": 0.3}}}}, "weight is searched"),
        ({**mixture(), "sources": "all"}, "leave genome, layers, semantics and sources out"),
        ({"name": "near", "around": "dam", "groups": GROUPS}, "belong together"),
        ({"name": "near", "around": "dam", "factor": WEIGHT}, "give groups and factor alone"),
        ({**mixture(), "around": "dam", "factor": WEIGHT}, "give groups and factor alone"),
        ({"name": "near", "around": "dam", "groups": GROUPS, "factor": {"low": 1.1, "high": 2}}, "has to reach 1"),
        ({"name": "near", "around": "dam", "groups": GROUPS, "factor": {"choices": [1, 2]}}, "needs plain ends"),
    ],
)
def test_a_space_whose_corners_are_not_the_merges_is_refused(document, message):
    with pytest.raises(InvalidInput, match=message):
        check_recipe_space(validate(SearchSpace, document, "space"))
