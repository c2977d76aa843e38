"""Methods whose result depends on the whole model: in a bank, by rules with a part each, for several candidates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.bank import WeightBank
from evomerge.checkpoints import open_source, tensor_digest
from evomerge.merging import merge_state_dicts
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.recipe import ModelRef, Recipe, Rule

TOY = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"
EXPERTS = ("reverse", "sort")


@pytest.fixture(scope="module")
def sources():
    base = open_source(ModelRef("base", str(TOY / "base")))
    return base, [open_source(ModelRef(name, str(TOY / name)), like=base) for name in EXPERTS]


def recipe_of(sources, method, parameters, parts):
    base, experts = sources
    names = [entry.name for entry in base.catalogue.mergeable]
    rules = tuple(
        Rule(
            tensors=tuple(names[part::parts]),
            method=method,
            sources=EXPERTS,
            parameters=resolve_parameters(method, parameters, 2),
            options=resolve_options(method, {}),
        )
        for part in range(parts)
    )
    refs = tuple(expert.ref for expert in experts)
    return Recipe(base=base.ref, sources=refs, rules=rules, dtype="float32")


def plain(source):
    return {name: source.tensors[name].float() for name in source.catalogue.names}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    ("method", "candidates"),
    [
        ("opcm", [{"alpha": 0.2}, {"alpha": 0.8}]),
        ("ot_fusion", [{"t": 0.25}, {"t": 0.75}, {"t": 1.0}]),
        ("permuted_arithmetic", [{"weight": 0.3}, {"weight": [0.9, 0.1]}]),
    ],
)
def test_what_a_bank_writes_and_exports_is_the_reference(sources, method, candidates, parts):
    base, experts = sources
    bank = WeightBank(base, experts, dtype=torch.float32, device=torch.device("cpu"))
    models = [plain(each) for each in experts]
    for parameters in candidates:
        recipe = recipe_of(sources, method, parameters, parts)
        expected = {
            name: tensor_digest(tensor)
            for name, tensor in merge_state_dicts(method, models, plain(base), parameters).items()
        }
        assert bank.live_digests(recipe) == expected
        assert {name: tensor_digest(tensor) for name, tensor in bank.merged(recipe)} == expected
