"""A merge method of one function: merged by hand, by the bank, and in a search that notices another function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge import build_spec, run_search
from evomerge.bank import WeightBank
from evomerge.checkpoints import open_source, tensor_digest
from evomerge.elementwise_method import elementwise_method
from evomerge.errors import InvalidInput, OtherSpec
from evomerge.merging import merge_state_dicts
from evomerge.methods import METHODS, resolve_options, resolve_parameters
from evomerge.methods.table import added_methods
from evomerge.recipe import ModelRef, Recipe, Rule

TOY = Path(__file__).parent.parent / "examples" / "toy" / "models"
BASE = {"w": torch.tensor([1.0, 1.0, 1.0])}
SOURCES = [{"w": torch.tensor([2.0, 1.5, 1.0])}, {"w": torch.tensor([1.5, -1.0, 1.0])}]


def farthest(piece, strength, share):
    """The base and the farthest task vector.

    Args:
        share: one number per source.
    """
    vectors = torch.stack([vector * factor for vector, factor in zip(piece.task_vectors(), share, strict=True)])
    return piece.the_base + strength * vectors.gather(0, vectors.abs().argmax(0, keepdim=True))[0]


@pytest.fixture(autouse=True)
def method(monkeypatch):
    info = elementwise_method(farthest, shared={"strength": (0.5, 1.5)}, per_source={"share": (0.0, 2.0)})
    monkeypatch.setitem(METHODS, "farthest", info)
    return info


def test_the_description_follows_from_the_function(method):
    assert (method.name, method.title) == ("farthest", "The base and the farthest task vector.")
    assert method.needs == {"base"}
    assert [(each.name, each.default) for each in method.parameters] == [("share", 1.0), ("strength", 1.0)]


def test_it_merges_state_dicts():
    assert merge_state_dicts("farthest", SOURCES, BASE)["w"].tolist() == [2.0, -1.0, 1.0]
    merged = merge_state_dicts("farthest", SOURCES, BASE, {"strength": 0.5, "share": [1.0, 0.0]})
    assert merged["w"].tolist() == [1.5, 1.25, 1.0]
    with pytest.raises(InvalidInput, match="give the base model"):
        merge_state_dicts("farthest", SOURCES)


def test_the_bank_gives_the_bits_of_the_merged_dictionaries():
    base = open_source(ModelRef("base", str(TOY / "base")))
    experts = [open_source(ModelRef(name, str(TOY / name)), like=base) for name in ("reverse", "sort")]
    rule = Rule(
        tensors=tuple(entry.name for entry in base.catalogue.mergeable),
        method="farthest",
        sources=("reverse", "sort"),
        parameters=resolve_parameters("farthest", {"strength": 0.7}, 2),
        options=resolve_options("farthest", {}),
    )
    refs = tuple(expert.ref for expert in experts)
    recipe = Recipe(base=base.ref, sources=refs, rules=(rule,), dtype="float32")
    live = WeightBank(base, experts, dtype=torch.float32, device=torch.device("cpu")).live_digests(recipe)
    plain = [{name: source.tensors[name].float() for name in source.catalogue.names} for source in (base, *experts)]
    expected = merge_state_dicts("farthest", plain[1:], plain[0], {"strength": 0.7})
    assert live == {name: tensor_digest(tensor) for name, tensor in expected.items()}


def test_a_function_that_does_not_take_the_parameters_is_refused():
    with pytest.raises(InvalidInput, match=r"farthest\(piece, strength\) is how the merge method will be called"):
        elementwise_method(farthest, shared={"strength": (0.5, 1.5)})


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (0.0, float("inf"))])
def test_a_range_without_a_middle_is_refused(ends):
    with pytest.raises(InvalidInput, match="give two numbers, the lower one first"):
        elementwise_method(farthest, shared={"strength": ends}, per_source={"share": (0.0, 1.0)})


def test_a_function_that_returns_another_shape_is_refused(monkeypatch):
    def total(piece):
        return piece.sources[0].sum()

    monkeypatch.setitem(METHODS, "total", elementwise_method(total, needs_base=False))
    with pytest.raises(InvalidInput, match=r"'total' returned a tensor of shape \(\) for a piece of shape \(3,\)"):
        merge_state_dicts("total", SOURCES)


def test_workers_get_what_was_added_under_new_names_and_known_ones(monkeypatch, method):
    def linear(piece):
        return torch.stack(piece.sources).mean(0)

    own = elementwise_method(linear, needs_base=False)
    monkeypatch.setitem(METHODS, "linear", own)
    assert {info.name: info for info in added_methods()} == {"farthest": method, "linear": own}


def test_a_search_that_has_begun_refuses_another_function_of_that_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ranges = {"strength": {"low": 0.5, "high": 1.5}, "share": {"low": 0.0, "high": 2.0}}
    space = {"name": "far", "groups": {"depth": "global"}, "methods": {"farthest": {"parameters": ranges}}}
    spec = build_spec(
        name="far",
        sources={name: str(TOY / name) for name in ("base", "reverse", "sort")},
        space=space,
        evaluator={"name": "synthetic", "items": 40},
        budget={"trials": 2},
        baselines=[],
    )
    assert len(run_search(spec, ray="none").trials) == 2

    def farthest(piece, strength, share):
        return piece.the_base * strength

    other = elementwise_method(farthest, shared={"strength": (0.5, 1.5)}, per_source={"share": (0.0, 2.0)})
    monkeypatch.setitem(METHODS, "farthest", other)
    with pytest.raises(OtherSpec, match="functions of methods"):
        run_search(spec, ray="none")
