"""Merges of adapters that are adapters: PEFT loads them and computes what was merged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from lora_models import SIZES, merged_by_peft, open_base, save_adapter, save_base
from peft import PeftConfig
from peft.utils import transformers_weight_conversion as peft_conversion
from transformers import AutoModelForCausalLM, DeepseekV3Config, LlamaConfig, PreTrainedConfig, Qwen3NextConfig

from evomerge.adapters import LowRank, open_expert
from evomerge.artefacts.adapter_writer import largest_difference, write_adapter
from evomerge.bank import WeightBank
from evomerge.checkpoints.live import meta_model
from evomerge.checkpoints.source import Source
from evomerge.cli import run_command
from evomerge.conversion import fused_modules
from evomerge.errors import InvalidInput
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.recipe import MergeSpace, ModelRef, PathLayer, Recipe, Rule

RANKS = (2, 3)
MODULES = {"llama": ["q_proj", "down_proj", "embed_tokens", "lm_head"], "gpt2": ["c_attn", "c_proj"]}


def _open(tmp_path: Path, kind: str = "llama", **settings: Any) -> tuple[Source, list[Source]]:
    base = save_base(tmp_path / "base", kind)
    source, experts = open_base(base), []
    for rank in RANKS:
        given = {"target_modules": MODULES[kind], "fan_in_fan_out": kind == "gpt2"} | settings
        folder = save_adapter(base, tmp_path / f"rank{rank}", seed=rank, r=rank, **given)
        experts.append(open_expert(ModelRef(folder.name, str(folder)), base=source))
    return source, experts


def _recipe(base: Source, experts: list[Source], method: str, space: MergeSpace = "full", **given: Any) -> Recipe:
    rule = Rule(
        tensors=tuple(entry.name for entry in base.catalogue.mergeable),
        method=method,
        sources=tuple(expert.name for expert in experts),
        parameters=resolve_parameters(method, given, len(experts)),
        options=resolve_options(method, {}),
    )
    refs = tuple(expert.ref for expert in experts)
    return Recipe(base=base.ref, sources=refs, rules=(rule,), dtype="float32", space=space)


def _export(base: Source, experts: list[Source], recipe: Recipe, out: Path) -> WeightBank:
    bank = WeightBank(base, experts, dtype=torch.float32, device=torch.device("cpu"))
    products = bank.core_merges.products(recipe, bank.rule_tensors)
    write_adapter(out, base=base, products=products, recipe=recipe, card="# A merge\n")
    return bank


def test_an_adapter_names_the_revision_of_its_base_where_that_is_on_the_hub(tmp_path: Path) -> None:
    local, experts = _open(tmp_path)
    recipe = _recipe(local, experts, "task_arithmetic", weight=[0.7, -0.4])
    commit = "0a" * 20
    on_hub = replace(local, hub_id="owner/base", ref=replace(local.ref, location="owner/base", revision=commit))
    for base, known in ((local, (None, None)), (on_hub, ("owner/base", commit))):
        _export(base, experts, recipe, tmp_path / "out")
        config = PeftConfig.from_pretrained(tmp_path / "out")
        assert (config.base_model_name_or_path, config.revision) == known


def test_a_full_disk_is_an_error_that_names_a_file_of_the_adapter_and_nothing_is_left(
    tmp_path: Path, room_for: Callable[[int], AbstractContextManager[None]]
) -> None:
    base, experts = _open(tmp_path)
    recipe = _recipe(base, experts, "task_arithmetic", weight=[0.7, -0.4])
    out = tmp_path / "made" / "out"
    with room_for(64), pytest.raises(OSError, match="File too large") as raised:
        _export(base, experts, recipe, out)
    assert out.parent in Path(raised.value.filename).parents
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "method", "space", "given"),
    [
        ("llama", "task_arithmetic", "full", {"weight": [0.7, -0.4]}),
        ("llama", "ties", "core", {"density": 0.4}),
        ("gpt2", "task_arithmetic", "core", {"weight": [0.7, 0.4]}),
    ],
)
def test_peft_makes_of_an_exported_adapter_what_was_merged(
    tmp_path: Path, kind: str, method: str, space: MergeSpace, given: dict[str, Any]
) -> None:
    base, experts = _open(tmp_path, kind)
    recipe = _recipe(base, experts, method, space, **given)
    bank = _export(base, experts, recipe, tmp_path / "out")
    by_peft = merged_by_peft(tmp_path / "base", tmp_path / "out")
    again = open_expert(ModelRef("again", str(tmp_path / "out")), base=base)
    for name, tensor in bank.merged(recipe):
        torch.testing.assert_close(by_peft[base.live_names[name]], tensor, rtol=0, atol=1e-5)
        torch.testing.assert_close(again.tensors[name], tensor, rtol=0, atol=1e-5)


def test_an_exported_adapter_has_no_higher_rank_than_the_merge(tmp_path: Path) -> None:
    base, experts = _open(tmp_path)
    _export(base, experts, _recipe(base, experts, "task_arithmetic", weight=[0.7, 0.0]), tmp_path / "one")
    _export(base, experts, _recipe(base, experts, "task_arithmetic", weight=[0.7, 0.4]), tmp_path / "both")
    ranks = [json.loads((tmp_path / name / "adapter_config.json").read_text())["r"] for name in ("one", "both")]
    assert ranks == [RANKS[0], sum(RANKS)]


def test_what_is_no_adapter_is_refused_with_the_reason(tmp_path: Path) -> None:
    base, experts = _open(tmp_path, modules_to_save=["norm"])
    recipe = _recipe(base, experts, "task_arithmetic")
    for refused, said in (
        (_recipe(base, experts, "ties"), "a merge by ties of the weights themselves is no adapter"),
        (recipe, r"norm\.weight as a whole"),
        (replace(recipe, layers=(PathLayer("base", 0, 1.0),)), "a path of layers"),
        (replace(recipe, ingredients={"made": recipe}), "ingredients"),
    ):
        with pytest.raises(InvalidInput, match=said):
            _export(base, experts, refused, tmp_path / "out")
    assert not (tmp_path / "out").exists()


PARTS_OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")
MOE: dict[str, Any] = {
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def _products(base: Source) -> Iterator[tuple[str, LowRank]]:
    """A random product for each weight of a linear layer."""
    model = meta_model(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for name, place in sorted(base.live_names.items()):
            if isinstance(model.get_submodule(place.rpartition(".")[0]), torch.nn.Linear) and place.endswith("weight"):
                rows, columns = base.header[name][0]
                yield name, LowRank(torch.randn(rows, 2) / 10, torch.randn(2, columns), 1.0)


@pytest.mark.parametrize(
    ("config", "refused"),
    [(LlamaConfig, ()), (DeepseekV3Config, PARTS_OF_EXPERTS), (Qwen3NextConfig, PARTS_OF_EXPERTS)],
)
def test_what_peft_would_load_as_parts_of_fused_experts_is_refused_and_the_rest_is_exact(
    config: type[PreTrainedConfig], refused: tuple[str, ...], tmp_path: Path
) -> None:
    known = config().to_dict()
    settings = config(**SIZES, **{key: value for key, value in MOE.items() if key in known})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "base")
    base = open_base(tmp_path / "base")
    recipe, given = Recipe(base=base.ref, sources=(base.ref,), rules=(), dtype="float32"), dict(_products(base))
    taken = [name for name in given if name.split(".")[-2] in refused]
    assert bool(taken) == bool(refused)
    for name in taken:
        with pytest.raises(InvalidInput, match="PEFT adapts the fused experts instead"):
            write_adapter(tmp_path / "out", base=base, products={name: given[name]}, recipe=recipe, card="")
    kept = {name: product for name, product in given.items() if name not in taken}
    write_adapter(tmp_path / "out", base=base, products=kept, recipe=recipe, card="")
    by_peft = merged_by_peft(tmp_path / "base", tmp_path / "out")
    for name, place in base.live_names.items():
        expected = base.tensors[name].clone()
        if name in kept:
            kept[name].add_to(expected)
        torch.testing.assert_close(by_peft[place], expected, rtol=0, atol=1e-5)


def test_the_modules_that_are_refused_are_those_that_peft_converts() -> None:
    for kind, names in peft_conversion._MODEL_TO_CONVERSION_PATTERN.items():
        model = SimpleNamespace(config=SimpleNamespace(model_type=kind))
        assert fused_modules(model) == peft_conversion._MOE_TARGET_MODULE_MAPPING.get(names, {}).keys(), kind


def test_an_adapter_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    base, experts = _open(tmp_path)
    with pytest.raises(InvalidInput, match="changes no tensor of the base"):
        _export(base, experts, _recipe(base, experts, "task_arithmetic", weight=0.0), tmp_path / "out")


@pytest.mark.parametrize(
    ("folder", "says"), [("thesis", "not an earlier export"), ("rank2", "holds a source of this merge")]
)
def test_only_an_earlier_export_of_an_adapter_is_replaced(folder: str, says: str, tmp_path: Path) -> None:
    base, experts = _open(tmp_path)
    recipe = _recipe(base, experts, "task_arithmetic")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "words.txt").touch()
    with pytest.raises(InvalidInput, match=says):
        _export(base, experts, recipe, tmp_path / folder)
    for _ in range(2):
        _export(base, experts, recipe, tmp_path / "out")


class _OnDevice(torch.Tensor):
    """A tensor that no operation takes together with one of the host, as on another device."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(type(each) is torch.Tensor for each in args):
            raise RuntimeError("Expected all tensors to be on the same device")
        result = super().__torch_function__(function, types, args, kwargs or {})
        return result.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else result


def test_an_adapter_is_compared_with_a_merge_that_was_made_on_another_device() -> None:
    written = {"w": torch.tensor([1.0, 2.0]), "ids": torch.tensor([1])}
    merged = {"w": torch.tensor([1.0, 2.25]).as_subclass(_OnDevice), "ids": torch.tensor([3])}
    with pytest.raises(RuntimeError, match="same device"):
        written["w"] - merged["w"]
    assert largest_difference(written, merged.items()) == 0.25


def test_the_winner_of_a_search_in_core_space_is_exported_as_a_model_and_as_an_adapter(
    tmp_path: Path, write_spec: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base, experts = _open(tmp_path)
    space = {
        "name": "core",
        "space": "core",
        "groups": {"depth": "global"},
        "methods": {"ties": {"parameters": {"weight": {"low": 0.5, "high": 1.0}}}},
    }
    sources = [{"name": each.name, "location": str(each.directory)} for each in (base, *experts)]
    spec = str(write_spec(sources=sources, space=space, budget={"trials": 2}, dtype="float32"))
    assert run_command(["run", spec, "--ray", "none"]) == 0
    capsys.readouterr()
    for more in ([], ["--adapter"]):
        assert run_command(["export", spec, "--out", str(tmp_path / f"out{len(more)}"), "--json", *more]) == 0
    model, adapter = (json.loads(line) for line in capsys.readouterr().out.replace("}\n{", "}\0{").split("\0"))
    assert model["verified"]
    assert adapter["recipe"] == model["recipe"]
    assert adapter["largest_difference"] < 1e-5
    exported = open_base(tmp_path / "out0")
    for name, tensor in merged_by_peft(tmp_path / "base", tmp_path / "out1").items():
        torch.testing.assert_close(exported.tensors[name], tensor, rtol=0, atol=1e-5)
    assert "--adapter" in (tmp_path / "out1" / "README.md").read_text()
    cards = [ModelCard.load(tmp_path / f"out{number}" / "README.md").data for number in (0, 1)]
    assert [card.library_name for card in cards] == ["transformers", "peft"]
    assert "lora" in cards[1].tags
    assert cards[0].eval_results == cards[1].eval_results is not None
    assert run_command(["export", spec, "--out", str(tmp_path / "out"), "--adapter", "--task", "task_0"]) == 2
    assert "leave one out" in capsys.readouterr().err
