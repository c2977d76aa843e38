"""The trainer `learned`: when it stops, what it starts from, that it resumes to the same bits, and its recipe."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.checkpoints.recipe_files import load_tensors
from evomerge.errors import InvalidInput, MergeError
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.learned import LearnedSettings, train_learned
from evomerge.learned.learned_training import _LearnedTraining
from evomerge.learned.learning_items import LearningItems, planned_learning
from evomerge.merging import merge_state_dicts
from evomerge.recipe import PathLayer
from tests.training.conftest import SOURCES
from tests.training.learned_family import GRANULARITIES, settings_of, train, with_options


def rebuilt(built, recipe):
    """The weights that a recipe gives, in the dtype of the live model."""
    found = {}
    for rule in recipe.rules:
        parameters = dict(rule.parameters)
        if recipe.files:
            stored, _ = load_tensors(built.files, recipe.files["coefficients"])
            parameters["coefficients"] = [{name: each[i] for name, each in stored.items()} for i in range(len(SOURCES))]
        merged = merge_state_dicts(
            rule.method,
            [{name: built.weights[source][name].float() for name in built.names} for source in rule.sources],
            {name: tensor.float() for name, tensor in built.weights["base"].items()},
            parameters,
            rule.options,
            seed=recipe.seed,
        )
        found |= {name: merged[name].to(built.model.dtype) for name in rule.tensors}
    return found


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_at_the_end_the_live_model_holds_what_the_recipe_says_bit_for_bit(family, granularity, stored):
    built = family("qwen2", "bfloat16", stored)
    _, result = train(built, granularity=granularity, learning_rate=0.03)
    assert sorted(name for rule in result.recipe.rules for name in rule.tensors) == list(built.names)
    expected = rebuilt(built, result.recipe)
    assert all(torch.equal(built.live[name], expected[name]) for name in built.names)
    assert {rule.method for rule in result.recipe.rules} == {
        "column_arithmetic" if granularity == "column" else "task_arithmetic"
    }
    assert bool(result.recipe.files) == (granularity == "column")


@pytest.mark.parametrize(("basis", "method"), [("ties", "elected_arithmetic"), ("dare", "dare_linear")])
def test_a_trimmed_basis_ends_in_a_recipe_of_its_method(family, basis, method):
    built = family()
    initial = built.recipe(method, weight=0.3, **({"density": 0.5} if basis == "ties" else {"drop_rate": 0.5}))
    _, result = train(built, initial, basis=basis, density=0.5)
    assert {rule.method for rule in result.recipe.rules} == {method}
    assert result.recipe != initial
    for rule in result.recipe.rules:
        assert {**rule.parameters, "weight": None} == {**initial.rules[0].parameters, "weight": None}


def test_coefficients_fall_apart_only_as_far_as_their_granularity_allows(family):
    built = family()
    rules = {each: len(train(built, granularity=each)[1].recipe.rules) for each in ("global", "groups", "tensor")}
    assert rules == {"global": 1, "groups": 3, "tensor": len(built.names)}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_loss_on_answers_falls(family, granularity):
    built = with_options(family())
    _, result = train(built, granularity=granularity, steps=20, stop_share=0, batch_size=6, learning_rate=0.02)
    assert sum(result.after.values()) < 0.98 * sum(result.before.values())


@pytest.mark.parametrize("loss", ["experts", "entropy"])
def test_without_labels_no_token_of_the_answer_after_the_first_position_matters(family, loss):
    built = family()
    changed = {
        name: [CalibrationText((*text.tokens[: text.answer], 7, 8), text.answer) for text in texts]
        for name, texts in built.texts.items()
    }
    given = {"loss": {"answers": 0, loss: 1}, "positions": "first"}
    assert train(built, **given)[1].recipe == train(replace(built, texts=changed), **given)[1].recipe


def test_sources_of_another_dtype_teach_as_well(family):
    built = family("llama", "float32", stored="bfloat16")
    _, result = train(built, loss={"experts": 1, "answers": 0}, stop_share=0, learning_rate=0.02, steps=8)
    assert sum(result.after.values()) < sum(result.before.values())


def test_the_wrong_options_of_an_item_matter(family):
    built = with_options(family())
    other = replace(
        built,
        texts={
            name: [replace(text, others=tuple(replace(each, tokens=(*each.tokens, 5)) for each in text.others))
                   for text in texts]
            for name, texts in built.texts.items()
        },
    )  # fmt: skip
    assert train(built)[0][0].losses != train(other)[0][0].losses


def test_a_step_too_far_never_makes_the_result_worse_than_the_start(family):
    built = family()
    initial = built.recipe("task_arithmetic", weight=0.3)
    steps, result = train(built, initial, learning_rate=5.0, steps=3, stop_every=1)
    assert result.best_step == 0
    assert result.after == result.before
    assert result.recipe.digest == train(family(), initial, learning_rate=1e-30, steps=1)[1].recipe.digest
    assert all(step.others["stop loss"] > sum(result.before.values()) / 3 for step in steps)


def test_the_result_is_the_best_of_the_stop_curve(family):
    def alike():
        built = family()
        return replace(built, texts={name: [texts[0], *texts[:2]] * 2 for name, texts in built.texts.items()})

    given = {"stop_every": 2, "learning_rate": 0.8, "stop_share": 0.5}
    steps, result = train(alike(), steps=20, **given)
    curve = [sum(result.before.values()) / 3, *(step.others["stop loss"] for step in steps)]
    assert sum(result.after.values()) / 3 == pytest.approx(min(curve))
    assert curve[result.best_step] == min(curve)
    assert result.best_step in range(2, 20, 2)
    shorter = train(alike(), steps=result.best_step, **given)[1]
    assert shorter.recipe == result.recipe


def test_it_ends_when_its_patience_is_over(family):
    steps, result = train(family(), learning_rate=5.0, steps=50, stop_every=2, patience=3)
    assert result.best_step == 0
    assert len(steps) == result.steps == 6


def test_without_a_stop_share_all_texts_are_learned_from_and_the_last_step_is_the_result(family):
    steps, result = train(family(), learning_rate=5.0, steps=3, stop_share=0)
    assert (len(steps), result.best_step) == (3, 3)
    assert sum(result.after.values()) > sum(result.before.values())
    assert "stop loss" not in steps[0].reported


def test_a_penalty_keeps_the_coefficients_near_the_start(family):
    def distance(penalty):
        built = family()
        _, result = train(built, steps=10, learning_rate=0.05, stop_share=0, penalty=penalty)
        return sum((weight - 0.3) ** 2 for rule in result.recipe.rules for weight in rule.parameters["weight"])

    assert distance(100.0) < 0.1 * distance(0.0)


def test_a_source_of_more_weight_ends_with_less_loss(family):
    def after(weight):
        given = {"steps": 20, "stop_share": 0, "batch_size": 6, "learning_rate": 0.02, "task_weights": {"left": weight}}
        return train(family(), **given)[1].after["left"]

    assert after(10.0) < after(0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {"granularity": "tensor"},
        {"granularity": "column", "penalty": 0.1},
        {"granularity": "global", "basis": "dare", "initial": 0.4},
        {"granularity": "groups", "loss": {"experts": 1, "entropy": 0.1}},
        {"granularity": "tensor", "stop_share": 0},
    ],
)
def test_a_killed_training_continues_to_the_same_bits(family, tmp_path, settings):
    given = {"steps": 8, "learning_rate": 0.05, "checkpoint_every": 3, "stop_every": 2} | settings
    whole = with_options(family())
    expected_steps, expected = train(whole, **given)

    killed = with_options(family())
    initial = killed.recipe("task_arithmetic", weight=0.3)
    training = train_learned(killed.inputs(initial, tmp_path), settings_of(killed, **given))
    for _ in range(4):  # the last checkpoint is after the third step
        next(training)
    training.close()

    made = []
    second = with_options(family())
    with pytest.MonkeyPatch.context() as patch:
        step = _LearnedTraining.step
        patch.setattr(_LearnedTraining, "step", lambda self: made.append(1) or step(self))
        steps, found = train(second, initial, tmp_path, **given)
    assert len(made) == len(expected_steps) - 3
    assert steps == expected_steps
    assert replace(found, seconds=0.0, checkpoints=()) == replace(expected, seconds=0.0)
    assert all(torch.equal(second.live[name], whole.live[name]) for name in whole.live)


def test_a_training_that_has_ended_makes_no_step_again(family, tmp_path):
    given = {"learning_rate": 5.0, "steps": 50, "stop_every": 2, "patience": 3}
    _, expected = train(family(), checkpoints=tmp_path, **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_LearnedTraining, "step", None)
        steps, found = train(family(), checkpoints=tmp_path, **given)
    assert len(steps) == 6
    assert found.recipe == expected.recipe


def test_a_checkpoint_of_another_training_is_ignored(family, tmp_path):
    train(family(), checkpoints=tmp_path, steps=2)
    for change in ({"learning_rate": 0.1}, {"fold": 1}, {"steps": 3}, {"initial": 0.4}, {"penalty": 1.0}):
        train(family(), checkpoints=tmp_path, **{"steps": 2} | change)
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("loss", [{"answers": 1}, {"answers": 1, "experts": 1}, {"answers": 0, "entropy": 1}])
@pytest.mark.parametrize("stop_share", [0.0, 0.5])
def test_the_tokens_that_it_reads_are_known_beforehand(family, loss, stop_share):
    built = with_options(family())
    given = {"loss": loss, "steps": 5, "stop_every": 2, "stop_share": stop_share, "patience": 9}
    _, result = train(built, **given)
    planned = planned_learning(built.texts, settings_of(built, **given), 5)
    assert (planned.steps, planned.gradient_tokens, planned.forward_tokens) == (
        5,
        result.gradient_tokens,
        result.forward_tokens,
    )


def test_the_folds_of_a_source_are_all_of_its_texts_and_share_none(family):
    built = family(texts=7)
    folds = [LearningItems(built.texts, settings_of(built, stop_share=1 / 3, fold=fold), 5) for fold in range(3)]
    for source, texts in built.texts.items():
        kept = [text for items in folds for text in items.stop[source]]
        assert sorted(kept, key=repr) == sorted(texts, key=repr)
        for items in folds:
            assert sorted([*items.learned[source], *items.stop[source]], key=repr) == sorted(texts, key=repr)


def test_every_text_is_learned_once_before_any_twice(family):
    for count in (6, 7):  # texts, of which a step takes two
        built = family(texts=count)
        items = LearningItems(built.texts, settings_of(built, stop_share=0), 5)
        read = [text for number in range(count) for text in items.step(number)["left"]]
        first, second = read[:count], read[count:]
        assert sorted(first, key=repr) == sorted(second, key=repr) == sorted(built.texts["left"], key=repr)
        assert first != second


def test_a_source_with_few_texts_gives_all_of_them_at_every_step(family):
    built = family()
    few = replace(built, texts={**built.texts, "left": built.texts["left"][:2]})
    items = LearningItems(few.texts, settings_of(built, batch_size=4, stop_share=0.5), 5)
    assert {source: len(texts) for source, texts in items.step(1).items()} == {"left": 1, "middle": 3, "right": 3}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_its_own_result_is_where_another_training_starts(family, granularity):
    built = family()
    _, first = train(built, granularity=granularity, steps=6, learning_rate=0.02)
    _, second = train(built, first.recipe, granularity=granularity, steps=1, learning_rate=1e-30)
    assert second.before == pytest.approx(first.after, rel=1e-6)
    assert second.recipe.digest == first.recipe.digest


@pytest.mark.parametrize(
    ("method", "given", "settings", "message"),
    [
        ("ties", {}, {}, "cannot start from a merge by ties"),
        ("linear", {"options": {"normalize": False}}, {}, "do not sum to 1"),
        ("task_arithmetic", {}, {"basis": "ties"}, "by elected_arithmetic with .*density"),
    ],
)
def test_a_recipe_that_such_coefficients_cannot_give_is_refused(family, method, given, settings, message):
    built = family()
    with pytest.raises(InvalidInput, match=message):
        train(built, built.recipe(method, **given), **settings)


def test_tensors_of_different_weights_cannot_begin_with_one(family):
    built = family()
    half = built.recipe("task_arithmetic", tensors=built.names[:3], weight=0.3)
    with pytest.raises(InvalidInput, match="weighs the tensors of 'all' differently"):
        train(built, half, granularity="global")
    assert train(built, half, granularity="global", initial=0.3)[1].recipe.rules


def test_wrong_inputs_are_refused_with_what_is_allowed(family):
    built = family()
    with pytest.raises(InvalidInput, match="did you mean 'left'"):
        train(replace(built, texts={**built.texts, "lefft": built.texts["left"]}))
    with pytest.raises(InvalidInput, match="did you mean 'left'"):
        train(built, task_weights={"lefft": 2.0})
    with pytest.raises(InvalidInput, match="no source has calibration texts"):
        train(replace(built, texts={"left": []}))
    with pytest.raises(InvalidInput, match="one calibration text, which cannot be trained on and kept"):
        train(replace(built, texts={**built.texts, "left": built.texts["left"][:1]}))
    with pytest.raises(InvalidInput, match="in which nothing counts where the positions are 'answer'"):
        train(replace(built, texts={**built.texts, "left": [CalibrationText((1,), 1)] * 4}))
    unknown = LearnedSettings(granularity="groups", groups={"g": ("nothing",)})
    with pytest.raises(InvalidInput, match="groups name tensors that are not merged: nothing"):
        train(built, settings=unknown)
    twice = LearnedSettings(granularity="groups", groups={"a": built.names[:1], "b": built.names[:2]})
    with pytest.raises(InvalidInput, match="a tensor has one group"):
        train(built, settings=twice)
    with pytest.raises(InvalidInput, match="this recipe has a path of layers"):
        train(built, replace(built.recipe(), layers=(PathLayer(source="left", layer=0, scale=1.0),)))
    alone = replace(built.recipe(), sources=(built.recipe().base,))
    with pytest.raises(InvalidInput, match="there is no source beside the base"):
        train(built, alone)


def test_a_gradient_that_is_not_finite_says_the_step_and_what_to_change(family):
    built = family()
    with pytest.raises(MergeError, match=r"step 2 of the training is not finite.*smaller learning_rate than 1e\+38"):
        train(built, steps=3, learning_rate=1e38)
    assert all(not tensor.requires_grad and tensor.grad is None for tensor in built.model.parameters())


def test_n13_global_generators_and_mode_are_untouched_and_sources_never_written_to(family):
    built = with_options(family("llama", "float32", stored="bfloat16"))
    before = {name: {key: each.clone() for key, each in source.items()} for name, source in built.weights.items()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    train(built, loss={"answers": 1, "experts": 1, "entropy": 1})
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert not built.model.training
    assert all(not tensor.requires_grad and tensor.grad is None for tensor in built.model.parameters())
    for name, source in built.weights.items():
        assert all(torch.equal(source[key], before[name][key]) for key in source)
