"""Settings of trainings: what the spec gives, what follows from the search, and what is not open to choice."""

import pytest

from evomerge.baselines.training_settings import SearchFacts, search_facts, source_weights, training_settings
from evomerge.errors import InvalidInput
from evomerge.spaces.groups import TensorGroup
from evomerge.spec import BaselineSpec, Calibration, SourceSpec

FACTS = SearchFacts(longest=100, groups={"low": ("a",), "high": ("b",)}, task_weights={"one": 2.0})


def expert(name, **calibration):
    return SourceSpec(name=name, location=name, calibration=Calibration(items=3, **calibration))


def test_texts_weigh_what_their_task_weighs_in_the_objective():
    experts = [expert("one", task="a"), expert("two", task="b"), expert("three", task="b"), expert("four", file="x")]
    assert source_weights(experts, {"a": 1.0, "b": 4.0, "c": 1.0}) == {"one": 1, "two": 2, "three": 2, "four": 2}


def test_weights_do_not_count_where_the_worst_task_does():
    experts, weights = [expert("one", task="a"), expert("two", task="b")], {"a": 1.0, "b": 4.0}
    facts = search_facts(experts, [], longest=None, weights=weights, aggregate="min")
    assert facts.task_weights == {"one": 1, "two": 1}


def test_one_group_of_all_tensors_is_no_division():
    (whole,) = [TensorGroup("", ("a", "b"), (("", 1.0),))]
    assert search_facts([], [whole], longest=None, weights={"a": 1.0}, aggregate="weighted_mean").groups == {}


def test_groups_and_weights_come_from_the_search():
    settings = training_settings(BaselineSpec(name="learned"), FACTS)
    assert settings["granularity"] == "chosen"
    assert settings["groups"] == {"low": ["a"], "high": ["b"]}
    assert settings["task_weights"] == {"one": 2.0}
    assert settings["max_length"] == 100
    assert training_settings(BaselineSpec(name="learned-tensor"), FACTS)["groups"] == {}
    assert training_settings(BaselineSpec(name="fine-tune"), FACTS)["task_weights"] == {"one": 2.0}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("learned", {"task_weights": {"one": 1.0}}, "task_weights of baseline 'learned' follows from the search"),
        ("learned", {"groups": {"a": ["x"]}}, "groups of baseline 'learned' follows from the search"),
        ("learned-column", {"granularity": "tensor"}, "is always 'column'"),
        ("learned", {"granularities": []}, "granularities"),
        ("learned", {"loss": {"answer": 1}}, r"key 'loss\.answer' does not exist"),
        ("fine-tune", {"learning_rate": 0}, "learning_rate"),
        ("fine-tune", {"loss": {"experts": 1}}, "key 'loss' does not exist"),
    ],
)
def test_what_is_not_open_to_choice_is_refused(name, settings, message):
    with pytest.raises(InvalidInput, match=message):
        training_settings(BaselineSpec(name=name, **settings), FACTS)
