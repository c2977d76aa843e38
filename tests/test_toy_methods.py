"""A method of a third party is one description and one function, and every path takes it up: the third file of it.

The two toy methods are in `toy_methods/data.py` and `toy_methods/arithmetic.py`; no file of the package names them.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evomerge.bank import WeightBank
from evomerge.catalogue import build_catalogue
from evomerge.checkpoints import open_source, tensor_digest
from evomerge.checkpoints.recipe_files import store_tensors
from evomerge.errors import InvalidInput
from evomerge.mergekit.export_yaml import to_mergekit
from evomerge.merging import RuleTensors, merge_rule, merge_state_dicts
from evomerge.methods import METHODS, resolve_options, resolve_parameters
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.report.inventory import describe_methods
from evomerge.spaces import load_space
from evomerge.spaces.bound import bind

TOY = Path(__file__).parent.parent / "examples" / "toy" / "models"
EXPERTS = ("reverse", "sort")


@pytest.fixture(autouse=True)
def toy_methods(monkeypatch):
    """The extension, imported as its package is, and forgotten after the test."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    before = dict(METHODS)
    importlib.reload(importlib.import_module("toy_methods.data"))
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture(scope="module")
def sources():
    base = open_source(ModelRef("base", str(TOY / "base")))
    return base, [open_source(ModelRef(name, str(TOY / name)), like=base) for name in EXPERTS]


def recipe_of(sources, method, parameters=None, files=None):
    base, experts = sources
    rule = Rule(
        tensors=tuple(entry.name for entry in base.catalogue.mergeable),
        method=method,
        sources=EXPERTS,
        parameters=resolve_parameters(method, parameters or {}, 2),
        options=resolve_options(method, {}),
    )
    refs = tuple(expert.ref for expert in experts)
    return Recipe(base=base.ref, sources=refs, rules=(rule,), dtype="float32", files=files or {})


def bank_of(sources, files=None):
    return WeightBank(*sources, dtype=torch.float32, device=torch.device("cpu"), files=files)


def plain(source):
    return {name: source.tensors[name].float() for name in source.catalogue.names}


def precisions(sources, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base, experts = sources
    names = [entry.name for entry in base.catalogue.mergeable]
    return [{name: torch.rand(base.tensors[name].shape, generator=generator) + 0.1 for name in names} for _ in experts]


def stored(folder, statistics, names=EXPERTS):
    stacked = {name: torch.stack([each[name] for each in statistics]) for name in statistics[0]}
    return store_tensors(folder, stacked, {"sources": json.dumps(list(names)), "texts": "40"})


def test_an_elementwise_method_merges_state_dicts():
    base = {"w": torch.tensor([1.0, 1.0, 1.0])}
    one, two = {"w": torch.tensor([2.0, 1.5, 1.0])}, {"w": torch.tensor([1.5, -1.0, 1.0])}
    assert merge_state_dicts("toy_largest", [one, two], base)["w"].tolist() == [2.0, -1.0, 1.0]
    assert merge_state_dicts("toy_largest", [one, two], base, {"lambda": 0.5})["w"].tolist() == [1.5, 0.0, 1.0]
    with pytest.raises(InvalidInput, match="give the base model"):
        merge_state_dicts("toy_largest", [one, two])


def test_an_elementwise_method_is_searched_and_merged_by_the_bank(sources, tmp_path):
    base, experts = sources
    space = tmp_path / "largest.yaml"
    space.write_text(
        "name: largest\ngroups: {depth: {blocks: 2}}\n"
        "methods: {toy_largest: {parameters: {lambda: {low: 0.5, high: 1.5}}}}\n"
    )
    refs = [expert.ref for expert in experts]
    bound = bind(load_space(str(space)), base.catalogue, base.ref, refs, dtype="float32", seed=1)
    recipe = bound.decode(bound.centre)
    live = bank_of(sources).live_digests(recipe)
    expected = merge_state_dicts("toy_largest", [plain(each) for each in experts], plain(base), {"lambda": 1.0})
    assert live == {name: tensor_digest(tensor) for name, tensor in expected.items()}


def test_statistics_reach_the_method_through_state_dicts():
    one, two = {"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([5.0, 5.0])}
    statistics = [{"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([1.0, 1.0])}]
    assert merge_state_dicts("toy_precision", [one, two], statistics=statistics)["w"].tolist() == [2.0, 3.0]
    assert merge_state_dicts("toy_precision", [one, two], statistics=[{}, {}])["w"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (None, "cannot be left out; give for each source"),
        ({"w": torch.ones(2)}, "statistics is a list of 2 mappings .* but got a dict"),
        ([{"w": torch.ones(2)}], "but got 1 mappings"),
        ([{"w": torch.ones(2)}, {}], "only some sources have a precision of 'w'"),
    ],
)
def test_statistics_that_are_missing_or_do_not_fit_the_sources_are_refused(statistics, message):
    model = {"w": torch.ones(2)}
    with pytest.raises(InvalidInput, match=message):
        merge_state_dicts("toy_precision", [model, model], statistics=statistics)


def test_a_method_without_statistics_refuses_them():
    model = {"w": torch.ones(2)}
    with pytest.raises(InvalidInput, match="linear uses no statistics; leave them out"):
        merge_state_dicts("linear", [model, model], statistics=[model, model])


def test_a_rule_without_statistics_says_so():
    tensors = RuleTensors(names=("w",), base=None, sources=({"w": torch.ones(2)},), parameters={}, options={})
    with pytest.raises(InvalidInput, match="give `statistics`, one per source"):
        dict(merge_rule("toy_precision", tensors))


def test_the_bank_reads_statistics_from_the_recipes_file(sources, tmp_path):
    _, experts = sources
    statistics = precisions(sources)
    recipe = recipe_of(sources, "toy_precision", files={"precision": stored(tmp_path, statistics)})
    assert Recipe.from_json(recipe.to_json()) == recipe
    bank = bank_of(sources, tmp_path)
    live = bank.live_digests(recipe)
    expected = merge_state_dicts("toy_precision", [plain(each) for each in experts], statistics=statistics)
    assert live == {name: tensor_digest(tensor) for name, tensor in expected.items()}
    assert {name: tensor_digest(tensor) for name, tensor in bank.merged(recipe)} == live


def test_another_file_of_statistics_is_another_recipe_and_writes_the_tensors_again(sources, tmp_path):
    first, second = (
        recipe_of(sources, "toy_precision", files={"precision": stored(tmp_path, precisions(sources, seed))})
        for seed in (0, 1)
    )
    assert first.digest != second.digest
    bank = bank_of(sources, tmp_path)
    before = bank.live_digests(first)
    assert bank.live_digests(second) != before
    assert bank.live_digests(first) == before


def test_a_file_of_statistics_that_is_missing_or_of_other_sources_is_refused(sources, tmp_path):
    recipe = recipe_of(sources, "toy_precision")
    with pytest.raises(InvalidInput, match="needs a file of precision, but the recipe names none"):
        bank_of(sources, tmp_path).materialize(recipe)
    turned = stored(tmp_path, precisions(sources), EXPERTS[::-1])
    with pytest.raises(InvalidInput, match="belongs to another rule"):
        bank_of(sources, tmp_path).materialize(replace(recipe, files={"precision": turned}))
    three = stored(tmp_path, [*precisions(sources), precisions(sources)[0]])
    with pytest.raises(InvalidInput, match="for 2 sources; its first dimension"):
        bank_of(sources, tmp_path).materialize(replace(recipe, files={"precision": three}))


def test_statistics_that_a_method_can_do_without_are_optional_in_the_bank(sources):
    METHODS["toy_precision"] = replace(
        METHODS["toy_precision"],
        needs=frozenset(),
        merge="evomerge.elementwise.linear:merge_linear",
        per_source=METHODS["linear"].per_source,
        options=METHODS["linear"].options,
    )
    live = bank_of(sources).live_digests(recipe_of(sources, "toy_precision"))
    assert live == bank_of(sources).live_digests(recipe_of(sources, "linear"))


def test_a_method_that_needs_statistics_cannot_be_searched(tmp_path):
    space = tmp_path / "precision.yaml"
    space.write_text("name: precision\ngroups: {depth: global}\nmethods: {toy_precision: {}}\n")
    with pytest.raises(InvalidInput, match="needs statistics of every source, which a search does not measure"):
        load_space(str(space))


def test_inventory_and_mergekit_take_the_method_up():
    (entry,) = describe_methods("toy_precision")["methods"]
    assert entry["needs"] == ["statistics"]
    base = ModelRef("base", "org/base")
    recipe = Recipe(
        base=base,
        sources=(base,),
        rules=(Rule(tensors=("w",), method="toy_largest", sources=("base",)),),
        dtype="float32",
    )
    text, reason = to_mergekit(recipe, build_catalogue({"w": ((1,), "float32")}))
    assert text is None
    assert "no counterpart of the method toy_largest" in reason
