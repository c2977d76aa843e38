"""Methods with statistics in the bank: measured on a live source, stored by digest, merged as the reference merges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evomerge.bank import WeightBank
from evomerge.checkpoints import meta_model, open_source, tensor_digest, tensors_of
from evomerge.checkpoints.recipe_files import store_tensors
from evomerge.errors import InvalidInput
from evomerge.merging import merge_state_dicts, regmean
from evomerge.methods import METHODS, resolve_options, resolve_parameters
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.statistics import input_grams, sampled_fisher
from evomerge.statistics.measured_size import measured_size
from evomerge.statistics.measurement import KINDS, MeasuredModel, MeasurementSettings

TOY = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"
EXPERTS = ("reverse", "sort")
TEXTS = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12], [3, 1, 4, 1, 5, 9]])


@pytest.fixture(scope="module")
def sources():
    base = open_source(ModelRef("base", str(TOY / "base")))
    return base, [open_source(ModelRef(name, str(TOY / name)), like=base) for name in EXPERTS]


@pytest.fixture(scope="module")
def statistics(sources):
    """By method, one mapping per expert, of the tensors that the catalogue names."""
    base, experts = sources
    names = tuple(entry.name for entry in base.catalogue.mergeable)
    bank = bank_of(sources)
    found = {"fisher": [], "regmean": []}
    for expert in experts:
        alone = recipe_of(sources, "linear", {"weight": [float(expert is each) for each in experts]})
        model = bank.materialize(alone)
        fisher = sampled_fisher(model, TEXTS, None, seed=0)
        grams = input_grams(model, [(TEXTS, None)])
        found["fisher"].append({name: fisher[name] for name in names})
        found["regmean"].append({name: gram for name, gram in grams.items() if name in names})
    return found


def bank_of(sources, files=None):
    return WeightBank(*sources, dtype=torch.float32, device=torch.device("cpu"), files=files)


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


def stored(folder, statistics):
    stacked = {name: torch.stack([each[name] for each in statistics]) for name in statistics[0]}
    return store_tensors(folder, stacked, {"sources": json.dumps(list(EXPERTS))})


def plain(source):
    return {name: source.tensors[name].float() for name in source.catalogue.names}


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_one_bank_merges_several_candidates_to_the_bits_of_the_reference(sources, statistics, tmp_path, method):
    role = METHODS[method].statistics.name
    bank = bank_of(sources, files=tmp_path)
    files = {role: stored(tmp_path, statistics[method])}
    _, experts = sources
    models = [plain(expert) for expert in experts]
    digests = set()
    for parameters in ({}, {"weight": [0.2, 0.7]}, {"weight": [1.0, 0.0]}):
        recipe = recipe_of(sources, method, parameters, files)
        live = bank.live_digests(recipe)
        expected = merge_state_dicts(method, models, None, parameters, statistics=statistics[method])
        assert live == {name: tensor_digest(tensor) for name, tensor in expected.items()}
        assert live == {name: tensor_digest(tensor) for name, tensor in bank.merged(recipe)}
        digests.add(recipe.digest)
    assert len(digests) == 3


def test_grams_are_checked_once_for_all_candidates(sources, statistics, tmp_path, monkeypatch):
    checked = []
    check = regmean.check_gram
    monkeypatch.setattr(regmean, "check_gram", lambda *given: (checked.append(given[1:]), check(*given)))
    bank = bank_of(sources, files=tmp_path)
    files = {"grams": stored(tmp_path, statistics["regmean"])}
    for weight in (0.3, 0.4, 0.5):
        bank.materialize(recipe_of(sources, "regmean", {"weight": [weight, 1.0]}, files))
    assert len(checked) == len(set(checked)) == 2 * len(statistics["regmean"][0])


def test_other_statistics_of_the_same_sources_give_another_merge(sources, statistics, tmp_path):
    bank = bank_of(sources, files=tmp_path)
    doubled = [
        {name: tensor * (1 + index) for name, tensor in each.items()}
        for index, each in enumerate(statistics["regmean"])
    ]
    one, two = (
        bank.live_digests(recipe_of(sources, "regmean", {}, {"grams": stored(tmp_path, each)}))
        for each in (statistics["regmean"], doubled)
    )
    assert one != two


@pytest.mark.parametrize(("method", "role"), [("fisher", "fisher"), ("regmean", "grams")])
def test_a_recipe_without_the_file_is_refused(sources, tmp_path, method, role):
    with pytest.raises(InvalidInput, match=f"needs a file of {role}, but the recipe names none"):
        bank_of(sources, files=tmp_path).materialize(recipe_of(sources, method))


def stored_apart(folder, sources, role, statistics):
    """One file per expert, as a search measures them: role -> digest."""
    _, experts = sources
    return {
        f"{role}.{expert.ref.name}": store_tensors(folder, each, {"source": expert.ref.fingerprint})
        for expert, each in zip(experts, statistics, strict=True)
    }


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_one_file_per_source_gives_the_merge_of_one_file_for_all(sources, statistics, tmp_path, method):
    role = METHODS[method].statistics.name
    together = {role: stored(tmp_path, statistics[method])}
    apart = stored_apart(tmp_path, sources, role, statistics[method])
    one, other = (
        bank_of(sources, files=tmp_path).live_digests(recipe_of(sources, method, {"weight": [0.2, 0.7]}, files))
        for files in (together, apart)
    )
    assert one == other


def test_a_file_of_another_source_is_refused(sources, statistics, tmp_path):
    files = stored_apart(tmp_path, sources, "grams", statistics["regmean"])
    exchanged = {"grams.reverse": files["grams.sort"], "grams.sort": files["grams.reverse"]}
    with pytest.raises(InvalidInput, match="belongs to another model than 'reverse'"):
        bank_of(sources, files=tmp_path).materialize(recipe_of(sources, "regmean", {}, exchanged))


def test_a_source_without_its_file_is_named(sources, statistics, tmp_path):
    files = stored_apart(tmp_path, sources, "grams", statistics["regmean"])
    del files["grams.sort"]
    with pytest.raises(InvalidInput, match=r"needs a file of grams\.sort, but the recipe names none"):
        bank_of(sources, files=tmp_path).materialize(recipe_of(sources, "regmean", {}, files))


def kept_bytes(bank):
    """Bytes of the products that a bank keeps."""
    products = [
        value
        for cache in bank._caches.values()
        for by_files in cache.values.values()
        for by_scope in by_files.values()
        for key, value in by_scope.items()
        if key[:2] == ("regmean", "products")
    ]
    return sum(tensor.nbytes for kept in products for tensors in kept.values() for tensor in tensors)


def predicted_products(sources):
    """Bytes of the products of one source, as a model without weights tells."""
    base, _ = sources
    model = meta_model(base)
    measured = MeasuredModel(model=model, live=tensors_of(base, model), catalogue=base.catalogue)
    return measured_size(KINDS["grams"], measured, MeasurementSettings(), width=4).products


@pytest.mark.parametrize("room", [regmean.KEPT_BYTES, 0])
def test_products_with_grams_are_taken_once_for_all_candidates_where_there_is_room(
    sources, statistics, tmp_path, monkeypatch, room
):
    taken = []
    take = regmean.gram_products
    monkeypatch.setattr(regmean, "KEPT_BYTES", room)
    monkeypatch.setattr(regmean, "gram_products", lambda weights, grams: taken.append(1) or take(weights, grams))
    bank = bank_of(sources, files=tmp_path)
    files = {"grams": stored(tmp_path, statistics["regmean"])}
    layers = len(statistics["regmean"][0])
    digests = [
        bank.live_digests(recipe_of(sources, "regmean", {"weight": [weight, 1.0], "scaling": weight}, files))
        for weight in (0.3, 0.4, 0.3)
    ]
    assert len(taken) == (layers if room else 3 * layers)
    assert kept_bytes(bank) == (predicted_products(sources) * len(EXPERTS) if room else 0)
    assert digests[0] == digests[2] != digests[1]
