"""Task arithmetic with trimmed and sign-elected task vectors: worked by hand, and beside TIES."""

from __future__ import annotations

import pytest
import torch

from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import merge_state_dicts


def elected(*task_vectors, options=None, **parameters):
    """The merge of task vectors of one tensor on a base of zeros; keeps everything unless told otherwise."""
    sources = [{"w": torch.tensor(vector)} for vector in task_vectors]
    base = {"w": torch.zeros_like(sources[0]["w"])}
    return merge_state_dicts("elected_arithmetic", sources, base, {"density": 1.0, **parameters}, options or {})["w"]


def test_the_election_does_not_see_the_weights():
    # Sums 1, -1 and 5: the first source loses the second element, the second the first one.
    one, two = [4.0, 2.0, 2.0], [-3.0, -3.0, 3.0]
    assert elected(one, two, weight=[0.25, 1.0]).tolist() == [1.0, -3.0, 3.5]
    assert elected(one, two, weight=[0.0, -1.0]).tolist() == [0.0, 3.0, -3.0]


def test_trimmed_elements_neither_vote_nor_count():
    one, two = [5.0, 1.0, 4.0, 0.5, 3.0], [-1.0, 2.0, -0.5, 3.0, 1.5]
    # int(0.4 * 5) + 1 = 3 elements of each are kept: 5, 4, 3 and 2, 3, 1.5.
    assert elected(one, two, density=0.4, weight=1.0).tolist() == [5.0, 2.0, 4.0, 3.0, 4.5]


@pytest.mark.parametrize(("rest", "expected"), [(1.0, 2.0), (-1.0, -2.0)])
def test_where_kept_values_cancel_the_majority_decides(rest, expected):
    one, two = [2.0, rest, rest], [-2.0, rest, rest]
    assert float(elected(one, two, weight=1.0)[0]) == expected
    assert float(elected(one, two, weight=1.0, options={"zero_sign": "plus"})[0]) == 2.0


def test_counting_signs_elects_the_many_small():
    vectors = [5.0], [-1.0], [-1.0]
    assert elected(*vectors, weight=1.0).tolist() == [5.0]
    assert elected(*vectors, weight=1.0, options={"elect": "count"}).tolist() == [-2.0]


@pytest.mark.parametrize("scope", ["global", "tensor", "layer_group"])
@pytest.mark.parametrize("kept_rule", ["ge_kth", "topk", "mask_rate", "exact"])
def test_with_weights_of_one_it_is_ties_with_the_sum(scope, kept_rule):
    generator = torch.Generator().manual_seed(0)
    models = [
        {name: torch.randint(-9, 10, (200,), generator=generator) / 8 for name in ("model.layers.0.a", "norm")}
        for _ in range(4)
    ]
    options = {"trim_scope": scope, "kept_rule": kept_rule}
    parameters = {"density": [0.2, 0.5, 0.9], "weight": 1.0}
    found = merge_state_dicts("elected_arithmetic", models[1:], models[0], parameters, options)
    expected = merge_state_dicts("ties", models[1:], models[0], parameters, {**options, "agg": "dis-sum"})
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)


def test_one_source_keeps_its_vector():
    assert elected([3.0, -1.0], weight=0.5).tolist() == [1.5, -0.5]


def test_it_needs_a_base():
    with pytest.raises(InvalidInput, match="give the base model"):
        merge_state_dicts("elected_arithmetic", [{"w": torch.ones(2)}])


def test_what_is_no_number_in_a_source_is_seen_in_the_result():
    with pytest.raises(MergeError, match="not finite"):
        elected([1.0, float("nan")], [1.0, 1.0])
