"""The flat genome of layer-wise fusion against small cases that are enumerated by hand."""

import math

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from evomerge.errors import InvalidInput
from evomerge.genomes.layer_group import LayerGroup, slerp_share
from evomerge.spaces.lfs import lfs_decode, lfs_distributions, lfs_initial

SMALL = (["x", "y"], 2, 2, [])  # one group, one part


def genome(changes, arguments=SMALL):
    return {**lfs_initial(*arguments)[0], **changes}


def test_the_genes_of_two_sources_in_one_group_and_part():
    unit = FloatDistribution(0.0, 1.0)
    assert list(lfs_distributions(*SMALL).items()) == [
        ("layer_selection_method_0", CategoricalDistribution(("linear", "task_arithmetic", "ties", "slerp"))),
        ("model_x_layer_0_paramset_base_method_linear_param_weights", unit),
        ("model_y_layer_0_paramset_base_method_linear_param_weights", unit),
        ("layer_0_paramset_base_method_task_arithmetic_param_scaling_coefficient", unit),
        ("layer_0_paramset_base_method_ties_param_param_value_mask_rate", FloatDistribution(0.0, 0.99)),
        ("layer_0_paramset_base_method_ties_param_scaling_coefficient", unit),
        ("model_x_layer_0_paramset_base_method_slerp_param_slerp_t", unit),
        ("model_y_layer_0_paramset_base_method_slerp_param_slerp_t", unit),
    ]


def test_methods_come_first_then_groups_then_filters_and_the_base_last():
    genes = list(lfs_distributions(["x"], 4, 2, ["mlp", "self_attn"]))
    assert genes[:2] == ["layer_selection_method_0", "layer_selection_method_1"]
    linear = [gene for gene in genes if "linear" in gene]
    assert linear == [
        f"model_x_layer_{group}_paramset_{part}_method_linear_param_weights"
        for group in (0, 1)
        for part in ("mlp", "self_attn", "base")
    ]


def test_the_published_search_has_112_dimensions_of_which_4_are_choices():
    genes = lfs_distributions(["a", "b", "c"], 40, 10, ["self_attn", "mlp"])
    assert len(genes) == 112
    assert sum(isinstance(each, CategoricalDistribution) for each in genes.values()) == 4


def test_the_initial_design_is_each_source_alone():
    design = lfs_initial(*SMALL)
    assert len(design) == 2
    assert design[1] == {
        "layer_selection_method_0": "linear",
        "model_x_layer_0_paramset_base_method_linear_param_weights": 0.0,
        "model_y_layer_0_paramset_base_method_linear_param_weights": 1.0,
        "layer_0_paramset_base_method_task_arithmetic_param_scaling_coefficient": 0.0,
        "layer_0_paramset_base_method_ties_param_param_value_mask_rate": 0.1,
        "layer_0_paramset_base_method_ties_param_scaling_coefficient": 0.0,
        "model_x_layer_0_paramset_base_method_slerp_param_slerp_t": 0.0,
        "model_y_layer_0_paramset_base_method_slerp_param_slerp_t": 0.0,
    }
    assert all(list(each) == list(lfs_distributions(*SMALL)) for each in design)


def test_linear_keeps_the_weights_as_they_are_in_the_genome():
    changes = {
        "model_x_layer_0_paramset_base_method_linear_param_weights": 0.25,
        "model_y_layer_0_paramset_base_method_linear_param_weights": 0.125,
    }
    assert lfs_decode(genome(changes), *SMALL) == [
        LayerGroup(layers=(0, 2), method="linear", sources=["x", "y"], parameters={"base": {"weight": [0.25, 0.125]}})
    ]


def test_each_group_has_its_own_method_and_each_part_its_own_parameters():
    arguments = (["x", "y"], 6, 3, ["mlp"])
    changes = {
        "layer_selection_method_0": "task_arithmetic",
        "layer_selection_method_1": "ties",
        "layer_0_paramset_mlp_method_task_arithmetic_param_scaling_coefficient": 0.3,
        "layer_0_paramset_base_method_task_arithmetic_param_scaling_coefficient": 0.7,
        "layer_1_paramset_mlp_method_ties_param_param_value_mask_rate": 0.75,
        "layer_1_paramset_mlp_method_ties_param_scaling_coefficient": 0.5,
        "layer_1_paramset_base_method_ties_param_scaling_coefficient": 1.0,
    }
    first, second = lfs_decode(genome(changes, arguments), *arguments)
    assert (first.layers, first.method, first.sources) == ((0, 3), "task_arithmetic", ["x", "y"])
    assert first.parameters == {"mlp": {"weight": 0.3}, "base": {"weight": 0.7}}
    assert (second.layers, second.method) == ((3, 6), "ties")
    assert second.parameters == {"mlp": {"density": 0.25, "lambda": 0.5}, "base": {"density": 0.9, "lambda": 1.0}}


def test_slerp_takes_the_two_sources_with_the_largest_sum_of_scores():
    """Sums: x 0.5, y 1.25, z 0.75. In the part mlp y scores less than z, so that its t is above one half."""
    arguments = (["x", "y", "z"], 1, 1, ["mlp"])
    scores = {"mlp": (0.5, 0.25, 0.75), "base": (0.0, 1.0, 0.0)}
    changes = {
        f"model_{source}_layer_0_paramset_{part}_method_slerp_param_slerp_t": score
        for part, values in scores.items()
        for source, score in zip("xyz", values, strict=True)
    }
    (group,) = lfs_decode(genome({"layer_selection_method_0": "slerp", **changes}, arguments), *arguments)
    assert group.sources == ["y", "z"]
    assert list(group.parameters) == ["mlp", "base"]
    assert group.parameters["mlp"]["t"] == pytest.approx(math.exp(0.75) / (math.exp(0.25) + math.exp(0.75)))
    assert group.parameters["base"]["t"] == pytest.approx(math.exp(0) / (math.exp(1) + math.exp(0)))


def test_of_equal_scores_the_earlier_source_comes_first():
    (group,) = lfs_decode(genome({"layer_selection_method_0": "slerp"}), *SMALL)
    assert group.sources == ["x", "y"]
    assert group.parameters == {"base": {"t": 0.5}}


def test_the_softmax_of_large_scores_does_not_overflow():
    assert slerp_share(2000.0, 0.0) == 0.0
    assert slerp_share(0.0, 2000.0) == 1.0


def test_genes_of_methods_that_are_not_chosen_may_be_absent():
    active = {gene: value for gene, value in genome({}).items() if "slerp" not in gene and "ties" not in gene}
    assert lfs_decode(active, *SMALL) == lfs_decode(genome({}), *SMALL)
    active.pop("model_y_layer_0_paramset_base_method_linear_param_weights")
    with pytest.raises(InvalidInput, match="lacks the gene 'model_y"):
        lfs_decode(active, *SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_selection_method_0": "dare"}, "is one of 'linear'"),
        ({"layer_0_paramset_base_method_ties_param_param_value_mask_rate": 1.0}, "0.99"),
        ({"layer_selection_method_1": "linear"}, "unknown gene"),
    ],
)
def test_genes_that_are_not_in_the_space_are_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        lfs_decode(genome(changes), *SMALL)


def test_slerp_of_a_single_source_is_refused():
    arguments = (["x"], 1, 1, [])
    with pytest.raises(InvalidInput, match="two sources"):
        lfs_decode(genome({"layer_selection_method_0": "slerp"}, arguments), *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["x"], 5, 2, []), "use one of 1, 5"),
        ((["x"], 4, 0, []), "granularity"),
        ((["x"], 4, 2, ["base"]), "another name"),
        ((["x"], 4, 2, ["mlp", "mlp"]), "must differ"),
        (([], 4, 2, []), "1 or more names"),
    ],
)
def test_spaces_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        lfs_distributions(*arguments)
