"""Spaces made of the baselines: corners are the baselines, everything else a weighted sum of them."""

import pytest

from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.recipe import Recipe, copying_rule
from evomerge.recipe_spaces.checks import check_recipe_space
from evomerge.recipe_spaces.corner import nearest_corner
from evomerge.spaces import known_spaces, load_space
from evomerge.spaces.space import SearchSpace

LABELS = ("soup", "ties", "dam")


@pytest.fixture
def merges(whole):
    """Label -> recipe, the best first: not in the order of the spec."""
    return {
        "dam": whole("task_arithmetic", (0.5, 0.4, 0.3)),
        "soup": whole("linear", (1.0, 1.0, 1.0)),
        "ties": whole("task_arithmetic", (0.1, 0.2, 0.3)),
    }


@pytest.fixture
def unmade(bound):
    return bound(load_space("baselines-per-block"), LABELS)


@pytest.fixture
def space(unmade, merges):
    return unmade.with_recipes(merges)


def test_what_is_searched_follows_from_the_labels_alone(unmade, space):
    assert list(unmade.distributions) == [
        f"{block}.{label}.weight" for block in ("layers0-1", "layers2-3") for label in LABELS
    ]
    assert unmade.distributions == space.distributions
    assert set(unmade.centre.values()) == {1 / 3}
    with pytest.raises(InvalidInput, match="have not been made yet"):
        unmade.decode(unmade.centre)


def test_the_first_points_are_the_merges_themselves_the_best_first(space, merges):
    assert [space.decode(point).digest for point in space.initial] == [each.digest for each in merges.values()]
    assert space.decode(space.centre) == merges["dam"]
    assert space.first_step < 1


def test_a_group_of_one_merge_is_copied_and_others_are_sums_of_those_with_a_weight(space, merges):
    point = {**space.corner("dam"), "layers0-1.soup.weight": 0.5, "layers0-1.dam.weight": -0.25}
    recipe = space.decode(point)
    first, second = recipe.rules
    assert (first.method, first.sources, first.parameters) == (
        "task_arithmetic",
        ("soup", "dam"),
        {"weight": (0.5, -0.25)},
    )
    assert second == copying_rule("dam", space.groups[1].tensors)
    assert recipe.ingredients == {"soup": merges["soup"], "dam": merges["dam"]}
    assert [each.name for each in recipe.sources] == ["red", "green", "blue"]
    assert Recipe.from_json(recipe.to_json()).digest == recipe.digest


def test_a_merge_that_could_not_be_made_has_no_weight_anywhere(unmade, merges):
    space = unmade.with_recipes({label: merges[label] for label in ("dam", "soup")})
    assert {name for name, each in space.distributions.items() if each.single()} == {
        "layers0-1.ties.weight",
        "layers2-3.ties.weight",
    }
    assert len(space.initial) == 2
    recipe = space.decode({**space.centre, "layers0-1.soup.weight": 0.5})
    assert set(recipe.ingredients) == {"soup", "dam"}
    nothing = space.decode(dict.fromkeys(space.distributions, 0.0))
    assert nothing.rules[0].parameters == {"weight": (0.0, 0.0)}  # task arithmetic of nothing is the base


def test_recipes_of_the_space_and_its_merges_have_a_place_and_others_have_none(space, unmade, merges, whole):
    assert space.params_of(merges["ties"]) == space.corner("ties")
    point = {name: 0.1 * number for number, name in enumerate(space.distributions)}
    assert space.params_of(space.decode(point)) == pytest.approx(point)
    assert space.params_of(whole("task_arithmetic", (0.9, 0.9, 0.9))) is None
    others = unmade.with_recipes({**merges, "ties": whole("task_arithmetic", (0.9, 0.9, 0.9))})
    assert space.params_of(others.decode(point)) is None


def test_a_trial_grew_from_the_merge_with_the_largest_mean_weight(space):
    point = {**space.corner("soup"), "layers0-1.soup.weight": 0.5, "layers0-1.dam.weight": 0.9}
    assert nearest_corner(space.space, point, space.made) == "soup"
    assert nearest_corner(space.space, {**point, "layers2-3.dam.weight": 0.8}, space.made) == "dam"
    assert nearest_corner(space.space, dict.fromkeys(point, 0.3), space.made) == "dam"  # the best of equals


def document(**changes):
    weight = {"low": -0.25, "high": 1.25}
    return {
        "name": "mix",
        "from": "baselines",
        "groups": {"depth": "global"},
        "methods": {"task_arithmetic": {"parameters": {"weight": weight}}},
        **changes,
    }


def test_a_stored_space_names_its_kind_and_others_do_not():
    stored = validate(SearchSpace, document(), "space").model_dump(mode="json", by_alias=True)
    assert stored["from"] == "baselines"
    assert validate(SearchSpace, stored, "space") == validate(SearchSpace, document(), "space")
    plain = load_space("task-arithmetic-per-block").model_dump(mode="json", by_alias=True)
    assert not {"from", "origin", "around", "factor"} & set(plain)


@pytest.mark.parametrize("name", [name for name in known_spaces() if load_space(name).origin == "baselines"])
def test_in_every_shipped_space_the_ends_of_the_ranges_are_merges_that_differ(bound, merges, name):
    space = bound(load_space(name), LABELS).with_recipes(merges)
    check_recipe_space(space.space)
    points = [{**space.centre, param: each.low} for param, each in space.distributions.items()]
    assert len({space.decode(point).digest for point in (space.centre, *points)}) == 1 + len(points)
