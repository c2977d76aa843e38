"""Merges that are sources of other merges, in a bank: built from their recipes, kept, dropped, and refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evomerge.artefacts import write_model
from evomerge.artefacts.exported_files import exported_names, take_files
from evomerge.bank import WeightBank
from evomerge.bank.shared_tensors import SharedTensors
from evomerge.checkpoints import open_source, tensor_digest
from evomerge.checkpoints.recipe_files import store_tensors
from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import merge_state_dicts
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.passes.kernels import KernelKind, Kernels
from evomerge.recipe import ModelRef, PathLayer, Recipe, RecipeSet, Rule, copying_rule
from evomerge.tensors.plans import Formula

TOY = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"
EXPERTS = ("reverse", "sort")


@pytest.fixture(scope="module")
def sources():
    torch.set_num_threads(1)
    base = open_source(ModelRef("base", str(TOY / "base")))
    return base, [open_source(ModelRef(name, str(TOY / name)), like=base) for name in EXPERTS]


def bank_of(sources, dtype="float32", **settings):
    return WeightBank(*sources, dtype=getattr(torch, dtype), device=torch.device("cpu"), **settings)


def names_of(sources):
    return tuple(entry.name for entry in sources[0].catalogue.mergeable)


def rule_of(method, sources, tensors, parameters=None, options=None):
    return Rule(
        tensors=tensors,
        method=method,
        sources=sources,
        parameters={} if method == "column_linear" else resolve_parameters(method, parameters or {}, len(sources)),
        options=resolve_options(method, options or {}, n_sources=len(sources)),
    )


def recipe_of(sources, *rules, dtype="float32", **settings):
    base, experts = sources
    refs = tuple(expert.ref for expert in experts)
    return Recipe(base=base.ref, sources=refs, rules=rules, dtype=dtype, seed=7, **settings)


def inner(sources, method, parameters=None, options=None, dtype="float32", **settings):
    return recipe_of(sources, rule_of(method, EXPERTS, names_of(sources), parameters, options), dtype=dtype, **settings)


def outer(sources, ingredients, method="linear", parameters=None, dtype="float32"):
    rule = rule_of(method, tuple(ingredients), names_of(sources), parameters, {})
    return recipe_of(sources, rule, dtype=dtype, ingredients=ingredients)


def plain(source):
    return {name: source.tensors[name].float() for name in source.catalogue.names}


def digests(tensors):
    return {name: tensor_digest(tensor) for name, tensor in tensors}


def statistics(sources, folder, role):
    """Files of made-up statistics, one per expert."""
    base, experts = sources
    generator = torch.Generator().manual_seed(0)
    files = {}
    for expert in experts:
        tensors = {}
        for entry in base.catalogue.mergeable:
            if role == "fisher":
                tensors[entry.name] = torch.rand(entry.shape, generator=generator)
            elif len(entry.shape) == 2 and entry.part in ("attention", "mlp"):
                inputs = torch.randn(3 * entry.shape[1], entry.shape[1], generator=generator)
                tensors[entry.name] = inputs.T @ inputs
        described = {"statistics": role, "source": expert.ref.fingerprint}
        files[f"{role}.{expert.name}"] = store_tensors(folder, tensors, described)
    return files


def coefficients(sources, folder):
    generator = torch.Generator().manual_seed(1)
    tensors = {
        entry.name: torch.rand((2, entry.shape[-1]) if len(entry.shape) == 2 else (2,), generator=generator)
        for entry in sources[0].catalogue.mergeable
    }
    return {"coefficients": store_tensors(folder, tensors, {"phi": "identity", "sources": json.dumps(EXPERTS)})}


METHODS = [
    ("linear", {"weight": [1.0, 3.0]}, {}),
    ("task_arithmetic", {"weight": 0.4}, {}),
    ("ties", {"density": 0.3}, {"trim_scope": "tensor"}),
    ("ties", {"density": 0.3}, {"trim_scope": "global"}),
    ("dare_ties", {"drop_rate": 0.5}, {}),
    ("dare_linear", {"drop_rate": 0.5, "weight": 0.4}, {}),
    ("pcb", {"density": 0.2}, {}),
    ("slerp", {"t": 0.3}, {}),
    ("opcm", {"alpha": 0.4}, {}),
    ("ot_fusion", {"t": 0.4}, {}),
    ("emr", {}, {"task": 1}),
    ("fisher", {}, {}),
    ("regmean", {}, {}),
    ("column_linear", {}, {"phi": "identity"}),
]


def made(sources, folder, method, parameters, options, dtype="float32"):
    files = {}
    if method in ("fisher", "regmean"):
        files = statistics(sources, folder, {"fisher": "fisher", "regmean": "grams"}[method])
    if method == "column_linear":
        files = coefficients(sources, folder)
    return inner(sources, method, parameters, options, dtype, files=files)


@pytest.mark.parametrize(
    ("method", "parameters", "options", "dtype"),
    [
        *((*each, "float32") for each in METHODS),
        *((*each, "bfloat16") for each in METHODS if each[0] in ("task_arithmetic", "ties", "column_linear")),
    ],
)
def test_a_copy_of_an_ingredient_has_the_bits_of_the_merge_itself(
    sources, tmp_path, method, parameters, options, dtype
):
    recipe = made(sources, tmp_path, method, parameters, options, dtype)
    alone = bank_of(sources, dtype, files=tmp_path).live_digests(recipe)
    bank = bank_of(sources, dtype, files=tmp_path)
    half = names_of(sources)[::2]
    both = {"made": recipe, "soup": inner(sources, "linear", dtype=dtype)}
    rest = tuple(name for name in names_of(sources) if name not in half)
    mixed = recipe_of(sources, copying_rule("made", half), copying_rule("soup", rest), dtype=dtype, ingredients=both)
    found = bank.live_digests(mixed)
    assert {name: found[name] for name in half} == {name: alone[name] for name in half}
    assert found == digests(bank.merged(mixed))
    other = bank_of(sources, dtype, files=tmp_path).live_digests(both["soup"])
    assert {name: found[name] for name in rest} == {name: other[name] for name in rest}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_of_merges_is_the_reference_of_references_bit_by_bit(sources, dtype, method):
    base, experts = sources
    models = [plain(expert) for expert in experts]
    parts = [
        ("linear", {"weight": [1.0, 3.0]}, {}),
        ("task_arithmetic", {"weight": 0.4}, {}),
        ("opcm", {"alpha": 0.4}, {}),
    ]
    ingredients = {each: inner(sources, each, parameters, dtype=dtype) for each, parameters, _ in parts}
    weights = {"weight": [0.7, 0.5, 0.1]}
    recipe = outer(sources, ingredients, method, weights, dtype)

    def rounded(model):
        return {name: tensor.to(getattr(torch, dtype)).float() for name, tensor in model.items()}

    inside = [rounded(merge_state_dicts(each, models, plain(base), given)) for each, given, _ in parts]
    expected = merge_state_dicts(method, inside, plain(base), weights)
    expected = {name: tensor_digest(tensor.to(getattr(torch, dtype))) for name, tensor in expected.items()}
    bank = bank_of(sources, dtype)
    assert bank.live_digests(recipe) == expected
    assert digests(bank.merged(recipe)) == expected


@pytest.mark.parametrize("method", ["ties", "dare_ties", "pcb", "slerp"])
def test_other_methods_merge_ingredients_as_they_merge_models(sources, method):
    base, experts = sources
    models = [plain(expert) for expert in experts]
    ingredients = {
        "soup": inner(sources, "linear", {"weight": [1.0, 3.0]}),
        "sum": inner(sources, "task_arithmetic", {"weight": 0.4}),
    }
    inside = [
        merge_state_dicts("linear", models, None, {"weight": [1.0, 3.0]}),
        merge_state_dicts("task_arithmetic", models, plain(base), {"weight": 0.4}),
    ]
    expected = merge_state_dicts(method, inside, plain(base), seed=7)
    for name, tensor in bank_of(sources).merged(outer(sources, ingredients, method)):
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_ingredients_may_have_ingredients(sources, tmp_path):
    ties = inner(sources, "ties", {"density": 0.3})
    trained = made(sources, tmp_path, "column_linear", {}, {"phi": "identity"})
    middle = outer(sources, {"ties": ties, "trained": trained}, parameters={"weight": [0.25, 0.75]})
    recipe = outer(sources, {"middle": middle, "ties": ties}, "task_arithmetic", {"weight": [0.5, 0.25]})
    base = plain(sources[0])
    bank = bank_of(sources, files=tmp_path)
    weights = [dict(bank.merged(ties)), dict(bank.merged(trained))]
    between = merge_state_dicts("linear", weights, None, {"weight": [0.25, 0.75]})
    expected = merge_state_dicts("task_arithmetic", [between, weights[0]], base, {"weight": [0.5, 0.25]})
    assert bank_of(sources, files=tmp_path).live_digests(recipe) == digests(expected.items())


def test_an_ingredient_is_rounded_to_its_own_dtype(sources):
    coarse = inner(sources, "task_arithmetic", {"weight": 0.37}, dtype="bfloat16")
    expected = {name: tensor.float() for name, tensor in bank_of(sources, "bfloat16").merged(coarse)}
    recipe = recipe_of(sources, copying_rule("coarse", names_of(sources)), ingredients={"coarse": coarse})
    assert bank_of(sources).live_digests(recipe) == digests(expected.items())


def test_compiled_and_eager_merges_of_ingredients_have_the_same_bits(sources, tmp_path):
    cpu = torch.device("cpu")
    base, experts = sources
    third = open_source(ModelRef("swap", str(TOY / "swap")), like=base)
    three = (base, [*experts, third])
    scope, all_three = {"trim_scope": "tensor"}, (*EXPERTS, "swap")

    def ties(names, density, **settings):
        rule = rule_of("ties", names, names_of(sources), {"density": density}, scope)
        return recipe_of(three, rule, dtype="bfloat16", **settings)

    ingredients = {f"density {density}": ties(all_three, density) for density in (0.2, 0.3, 0.5)}
    recipe = ties(tuple(ingredients), 0.4, ingredients=ingredients)
    eager = bank_of(three, "bfloat16", kernels=Kernels(cpu, tmp_path))
    kernels = Kernels(cpu)
    compiled = bank_of(three, "bfloat16", kernels=kernels)
    formula = Formula(kind="election", elect="mass", agg="dis-mean", weighting="count")
    kind = KernelKind(formula=formula, base="bfloat16", sources=("bfloat16",) * 3, out="bfloat16")
    kernels.compile(kind)  # of the ingredients, and of their merge, whose sources have the same dtypes
    assert eager._fused(recipe.rules[0], recipe) is None
    assert compiled._fused(recipe.rules[0], recipe) is not None
    assert compiled.live_digests(recipe) == eager.live_digests(recipe)


def counting(bank, monkeypatch):
    built = []
    build = bank._merges._build
    monkeypatch.setattr(bank._merges, "_build", lambda recipe: built.append(recipe.digest) or build(recipe))
    return built


def test_an_ingredient_is_built_once_for_all_candidates_under_whatever_name(sources, monkeypatch):
    soup, total = inner(sources, "linear"), inner(sources, "task_arithmetic", {"weight": 0.4})
    bank = bank_of(sources, ingredients=2)
    built = counting(bank, monkeypatch)
    for weight in (0.2, 0.9):
        bank.materialize(outer(sources, {"a": soup, "b": total}, parameters={"weight": [weight, 1.0]}))
    bank.materialize(total)
    bank.materialize(outer(sources, {"b": soup, "a": total}, parameters={"weight": [0.5, 1.0]}))
    assert sorted(built) == sorted([soup.digest, total.digest])


def test_one_name_may_stand_for_another_merge_in_the_next_recipe(sources):
    soup, total = inner(sources, "linear"), inner(sources, "task_arithmetic", {"weight": 0.4})
    first, second = (outer(sources, {"made": each, "soup": soup}, "ties") for each in (soup, total))
    bank = bank_of(sources, ingredients=2)
    found = [bank.live_digests(recipe) for recipe in (first, second, first)]
    assert found[0] == found[2] != found[1]
    assert found[1] == bank_of(sources).live_digests(second)


def test_ingredients_that_no_memory_was_planned_for_are_dropped_with_the_next_candidate(sources, monkeypatch):
    merges = [inner(sources, "task_arithmetic", {"weight": weight}) for weight in (0.1, 0.2, 0.3)]
    bank = bank_of(sources)
    built = counting(bank, monkeypatch)
    recipe = outer(sources, {"first": merges[0], "second": merges[1]}, "ties")
    bank.materialize(recipe)
    assert len(bank._merges) == 2
    bank.materialize(outer(sources, {"first": merges[0]}, parameters={"weight": [0.9]}))
    assert len(bank._merges) == 1
    bank.materialize(merges[2])
    assert len(bank._merges) == 0
    held = {part for cached in (bank._tables, bank._caches) for key in cached for part in key}
    assert held <= {*EXPERTS}
    bank.materialize(recipe)
    assert built == [merges[0].digest, merges[1].digest] * 2


def test_of_kept_ingredients_the_one_that_was_not_used_for_longest_is_dropped(sources, monkeypatch):
    one, two, three = (inner(sources, "task_arithmetic", {"weight": weight}) for weight in (0.1, 0.2, 0.3))
    bank = bank_of(sources, ingredients=2)
    built = counting(bank, monkeypatch)
    for each in (one, two, one, three, one, two):
        bank.materialize(recipe_of(sources, copying_rule("it", names_of(sources)), ingredients={"it": each}))
    assert built == [each.digest for each in (one, two, three, two)]


def test_only_ingredients_that_a_rule_names_are_built(sources):
    ingredients = {name: inner(sources, "linear", {"weight": [1.0, weight]}) for name, weight in (("a", 1), ("b", 2))}
    bank = bank_of(sources)
    bank.materialize(recipe_of(sources, copying_rule("a", names_of(sources)), ingredients=ingredients))
    assert len(bank._merges) == 1


def test_an_ingredient_takes_what_no_rule_of_it_names_from_the_base_without_a_copy(sources):
    some = ("model.norm.weight",)
    part = recipe_of(sources, rule_of("linear", EXPERTS, some), dtype="bfloat16")
    bank = bank_of(sources, "bfloat16", ingredients=1)
    bank.materialize(
        recipe_of(sources, copying_rule("part", names_of(sources)), dtype="bfloat16", ingredients={"part": part})
    )
    (held,) = bank._merges._held.values()
    shared = {name for name, tensor in held.items() if tensor.data_ptr() == bank.weights["base"][name].data_ptr()}
    assert shared == set(sources[0].catalogue.names) - set(some)


def test_workers_that_share_merges_score_the_same_weights_and_merge_them_once(sources, tmp_path, monkeypatch):
    recipe = outer(sources, {"soup": inner(sources, "linear"), "ties": inner(sources, "ties")})
    alone = bank_of(sources, ingredients=2).live_digests(recipe)
    one, other = (bank_of(sources, ingredients=2, shared=SharedTensors("run", tmp_path)) for _ in range(2))
    assert one.live_digests(recipe) == alone
    assert digests(one.merged(recipe)) == alone
    merges = []
    merge = other._tensors
    monkeypatch.setattr(other, "_tensors", lambda recipe: merges.append(recipe.digest) or merge(recipe))
    assert other.live_digests(recipe) == alone
    assert merges == []


@pytest.mark.parametrize(("planned", "share", "are_shared"), [(16, 1.0, False), (8, 0.0, False), (16, 0.0, True)])
def test_memory_of_kept_ingredients_is_within_a_fifth_of_what_is_counted_and_that_of_dropped_or_shared_ones_is_free(
    tmp_path, planned, share, are_shared
):
    # What the allocator keeps of small blocks is none of the merges'.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parent / "memory_of_ingredients.py"
    command = [sys.executable, str(script), str(planned), *([str(tmp_path)] if are_shared else [])]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    taken, counted = map(int, ran.stdout.split())
    assert taken / counted == pytest.approx(share, abs=0.2)


def test_an_export_is_rebuilt_from_its_recipe_and_the_files_beside_it_alone(sources, tmp_path):
    base, _ = sources
    trained = made(sources, tmp_path / "files", "column_linear", {}, {"phi": "identity"})
    measured = made(sources, tmp_path / "files", "fisher", {}, {})
    middle = outer(sources, {"trained": trained, "measured": measured}, parameters={"weight": [0.25, 0.75]})
    recipe = outer(sources, {"middle": middle, "soup": inner(sources, "linear")}, "task_arithmetic")
    bank = bank_of(sources, files=tmp_path / "files")
    scored = bank.live_digests(recipe)
    write_model(
        tmp_path / "out",
        base=base,
        tensors=bank.merged(recipe),
        dtype=torch.float32,
        recipe=recipe,
        recipe_files={
            name: tmp_path / "files" / f"{digest}.safetensors" for name, digest in exported_names(recipe).items()
        },
    )
    shutil.rmtree(tmp_path / "files")
    again = Recipe.from_json((tmp_path / "out" / "recipe.json").read_text())
    take_files(again, tmp_path / "out", tmp_path / "taken")
    assert again.digest == recipe.digest
    assert bank_of(sources, files=tmp_path / "taken").live_digests(again) == scored
    written = open_source(ModelRef("out", str(tmp_path / "out")))
    assert digests((name, written.tensors[name]) for name in written.catalogue.names) == scored


def test_an_ingredient_that_cannot_be_merged_fails_the_candidate_by_name(sources):
    wild = outer(sources, {"wild": inner(sources, "linear", {"weight": 0.0}), "soup": inner(sources, "linear")})
    bank = bank_of(sources)
    with pytest.raises(MergeError, match="ingredient 'wild': the weights"):
        bank.materialize(wild)
    good = outer(sources, {"soup": inner(sources, "linear")})
    assert bank.live_digests(good) == bank_of(sources).live_digests(good)


def test_statistics_of_an_ingredient_are_refused(sources, tmp_path):
    files = {"fisher.soup": "0" * 64}
    recipe = replace(outer(sources, {"soup": inner(sources, "linear")}, "fisher"), files=files)
    with pytest.raises(InvalidInput, match="fisher of the ingredient 'soup', but only models are measured"):
        bank_of(sources, files=tmp_path).materialize(recipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda soup: replace(soup, layers=(PathLayer("sort", 0, 1.0),)), "path of layers"),
        (lambda soup: RecipeSet(recipes={"a": soup}, tasks={"t": "a"}), "several models"),
        (lambda soup: replace(soup, base=replace(soup.base, fingerprint="other")), "merges 'base'"),
        (lambda soup: replace(soup, base=soup.sources[0]), "another base"),
        (lambda soup: replace(soup, sources=(replace(soup.sources[0], name="odd"),)), "merges 'odd'"),
        (lambda soup: replace(soup, semantics=99), "ingredient 'made' was made with semantics version 99"),
        (lambda soup: replace(soup, ingredients={"sort": soup}), "'sort' has the name of a source"),
    ],
)
def test_what_cannot_be_an_ingredient_is_refused(sources, change, message):
    recipe = outer(sources, {"made": inner(sources, "linear")})
    wrong = replace(recipe, ingredients={"made": change(recipe.ingredients["made"])})
    with pytest.raises(InvalidInput, match=message):
        bank_of(sources).materialize(wrong)


def test_a_path_with_a_layer_of_an_ingredient_is_refused(sources):
    recipe = replace(outer(sources, {"soup": inner(sources, "linear")}), layers=(PathLayer("soup", 0, 1.0),))
    with pytest.raises(InvalidInput, match="takes a layer of the ingredient 'soup'"):
        bank_of(sources).materialize(recipe)
