"""Places of stored tensors in the live model, as transformers' own conversion map has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from expert_models import KINDS, STACKED, average, open_kind, write_kind
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import Interleave, WeightConverter

from evomerge.artefacts import write_model
from evomerge.bank import WeightBank
from evomerge.checkpoints import check_compatible, check_scorable, load_skeleton, open_source, tensor_digests
from evomerge.checkpoints.stacked_model import check_stackable
from evomerge.conversion import stored_places
from evomerge.errors import InvalidInput
from evomerge.recipe import ModelRef

GATES = "model.layers.1.block_sparse_moe.experts.2.w1.weight"


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Without gradients: torch multiplies tensors that need them in another order."""
    found: torch.Tensor = model.requires_grad_(False)(torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])).logits
    return found


def rewrite(directory: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace stored tensors, or take them away."""
    file = directory / "model.safetensors"
    stored = {name: tensor.clone() for name, tensor in load_file(file).items()} | change
    save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, file, {"format": "pt"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_live_merge_is_the_model_that_transformers_loads_from_its_export(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    base = open_kind(kind, tmp_path / "base")
    expert = open_kind(kind, tmp_path / "expert", seed=1, like=base)
    recipe = average(base, expert, dtype=dtype)
    bank = WeightBank(base, [expert], dtype=getattr(torch, dtype), device=torch.device("cpu"))
    model = bank.materialize(recipe)
    out = tmp_path / "out"
    write_model(out, base=base, tensors=bank.merged(recipe), dtype=getattr(torch, dtype), recipe=recipe)
    exported, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    theirs = exported.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), logits(exported.eval()))
    stored = load_file(out / "model.safetensors")
    assert stored.keys() == load_file(base.directory / "model.safetensors").keys()
    assert bank.live_digests(recipe) == tensor_digests(
        (name, stored[base.stored_names[name]]) for name in bank.weights["base"]
    )


@pytest.mark.parametrize("kind", STACKED)
def test_a_matrix_of_one_expert_is_a_slice_of_the_stack_that_the_live_model_has(kind: str, tmp_path: Path) -> None:
    source = open_kind(kind, tmp_path / "base")
    assert set(source.places) == {name for name in source.catalogue.names if ".experts." in name}
    model, parameters = load_skeleton(source, dtype=torch.float32)
    live = model.state_dict().values()
    owned = {tensor.untyped_storage().data_ptr() for tensor in live}
    assert {tensor.untyped_storage().data_ptr() for tensor in parameters.values()} == owned
    assert sum(tensor.numel() for tensor in parameters.values()) == sum(tensor.numel() for tensor in live)


def test_writing_one_matrix_of_one_expert_changes_that_alone(tmp_path: Path) -> None:
    source = open_kind("mixtral", tmp_path / "base")
    model, parameters = load_skeleton(source, dtype=torch.float32)
    stack = model.model.layers[1].mlp.experts.gate_up_proj
    before = stack.clone()
    parameters[GATES].fill_(7)
    assert torch.equal(stack[2, :24], torch.full((24, 16), 7.0))
    before[2, :24] = 7
    assert torch.equal(stack, before)


def test_tensors_that_are_stored_as_one_have_its_memory_in_common(tmp_path: Path) -> None:
    source = open_kind("hrm_text", tmp_path / "base")
    model, parameters = load_skeleton(source, dtype=torch.float32)
    parameters["model.L_module.layers.0.attn.gqkv_proj.weight"][16:32] = 7
    attention = model.model.L_module.layers[0].self_attn
    assert torch.equal(attention.q_proj.weight, torch.full((16, 16), 7.0))
    assert not bool((attention.gate_proj.weight == 7).any() or (attention.k_proj.weight == 7).any())


def test_a_candidate_leaves_nothing_of_itself_to_the_next(tmp_path: Path) -> None:
    base = open_kind("qwen3_moe", tmp_path / "base")
    expert = open_kind("qwen3_moe", tmp_path / "expert", seed=1, like=base)
    bank = WeightBank(base, [expert], dtype=torch.float32, device=torch.device("cpu"))
    first = logits(bank.materialize(average(base, expert)))
    bank.materialize(average(base, expert, weight=0.9))
    assert torch.equal(logits(bank.materialize(average(base, expert))), first)
    alone = AutoModelForCausalLM.from_pretrained(base.directory).eval()
    assert torch.equal(logits(bank.base_model()), logits(alone))


def test_a_checkpoint_without_the_prefix_of_its_base_model_has_the_names_of_the_base(tmp_path: Path) -> None:
    base = open_kind("mixtral", tmp_path / "base")
    write_kind("mixtral", tmp_path / "bare", seed=1)
    stored = load_file(tmp_path / "bare" / "model.safetensors")
    renamed = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
    rewrite(tmp_path / "bare", dict.fromkeys(stored) | renamed)
    bare = open_source(ModelRef("bare", str(tmp_path / "bare")), like=base)
    check_compatible(base, [bare])
    assert bare.catalogue.names == base.catalogue.names
    assert torch.equal(bare.tensors[GATES], stored[GATES])


@pytest.mark.parametrize("form", ["w1", "w2"])
def test_a_checkpoint_that_lacks_a_matrix_of_an_expert_is_refused(form: str, tmp_path: Path) -> None:
    rewrite(write_kind("mixtral", tmp_path / "base"), {GATES.replace("w1", form): None})
    with pytest.raises(InvalidInput, match=r"do not fit config\.json: model\.layers\.1\.mlp\.experts\.\w+ of model"):
        open_source(ModelRef("base", str(tmp_path / "base")))


def test_a_checkpoint_that_lacks_all_experts_of_a_layer_is_refused(tmp_path: Path) -> None:
    directory = write_kind("mixtral", tmp_path / "base")
    names = [name for name in load_file(directory / "model.safetensors") if "layers.1.block_sparse_moe.exp" in name]
    rewrite(directory, dict.fromkeys(names))
    with pytest.raises(InvalidInput, match=r"lacks: model\.layers\.1\.mlp\.experts\.down_proj, model\.layers\.1"):
        open_source(ModelRef("base", str(directory)))


def test_rows_that_the_live_model_interleaves_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    real = stored_places.get_model_conversion_mapping
    interleaved = WeightConverter(re.escape(name), name, [Interleave(dim=0)])
    monkeypatch.setattr(stored_places, "get_model_conversion_mapping", lambda model: [interleaved, *real(model)])
    source = open_kind("mixtral", tmp_path / "base")
    with pytest.raises(InvalidInput, match=rf"keeps 1 tensor .*\({name}\).*\(it reorders numbers inside of a dim"):
        check_scorable(source)


def test_layers_whose_tensors_have_another_form_in_the_live_model_are_not_stacked(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="keeps 18 tensors of its layers in another form than stored"):
        check_stackable(open_kind("mixtral", tmp_path / "base"))
