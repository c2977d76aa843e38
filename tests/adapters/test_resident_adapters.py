"""Adapters in a bank: only what they change is held, and merges have the bits of whole models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_models import load_with_peft, open_base, save_adapter, save_base

from evomerge.adapters import AdaptedTensors, adapted_tensors, open_expert
from evomerge.adapters.adapter_bytes import adapter_bytes
from evomerge.bank import WeightBank
from evomerge.bank.memory import memory_need
from evomerge.checkpoints.source import Source
from evomerge.merging import RuleTensors, merge_rule
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.passes.fused_rule import FusedRule, SourceCache, kinds
from evomerge.passes.kernels import KernelKind
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.tensors.plans import plan_rule

RANKS = (2, 4, 8)
QUERY, EMBEDDING = "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"


@pytest.fixture
def opened(tmp_path: Path) -> tuple[Source, list[Source]]:
    """A base and three adapters of different ranks."""
    base = save_base(tmp_path / "base")
    folders = [save_adapter(base, tmp_path / f"rank{rank}", seed=rank, r=rank) for rank in RANKS]
    source = open_base(base)
    return source, [open_expert(ModelRef(folder.name, str(folder)), base=source) for folder in folders]


def recipe_of(base: Source, experts: list[Source], method: str, **parameters: Any) -> Recipe:
    """One rule over all tensors."""
    options = resolve_options(method, {})
    rule = Rule(
        tensors=tuple(entry.name for entry in base.catalogue.mergeable),
        method=method,
        sources=tuple(expert.name for expert in experts),
        parameters=resolve_parameters(method, parameters, len(experts)),
        options=options,
    )
    return Recipe(base=base.ref, sources=tuple(each.ref for each in experts), rules=(rule,), dtype="float32")


def bank_of(base: Source, experts: list[Source], dtype: torch.dtype = torch.float32) -> WeightBank:
    return WeightBank(base, experts, dtype=dtype, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("task_arithmetic", {"weight": [0.3, 0.5, 0.9]}), ("ties", {"density": [0.2, 0.4, 0.6]}), ("dare_linear", {})],
)
def test_a_merge_of_adapters_has_the_bits_of_the_models_that_they_make(
    opened: tuple[Source, list[Source]], method: str, parameters: dict[str, Any]
) -> None:
    base, experts = opened
    recipe = recipe_of(base, experts, method, **parameters)
    bank = bank_of(base, experts)
    rule = bank.rule_tensors(recipe.rules[0], recipe)
    whole = [dict(expert.tensors.items()) for expert in experts]
    expected = dict(
        merge_rule(method, RuleTensors(names=rule.names, base=dict(base.tensors.items()), sources=whole,
                                       parameters=rule.parameters, options=rule.options, thresholds=rule.thresholds))
    )  # fmt: skip
    merged = dict(bank.merged(recipe))
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
    live = bank.materialize(recipe).state_dict()
    assert all(torch.equal(live[base.live_names[name]], tensor) for name, tensor in merged.items())


def test_a_sum_of_adapters_of_different_ranks_is_peft_s_cat(
    tmp_path: Path, opened: tuple[Source, list[Source]]
) -> None:
    base, experts = opened
    weights = [0.3, 0.5, 0.9]
    model = load_with_peft(tmp_path / "base", *(expert.directory for expert in experts))
    model.add_weighted_adapter([expert.name for expert in experts], weights, "sum", combination_type="cat")
    model.set_adapter("sum")
    expected = model.merge_and_unload(adapter_names=["sum"]).state_dict()
    for name, tensor in bank_of(base, experts).merged(recipe_of(base, experts, "task_arithmetic", weight=weights)):
        torch.testing.assert_close(tensor, expected[base.live_names[name]], rtol=1e-5, atol=1e-6)


def test_a_bank_holds_the_changes_of_an_adapter_and_no_tensor_that_it_makes(
    opened: tuple[Source, list[Source]],
) -> None:
    base, experts = opened
    weights = bank_of(base, experts).weights
    for expert in experts:
        held = weights[expert.name]
        assert isinstance(held, AdaptedTensors)
        assert held[EMBEDDING] is weights["base"][EMBEDDING]
        assert held[QUERY].data_ptr() != weights["base"][QUERY].data_ptr()
        own, whole = (sum(each.nbytes for each in tensors) for tensors in (held.held, weights["base"].values()))
        assert own < whole / 4


def fused(tensors: RuleTensors, method: str, cache: SourceCache, lengths: list[int]) -> FusedRule:
    """A rule with kernels that are not compiled, which note how many elements they get."""
    plan = plan_rule(method, tensors)
    assert plan is not None

    def kernel(kind: KernelKind) -> Any:
        def run(arguments: Any) -> torch.Tensor:
            lengths.append(arguments[0].numel())
            return kind.run(*arguments)

        return run

    found = kinds(tensors, plan, torch.float32) or {}
    kernels = {name: (kind, kernel(kind)) for name, kind in found.items()}
    cpu = torch.device("cpu")
    return FusedRule(tensors, plan, kernels=kernels, dtype=torch.float32, device=cpu, cache=cache)


def test_a_compiled_pass_keeps_no_tensor_that_an_adapter_makes(opened: tuple[Source, list[Source]]) -> None:
    base, experts = opened
    recipe = recipe_of(base, experts, "ties")
    tensors = bank_of(base, experts).rule_tensors(recipe.rules[0], recipe)
    cache = SourceCache()
    merged = dict(fused(tensors, "ties", cache, []).tensors())
    assert all(torch.equal(merged[name], tensor) for name, tensor in merge_rule("ties", tensors))
    kept = {name for name, _ in cache.spans}
    assert EMBEDDING in kept
    assert QUERY not in kept


@pytest.mark.parametrize(("method", "options"), [("ties", {"trim_scope": "tensor"}), ("dare_linear", {})])
def test_a_compiled_pass_makes_few_rows_of_an_adapted_tensor_at_a_time(
    opened: tuple[Source, list[Source]], monkeypatch: pytest.MonkeyPatch, method: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(adapted_tensors, "CPU_BLOCK", 7 * 32)
    base, experts = opened
    recipe = recipe_of(base, experts, method)
    rule = replace(recipe.rules[0], tensors=(QUERY,), options=resolve_options(method, options))
    tensors = bank_of(base, experts).rule_tensors(rule, recipe)
    lengths: list[int] = []
    passes = fused(tensors, method, SourceCache(), lengths)
    (merged,) = dict(passes.tensors()).values()
    assert set(lengths) == {7 * 32, 4 * 32}
    whole = [dict(expert.tensors.items()) for expert in experts]
    ((_, expected),) = merge_rule(method, replace(tensors, sources=whole))
    assert torch.equal(merged, expected)
    written = torch.empty_like(merged)
    passes.write({QUERY: written})
    assert torch.equal(written, expected)


def test_the_memory_of_a_search_counts_what_adapters_hold_and_the_largest_tensor_that_each_makes(
    opened: tuple[Source, list[Source]],
) -> None:
    base, experts = opened
    found = adapter_bytes(experts)
    # Two layers with q_proj 32 x 32, v_proj 16 x 32 and down_proj 32 x 48, in float32.
    shapes = [(32, 32), (16, 32), (32, 48)]
    assert [sorted(each.held) for each in found] == [
        sorted(2 * [4 * rank * size for shape in shapes for size in shape]) for rank in RANKS
    ]
    assert {each.made for each in found} == {4 * 32 * 48}
    alone = memory_need(base.catalogue, 1, "float32")
    with_experts = memory_need(base.catalogue, 4, "float32", adapters=found)
    assert with_experts.sources == alone.sources + sum(sum(each.held) for each in found)
    assert with_experts.worker == alone.worker + sum(each.made for each in found)
