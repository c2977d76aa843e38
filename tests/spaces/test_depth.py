"""The genome of depth-wise integration against small cases that are enumerated by hand."""

from itertools import permutations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from evomerge.errors import InvalidInput
from evomerge.spaces.depth import PathLayer, dis_distributions, dis_initial, dis_orders, dis_path


def genome(changes, *arguments):
    """The first source's own stack with some genes changed."""
    return {**dis_initial(*arguments)[0], **changes}


def test_the_genes_of_two_sources_and_one_free_layer():
    assert list(dis_distributions(["a", "b"], 3, 1, 1).items()) == [
        ("scale_0", FloatDistribution(0.0, 2.0)),
        ("layer_0_permutation_selection", CategoricalDistribution(("0", "1"))),
        ("layer_0_block_0_selection", CategoricalDistribution(("0", "1"))),
        ("layer_0_block_1_selection", CategoricalDistribution(("0", "1"))),
    ]


def test_the_published_search_has_200_dimensions_of_which_160_are_choices():
    genes = dis_distributions(["a", "b", "c"], 40)
    assert len(genes) == 200
    assert sum(isinstance(each, CategoricalDistribution) for each in genes.values()) == 160
    assert genes["layer_39_permutation_selection"].choices == tuple("012345")


def test_orders_of_single_layers_are_all_permutations():
    assert dis_orders(3) == sorted(permutations(range(3)))
    assert dis_orders(1) == [(0,)]


def test_orders_keep_the_order_of_the_layers_of_a_source():
    """Source 0 has blocks 0 and 2, source 1 has 1 and 3."""
    assert dis_orders(2, 2) == [(0, 1, 2, 3), (0, 1, 3, 2), (0, 2, 1, 3), (1, 0, 2, 3), (1, 0, 3, 2), (1, 3, 0, 2)]


@pytest.mark.parametrize(("n", "granularity"), [(2, 3), (3, 2), (1, 4)])
def test_orders_are_the_permutations_that_keep_each_source_in_order(n, granularity):
    kept = [
        order
        for order in permutations(range(n * granularity))
        if all(sorted(own) == own for own in ([b for b in order if b % n == source] for source in range(n)))
    ]
    assert dis_orders(n, granularity) == kept


def test_the_initial_design_is_each_source_by_itself():
    first, second = dis_initial(["a", "b"], 4, 2)
    assert first == {
        "scale_0": 1.0,
        "layer_0_permutation_selection": "0",
        "layer_0_block_0_selection": "1",
        "layer_0_block_1_selection": "0",
        "layer_0_block_2_selection": "1",
        "layer_0_block_3_selection": "0",
        "scale_1": 1.0,
        "layer_1_permutation_selection": "0",
        "layer_1_block_0_selection": "1",
        "layer_1_block_1_selection": "0",
        "layer_1_block_2_selection": "1",
        "layer_1_block_3_selection": "0",
    }
    assert list(first) == list(dis_distributions(["a", "b"], 4, 2))
    assert dis_path(second, ["a", "b"], 4, 2) == [PathLayer("b", layer, 1.0) for layer in range(4)]


def test_fixed_layers_are_those_of_the_first_source():
    second = dis_initial(["a", "b"], 4, 1, 1)[1]
    assert [(each.source, each.layer) for each in dis_path(second, ["a", "b"], 4, 1, 1)] == [
        ("a", 0),
        ("b", 1),
        ("b", 2),
        ("a", 3),
    ]


def test_selected_blocks_run_in_the_chosen_order_and_the_last_is_scaled():
    changes = {"layer_0_block_1_selection": "1", "layer_0_permutation_selection": "1", "scale_0": 0.5}
    assert dis_path(genome(changes, ["a", "b"], 2), ["a", "b"], 2) == [
        PathLayer("b", 0, 1.0),
        PathLayer("a", 0, 0.5),
        PathLayer("a", 1, 1.0),
    ]


def test_an_order_leaves_out_the_blocks_that_are_not_selected():
    """Order 3 of two sources with two layers is 1, 0, 2, 3: of these 0, 2 and 3 are selected."""
    changes = {"layer_0_block_3_selection": "1", "layer_0_permutation_selection": "3", "scale_0": 1.5}
    assert dis_path(genome(changes, ["a", "b"], 4, 2, 1), ["a", "b"], 4, 2, 1) == [
        PathLayer("a", 0, 1.0),
        PathLayer("a", 1, 1.0),
        PathLayer("a", 2, 1.0),
        PathLayer("b", 2, 1.5),
        PathLayer("a", 3, 1.0),
    ]


def test_the_base_gives_the_layers_of_a_position_without_a_selected_block():
    changes = {"layer_1_block_0_selection": "0", "layer_1_block_1_selection": "0", "scale_1": 0.25}
    path = dis_path(genome(changes, ["a"], 4, 2), ["a"], 4, 2, base="root")
    assert path == [
        PathLayer("a", 0, 1.0),
        PathLayer("a", 1, 1.0),
        PathLayer("root", 2, 1.0),
        PathLayer("root", 3, 0.25),
    ]


def test_a_path_over_the_budget_is_refused():
    everything = {gene: "1" if "block" in gene else value for gene, value in dis_initial(["a", "b"], 3)[0].items()}
    assert len(dis_path(everything, ["a", "b"], 3, max_layers=6)) == 6
    with pytest.raises(InvalidInput, match="6 layers, and at most 5"):
        dis_path(everything, ["a", "b"], 3, max_layers=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_0": 2.5}, "is in"),
        ({"scale_0": float("nan")}, "finite number"),
        ({"layer_0_permutation_selection": "2"}, "is one of '0', '1'"),
        ({"layer_0_block_0_selection": 1}, "a string"),
        ({"layer_9_block_0_selection": "1"}, "unknown gene"),
    ],
)
def test_genes_that_are_not_in_the_space_are_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        dis_path(genome(changes, ["a", "b"], 2), ["a", "b"], 2)


def test_an_incomplete_genome_is_refused():
    incomplete = dis_initial(["a", "b"], 2)[0]
    del incomplete["scale_1"]
    with pytest.raises(InvalidInput, match="lacks the gene 'scale_1'"):
        dis_path(incomplete, ["a", "b"], 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 4), "1 or more names"),
        (("ab", 4), "list of names"),
        ((["a", "a"], 4), "must differ"),
        ((["a"], 0), "layers is an integer"),
        ((["a"], 5, 2), "use one of 1, 5"),
        ((["a"], 6, 1, 3), "fix fewer"),
        ((["a"], 4, 0), "granularity"),
        ((["a"], 4, 1, -1), "fix_layers"),
        ((["a", "b", "c"], 9, 9), "smaller granularity"),
    ],
)
def test_spaces_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        dis_distributions(*arguments)
