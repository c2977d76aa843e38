"""Core space: exact for each adapter and for sums, named by the recipe, refused where it has no meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_models import open_base, save_adapter, save_base
from safetensors.torch import load_file, save_file

from evomerge.adapters import open_expert
from evomerge.adapters.core_space import CoreSpace, core_bytes
from evomerge.bank import WeightBank
from evomerge.checkpoints import tensor_digests
from evomerge.checkpoints.source import Source
from evomerge.errors import InvalidInput
from evomerge.mergekit.export_yaml import to_mergekit
from evomerge.merging import RuleTensors, merge_rule
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.opening.capacity import memory_of
from evomerge.opening.inputs import open_inputs
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.spec.reading import load_spec

RANKS = (2, 4, 3)
QUERY, EMBEDDING, NORM = "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "model.norm.weight"


@pytest.fixture
def opened(tmp_path: Path) -> tuple[Source, list[Source]]:
    """A base and three adapters of different ranks; the first saves a norm whole, the last has other modules."""
    base = save_base(tmp_path / "base")
    settings: list[dict[str, Any]] = [{"modules_to_save": ["norm"]}, {}, {"target_modules": ["q_proj", "up_proj"]}]
    source = open_base(base)
    experts = []
    for rank, more in zip(RANKS, settings, strict=True):
        folder = save_adapter(base, tmp_path / f"rank{rank}", seed=rank, r=rank, **more)
        experts.append(open_expert(ModelRef(folder.name, str(folder)), base=source))
    return source, experts


def recipe_of(base: Source, experts: list[Source], method: str, *, space: str = "core", **given: Any) -> Recipe:
    options = resolve_options(method, {"normalize": given.pop("normalize")} if "normalize" in given else {})
    rule = Rule(
        tensors=tuple(entry.name for entry in base.catalogue.mergeable),
        method=method,
        sources=tuple(expert.name for expert in experts),
        parameters=resolve_parameters(method, given, len(experts)),
        options=options,
    )
    refs = tuple(each.ref for each in experts if each is not base)
    return Recipe(base=base.ref, sources=refs, rules=(rule,), dtype="float32", space=space)  # type: ignore[arg-type]


def bank_of(base: Source, experts: list[Source]) -> WeightBank:
    return WeightBank(base, experts, dtype=torch.float32, device=torch.device("cpu"))


def test_each_adapter_is_exact_in_core_space(opened: tuple[Source, list[Source]]) -> None:
    base, experts = opened
    names = [entry.name for entry in base.catalogue.mergeable]
    space = CoreSpace(base.tensors, [expert.tensors for expert in experts], names)
    assert space.sources[0][QUERY].shape == (sum(RANKS), sum(RANKS))
    assert EMBEDDING not in space.names
    for expert, source in zip(experts, space.sources, strict=True):
        for name in space.names:
            torch.testing.assert_close(space.tensor(name, source[name]), expert.tensors[name], rtol=0, atol=1e-6)


def test_adapters_that_are_nearly_one_or_untrained_are_exact_in_core_space(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    first, twin = (save_adapter(base, tmp_path / name, seed=1) for name in ("first", "twin"))
    stored = load_file(twin / "adapter_model.safetensors")
    for seed, tensor in enumerate(stored.values()):
        tensor.add_(1e-6 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)))
    save_file(stored, twin / "adapter_model.safetensors")
    folders = [first, twin, save_adapter(base, tmp_path / "untrained", size=0.0)]
    opened = open_base(base)
    experts = [open_expert(ModelRef(folder.name, str(folder)), base=opened) for folder in folders]
    for chosen in (experts, experts[2:]):
        space = CoreSpace(opened.tensors, [expert.tensors for expert in chosen], [QUERY])
        for expert, source in zip(chosen, space.sources, strict=True):
            torch.testing.assert_close(space.tensor(QUERY, source[QUERY]), expert.tensors[QUERY], rtol=0, atol=1e-6)
        full = dict(bank_of(opened, chosen).merged(recipe_of(opened, chosen, "task_arithmetic", space="full")))
        core = dict(bank_of(opened, chosen).merged(recipe_of(opened, chosen, "task_arithmetic")))
        torch.testing.assert_close(core[QUERY], full[QUERY], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("task_arithmetic", {"weight": [0.3, -0.5, 0.9]}),
        ("task_arithmetic", {"weight": [0.3, 0.5, 0.9], "normalize": True}),
        ("linear", {"weight": [1.0, 2.0, 0.5], "normalize": True}),
    ],
)
def test_a_weighted_sum_in_core_space_is_the_sum_of_the_weights(
    opened: tuple[Source, list[Source]], method: str, given: dict[str, Any]
) -> None:
    base, experts = opened
    bank = bank_of(base, experts)
    full = dict(bank.merged(recipe_of(base, experts, method, space="full", **given)))
    for name, tensor in bank.merged(recipe_of(base, experts, method, **given)):
        torch.testing.assert_close(tensor, full.pop(name), rtol=0, atol=1e-5)
    assert full == {}


def test_ties_in_core_space_is_ties_of_the_coordinates(opened: tuple[Source, list[Source]]) -> None:
    base, experts = opened
    recipe = recipe_of(base, experts, "ties", density=0.3)
    (rule,) = recipe.rules
    space = CoreSpace(base.tensors, [expert.tensors for expert in experts], rule.tensors)
    names = space.names
    tensors = RuleTensors(
        names=names, base=space.base, sources=space.sources, parameters=rule.parameters, options=rule.options
    )
    coordinates = dict(merge_rule("ties", tensors))
    merged = dict(bank_of(base, experts).merged(recipe))
    for name in names:
        torch.testing.assert_close(merged[name], space.tensor(name, coordinates[name]), rtol=0, atol=1e-6)
    full = dict(bank_of(base, experts).merged(replace(recipe, space="full")))
    assert not torch.allclose(merged[QUERY], full[QUERY], atol=1e-3)
    assert torch.equal(merged[EMBEDDING], base.tensors[EMBEDDING])


def test_what_is_scored_in_core_space_is_what_is_exported(opened: tuple[Source, list[Source]]) -> None:
    base, experts = opened
    bank = bank_of(base, experts)
    in_core = recipe_of(base, experts, "ties")
    bank.materialize(replace(in_core, space="full"))
    digests = bank.live_digests(in_core)
    assert digests == tensor_digests(bank_of(base, experts).merged(in_core))
    assert digests != bank.live_digests(replace(in_core, space="full"))


def test_the_space_is_part_of_a_recipe_and_absent_where_it_is_the_full_one() -> None:
    full = Recipe(base=ModelRef("base", "/base"), sources=(), rules=(), dtype="float32")
    core = replace(full, space="core")
    assert "space" not in full.to_json()
    assert Recipe.from_json(core.to_json()) == core
    assert Recipe.from_json(full.to_json()) == full
    assert core.digest != full.digest
    with pytest.raises(InvalidInput):
        Recipe.from_json(core.to_json().replace('"core"', '"kernel"'))


def test_the_base_may_be_a_source_without_a_task_vector(opened: tuple[Source, list[Source]]) -> None:
    base, experts = opened
    bank = bank_of(base, experts)
    with_base = recipe_of(base, [*experts, base], "task_arithmetic", weight=[0.3, 0.5, 0.9, 5.0])
    without = recipe_of(base, experts, "task_arithmetic", weight=[0.3, 0.5, 0.9])
    expected = dict(bank.merged(without))
    for name, tensor in bank.merged(with_base):
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("linear", {"normalize": False}, "linear merges whole weights"),
        ("karcher", {}, "karcher merges whole weights"),
        ("opcm", {}, "opcm projects whole models"),
    ],
)
def test_a_method_without_meaning_in_core_space_is_refused(
    opened: tuple[Source, list[Source]], method: str, given: dict[str, Any], said: str
) -> None:
    base, experts = opened
    with pytest.raises(InvalidInput, match=said):
        bank_of(base, experts).materialize(recipe_of(base, experts, method, **given))


def test_a_whole_model_has_no_core_space(opened: tuple[Source, list[Source]], tmp_path: Path) -> None:
    base, experts = opened
    other = open_expert(ModelRef("other", str(save_base(tmp_path / "other"))), base=base)
    with pytest.raises(InvalidInput, match="the source 'other' is none"):
        bank_of(base, [*experts, other]).materialize(recipe_of(base, [*experts, other], "ties"))


def test_mergekit_has_no_core_space(opened: tuple[Source, list[Source]]) -> None:
    base, experts = opened
    assert to_mergekit(recipe_of(base, experts, "ties"), base.catalogue) == (
        None,
        "it is merged in core space, which mergekit does not have",
    )


SPACE = """name: ties-core
methods:
  ties:
    parameters:
      weight: {low: 0.0, high: 1.0}
      density: {low: 0.1, high: 1.0}
groups: {depth: global}
space: core
"""


def _spec(write_spec: Callable[..., Path], *sources: Path, space: str = SPACE) -> Path:
    content = [{"name": folder.name, "location": str(folder)} for folder in sources]
    path = write_spec(sources=content, space="core.yaml")
    (path.parent / "core.yaml").write_text(space)
    return path


def test_a_search_space_names_core_space_for_its_recipes_and_its_memory_is_counted(
    tmp_path: Path, write_spec: Callable[..., Path]
) -> None:
    base = save_base(tmp_path / "base")
    adapters = [save_adapter(base, tmp_path / f"a{seed}", seed=seed) for seed in (1, 2)]
    inputs = open_inputs(load_spec(_spec(write_spec, base, *adapters)))
    assert inputs.space.decode(inputs.space.centre).space == "core"
    held = core_bytes([expert.tensors for expert in inputs.experts], inputs.catalogue)
    # Two layers with three matrices, of rank 8 together: all left factors in their basis, and all right ones.
    assert held == 2 * 3 * 4 * 2 * 8 * 8
    full = open_inputs(load_spec(_spec(write_spec, base, *adapters, space=SPACE.replace("space: core\n", ""))))
    assert "space" not in full.spec.search_space.model_dump(mode="json")
    assert memory_of(inputs).worker == memory_of(full).worker + held


def test_a_search_in_core_space_of_a_whole_model_or_of_whole_weights_is_refused_before_it_begins(
    tmp_path: Path, write_spec: Callable[..., Path]
) -> None:
    base, other = save_base(tmp_path / "base"), save_base(tmp_path / "other")
    adapter = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(InvalidInput, match="the source 'other' is none"):
        open_inputs(load_spec(_spec(write_spec, base, adapter, other)))
    space = "name: k\nmethods: {karcher: {}}\ngroups: {depth: global}\nspace: core\n"
    with pytest.raises(InvalidInput, match="karcher merges whole weights"):
        open_inputs(load_spec(_spec(write_spec, base, adapter, space=space)))
    space = "name: p\nlayers: {}\nspace: core\n"
    with pytest.raises(InvalidInput, match="space: core is for merges of adapters"):
        load_spec(_spec(write_spec, base, adapter, space=space))
