"""The losses under which a choice learns: by the number of texts, unless they are named."""

from dataclasses import replace

import pytest

from evomerge.errors import InvalidInput
from evomerge.learned import LearnedSettings
from evomerge.learned.granularity_choice import FEW_TEXTS, TRIAL_STEPS, choose_and_learn, planned_choice
from evomerge.learned.learning_items import planned_learning
from evomerge.optimisation.mofo import Mofo

ANSWERS = {"answers": 1}
EXPERTS = {"experts": 1}
SMALL = {"granularity": "chosen", "granularities": ["global"], "penalties": [0], "steps": 2, "trial_steps": 2}


def settings_of(**given):
    return LearnedSettings.model_validate({**SMALL, "stop_every": 1, "batch_size": 2, **given})


def steps_of(built, **given):
    """[losses, others] of every step of a choice."""
    choice = choose_and_learn(built.inputs(built.recipe("task_arithmetic", weight=0.3)), settings_of(**given))
    return [(step.losses, step.others) for step in choice]


def planned(built, **given):
    return planned_choice(built.texts, settings_of(**given), seed=5)


def test_few_texts_are_learned_from_by_the_predictions_of_the_experts(family):
    built = family()
    assert steps_of(built) == steps_of(built, loss=EXPERTS)
    assert planned(built) == planned(built, loss=EXPERTS)
    assert planned(built).forward_tokens > planned(built, loss=ANSWERS).forward_tokens  # the experts read, too


def test_enough_texts_are_learned_from_by_right_answers_alone(family):
    for texts, loss in ((FEW_TEXTS - 1, EXPERTS), (FEW_TEXTS, ANSWERS)):
        built = family(texts=texts)
        assert planned(built, folds=2) == planned(built, folds=2, loss=loss)  # however many folds are asked for


@pytest.mark.parametrize("begin", [planned, steps_of])
def test_one_text_of_a_source_is_refused_with_advice_that_helps(family, begin):
    built = family()
    del built.texts["middle"][1:]
    message = "needs two calibration texts of every source, but there is one of middle; give more, or name"
    for given in ({}, {"stop_share": 0}, {"folds": 1}):
        with pytest.raises(InvalidInput, match=message):
            begin(built, **given)
    with pytest.raises(InvalidInput, match="answers of source 'middle' cannot be permuted"):
        begin(built, labels="permuted")
    advised = settings_of(granularity="tensor", stop_share=0)
    assert planned_learning(built.texts, advised, seed=5).steps == 2


def test_one_source_with_few_texts_is_enough_to_need_the_experts(family):
    built = family(texts=FEW_TEXTS)
    del built.texts["middle"][6:]
    built.texts["right"].clear()  # teaches nothing, and counts for nothing
    assert planned(built) == planned(built, loss=EXPERTS)


@pytest.mark.parametrize("loss", [{"answers": 1}, {"answers": 0.25, "experts": 1}])
def test_a_loss_that_is_named_is_the_loss_of_few_texts_as_well(family, loss):
    built = family()
    named, default = steps_of(built, loss=loss)[0], steps_of(built)[0]
    assert all(named[0][source] > default[0][source] > 0 for source in built.texts)  # what experts say is the surest


def test_permuted_answers_are_not_learned_from_beside_predictions_that_know_the_skill(family):
    built = family()
    assert steps_of(built, labels="permuted") == steps_of(built, labels="permuted", loss=ANSWERS)


def same_texts(family):
    """A family in which all texts of a source are the same: what is learned from one fits those of all folds."""
    built = family()
    for name, texts in built.texts.items():
        built.texts[name] = texts[:1] * 4
    return built


def ended(built, folder, **given):
    """The result of a choice with checkpoints in a folder."""
    inputs = built.inputs(built.recipe("task_arithmetic", weight=0.3), folder)
    choice = choose_and_learn(inputs, settings_of(**given))
    while True:
        try:
            next(choice)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("given", [{"learning_rate": 0.01}, {"learning_rate": 1e-12}, {"folds": 1}])
def test_a_choice_whose_result_was_not_stored_is_not_made_again(family, tmp_path, monkeypatch, given):
    first = ended(family(), tmp_path, **given)
    assert set(first.checkpoints) == set(tmp_path.iterdir())
    monkeypatch.setattr(Mofo, "step", lambda self, gradients: pytest.fail("a step was made"))
    second = ended(family(), tmp_path, **given)
    assert replace(second, seconds=0.0) == replace(first, seconds=0.0)


FALLING = {"loss": ANSWERS, "learning_rate": 0.001, "folds": 2, "trial_steps": None}


def test_trials_of_folds_are_as_long_as_the_result_may_be_while_their_loss_falls(family):
    assert len(steps_of(same_texts(family), **FALLING, steps=5)) == 2 * 5 + 5
    assert len(steps_of(same_texts(family), **{**FALLING, "trial_steps": 3}, steps=5)) == 2 * 3 + 3


@pytest.mark.parametrize("folds", [None, 4])
@pytest.mark.parametrize("texts", [2, 3])
def test_a_source_with_fewer_texts_than_folds_has_each_of_them_kept_for_stopping_once(family, texts, folds):
    built = family()
    built.texts["left"] = built.texts["left"][:texts]
    assert planned(built, folds=folds) == planned(built, folds=texts)
    assert planned(built, folds=folds).steps == 2 * texts + 2
    assert steps_of(built, folds=folds) == steps_of(built, folds=texts)


def test_trials_of_folds_end_when_their_patience_is_over(family):
    too_fast = {**FALLING, "learning_rate": 3}  # no step is better than the start, which is the result
    assert len(steps_of(same_texts(family), **too_fast, steps=5, patience=2)) == 2 * 2


def test_one_division_of_the_texts_needs_no_long_trials_since_the_result_has_a_stop_of_its_own(family):
    one = {**FALLING, "folds": 1, "steps": TRIAL_STEPS + 1}
    assert planned(family(), **one).steps == TRIAL_STEPS + one["steps"]


def test_penalties_are_tried_where_the_loss_has_turned_and_not_where_it_still_falls(family):
    built = same_texts(family)
    penalties = {"penalties": [0, 1]}
    assert len(steps_of(built, **FALLING, **penalties, steps=5)) == 2 * 5 + 5
    turning = {**FALLING, "learning_rate": 0.2, "steps": 6, "patience": 2}
    assert len(steps_of(built, **turning)) == 2 * 3 + 1  # best after one step, and over two steps later
    assert len(steps_of(built, **turning, **penalties)) >= 2 * 2 * 3 + 1


@pytest.mark.parametrize("penalties", [[0], [0, 1]])
def test_what_is_planned_is_the_most_that_a_choice_reads(family, penalties):
    given = {**FALLING, "steps": 3, "penalties": penalties}
    assert planned(family(), **given).steps == len(penalties) * 2 * 3 + 3
