"""A training in a bank's live model, and its recipe in another bank: scored, exported and rebuilt to the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evomerge.bank import WeightBank
from evomerge.checkpoints import open_source, tensor_digest
from evomerge.errors import InvalidInput
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.mergekit.export_yaml import to_mergekit
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.trainers import find_trainer
from evomerge.training import TrainingInputs

TOY = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"
EXPERTS = ("reverse", "sort")


@pytest.fixture(scope="module")
def sources():
    base = open_source(ModelRef("base", str(TOY / "base")))
    return base, [open_source(ModelRef(name, str(TOY / name)), like=base) for name in EXPERTS]


def bank_of(sources, files, dtype="float32"):
    return WeightBank(*sources, dtype=getattr(torch, dtype), device=torch.device("cpu"), files=files)


def soup(sources, method="linear", dtype="float32"):
    base, experts = sources
    names = tuple(entry.name for entry in base.catalogue.mergeable)
    rule = Rule(
        tensors=names,
        method=method,
        sources=EXPERTS,
        parameters=resolve_parameters(method, {}, 2),
        options=resolve_options(method, {}),
    )
    return Recipe(base=base.ref, sources=tuple(expert.ref for expert in experts), rules=(rule,), dtype=dtype)


def train(bank, start, files, trainer="dam", **settings):
    generator = torch.Generator().manual_seed(0)
    texts = {
        name: [CalibrationText(tuple(torch.randint(5, 90, (8,), generator=generator).tolist()), 4) for _ in range(4)]
        for name in EXPERTS
    }
    with bank.borrow() as (model, live):
        inputs = TrainingInputs(
            model=model, live=live, weights=bank.weights, texts=texts, initial=start, seed=1, files=files
        )
        training = find_trainer(trainer)(inputs, {"steps": 2, "learning_rate": 0.01} | settings)
        while True:
            try:
                next(training)
            except StopIteration as end:
                return end.value.recipe, {name: tensor_digest(tensor) for name, tensor in live.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_what_was_trained_is_what_every_bank_makes_of_its_recipe(sources, tmp_path, dtype, method):
    bank = bank_of(sources, tmp_path, dtype)
    recipe, trained = train(bank, soup(sources, method, dtype), tmp_path)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert bank.live_digests(recipe) == trained
    assert bank_of(sources, tmp_path, dtype).live_digests(recipe) == trained
    assert {name: tensor_digest(tensor) for name, tensor in bank.merged(recipe)} == trained
    assert recipe.rules[0].sources == (EXPERTS if method == "linear" else (*EXPERTS, "base"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [{}, {"granularity": "task"}, {"variant": "plus_plus"}])
def test_what_adamerging_learned_is_what_every_bank_makes_of_its_recipe(sources, tmp_path, dtype, settings):
    bank = bank_of(sources, None, dtype)
    initial = soup(sources, "task_arithmetic", dtype)
    recipe, trained = train(bank, initial, tmp_path, "adamerging", batch_size=2, **settings)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.digest != initial.digest
    assert bank.live_digests(recipe) == trained
    assert bank_of(sources, None, dtype).live_digests(recipe) == trained
    assert {name: tensor_digest(tensor) for name, tensor in bank.merged(recipe)} == trained
    text, reason = to_mergekit(recipe, sources[0].catalogue)
    assert (text is None) == ("variant" in settings)
    assert reason == ("mergekit has no counterpart of the method elected_arithmetic" if "variant" in settings else "")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings", [{}, {"granularity": "column"}, {"basis": "ties"}, {"basis": "dare", "granularity": "global"}]
)
def test_what_is_learned_is_what_every_bank_makes_of_its_recipe(sources, tmp_path, dtype, settings):
    bank = bank_of(sources, tmp_path, dtype)
    given = {"batch_size": 2, "initial": 0.4, "stop_share": 0.0, **settings}
    recipe, trained = train(bank, soup(sources, "task_arithmetic", dtype), tmp_path, "learned", **given)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert bank.live_digests(recipe) == trained
    assert bank_of(sources, tmp_path, dtype).live_digests(recipe) == trained
    assert {name: tensor_digest(tensor) for name, tensor in bank.merged(recipe)} == trained


def test_a_source_without_weight_is_left_out_of_coefficients_per_column(sources, tmp_path):
    bank = bank_of(sources, tmp_path)
    recipe, _ = train(bank, soup(sources, "task_arithmetic"), tmp_path, "learned", granularity="column", batch_size=2)
    (rule,) = recipe.rules
    none = replace(recipe, rules=(replace(rule, parameters={"weight": (0.0, 0.0)}),))
    base = {name: tensor_digest(tensor.float()) for name, tensor in sources[0].tensors.items()}
    assert bank.live_digests(none) == {name: base[name] for name in bank.live_digests(none)}


def test_after_a_loan_everything_is_written_anew(sources, tmp_path):
    bank = bank_of(sources, tmp_path)
    recipe = soup(sources)
    before = bank.live_digests(recipe)
    with bank.borrow() as (model, live), torch.no_grad():
        assert set(live) == set(sources[0].catalogue.names)
        for tensor in live.values():
            tensor.zero_()
            tensor.requires_grad_(True)
            tensor.grad = torch.ones_like(tensor)
    assert all(not tensor.requires_grad and tensor.grad is None for tensor in model.parameters())
    assert bank.live_digests(recipe) == before
    with bank.borrow() as (_, live), torch.no_grad():
        live["model.norm.weight"].zero_()
    one = replace(recipe, rules=(replace(recipe.rules[0], tensors=("model.layers.0.mlp.up_proj.weight",)),))
    base = sources[0].tensors["model.norm.weight"]
    assert torch.equal(bank.materialize(one).state_dict()["model.norm.weight"], base.float())


def test_another_file_writes_the_tensors_again_and_the_same_file_does_not(sources, tmp_path, monkeypatch):
    bank = bank_of(sources, tmp_path)
    first, first_bits = train(bank, soup(sources), tmp_path)
    second, second_bits = train(bank, soup(sources), tmp_path, learning_rate=0.02)
    assert first.files != second.files
    assert replace(first, files=second.files) == second
    assert bank.live_digests(first) == first_bits
    assert bank.live_digests(second) == second_bits
    reads = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read(path))
    assert bank.live_digests(first) == first_bits
    assert reads == []


def test_a_recipe_without_its_file_or_a_bank_without_a_folder_says_so(sources, tmp_path):
    recipe, _ = train(bank_of(sources, tmp_path), soup(sources), tmp_path)
    with pytest.raises(InvalidInput, match="give `files`"):
        bank_of(sources, None).materialize(recipe)
    with pytest.raises(InvalidInput, match="there for all workers"):
        bank_of(sources, tmp_path / "elsewhere").materialize(recipe)
    with pytest.raises(InvalidInput, match="the recipe names none"):
        bank_of(sources, tmp_path).materialize(replace(recipe, files={}))
    (rule,) = recipe.rules
    for other in (replace(rule, options={"phi": "tanh"}), replace(rule, sources=EXPERTS[::-1])):
        with pytest.raises(InvalidInput, match="belongs to another rule"):
            bank_of(sources, tmp_path).materialize(replace(recipe, rules=(other,)))


def test_mergekit_cannot_say_it(sources, tmp_path):
    recipe, _ = train(bank_of(sources, tmp_path), soup(sources), tmp_path)
    text, reason = to_mergekit(recipe, sources[0].catalogue)
    assert text is None
    assert "no counterpart of the method column_linear" in reason
