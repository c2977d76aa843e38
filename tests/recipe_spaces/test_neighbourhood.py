"""Spaces around one merge: its coefficients times a factor per source and group."""

from dataclasses import replace

import pytest

from evomerge.baselines.info import BASELINES
from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.recipe_spaces.checks import check_recipe_space
from evomerge.spaces import known_spaces, load_space
from evomerge.spaces.space import SearchSpace


def document(**changes):
    factor = {"low": 0.5, "high": 1.5}
    return {"name": "near", "around": "learned", "groups": {"depth": {"blocks": 2}}, "factor": factor, **changes}


@pytest.fixture
def around(bound):
    """around(recipe) -> the space around it."""

    def made(recipe, **changes):
        return bound(validate(SearchSpace, document(**changes), "space"), ["learned"]).with_recipes({"learned": recipe})

    return made


def test_with_all_factors_1_it_is_the_recipe_itself(around, whole):
    recipe = whole("linear", (1.0, 2.0, 3.0))
    space = around(recipe)
    assert list(space.distributions)[:2] == ["layers0-1.red.factor", "layers0-1.green.factor"]
    assert space.initial == (space.centre,)
    assert space.decode(space.centre) is recipe
    assert space.params_of(recipe) == space.centre
    assert space.params_of(whole("linear", (1.0, 2.0, 4.0))) is None


def test_a_factor_multiplies_the_weight_of_its_source_in_its_group_alone(around, whole):
    recipe = whole("dare_linear", (0.5, 0.4, 0.3), drop_rate=(0.1, 0.2, 0.3))
    space = around(recipe)
    first, second = space.decode({**space.centre, "layers0-1.green.factor": 0.5}).rules
    assert set(first.tensors) == set(space.groups[0].tensors)
    assert first.parameters == {"drop_rate": (0.1, 0.2, 0.3), "weight": (0.5, 0.2, 0.3)}
    assert second.parameters == recipe.rules[0].parameters
    assert (first.method, first.options) == ("dare_linear", recipe.rules[0].options)


def test_coefficients_in_a_file_are_multiplied_by_the_factor_of_the_method(around, whole):
    recipe = replace(whole("column_arithmetic", (1.0, 1.0, 1.0)), files={"coefficients": "d1"})
    space = around(recipe)
    changed = space.decode({**space.centre, "layers2-3.red.factor": 1.25})
    assert changed.files == recipe.files
    assert [rule.parameters["weight"] for rule in changed.rules] == [(1.0, 1.0, 1.0), (1.25, 1.0, 1.0)]


def test_the_shares_of_an_average_are_multiplied_as_task_vectors(around, whole):
    space = around(whole("linear", (1.0, 2.0, 1.0)))
    first, second = space.decode({**space.centre, "layers0-1.green.factor": 1.5}).rules
    assert (first.method, first.parameters) == ("task_arithmetic", {"weight": (0.25, 0.75, 0.25)})
    assert second.method == "linear"


def test_the_share_of_the_base_is_what_the_others_leave(around, whole):
    space = around(whole("linear", (0.5, 0.25, 0.25), sources=("base", "red", "blue")))
    first, _ = space.decode({**space.centre, "layers0-1.red.factor": 1.2}).rules
    assert first.sources == ("red", "blue")
    assert first.parameters == {"weight": (0.25 * 1.2, 0.25)}


def test_normalised_task_arithmetic_is_multiplied_after_the_division(around, whole):
    space = around(whole("task_arithmetic", (1.0, 1.0, 2.0), normalize=True))
    first, _ = space.decode({**space.centre, "layers0-1.blue.factor": 0.5}).rules
    assert first.parameters == {"weight": (0.25, 0.25, 0.25)}
    assert first.options["normalize"] is False


def test_one_factor_may_be_shared_by_all_groups(around, whole):
    space = around(whole("task_arithmetic", (1.0, 1.0, 2.0)), factor={"low": 0.5, "high": 1.5, "shared": "all"})
    assert list(space.distributions) == ["factor"]
    rules = space.decode({"factor": 0.5}).rules
    assert [rule.parameters["weight"] for rule in rules] == [(0.5, 0.5, 1.0)] * 2


SHIPPED = [name for name in known_spaces() if load_space(name).around]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_space_is_around_a_baseline_and_the_ends_of_its_ranges_are_other_merges(bound, whole, name):
    space = load_space(name)
    check_recipe_space(space)
    assert BASELINES[space.around].one_model_before
    made = bound(space, [space.around]).with_recipes({space.around: whole("task_arithmetic", (0.5, 0.4, 0.3))})
    points = [{**made.centre, param: each.high} for param, each in made.distributions.items()]
    assert len({made.decode(point).digest for point in (made.centre, *points)}) == 1 + len(points)


@pytest.mark.parametrize(
    ("method", "weights", "more", "message"),
    [
        ("ties", (1.0, 1.0, 1.0), {"density": (0.2, 0.2, 0.2), "lambda": 1.0}, "merged by ties, which is not linear"),
        (
            "elected_arithmetic",
            (1.0, 1.0, 1.0),
            {"density": (0.2, 0.2, 0.2), "trim_scope": "layer_group"},
            "trims over the groups of its own space",
        ),
        ("linear", (1.0, 1.0, 1.0), {"normalize": False}, "weights do not sum to 1"),
    ],
)
def test_a_merge_whose_coefficients_cannot_be_multiplied_is_refused(around, whole, method, weights, more, message):
    with pytest.raises(InvalidInput, match=message):
        around(whole(method, weights, **more))
