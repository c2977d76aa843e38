"""Consensus task arithmetic: masks worked by hand."""

import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging import merge_state_dicts
from evomerge.spaces import load_space

BASE = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
# both move alike; one alone; the other alone; they cancel; a small one beside a large one
TAUS = [torch.tensor([0.2, 0.4, 0.0, 0.3, 0.1]), torch.tensor([0.4, 0.0, 0.8, -0.3, 1.0])]


def merged(**parameters):
    sources = [{"w": BASE + tau} for tau in TAUS]
    return merge_state_dicts("consensus", sources, {"w": BASE}, parameters)["w"] - BASE


def test_two_have_to_agree_unless_another_number_is_asked_for():
    # masks at 0.4: |0.2| > 0.4 * 0.4, |0.4| > 0.4 * 0.2 | 1, 0 | 0, 1 | both | 0.1 > 0.4 * 1.0 fails, 1.0 does not
    assert merged(weight=1.0).tolist() == pytest.approx([0.6, 0.0, 0.0, 0.0, 0.0], abs=1e-6)
    assert merged(weight=1.0, agreement=1).tolist() == pytest.approx([0.6, 0.4, 0.8, 0.0, 1.1], abs=1e-6)
    assert merged(weight=1.0, agreement=3).tolist() == [0.0] * 5


def test_a_lower_threshold_lets_a_small_element_matter_and_weights_do_not_change_masks():
    assert merged(weight=[1.0, 0.0], threshold=[0.05, 0.4]).tolist() == pytest.approx(
        [0.2, 0.0, 0.0, 0.3, 0.1], abs=1e-6
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_what_a_mask_would_hide_is_refused(bad):
    sources = [{"w": BASE.clone()} for _ in range(3)]
    for source in sources[:2]:
        source["w"][1] = bad
    with pytest.raises(MergeError, match="not finite in tensor 'w'"):
        merge_state_dicts("consensus", sources, {"w": BASE}, {"weight": 1.0})


def test_the_space_searches_weights_and_one_threshold():
    parameters = load_space("consensus-global").methods["consensus"].parameters
    assert parameters["agreement"] == 2.0
    assert parameters["threshold"].shared == "sources"
