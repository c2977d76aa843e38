"""The flat genome of mergekit-evolve against small cases that are enumerated by hand."""

import math

import numpy as np
import pytest

from evomerge.errors import InvalidInput
from evomerge.genomes.layer_group import LayerGroup
from evomerge.spaces.evolutionary import evo_decode, evo_initial, evo_shape


def test_shapes():
    assert evo_shape("linear", ["a", "b", "c"], 32) == (1, 3, 1, 1)
    assert evo_shape("ties", ["a", "b"], 32, 8, ["self_attn", "mlp"]) == (4, 2, 3, 2)
    assert evo_shape("dare_ties", ["a"], 4, 4) == (1, 1, 1, 2)
    assert evo_shape("slerp", ["a", "b"], 4, 1) == (4, 2, 1, 1)
    assert evo_shape("task_arithmetic", ["a", "b"], 4, 2, ["mlp"]) == (2, 2, 2, 1)


def test_the_first_genome_weighs_all_sources_alike_and_keeps_everything():
    assert evo_initial("ties", ["a", "b"], 2, 1) == [0.5, 1.0] * 4
    assert evo_initial("linear", ["a", "b", "c", "d"], 2) == [0.25] * 4
    assert evo_initial("slerp", ["a", "b"], 2) == [0.5, 0.5]


def test_values_are_read_in_c_order_of_groups_sources_parts_and_parameters():
    x = [n / 100 for n in range(16)]
    assert evo_decode(x, "ties", ["a", "b"], 6, 3, ["mlp"]) == [
        LayerGroup(
            layers=(0, 3),
            method="ties",
            sources=["a", "b"],
            parameters={
                "mlp": {"weight": [0.0, 0.04], "density": [0.01, 0.05]},
                "base": {"weight": [0.02, 0.06], "density": [0.03, 0.07]},
            },
        ),
        LayerGroup(
            layers=(3, 6),
            method="ties",
            sources=["a", "b"],
            parameters={
                "mlp": {"weight": [0.08, 0.12], "density": [0.09, 0.13]},
                "base": {"weight": [0.1, 0.14], "density": [0.11, 0.15]},
            },
        ),
    ]


def test_weights_are_folded_and_densities_folded_and_clamped():
    x = [-1.5, -0.25, 2.0, 1.75]
    (group,) = evo_decode(x, "dare_ties", ["a", "b"], 4)
    assert group.layers == (0, 4)
    assert group.parameters == {"base": {"weight": [1.5, 2.0], "density": [0.25, 1.0]}}
    (group,) = evo_decode(x, "dare_ties", ["a", "b"], 4, allow_negative_weights=True)
    assert group.parameters == {"base": {"weight": [-1.5, 2.0], "density": [0.25, 1.0]}}


def test_decoding_leaves_the_genome_as_it_was():
    x = np.array([-1.0, 2.0])
    evo_decode(x, "linear", ["a", "b"], 1)
    assert x.tolist() == [-1.0, 2.0]


def test_slerp_takes_the_two_highest_scores_unfolded():
    first, second = evo_decode([-2.0, 0.5, 1.0, 0.0, 0.0, -1.0], "slerp", ["a", "b", "c"], 2, 1)
    assert first.sources == ["c", "b"]
    assert first.parameters == {"base": {"t": pytest.approx(math.exp(0.5) / (math.exp(1.0) + math.exp(0.5)))}}
    assert second.sources == ["a", "b"]
    assert second.parameters == {"base": {"t": 0.5}}


def test_smooth_values_are_lists_of_control_points():
    x = [-1.0, 0.5, 2.0, 3.0, 0.25, 4.0, -5.0, 1.0]  # (group, source, parameter)
    (group,) = evo_decode(x, "ties", ["a", "b"], 6, 3, smooth=True)
    assert group.layers == (0, 6)
    assert group.parameters == {"base": {"weight": [[1.0, 0.25], [2.0, 5.0]], "density": [[0.5, 1.0], [1.0, 1.0]]}}


def test_smooth_with_one_group_has_one_control_point():
    (group,) = evo_decode([0.5, 0.25], "linear", ["a", "b"], 6, smooth=True)
    assert group.parameters == {"base": {"weight": [[0.5], [0.25]]}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dare_tie", ["a"], 4), "did you mean 'dare_ties'"),
        (("linear", ["a"], 5, 2), "use one of 1, 5"),
        (("linear", ["a"], 4, -1), "layer_granularity"),
        (("linear", [], 4), "1 or more names"),
        (("linear", ["a"], 4, 2, ["base"]), "another name"),
        (("slerp", ["a"], 4), "2 or more names"),
        (("slerp", ["a", "b"], 4, 0, ["mlp"]), "no filters"),
    ],
)
def test_spaces_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        evo_shape(*arguments)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([0.5], "1 values, but 2 fit"),
        ([0.5, float("inf")], "not finite"),
        ([0.5, "1"], "flat list"),
        ([[0.5], [0.5]], "flat list"),
        (0.5, "1 values"),
    ],
)
def test_genomes_that_do_not_fit_are_refused(x, message):
    with pytest.raises(InvalidInput, match=message):
        evo_decode(x, "linear", ["a", "b"], 4)


def test_smooth_slerp_is_refused():
    with pytest.raises(InvalidInput, match="leave smooth off"):
        evo_decode([0.5, 0.5], "slerp", ["a", "b"], 4, smooth=True)
