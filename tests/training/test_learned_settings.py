"""The settings of the trainer `learned`: what goes together, and what is derived."""

import pytest

from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.learned import LearnedSettings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": {"answers": 0}}, "give answers, experts or entropy one"),
        (
            {"granularity": "tensor", "groups": {"all": ["w"]}},
            "groups are given with granularity: groups, or with chosen",
        ),
        ({"granularity": "column", "basis": "ties"}, "use basis: task_vectors"),
        ({"fold": 4}, "parts of stop_share 0.25 have numbers below 4"),
        ({"task_weights": {"one": 0}}, "greater than 0"),
        ({"granularity": "layer"}, "'global', 'groups', 'tensor' or 'column'"),
        ({"learning_rate": float("inf")}, "finite"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(InvalidInput, match=message):
        validate(LearnedSettings, given, "baseline 'learned'")


def test_the_learning_rate_is_that_of_the_granularity_unless_it_is_given():
    assert LearnedSettings(granularity="column").rate == LearnedSettings(granularity="column", learning_rate=None).rate
    assert LearnedSettings(learning_rate=0.5).rate == 0.5


def test_the_merge_method_follows_from_basis_and_granularity():
    methods = {basis: LearnedSettings(basis=basis).method for basis in ("task_vectors", "ties", "dare")}
    assert methods == {"task_vectors": "task_arithmetic", "ties": "elected_arithmetic", "dare": "dare_linear"}
    assert LearnedSettings(granularity="column").method == "column_arithmetic"


def test_a_loss_that_is_named_takes_the_place_of_right_answers():
    assert LearnedSettings().losses.model_dump() == {"answers": 1, "experts": 0, "entropy": 0}
    assert validate(LearnedSettings, {"loss": {"experts": 1}}, "x").losses.model_dump() == {
        "answers": 0, "experts": 1, "entropy": 0
    }  # fmt: skip


def test_folds_of_a_third_are_three():
    assert LearnedSettings(stop_share=1 / 3, fold=2).fold == 2
