"""Trainings of tiny models: what they start from, that they learn, and that a killed one goes on to the same bits."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.checkpoints.recipe_files import load_tensors
from evomerge.documents import validate
from evomerge.errors import InvalidInput, MergeError
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.merging import merge_state_dicts
from evomerge.optimisation.batches import CalibrationBatches
from evomerge.optimisation.coefficients import initial_coefficients, roles_of
from evomerge.optimisation.mofo import Mofo
from evomerge.training import DamSettings
from tests.training.conftest import KINDS, SOURCES

ALL = ["linear", "bias", "norm", "embedding"]


def stored(family, recipe):
    return load_tensors(family.files, recipe.files["coefficients"])[0]


def merged_by_definition(family, recipe):
    """The recipe's weights as `merge_state_dicts` gives them, in the dtype of the live model."""
    (rule,) = recipe.rules
    values = stored(family, recipe)
    coefficients = [{name: value[index] for name, value in values.items()} for index in range(len(rule.sources))]
    merged = merge_state_dicts(
        rule.method,
        [{key: each.float() for key, each in family.weights[name].items()} for name in rule.sources],
        parameters={"coefficients": coefficients},
        options=rule.options,
    )
    return {name: tensor.to(family.model.dtype) for name, tensor in merged.items()}


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_loss_falls_below_the_uniform_average_on_every_source(family, kind):
    built = family(kind)
    trained = built.train(epochs=8, batch_size=3, learning_rate=0.01, trainable=ALL)
    assert trained.before.keys() == trained.after.keys() == set(SOURCES)
    assert all(trained.after[name] < 0.9 * trained.before[name] for name in SOURCES)
    assert trained.steps == len(built.steps) == 16
    assert built.steps[-1].step == built.steps[-1].steps == 16
    assert set(built.steps[0].losses) == set(SOURCES)
    assert set(built.steps[0].penalties) == {"similarity"}


@pytest.mark.parametrize(
    ("dtype", "stored_dtype"), [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]
)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_at_the_end_the_live_model_holds_what_the_recipe_says_bit_for_bit(family, kind, dtype, stored_dtype):
    built = family(kind, dtype, stored_dtype)
    trained = built.train(steps=3, learning_rate=0.01, trainable=ALL, phi="tanh")
    expected = merged_by_definition(built, trained.recipe)
    live = built.live
    assert live.keys() == expected.keys()
    assert all(torch.equal(live[name], expected[name]) for name in live)
    values = stored(built, trained.recipe)
    assert all(value.dtype == torch.float32 and len(value) == 3 for value in values.values())
    assert trained.recipe.rules[0].sources == SOURCES
    assert trained.recipe.dtype == dtype


def test_sources_of_another_dtype_teach_what_they_would_say_in_the_live_one(family):
    exact, rounded = family("llama"), family("llama", "float32", "bfloat16")
    wide = {name: {key: each.float() for key, each in source.items()} for name, source in rounded.weights.items()}
    same_numbers = replace(exact, weights=wide, texts=rounded.texts)
    first = rounded.train(steps=3)
    second = same_numbers.train(steps=3)
    assert [step.losses for step in rounded.steps] == [step.losses for step in same_numbers.steps]
    assert first.recipe.files == second.recipe.files
    assert (first.before, first.after) == (second.before, second.after)


@pytest.mark.parametrize("phi", ["identity", "tanh", "sigmoid", "relu"])
def test_phi_of_the_first_coefficients_is_the_mean(family, phi):
    built = family("qwen2")
    built.train(steps=1, learning_rate=1e-12, phi=phi, trainable=ALL, weight_decay=0)
    soup = merge_state_dicts("linear", [built.weights[name] for name in SOURCES])
    for name, tensor in built.live.items():
        torch.testing.assert_close(tensor, soup[name], rtol=1e-6, atol=1e-7)


def test_the_first_losses_from_the_uniform_start_are_those_of_the_uniform_average(family):
    built = family("llama", texts=1)
    trained = built.train(steps=1, kl_norm="tokens")
    for name in SOURCES:
        assert built.steps[0].losses[name] == pytest.approx(trained.before[name], rel=1e-4)


def starting(built, recipe, **settings):
    settings = {"include_base": False, "uniform": False, "phi": "identity", "trainable": ("linear", "bias")} | settings
    roles = roles_of(built.model, built.live)
    return initial_coefficients(recipe, roles, files=built.files, device=torch.device("cpu"), **settings)


def weights_at_start(built, coefficients):
    return merge_state_dicts(
        "column_linear",
        [built.weights[name] for name in coefficients.sources],
        parameters={"coefficients": coefficients.by_source},
        options={"phi": coefficients.phi},
    )


def test_a_start_from_linear_is_that_merge_to_the_bit(family):
    built = family()
    recipe = built.recipe(weight=[1.0, 2.0, 0.5])
    start = starting(built, recipe)
    assert start.sources == SOURCES
    expected = merge_state_dicts(
        "linear", [built.weights[name] for name in SOURCES], parameters={"weight": [1.0, 2.0, 0.5]}
    )
    found = weights_at_start(built, start)
    assert all(torch.equal(found[name], expected[name]) for name in built.names)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_start_from_task_arithmetic_has_the_base_as_one_more_source(family, normalize):
    built = family()
    weight = [0.6, 0.9, 0.4]
    recipe = built.recipe("task_arithmetic", weight=weight, options={"normalize": normalize})
    start = starting(built, recipe)
    assert start.sources == (*SOURCES, "base")
    expected = merge_state_dicts(
        "task_arithmetic",
        [built.weights[name] for name in SOURCES],
        built.weights["base"],
        {"weight": weight},
        {"normalize": normalize},
    )
    found = weights_at_start(built, start)
    for name in built.names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_tensors_that_no_rule_names_start_as_the_bases(family):
    built = family()
    recipe = built.recipe(tensors=["lm_head.weight"])
    found = weights_at_start(built, starting(built, recipe))
    assert torch.equal(found["model.norm.weight"], built.weights["base"]["model.norm.weight"])
    soup = merge_state_dicts("linear", [built.weights[name] for name in SOURCES])
    assert torch.equal(found["lm_head.weight"], soup["lm_head.weight"])


def test_a_uniform_start_with_the_base_gives_every_source_the_same(family):
    built = family()
    trained = built.train(steps=1, learning_rate=1e-12, weight_decay=0, include_base=True, start="uniform")
    assert trained.recipe.rules[0].sources == (*SOURCES, "base")
    value = stored(built, trained.recipe)["lm_head.weight"]
    torch.testing.assert_close(value, torch.full((4, 16), 0.25))


def test_a_start_from_another_training_goes_on_from_its_coefficients(family):
    built = family()
    first = built.train(steps=4, learning_rate=0.01)
    start = starting(built, first.recipe, include_base=True)
    assert start.sources == (*SOURCES, "base")
    for name, value in stored(built, first.recipe).items():
        assert torch.equal(start.values[name][:3], value)
        assert not bool(start.values[name][3].any())
    second = built.train(first.recipe, steps=1, learning_rate=1e-12, weight_decay=0, measured_items=3)
    assert second.before == pytest.approx(built.train(steps=1, measured_items=3).before)
    assert all(second.after[name] < second.before[name] for name in SOURCES)
    # What had one number for all columns gets one for each when it is trained now.
    spread = starting(built, first.recipe, trainable=("embedding", "norm"))
    assert spread.values["model.norm.weight"].shape == (3, 16)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ties", {}, "cannot start from a merge by ties"),
        ("dare_linear", {}, "cannot start from a merge by dare_linear"),
    ],
)
def test_a_start_that_is_no_weighted_sum_is_refused(family, method, options, message):
    built = family()
    with pytest.raises(InvalidInput, match=message):
        built.train(built.recipe(method), steps=1)


def test_a_weight_that_phi_cannot_give_is_refused(family):
    built = family()
    recipe = built.recipe("task_arithmetic", weight=[0.9, 0.9, 0.9])  # the base has -1.7
    for phi in ("sigmoid", "tanh", "relu"):
        with pytest.raises(InvalidInput, match="out of the range of phi"):
            built.train(recipe, steps=1, phi=phi)
    first = built.train(steps=1)
    with pytest.raises(InvalidInput, match="set phi: identity"):
        built.train(first.recipe, steps=1, phi="tanh")


def test_a_weight_where_relu_has_no_slope_is_refused(family):
    built = family()
    recipe = built.recipe("linear", weight=[1.0, 0.0, 1.0])
    with pytest.raises(InvalidInput, match=r"'middle' .* is 0, .*use phi: identity, or start: uniform"):
        built.train(recipe, steps=1, phi="relu")
    built.train(recipe, steps=1, phi="relu", start="uniform")
    built.train(recipe, steps=1, phi="identity")


def numbers(built, trained):
    return {name: value.clone() for name, value in stored(built, trained.recipe).items()}


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw", "teacher": "cached", "top_k": 5}, {"batch_size": 2}])
@pytest.mark.parametrize("stored_dtype", ["float32", "bfloat16"])
def test_a_killed_training_goes_on_to_the_same_bits(family, tmp_path, settings, stored_dtype):
    settings = {"epochs": 3, "learning_rate": 0.01, "checkpoint_every": 3} | settings
    whole = family("llama", stored=stored_dtype)
    expected = whole.train(**settings)

    first = family("llama", stored=stored_dtype)
    training = first.start(checkpoints=tmp_path / "checkpoints", **settings)
    for _ in range(5):  # the last checkpoint is after the third step
        next(training)
    training.close()

    second = family("llama", stored=stored_dtype)
    found = second.train(None, tmp_path / "checkpoints", **settings)
    assert numbers(second, found).keys() == numbers(whole, expected).keys()
    assert all(torch.equal(value, numbers(whole, expected)[name]) for name, value in numbers(second, found).items())
    assert found.recipe.digest == expected.recipe.digest
    assert second.steps == whole.steps
    assert (found.before, found.after) == (expected.before, expected.after)
    assert found.gradient_tokens == expected.gradient_tokens
    if settings.get("teacher") != "cached":
        assert found.forward_tokens == expected.forward_tokens


def test_a_finished_training_is_not_made_again(family, tmp_path, monkeypatch):
    built = family()
    first = built.train(None, tmp_path, steps=4)
    assert first.checkpoints
    monkeypatch.setattr(Mofo, "step", lambda self, gradients: pytest.fail("a step was made"))
    second = built.train(None, tmp_path, steps=4)
    assert second.recipe == first.recipe
    assert len(built.steps) == 4


def test_a_checkpoint_of_another_training_is_ignored(family, tmp_path):
    built = family()
    built.train(None, tmp_path, steps=2)
    for change in ({"learning_rate": 0.1}, {"seed": 6}, {"steps": 3}):
        assert next(built.start(None, tmp_path, **{"steps": 2} | change)).losses
    assert len(list(tmp_path.glob("dam-*"))) == 1
    other = replace(built, texts={**built.texts, "left": built.texts["right"]})
    other.train(None, tmp_path, steps=2)
    built.train(built.recipe(weight=[1.0, 2.0, 3.0]), tmp_path, steps=2)
    assert len(list(tmp_path.glob("dam-*"))) == 3


def test_a_checkpoint_that_cannot_be_read_is_only_a_lost_one(family, tmp_path):
    built = family()
    first = built.train(None, tmp_path, steps=2)
    (checkpoint,) = first.checkpoints
    checkpoint.write_bytes(b"nothing")
    assert built.train(None, tmp_path, steps=2).recipe == first.recipe


def test_a_source_without_texts_teaches_nothing_and_is_merged(family):
    built = family()
    built.texts["middle"] = []
    trained = built.train(steps=2)
    assert set(trained.after) == {"left", "right"}
    assert trained.recipe.rules[0].sources == SOURCES


def test_a_cached_teacher_of_the_whole_vocabulary_is_the_live_one(family):
    live, cached = family(), family()
    first = live.train(epochs=2, learning_rate=0.01)
    second = cached.train(epochs=2, learning_rate=0.01, teacher="cached", top_k=1000)
    for name in SOURCES:
        assert second.after[name] == pytest.approx(first.after[name], rel=1e-3)
    assert second.forward_tokens < first.forward_tokens


def test_one_pass_over_all_sources_and_one_for_each_give_the_same(family):
    together, apart = family(), family()
    first = together.train(steps=3, learning_rate=0.01)
    second = apart.train(steps=3, learning_rate=0.01, max_tokens=1)
    for name in SOURCES:
        assert [step.losses[name] for step in together.steps] == pytest.approx(
            [step.losses[name] for step in apart.steps], rel=1e-4
        )
    assert first.gradient_tokens == second.gradient_tokens
    assert first.forward_tokens == second.forward_tokens


def test_every_penalty_is_reported_and_moves_the_coefficients(family):
    built = family("gpt2")
    losses = {"similarity": 0.01, "overlap": 1e-5, "weighted_overlap": 1e-5, "l1_l2": 1e-6}
    trained = built.train(steps=2, losses=losses, trainable=ALL, learning_rate=0.01)
    assert set(built.steps[1].penalties) == set(losses)
    assert all(value != 0 for value in built.steps[1].penalties.values())
    strong = family("gpt2").train(steps=2, losses=losses | {"l1_l2": 100.0}, trainable=ALL, learning_rate=0.01)
    assert strong.recipe.files != trained.recipe.files


def test_answer_tokens_alone_count_from_the_token_before_them():
    texts = {"a": [CalibrationText((5, 6, 7, 8, 9), 3)]}
    everything = CalibrationBatches(texts, DamSettings(), 0).batch(texts["a"], torch.device("cpu"))
    answer = CalibrationBatches(texts, DamSettings(token_mask="answer"), 0).batch(texts["a"], torch.device("cpu"))
    assert everything.counted.tolist() == [[True] * 5]
    assert answer.counted.tolist() == [[False, False, True, True, False]]


def test_only_answer_tokens_are_run_through_the_head(family):
    built = family()
    rows = []
    built.model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[1]))
    built.train(steps=1, token_mask="answer")
    assert max(rows) < max(len(text.tokens) for texts in built.texts.values() for text in texts)


def test_a_long_text_loses_its_beginning():
    texts = {"a": [CalibrationText(tuple(range(10)), 8)]}
    calibration = CalibrationBatches(texts, DamSettings(max_length=4), 0)
    assert calibration.texts["a"] == [CalibrationText((6, 7, 8, 9), 2)]


def test_the_order_of_texts_depends_on_seed_epoch_and_source_alone():
    texts = {
        name: [CalibrationText((index, index), 1) for index in range(count)] for name, count in (("a", 8), ("b", 9))
    }
    calibration = CalibrationBatches(texts, DamSettings(epochs=3, batch_size=2), 1)
    assert calibration.steps == 12
    epoch = [calibration.step(number)["a"] for number in range(4)]
    assert sorted(index for indices in epoch for index in indices) == list(range(8))
    assert epoch != [calibration.step(number)["a"] for number in range(4, 8)]
    alone = CalibrationBatches({"a": texts["a"]}, DamSettings(epochs=3, batch_size=2), 1)
    assert epoch == [alone.step(number)["a"] for number in range(4)]
    assert epoch != [CalibrationBatches(texts, DamSettings(batch_size=2), 2).step(number)["a"] for number in range(4)]


def test_n13_global_generators_dtype_and_mode_are_untouched(family):
    built = family()
    built.model.train(False)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    built.train(steps=2)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.get_default_dtype() == torch.float32
    assert not built.model.training
    assert all(not tensor.requires_grad and tensor.grad is None for tensor in built.model.parameters())


def test_the_sources_are_never_written_to(family):
    built = family(stored="bfloat16")
    before = {name: {key: each.clone() for key, each in source.items()} for name, source in built.weights.items()}
    built.train(steps=2)
    for name, source in built.weights.items():
        assert all(torch.equal(source[key], before[name][key]) for key in source)


def test_a_loss_that_is_not_finite_says_the_step_and_what_to_change(family):
    built = family()
    with pytest.raises(MergeError, match=r"step 2 of the training is not finite.*smaller learning_rate than 1e\+38"):
        built.train(steps=3, learning_rate=1e38)
    assert all(not tensor.requires_grad and tensor.grad is None for tensor in built.model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stesp": 3}, "did you mean 'steps'"),
        ({"steps": 3, "epochs": 2}, "steps or epochs, not both"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"losses": {"kl": 0}}, "give one of them a weight"),
        ({"losses": {"mse": 1}, "teacher": "cached"}, "use teacher: live"),
        ({"trainable": []}, "trainable names nothing"),
        ({"learning_rate": 0}, "greater than 0"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(settings, message):
    with pytest.raises(InvalidInput, match=message):
        validate(DamSettings, settings, "baseline 'dam'")


def test_texts_that_cannot_be_trained_on_are_refused(family):
    built = family()
    with pytest.raises(InvalidInput, match="fewer than batch_size 9"):
        built.train(batch_size=9)
    with pytest.raises(InvalidInput, match="did you mean 'left'"):
        replace(built, texts={"lefft": built.texts["left"]}).train(steps=1)
    with pytest.raises(InvalidInput, match="no source has calibration texts"):
        replace(built, texts={}).train(steps=1)
    with pytest.raises(InvalidInput, match="in which nothing counts"):
        replace(built, texts={"left": [CalibrationText((1,), 1)]}).train(steps=1, token_mask="answer")
