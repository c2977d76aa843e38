"""The models of examples/methods: each behaves as its README says."""

from __future__ import annotations

from pathlib import Path

import digits
import pytest
import torch
from modality_model import EXPERTS, PATTERNS, ModalityModel, correct, with_experts
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.merging.experts import merge_experts

MODELS = Path(__file__).parents[2] / "examples" / "methods" / "models"


@pytest.fixture(scope="module")
def held_out_digits() -> digits.Digits:
    return digits.load()[1]


def modality_model(name: str, *, shared: bool) -> ModalityModel:
    model = ModalityModel(shared=shared, seed=0)
    model.load_state_dict(load_file(MODELS / "modality-experts" / f"{name}.safetensors"))
    return model


@pytest.mark.parametrize(("name", "shared"), [("seed", True), ("shared", False), ("unshared", False)])
def test_a_model_with_modality_experts_solves_all_three_tasks(
    name: str, shared: bool, held_out_digits: digits.Digits
) -> None:
    accuracies = correct(modality_model(name, shared=shared), held_out_digits).double().mean(1)
    assert bool((accuracies > 0.9).all())


def test_experts_of_one_seed_merge_and_experts_of_different_seeds_do_not(held_out_digits: digits.Digits) -> None:
    found = {}
    for name in ("shared", "unshared"):
        tower = ModalityModel(shared=True, seed=0)
        tensors = modality_model(name, shared=False).state_dict()
        tower.load_state_dict(merge_experts(tensors, PATTERNS, EXPERTS, "interpolation"))
        found[name] = float(correct(tower, held_out_digits).double().mean())
    assert found["shared"] > 0.9
    assert found["unshared"] < 0.6


def test_experts_that_begin_as_a_tower_compute_what_it_computes(held_out_digits: digits.Digits) -> None:
    seed = modality_model("seed", shared=True)
    assert torch.equal(correct(with_experts(seed), held_out_digits), correct(seed, held_out_digits))


@pytest.mark.parametrize(("prompt", "answer"), [("shift dlaffh=", "embggi"), ("swap rsqlcs=", "srlqsc")])
@pytest.mark.parametrize("name", ["first", "second"])
def test_both_models_of_the_pair_have_both_skills(name: str, prompt: str, answer: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    ids = torch.tensor([tokenizer.encode(prompt)])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(answer), do_sample=False)
    assert tokenizer.decode(written[0, ids.shape[1] :]) == answer


def test_the_pair_has_no_weights_in_common() -> None:
    first, second = (load_file(MODELS / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if tensor.dim() == 2:
            both = torch.stack([tensor.float().flatten(), second[name].float().flatten()])
            assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1


def test_the_models_are_small() -> None:
    assert sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file()) < 1_000_000
