"""AdaMerging on tiny live models: its gradient, what it starts from, that it learns, and resumes to the same bits."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from evomerge.documents import validate
from evomerge.errors import InvalidInput, MergeError
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.merging import merge_state_dicts
from evomerge.optimisation.batches import CalibrationBatches
from evomerge.optimisation.mofo import Mofo
from evomerge.recipe import PathLayer
from evomerge.training import AdaSettings, planned_tokens, train_adamerging
from evomerge.training.adamerging import entropy_loss, train_coefficients
from evomerge.training.adamerging_training import _EntropyTraining
from evomerge.training.task_weights import initial_task_weights
from tests.training.conftest import KINDS, SOURCES

SMALL = {"batch_size": 2}


def start(built, recipe=None, checkpoints=None, seed=5, **settings):
    recipe = recipe or built.recipe("task_arithmetic", weight=0.3)
    return train_adamerging(built.inputs(recipe, checkpoints, seed), AdaSettings.model_validate({**SMALL, **settings}))


def train(built, *arguments, **settings):
    training, built.steps = start(built, *arguments, **settings), []
    while True:
        try:
            built.steps.append(next(training))
        except StopIteration as end:
            return end.value


def definition(built, settings, step):
    """The loss of a step as a function of merged tensors: the sum over sources and batches of mean entropies."""
    calibration = CalibrationBatches(built.texts, settings, 5)

    def loss(merged):
        total = 0
        for place in range(settings.batches):
            for source, chosen in calibration.step(step * settings.batches + place).items():
                rows = []
                for index in chosen:
                    text = calibration.texts[source][index]
                    logits = functional_call(built.model, dict(merged), (torch.tensor([text.tokens]),)).logits[0]
                    first = {"answer": text.answer - 1, "first": text.answer - 1, "all": 0}[settings.entropy_positions]
                    last = {"answer": -1, "first": text.answer, "all": None}[settings.entropy_positions]
                    rows.append(logits[first:last])
                total = total + entropy_loss(torch.cat(rows))
        return total

    return loss


def vectors_of(built):
    base = built.weights["base"]
    return base, [{name: built.weights[source][name] - base[name] for name in base} for source in SOURCES]


@pytest.mark.parametrize("granularity", ["tensor", "layer", "task"])
@pytest.mark.parametrize("kind", ["llama_tied", "gpt2"])
def test_the_gradient_is_the_finite_difference_of_the_entropy(family, monkeypatch, kind, granularity):
    built, gradients = family(kind, "float64"), []
    step = Mofo.step
    monkeypatch.setattr(Mofo, "step", lambda self, given: gradients.append(given) or step(self, given))
    settings = AdaSettings.model_validate({**SMALL, "granularity": granularity, "steps": 1})
    train(built, granularity=granularity, steps=1)
    (found,) = gradients
    loss, (base, vectors) = definition(built, settings, 0), vectors_of(built)
    groups = initial_task_weights(built.recipe(), built.names, settings).groups
    assert len(found) == len(groups) == {"tensor": len(built.names), "layer": 3, "task": 1}[granularity]

    def at(group, source, offset):
        merged = {}
        for name in base:
            change = [0.3 + offset * (name in groups[group] and index == source) for index in range(3)]
            merged[name] = base[name] + sum(w * each[name] for w, each in zip(change, vectors, strict=True))
        with torch.no_grad():
            return float(loss(merged))

    for group in list(groups)[:6]:
        for source in range(3):
            difference = (at(group, source, 1e-3) - at(group, source, -1e-3)) / 2e-3  # norms are in float32
            assert float(found[group][source]) == pytest.approx(difference, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("granularity", ["tensor", "task"])
@pytest.mark.parametrize("positions", ["answer", "first", "all"])
@pytest.mark.parametrize("initial", [0.3, 0.995])
def test_it_makes_the_steps_of_the_plain_function(family, granularity, positions, initial):
    built = family("llama", "float64")
    settings = {"granularity": granularity, "entropy_positions": positions, "learning_rate": 0.01, "initial": initial}
    model = AdaSettings.model_validate({**SMALL, **settings})
    base, vectors = vectors_of(built)
    losses = iter([definition(built, model, step) for step in range(3)])
    expected = list(
        train_coefficients(
            base,
            vectors,
            lambda merged: next(losses)(merged),
            granularity=granularity,
            initial=initial,
            learning_rate=0.01,
            steps=3,
        )
    )
    training = _EntropyTraining(built.inputs(), model)
    for step in expected:
        training.step()
        assert sum(training.course.history[-1][0].values()) * 2 == pytest.approx(step.loss, rel=1e-6)
        for group, values in training._weights.values.items():
            torch.testing.assert_close(values.double(), step.coefficients[group], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("granularity", ["tensor", "layer", "task"])
def test_entropy_falls_on_every_source(family, kind, granularity):
    built = family(kind)
    trained = train(built, steps=12, learning_rate=0.02, granularity=granularity)
    assert trained.before.keys() == trained.after.keys() == set(SOURCES)
    assert sum(trained.after.values()) < sum(trained.before.values())
    assert trained.steps == len(built.steps) == built.steps[-1].step == built.steps[-1].steps == 12
    assert set(built.steps[0].reported) == set(SOURCES)


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("float16", None)]
)
def test_at_the_end_the_live_model_holds_what_the_recipe_says_bit_for_bit(family, dtype, stored):
    built = family("qwen2", dtype, stored)
    trained = train(built, steps=3, learning_rate=0.01)
    assert sorted(name for rule in trained.recipe.rules for name in rule.tensors) == list(built.names)
    for rule in trained.recipe.rules:
        expected = merge_state_dicts(
            rule.method,
            [{name: built.weights[source][name].float() for name in rule.tensors} for source in rule.sources],
            {name: built.weights["base"][name].float() for name in rule.tensors},
            rule.parameters,
            rule.options,
        )
        for name in rule.tensors:
            assert torch.equal(built.live[name], expected[name].to(built.model.dtype))
    assert trained.recipe.files == {}
    assert all(np.isfinite(value) for value in [*trained.before.values(), *trained.after.values()])


def test_plus_plus_makes_the_steps_of_the_plain_function_on_trimmed_and_elected_vectors(family):
    built = family("llama", "float64")
    model = AdaSettings.model_validate({**SMALL, "variant": "plus_plus", "learning_rate": 0.01})
    base, vectors = vectors_of(built)
    names = sorted(base)
    flat = torch.stack([torch.cat([each[name].reshape(-1) for name in names]) for each in vectors])
    elements = flat.shape[1]
    kth = flat.abs().sort(dim=1).values[:, elements - int(0.2 * elements) - 1]  # (1) of TIES
    trimmed = torch.where(flat.abs() >= kth[:, None], flat, 0)
    sign = trimmed.sum(0).sign()
    elected = torch.where(trimmed.sign() == sign, trimmed, 0)
    assert 0.15 < float((elected != 0).double().mean()) < 0.21
    sizes = [base[name].numel() for name in names]
    split = [
        {name: part.reshape(base[name].shape) for name, part in zip(names, each.split(sizes), strict=True)}
        for each in elected
    ]
    losses = iter([definition(built, model, step) for step in range(2)])
    expected = list(train_coefficients(base, split, lambda merged: next(losses)(merged), learning_rate=0.01, steps=2))
    training = _EntropyTraining(built.inputs(), model)
    for step in expected:
        training.step()
        assert sum(training.course.history[-1][0].values()) * 2 == pytest.approx(step.loss, rel=1e-6)
        for group, values in training._weights.values.items():
            torch.testing.assert_close(values.double(), step.coefficients[group], rtol=1e-4, atol=1e-6)


def test_one_coefficient_for_all_is_one_rule_and_one_per_layer_a_rule_per_layer(family):
    built = family()
    assert len(train(built, steps=2, granularity="task").recipe.rules) == 1
    rules = train(built, steps=2, granularity="layer").recipe.rules
    assert len(rules) == 3
    assert {name.split(".")[2] for name in rules[1].tensors} == {"0"}


def test_coefficients_beyond_the_ends_weigh_as_the_ends_and_stay(family):
    built = family()
    (rule,) = train(built, steps=3, initial=0.5, learning_rate=1.0, granularity="task").recipe.rules
    assert all(weight in (0.0, 1.0) for weight in rule.parameters["weight"])
    (rule,) = train(built, steps=3, initial=1.5, granularity="task", clamp=False).recipe.rules
    assert all(weight not in (1.0, 1.5) for weight in rule.parameters["weight"])


@pytest.mark.parametrize(
    "settings", [{}, {"granularity": "task", "entropy_positions": "all"}, {"variant": "plus_plus"}]
)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_killed_training_goes_on_to_the_same_bits(family, tmp_path, settings, stored):
    settings = {"steps": 8, "learning_rate": 0.01, "checkpoint_every": 3} | settings
    whole = family("llama", stored=stored)
    expected = train(whole, **settings)

    training = start(family("llama", stored=stored), checkpoints=tmp_path, **settings)
    for _ in range(5):  # the last checkpoint is after the third step
        next(training)
    training.close()

    made = []
    second = family("llama", stored=stored)
    with pytest.MonkeyPatch.context() as patch:
        step = _EntropyTraining.step
        patch.setattr(_EntropyTraining, "step", lambda self: made.append(1) or step(self))
        found = train(second, None, tmp_path, **settings)
    assert len(made) == 5
    assert found.recipe == expected.recipe
    assert found.recipe.digest == expected.recipe.digest
    assert second.steps == whole.steps
    assert (found.before, found.after) == (expected.before, expected.after)
    assert found.gradient_tokens == expected.gradient_tokens
    assert found.forward_tokens == expected.forward_tokens
    assert all(torch.equal(second.live[name], whole.live[name]) for name in whole.live)


def test_a_checkpoint_of_another_training_is_ignored(family, tmp_path):
    built = family()
    train(built, None, tmp_path, steps=2)
    for change in ({"learning_rate": 0.1}, {"seed": 6}, {"steps": 3}, {"initial": 0.4}):
        assert next(start(built, None, tmp_path, **{"steps": 2} | change)).losses
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["adamerging"]


def test_one_pass_over_all_texts_and_one_for_each_give_the_same(family):
    together, apart = family(), family()
    first = train(together, steps=3, learning_rate=0.01)
    second = train(apart, steps=3, learning_rate=0.01, max_tokens=1)
    for name in SOURCES:
        assert [step.losses[name] for step in together.steps] == pytest.approx(
            [step.losses[name] for step in apart.steps], rel=1e-4
        )
    assert first.gradient_tokens == second.gradient_tokens
    assert first.forward_tokens == second.forward_tokens


def test_what_it_will_read_is_known_beforehand(family):
    built = family()
    trained = train(built, steps=5)
    planned = planned_tokens(built.texts, AdaSettings(steps=5, batch_size=2), 5)
    assert (planned.steps, planned.gradient_tokens, planned.forward_tokens) == (
        5,
        trained.gradient_tokens,
        trained.forward_tokens,
    )


def test_with_the_first_position_alone_no_token_of_an_answer_matters(family):
    built = family()
    other = replace(
        built,
        texts={
            name: [CalibrationText((*text.tokens[: text.answer], 7, 8), text.answer) for text in texts]
            for name, texts in built.texts.items()
        },
    )
    rules = [train(each, steps=3, entropy_positions="first").recipe.rules for each in (built, other)]
    for one, two in zip(*rules, strict=True):
        assert one.tensors == two.tensors
        assert one.parameters["weight"] == pytest.approx(two.parameters["weight"], abs=1e-6)


def weights_at_start(built, recipe, **settings):
    given = AdaSettings.model_validate({"initial": None, **settings})
    return initial_task_weights(recipe, built.names, given)


def test_a_start_from_a_recipe_is_that_merge(family):
    built = family()
    found = weights_at_start(built, built.recipe("task_arithmetic", weight=[0.5, 0.2, 0.125]))
    assert found.sources == SOURCES
    assert found.values["lm_head.weight"].tolist() == pytest.approx([0.5, 0.2, 0.125])
    found = weights_at_start(built, built.recipe("linear", weight=[2.0, 1.0, 1.0]), granularity="task")
    assert found.values["all"].tolist() == [0.5, 0.25, 0.25]
    found = weights_at_start(built, built.recipe("task_arithmetic", weight=1.25), clamp=False)
    assert found.values["lm_head.weight"].tolist() == [1.25] * 3
    found = weights_at_start(built, built.recipe(tensors=["lm_head.weight"]))
    assert found.values["model.norm.weight"].tolist() == [0.0] * 3


def test_its_own_result_is_where_another_training_starts(family):
    built = family()
    first = train(built, steps=3, learning_rate=0.01)
    second = train(built, first.recipe, steps=1, learning_rate=1e-12, initial=None)
    assert second.recipe == first.recipe
    assert second.before == first.after


@pytest.mark.parametrize(
    ("method", "parameters", "settings", "message"),
    [
        ("ties", {}, {}, "cannot start from a merge by ties"),
        ("task_arithmetic", {"weight": 1.2}, {}, "use clamp: false"),
        ("linear", {"options": {"normalize": False}}, {}, "do not sum to 1"),
        ("linear", {"tensors": ["lm_head.weight"]}, {"granularity": "task"}, "use granularity: tensor"),
        ("task_arithmetic", {}, {"variant": "plus_plus"}, "merged by task_arithmetic otherwise"),
        ("elected_arithmetic", {"density": 0.5}, {"variant": "plus_plus"}, "by elected_arithmetic with its defaults"),
    ],
)
def test_a_recipe_that_such_coefficients_cannot_give_is_refused(family, method, parameters, settings, message):
    built = family()
    with pytest.raises(InvalidInput, match=message):
        weights_at_start(built, built.recipe(method, **parameters), **settings)


def test_a_start_of_plus_plus_is_its_own_result(family):
    built = family()
    first = train(built, steps=2, learning_rate=0.01, variant="plus_plus")
    found = weights_at_start(built, first.recipe, variant="plus_plus")
    assert found.rules() == first.recipe.rules


def test_a_path_of_layers_is_no_start(family):
    built = family()
    path = replace(built.recipe(), layers=(PathLayer(source="left", layer=0, scale=1.0),))
    with pytest.raises(InvalidInput, match="this recipe has a path of layers"):
        train(built, path)
    with pytest.raises(InvalidInput, match="this recipe has a path of layers"):
        built.train(path, steps=1)


def test_texts_that_cannot_be_trained_on_are_refused(family):
    built = family()
    with pytest.raises(InvalidInput, match="fewer than batch_size 9"):
        train(built, batch_size=9)
    with pytest.raises(InvalidInput, match="did you mean 'left'"):
        train(replace(built, texts={**built.texts, "lefft": built.texts["left"]}))
    with pytest.raises(InvalidInput, match="needs texts of every source, and there are none of middle"):
        train(replace(built, texts={**built.texts, "middle": []}))
    texts = [CalibrationText((1, 2), 0), *built.texts["left"]]
    with pytest.raises(InvalidInput, match="in which nothing counts where the positions are 'first'"):
        train(replace(built, texts={**built.texts, "left": texts}), entropy_positions="first")


def test_a_recipe_of_the_base_alone_has_no_task_vectors(family):
    built = family()
    recipe = built.recipe()
    with pytest.raises(InvalidInput, match="no source beside the base"):
        initial_task_weights(replace(recipe, sources=(recipe.base,)), built.names, AdaSettings())


def test_an_entropy_that_is_not_finite_says_the_step_and_what_to_change(family):
    built = family()
    with pytest.raises(MergeError, match=r"step 2 of the training is not finite.*smaller learning_rate than 1e\+38"):
        train(built, steps=3, learning_rate=1e38, clamp=False)
    assert all(not tensor.requires_grad and tensor.grad is None for tensor in built.model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stesp": 3}, "did you mean 'steps'"),
        ({"steps": 0}, "greater than 0"),
        ({"granularity": "column"}, "granularity"),
        ({"initial": float("nan")}, "finite"),
        ({"initial": 1.5}, "learns nothing; give one within, or clamp: false"),
        ({"initial": -0.1}, "learns nothing; give one within, or clamp: false"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"variant": "++"}, "plus_plus"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(settings, message):
    with pytest.raises(InvalidInput, match=message):
        validate(AdaSettings, settings, "baseline 'adamerging'")


def test_n13_global_generators_and_mode_are_untouched_and_sources_never_written_to(family):
    built = family()
    built.model.train(False)
    before = {name: {key: each.clone() for key, each in source.items()} for name, source in built.weights.items()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    train(built, steps=2)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert not built.model.training
    assert all(not tensor.requires_grad and tensor.grad is None for tensor in built.model.parameters())
    for name, source in built.weights.items():
        assert all(torch.equal(source[key], before[name][key]) for key in source)
