"""The losses under which a choice learns: by the number of texts, unless they are named."""

import pytest

from evomerge.learned import LearnedSettings
from evomerge.learned.granularity_choice import FEW_TEXTS, choose_and_learn, planned_choice

ANSWERS = {"answers": 1}
BOTH = {"answers": 0.25, "experts": 1}
SMALL = {"granularity": "chosen", "granularities": ["global"], "penalties": [0], "steps": 2, "trial_steps": 2}


def settings_of(**given):
    return LearnedSettings.model_validate({**SMALL, "stop_every": 1, "batch_size": 2, **given})


def steps_of(built, **given):
    """[losses, others] of every step of a choice."""
    choice = choose_and_learn(built.inputs(built.recipe("task_arithmetic", weight=0.3)), settings_of(**given))
    return [(step.losses, step.others) for step in choice]


def planned(built, **given):
    return planned_choice(built.texts, settings_of(**given), seed=5)


def test_few_texts_are_learned_from_with_the_predictions_of_the_experts(family):
    built = family()
    assert steps_of(built) == steps_of(built, loss=BOTH)
    assert planned(built) == planned(built, loss=BOTH)
    assert planned(built).forward_tokens > planned(built, loss=ANSWERS).forward_tokens  # the experts read, too


def test_enough_texts_are_learned_from_by_right_answers_alone(family):
    for texts, loss in ((FEW_TEXTS - 1, BOTH), (FEW_TEXTS, ANSWERS)):
        built = family(texts=texts)
        assert planned(built, folds=2) == planned(built, folds=2, loss=loss)  # however many folds are asked for


def test_one_source_with_few_texts_is_enough_to_need_the_experts(family):
    built = family(texts=FEW_TEXTS)
    del built.texts["middle"][6:]
    built.texts["right"].clear()  # teaches nothing, and counts for nothing
    assert planned(built) == planned(built, loss=BOTH)


@pytest.mark.parametrize("loss", [{"answers": 0.25}, {"experts": 1}])
def test_a_loss_that_is_named_is_the_loss_of_few_texts_as_well(family, loss):
    built = family()
    named, default = steps_of(built, loss=loss)[0], steps_of(built)[0]
    assert all(0 < named[0][source] < default[0][source] for source in built.texts)  # parts of the sum


def test_permuted_answers_are_not_learned_from_beside_predictions_that_know_the_skill(family):
    built = family()
    assert steps_of(built, labels="permuted") == steps_of(built, labels="permuted", loss=ANSWERS)
